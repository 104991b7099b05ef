"""Cleaning: what is no usable function, and what occurs twice. Every function dropped is counted with its reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moekd.data.text import structural_fault
from moekd.records import PAIR_MARK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from moekd.data.tally import Tally
    from moekd.records import Sample

_SHORTEST = 30  # characters; below that there is no function, only a stub or a leftover of the extraction
_FILLED = ("kind", "cwe", "cve", "project", "family", "commit", "date", "pair")


def usable(samples: Iterable[Sample], tally: Tally, *, max_characters: int, include_fixed: bool) -> Iterator[Sample]:
    """Yield the samples whose functions, one or a pair, are whole; count the others into `tally` by reason.

    The reasons: "fixed version" (unless `include_fixed`), "empty", "shorter than 30 characters", "longer than
    data.max_characters", "no function body", "unbalanced brackets". Lengths are those of the normalised text.
    """
    for sample in samples:
        if sample.kind == "fixed" and not include_fixed:
            reason: str | None = "fixed version"
        else:
            faults = (_fault(text, max_characters) for text in sample.func.split(PAIR_MARK))
            reason = next((fault for fault in faults if fault), None)
        if reason is None:
            yield sample
        else:
            tally.dropped[reason] += 1


def without_duplicates(samples: Sequence[Sample], tally: Tally) -> list[Sample]:
    """Return one sample for each digest, in order of first occurrence, each with an id of its own.

    The first of equal texts is kept and takes from the later ones what it does not know (CWE, CVE, project ...): one
    data set has a label's origin where another lacks it. A text that carries both labels is dropped altogether,
    since neither can be trusted. The reasons: "duplicate" and "conflicting labels".
    """
    copies: dict[str, list[Sample]] = {}
    for sample in samples:
        copies.setdefault(sample.digest, []).append(sample)
    kept = []
    for same in copies.values():
        if len({sample.label for sample in same}) > 1:
            tally.dropped["conflicting labels"] += len(same)
            continue
        tally.dropped["duplicate"] += len(same) - 1
        kept.append(_merged(same))
    tally.dropped += Counter()  # a reason that never occurred is not listed
    return _with_unique_ids(kept)


def _fault(text: str, max_characters: int) -> str | None:
    if not text:
        return "empty"
    if len(text) > max_characters:
        return "longer than data.max_characters"
    if len(text) < _SHORTEST:
        return f"shorter than {_SHORTEST} characters"
    return structural_fault(text)


def _merged(same: Sequence[Sample]) -> Sample:
    first = same[0]
    known: dict[str, Any] = {}
    for name in _FILLED:
        values = (getattr(sample, name) for sample in same)
        known[name] = next((value for value in values if value is not None), None)
    return replace(first, **known) if len(same) > 1 else first


def _with_unique_ids(samples: Iterable[Sample]) -> list[Sample]:
    """Ids come from the sources, which may number twice: the second "x:7" becomes "x:7#2"."""
    seen: Counter[str] = Counter()
    unique = []
    for sample in samples:
        seen[sample.id] += 1
        count = seen[sample.id]
        unique.append(sample if count == 1 else replace(sample, id=f"{sample.id}#{count}"))
    return unique
