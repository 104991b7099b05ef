"""The data report: how many functions of what kind and length are where, and where the others went."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from moekd.data.text import count_lines
from moekd.records import LABELS, PAIR_MARK, PARTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from moekd.data.tally import Tally
    from moekd.records import Part, Sample

_CLUSTERS = (
    "{count:,} sets of near-duplicates, or of a function and its fix, hold {functions:,} functions; "
    "the largest {largest:,}"
)
_PROJECTS = 20  # named in the report; the others are summed
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
_QUANTILES = tuple(f"p{100 * share:.0f}" for share in _SHARES)


def report(
    rows: Sequence[tuple[Sample, Part, int]], tally: Tally, matched: Mapping[str, int], classes: Sequence[str] = LABELS
) -> dict[str, Any]:
    """Return the report as plain data. `rows` are (sample, part, cluster); counts are of functions, or of pairs.

    Keys: classes (names by label), read, kept, dropped, broken, notes, parts, datasets, projects, cwes (of vulnerable
    functions; with more classes than two, of all), functions (of pairs: distinct ones by part), lengths (quantiles by
    label), matched (pairs by rule), clusters (sets of more than one near-duplicate or pair mate).
    """
    samples = [sample for sample, _, _ in rows]
    sizes = [size for size in Counter(cluster for _, _, cluster in rows).values() if size > 1]
    functions = _distinct(rows)
    with_cwe = [] if functions else [s for s in samples if s.label or len(classes) > 2]
    return {
        "classes": list(classes),
        "read": tally.read,
        "kept": len(rows),
        "dropped": dict(tally.dropped.most_common()),
        "broken": tally.broken,
        "notes": dict(tally.notes.most_common()),
        "parts": _by_label(((part, sample) for sample, part, _ in rows), classes, PARTS),
        "datasets": _by_label(((s.dataset, s) for s in samples), classes),
        "projects": _largest(_by_label(((s.project or "unknown", s) for s in samples), classes), _PROJECTS),
        "cwes": dict(Counter(s.cwe or "unknown" for s in with_cwe).most_common()),
        "functions": functions,
        "lengths": {
            name: {
                "lines": _quantiles(count_lines(s.func) for s in samples if s.label == label),
                "characters": _quantiles(len(s.func) for s in samples if s.label == label),
            }
            for label, name in enumerate(classes)
        },
        "matched": dict(matched),
        "clusters": {"count": len(sizes), "functions": sum(sizes), "largest": max(sizes, default=0)},
    }


def render(report: Mapping[str, Any]) -> str:
    """Return the report as text for a terminal; tables without a row are left out."""
    dropped, classes = report["dropped"], report.get("classes", LABELS)  # not in reports of earlier versions
    functions = report.get("functions", {})
    what = "pairs" if functions else "functions"
    blocks = [
        f"{report['read']:,} {what} read = {report['kept']:,} kept + {sum(dropped.values()):,} dropped",
        _table(("dropped because", what), dropped.items()),
        "\n".join(["broken records, the first of them:", *report["broken"]]) if report["broken"] else "",
        _table(("kept with a remark", what), report["notes"].items()),
        _table(("part", *classes), _label_rows(report["parts"])),
        _table(("data set", *classes), _label_rows(report["datasets"])),
        _table(("project", *classes), _label_rows(report["projects"])),
        _table(("distinct functions of", "functions"), functions.items()),
        _table(("CWE of the vulnerable", "functions"), report["cwes"].items()),
        _table(("length", *_QUANTILES), _length_rows(report["lengths"])),
        _table(("balanced by", "pairs"), report["matched"].items()),
        "" if functions else _CLUSTERS.format(**report["clusters"]),
    ]
    return "\n\n".join(block for block in blocks if block)


def _distinct(rows: Sequence[tuple[Sample, Part, int]]) -> dict[str, int]:
    """Distinct functions of the pairs of each part; empty where samples are no pairs."""
    if not any(PAIR_MARK in sample.func for sample, _, _ in rows):
        return {}
    texts = {name: {text for s, part, _ in rows if part == name for text in s.func.split(PAIR_MARK)} for name in PARTS}
    return {name: len(found) for name, found in texts.items()}


def _by_label(
    named: Iterable[tuple[str, Sample]], classes: Sequence[str], order: Sequence[str] = ()
) -> dict[str, dict[str, int]]:
    """Count by name and label, largest first unless an order is given."""
    counts = Counter((name, sample.label) for name, sample in named)
    totals: Counter[str] = Counter()
    for (name, _), count in counts.items():
        totals[name] += count
    return {
        name: {label_name: counts[name, label] for label, label_name in enumerate(classes)}
        for name in order or [name for name, _ in totals.most_common()]
    }


def _largest(counts: Mapping[str, Mapping[str, int]], most: int) -> dict[str, Mapping[str, int]]:
    names = list(counts)
    if len(names) <= most:
        return dict(counts)
    rest = names[most:]
    summed = {label: sum(counts[name][label] for name in rest) for label in counts[names[0]]}
    return {name: counts[name] for name in names[:most]} | {f"{len(rest)} others": summed}


def _quantiles(values: Iterable[int]) -> dict[str, int]:
    """Nearest-rank quantiles: each is a length that occurs."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in zip(_QUANTILES, _SHARES, strict=True)}


def _label_rows(counts: Mapping[str, Mapping[str, int]]) -> list[tuple[object, ...]]:
    return [(name, *by_label.values()) for name, by_label in counts.items()]


def _length_rows(lengths: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[tuple[object, ...]]:
    return [
        (f"{unit}, {label}", *quantiles.values())
        for label, by_unit in lengths.items()
        for unit, quantiles in by_unit.items()
        if quantiles
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns under a header: the first to the left, numbers to the right. Empty if there is no row."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    cells.insert(0, list(header))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )
