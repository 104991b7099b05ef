"""Stage 1: labelled functions from files, cleaned, balanced and split, with a report of where each function went.

`docs/data.md` says what the labels mean and what we measured about them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from moekd import console
from moekd.data import describe
from moekd.data.balance import balance
from moekd.data.classes import by_cwe_group, common_classes
from moekd.data.clean import usable, without_duplicates
from moekd.data.duplicates import Union, join_near_duplicates
from moekd.data.pairs import split_pairs
from moekd.data.readers import dataset_name, read
from moekd.data.split import assign, clusters_of
from moekd.data.tally import Tally
from moekd.errors import DataError, SettingsError
from moekd.files import read_json, write_bytes, write_json
from moekd.records import LABELS, PAIR_LABELS, PARTS, Part, Sample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moekd.config import Data, MoekdSettings

SAMPLES = "samples.parquet"
REPORT = "report.json"
_FIELDS = tuple(field.name for field in fields(Sample))


@dataclass(frozen=True)
class Loaded:
    """Cleaned functions and where the others went: len(samples) + the sum of tally.dropped = tally.read."""

    samples: list[Sample]
    tally: Tally


def prepare(settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Stage: read, clean, balance and split the sources; write `samples.parquet` and `report.json`.

    Returns:
        Facts for the manifest: functions read, kept and dropped by reason, and the size of each part.
    Raises:
        DataError: a source cannot be used, or a class is missing from a part.
    """
    data = settings.data
    rng = Random(data.seed)
    loaded = load(data)
    tally = loaded.tally
    classes: tuple[str, ...] = LABELS
    matched: dict[str, int] = {}
    if data.task != "multi-class":
        _require_both_labels(loaded.samples, tally)
    if data.task == "pair":
        classes, rows = PAIR_LABELS, split_pairs(loaded.samples, data, tally, rng)
    else:
        selected, partner, matched = _select(loaded.samples, data, tally, rng)
        if data.task == "multi-class":
            selected, classes = common_classes(selected, tally, least=data.class_min_samples)
        clusters = _clusters(selected, data.near_duplicate_jaccard)
        parts = assign(selected, clusters, partner, data, tally, rng, classes)
        rows = [
            (sample, part, cluster)
            for sample, part, cluster in zip(selected, parts, clusters, strict=True)
            if part is not None
        ]
    assert len(rows) == tally.kept, f"{len(rows)} kept, but {tally.read} read and {tally.dropped} dropped"
    if data.shuffle_labels:
        rows = _with_shuffled_labels(rows, rng)
    _write(folder / SAMPLES, rows)
    report = describe.report(rows, tally, matched, classes)
    write_json(folder / REPORT, report)
    facts = ("read", "kept", "dropped", "parts", "matched", "broken")
    return {name: report[name] for name in (facts if data.task == "binary" else (*facts, "classes"))}


def load_classes(settings: MoekdSettings, folder: Path) -> tuple[str, ...]:
    """Return the names of the classes, in the order of the labels, of the data stage's folder."""
    return LABELS if settings.data.task == "binary" else tuple(read_json(folder / REPORT)["classes"])


def load_parts(folder: Path) -> dict[Part, list[Sample]]:
    """Return the samples of each part from the folder that `prepare` wrote."""
    import pyarrow.parquet as pq

    parts: dict[Part, list[Sample]] = {part: [] for part in PARTS}
    table = pq.read_table(folder / SAMPLES, columns=[*_FIELDS, "part"])
    columns = [table.column(name).to_pylist() for name in (*_FIELDS, "part")]
    for *values, part in zip(*columns, strict=True):
        parts[part].append(Sample(*values))
    return parts


def read_samples(
    path: str | Path,
    *,
    kind: str | None = None,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    include_fixed: bool = True,
) -> Loaded:
    """Read one file of labelled functions, cleaned and without duplicates, neither balanced nor split.

    Args:
        kind: "bigvul-csv", "parquet" or "jsonl"; default: by the file's ending.
        name: data set label in the ids; default: the file's stem.
        columns: ours = theirs, where names differ from those of `moekd.data.formats.COLUMNS`.
        include_fixed: keep functions after their fix.
    Raises:
        DataError: the file cannot be used; names it and, where there is one, the row.
        SettingsError: the kind cannot be told, or a column is unknown.
    """
    from moekd.config import Data, Source

    source = Source(kind=kind or _kind_of(path), path=str(path), name=name, columns=dict(columns or {}))
    return load(Data(sources=(source,), include_fixed=include_fixed))


