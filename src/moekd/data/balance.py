"""Balancing: for each vulnerable function one that is not, alike in project and length (methods.md 6.3 step 1)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moekd.data.text import count_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

    from moekd.data.tally import Tally
    from moekd.records import Sample


@dataclass(frozen=True)
class Balanced:
    """As many vulnerable functions as others.

    Attributes:
        pairs: (vulnerable, matched other), in the order of the vulnerable ones.
        matched: how many pairs were found by which rule.
    """

    pairs: tuple[tuple[Sample, Sample], ...]
    matched: dict[str, int]


class _Pool:
    """Functions still to be drawn, sorted by lines; drawing one takes it out."""

    def __init__(self, samples: Iterable[tuple[int, Sample]]) -> None:
        ordered = sorted(samples, key=lambda entry: entry[0])  # stable: ties keep the shuffled order
        self._lines = [lines for lines, _ in ordered]
        self._samples = [sample for _, sample in ordered]

    def draw(self, rng: Random, shortest: float, longest: float) -> Sample | None:
        low, high = bisect_left(self._lines, shortest), bisect_right(self._lines, longest)
        return self._take(rng.randrange(low, high)) if low < high else None

    def nearest(self, lines: int) -> Sample | None:
        if not self._lines:
            return None
        right = bisect_left(self._lines, lines)
        near = [i for i in (right - 1, right) if 0 <= i < len(self._lines)]
        return self._take(min(near, key=lambda i: abs(self._lines[i] - lines)))

    def _take(self, index: int) -> Sample:
        del self._lines[index]
        return self._samples.pop(index)

    def left(self) -> list[tuple[int, Sample]]:
        return list(zip(self._lines, self._samples, strict=True))


def balance(samples: Sequence[Sample], tally: Tally, rng: Random, *, tolerance: float) -> Balanced:
    """Draw one non-vulnerable function for each vulnerable one, without replacement.

    The rules, each tried for all functions before the next, so that a poor match never takes a good one away:
    "project and length" (same project, lines within `tolerance`), "project" (the paper's fallback), then for functions
    of unknown project or one with nothing left: "data set and length", "length", "nearest length". The reasons of
    dropping: "not drawn by balancing", "nothing left to balance it with".
    """
    vulnerable = [sample for sample in samples if sample.label]
    others = [(count_lines(sample.func), sample) for sample in samples if not sample.label]
    rng.shuffle(others)
    lines = {sample.id: count_lines(sample.func) for sample in vulnerable}
    waiting = rng.sample(vulnerable, len(vulnerable))  # nobody chooses first because of its place in a file
    partner: dict[str, Sample] = {}
    matched: Counter[str] = Counter()

    def within(pool: _Pool, sample: Sample) -> Sample | None:
        n = lines[sample.id]
        return pool.draw(rng, n * (1 - tolerance), n * (1 + tolerance))

    def anywhere(pool: _Pool, sample: Sample) -> Sample | None:
        return pool.draw(rng, 0, float("inf"))

    def nearest(pool: _Pool, sample: Sample) -> Sample | None:
        return pool.nearest(lines[sample.id])

    for rule, key, draw in (
        ("project and length", _project, within),
        ("project", _project, anywhere),
        ("data set and length", _dataset, within),
        ("length", _everything, within),
        ("nearest length", _everything, nearest),
    ):
        waiting, others = _draw_by(key, draw, waiting, others, partner)
        matched[rule] = len(partner) - matched.total()
    tally.dropped["not drawn by balancing"] += len(others)
    tally.dropped["nothing left to balance it with"] += len(waiting)
    tally.dropped += Counter()
    pairs = tuple((sample, partner[sample.id]) for sample in vulnerable if sample.id in partner)
    return Balanced(pairs, dict(matched))


def _draw_by(
    key: Callable[[Sample], str | None],
    draw: Callable[[_Pool, Sample], Sample | None],
    waiting: Sequence[Sample],
    others: Sequence[tuple[int, Sample]],
    partner: dict[str, Sample],
) -> tuple[list[Sample], list[tuple[int, Sample]]]:
    """Match who can be matched inside one group of `key`, into `partner`; return who and what is left."""
    groups: dict[str | None, list[tuple[int, Sample]]] = defaultdict(list)
    for lines, sample in others:
        groups[key(sample)].append((lines, sample))
    pools = {name: _Pool(members) for name, members in groups.items()}
    unmatched = []
    for sample in waiting:
        name = key(sample)
        found = draw(pools[name], sample) if name is not None and name in pools else None
        if found is None:
            unmatched.append(sample)
        else:
            partner[sample.id] = found
    return unmatched, [entry for pool in pools.values() for entry in pool.left()]


def _project(sample: Sample) -> str | None:
    return sample.project


def _dataset(sample: Sample) -> str:
    return sample.dataset


def _everything(sample: Sample) -> str:
    return ""
