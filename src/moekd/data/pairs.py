"""Pairs of functions: read together, split so that no function stands on two sides.

One function occurs in many pairs, so a split of pairs would test a model on functions that it has learned from. Here
functions are dealt to the parts, near-duplicates together, and a pair is kept where both of its functions are in one
part. Nothing but chance decides which pairs those are, so neither label is preferred.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moekd import console
from moekd.data.duplicates import Union, join_near_duplicates
from moekd.data.split import require_all_classes
from moekd.data.text import digest
from moekd.records import PAIR_LABELS, PAIR_MARK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from moekd.config import Data
    from moekd.data.tally import Tally
    from moekd.records import Part, Sample

#: Shares of the functions. The pairs inside a part go with the square of its share: 9, 9, 4 and 4 % of all pairs.
SHARES: dict[Part, float] = {"train_a": 0.3, "train_b": 0.3, "valid": 0.2, "test": 0.2}


def split_pairs(samples: Sequence[Sample], settings: Data, tally: Tally, rng: Random) -> list[tuple[Sample, Part, int]]:
    """Return the pairs that have both functions in one part: (pair, part, row number).

    The reasons of dropping: "functions on two sides of the split", "over data.limit".
    Raises:
        DataError: a part would lack one of the classes.
    """
    functions: dict[str, int] = {}  # by digest, in order of first occurrence
    texts: list[str] = []
    ends = []
    for sample in samples:
        pair = sample.func.split(PAIR_MARK)
        for text in pair:
            if functions.setdefault(digest(text), len(functions)) == len(texts):
                texts.append(text)
        ends.append([functions[digest(text)] for text in pair])
    part_of = _deal(_near_duplicates(texts, settings.near_duplicate_jaccard), rng)
    inside = [
        (sample, part_of[one])
        for sample, (one, other) in zip(samples, ends, strict=True)
        if part_of[one] == part_of[other]
    ]
    tally.dropped["functions on two sides of the split"] += len(samples) - len(inside)
    if settings.limit is not None and len(inside) > settings.limit:
        tally.dropped["over data.limit"] += len(inside) - settings.limit
        inside = rng.sample(inside, settings.limit)
    tally.dropped = +tally.dropped
    require_all_classes([sample.label for sample, _ in inside], [part for _, part in inside], settings, PAIR_LABELS)
    return [(sample, part, row) for row, (sample, part) in enumerate(inside)]


def _near_duplicates(texts: Sequence[str], jaccard: float) -> list[int]:
    """The set of near-duplicates of each function, named by a member."""
    union = Union(len(texts))
    with console.bar(len(texts), "finding near-duplicates") as advance:
        join_near_duplicates(texts, union, jaccard=jaccard, advance=advance)
    return union.sets()


def _deal(sets: Sequence[int], rng: Random) -> list[Part]:
    """Deal whole sets of functions to the parts in random order, by SHARES; returns the part of each function."""
    sizes: dict[int, int] = {}
    for one in sets:
        sizes[one] = sizes.get(one, 0) + 1
    order = list(sizes)
    rng.shuffle(order)
    ends, end = [], 0.0
    for part, share in SHARES.items():
        end += share * len(sets)
        ends.append((end, part))
    part_of: dict[int, Part] = {}
    before = 0
    for one in order:
        middle = before + sizes[one] / 2
        part_of[one] = next((part for end, part in ends if middle < end), "test")
        before += sizes[one]
    return [part_of[one] for one in sets]