def load(data: Data) -> Loaded:
    """Read the sources and clean them: unusable functions and duplicates are dropped, within and across sources.

    Raises:
        DataError, SettingsError, MissingExtraError: see `moekd.data.readers.read`.
    """
    tally = Tally()
    samples: list[Sample] = []
    for source in data.sources:
        with console.bar(None, f"reading {dataset_name(source)}") as advance:
            for sample in usable(
                read(source, tally, "binary" if data.classes == "cwe-group" else data.task),
                tally,
                max_characters=data.max_characters,
                include_fixed=data.include_fixed,
            ):
                samples.append(sample)
                advance(1)
    kept = without_duplicates(samples, tally)
    if data.classes == "cwe-group":
        kept = by_cwe_group(kept, tally)
    assert len(kept) == tally.kept, f"{len(kept)} kept, but {tally.read} read and {tally.dropped} dropped"
    return Loaded(kept, tally)


def _kind_of(path: str | Path) -> str:
    kinds = {".parquet": "parquet", ".jsonl": "jsonl", ".csv": "bigvul-csv"}
    ending = Path(str(path).removesuffix(".gz")).suffix
    if ending not in kinds:
        raise SettingsError(f"{path}: cannot tell the kind of file from {ending!r}; known are {', '.join(kinds)}")
    return kinds[ending]


def _require_both_labels(samples: Sequence[Sample], tally: Tally) -> None:
    labels = Counter(sample.label for sample in samples)
    if len(labels) < 2:
        found = f"all {len(samples):,} have label {samples[0].label}" if samples else "there is none"
        raise DataError(
            f"data.sources: functions with both labels are needed, but of {tally.read:,} read and "
            f"{len(samples):,} usable {found}. Dropped: {dict(tally.dropped) or 'none'}"
        )


def _select(
    samples: Sequence[Sample], data: Data, tally: Tally, rng: Random
) -> tuple[list[Sample], dict[str, str], dict[str, int]]:
    """Balance and cut down to `limit`; return samples, id of each one's vulnerable partner, and pairs by rule."""
    if not data.balance:
        kept = list(samples)
        if data.limit is not None and len(kept) > data.limit:
            kept = rng.sample(kept, data.limit)
            tally.dropped["over data.limit"] += len(samples) - len(kept)
        return kept, {}, {}
    balanced = balance(samples, tally, rng, tolerance=data.length_tolerance)
    pairs = list(balanced.pairs)
    if data.limit is not None and len(pairs) > data.limit // 2:
        pairs = rng.sample(pairs, data.limit // 2)
        tally.dropped["over data.limit"] += 2 * (len(balanced.pairs) - len(pairs))
    partner = {other.id: vulnerable.id for vulnerable, other in pairs}
    return [sample for pair in pairs for sample in pair], partner, balanced.matched


def _clusters(samples: Sequence[Sample], jaccard: float) -> list[int]:
    union = Union(len(samples))
    with console.bar(len(samples), "finding near-duplicates") as advance:
        join_near_duplicates([sample.func for sample in samples], union, jaccard=jaccard, advance=advance)
    return clusters_of(samples, union)


def _with_shuffled_labels(rows: Sequence[tuple[Sample, Part, int]], rng: Random) -> list[tuple[Sample, Part, int]]:
    """A control: the labels of each part, dealt anew, so that nothing is left to be learned."""
    labels = {part: [sample.label for sample, of, _ in rows if of == part] for part in PARTS}
    for dealt in labels.values():
        rng.shuffle(dealt)
    return [(replace(sample, label=labels[part].pop()), part, cluster) for sample, part, cluster in rows]


def _write(path: Path, rows: Sequence[tuple[Sample, Part, int]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.int64()
    columns = {name: [getattr(sample, name) for sample, _, _ in rows] for name in _FIELDS}
    columns |= {"part": [part for _, part, _ in rows], "cluster": [cluster for _, _, cluster in rows]}
    types = {"label": number, "cluster": number}
    schema = pa.schema([(name, types.get(name, text)) for name in columns])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())
