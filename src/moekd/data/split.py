"""Splits: 80 % training, 10 % validation, 10 % test, related functions on one side (methods.md 6.3 step 1).

What belongs together is a unit, and a unit is never cut. Functions that are near-duplicates but in different units
(by project or time) would tell the model its test: the copy on the training side is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from moekd.data.duplicates import Union
from moekd.errors import DataError
from moekd.records import LABELS, PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from random import Random

    from moekd.config import Data
    from moekd.data.tally import Tally
    from moekd.records import Part, Sample

_SHARE = 0.1  # of validation and of test


def assign(
    samples: Sequence[Sample],
    clusters: Sequence[int],
    partner: Mapping[str, str],
    settings: Data,
    tally: Tally,
    rng: Random,
    classes: Sequence[str] = LABELS,
) -> list[Part | None]:
    """Return the part of each sample; None for those dropped, which are counted into `tally`.

    Args:
        clusters: for each sample the number of its set of near-duplicates and pair mates.
        partner: id of the vulnerable function that a non-vulnerable one was matched with; by time the latter takes
            the date of the former if it has none.
        classes: their names. With more than two, split "random" and the halves are dealt class by class, so that rare
            ones are in every part.
    The reasons: "date unknown", "near-duplicate across the split".
    Raises:
        DataError: a part would lack one of the classes.
    """
    rank = _by_time if settings.split == "time" else _by_unit
    ranks = rank(samples, clusters, partner, settings, rng)
    tally.dropped["date unknown"] += ranks.count(None)
    highest: dict[int, int] = {}
    for cluster, level in zip(clusters, ranks, strict=True):
        highest[cluster] = max(highest.get(cluster, 0), level or 0)
    levels = [level if level == highest[cluster] else None for cluster, level in zip(clusters, ranks, strict=True)]
    tally.dropped["near-duplicate across the split"] += levels.count(None) - ranks.count(None)
    tally.dropped = +tally.dropped
    parts = _halve(clusters, levels, _strata(samples, clusters, settings), rng)
    require_all_classes([sample.label for sample in samples], parts, settings, classes)
    return parts


def _strata(samples: Sequence[Sample], clusters: Sequence[int], settings: Data) -> dict[str, int]:
    """For each cluster what it is dealt with: its first function's class in the task "multi-class", else all alike."""
    strata: dict[str, int] = {}
    for sample, cluster in zip(samples, clusters, strict=True):
        strata.setdefault(str(cluster), sample.label if settings.task == "multi-class" else 0)
    return strata


def clusters_of(samples: Sequence[Sample], union: Union) -> list[int]:
    """Add to the near-duplicates in `union` the pairs of a vulnerable function and its fix; return each one's set."""
    union.join_equal(sample.pair for sample in samples)
    return union.sets()


# A level is 0 for training, 1 for validation, 2 for test, None for dropped: the larger keeps a near-duplicate.
_Levels = list[int | None]


def _by_unit(
    samples: Sequence[Sample],
    clusters: Sequence[int],
    partner: Mapping[str, str],
    settings: Data,
    rng: Random,
) -> _Levels:
    units = _UNITS[settings.split](samples, clusters)
    sizes: dict[str, int] = defaultdict(int)
    for unit in units:
        sizes[unit] += 1
    order = sorted(sizes)
    rng.shuffle(order)
    strata = _strata(samples, clusters, settings) if settings.split == "random" else {}
    level_of: dict[str, int] = {}
    for alike in _by_stratum(order, strata):
        target = round(_SHARE * sum(sizes[unit] for unit in alike))
        level_of |= dict.fromkeys(_filled(alike, sizes, target), 2)
        rest = [unit for unit in alike if unit not in level_of]
        level_of |= dict.fromkeys(_filled(rest, sizes, target), 1)
    return [level_of.get(unit, 0) for unit in units]


def _by_stratum(order: Sequence[str], strata: Mapping[str, int]) -> list[list[str]]:
    """Units of one stratum together, each list in their order; units without one are all alike."""
    lists: dict[int, list[str]] = defaultdict(list)
    for unit in order:
        lists[strata.get(unit, 0)].append(unit)
    return list(lists.values())


def _filled(order: Sequence[str], sizes: Mapping[str, int], target: int) -> list[str]:
    """Take units in order while they fit into `target`, so that large ones stay in training; at least one unit."""
    taken = []
    for unit in order:
        if sizes[unit] <= target:
            taken.append(unit)
            target -= sizes[unit]
    return taken or sorted(order, key=lambda unit: sizes[unit])[:1]


def _by_time(
    samples: Sequence[Sample],
    clusters: Sequence[int],
    partner: Mapping[str, str],
    settings: Data,
    rng: Random,
) -> _Levels:
    """Latest tenth test, the tenth before it validation. A unit is a commit or a pair, as late as its latest date.

    A date that is only a year counts as the year's start; equal dates are ordered at random.
    """
    date_of = {sample.id: sample.date for sample in samples}
    dates = [sample.date or date_of.get(partner.get(sample.id, "")) for sample in samples]
    union = Union(len(samples))
    union.join_equal(sample.commit for sample in samples)
    union.join_equal(sample.pair for sample in samples)
    units = union.sets()
    latest: dict[int, str] = {}
    for unit, date in zip(units, dates, strict=True):
        if date is not None:
            latest[unit] = max(latest.get(unit, ""), date)
    sizes: dict[int, int] = defaultdict(int)
    for unit in units:
        sizes[unit] += unit in latest
    order = sorted(latest)
    rng.shuffle(order)
    order.sort(key=lambda unit: latest[unit])
    level_of = {}
    total, before = sum(sizes.values()), 0
    for unit in order:
        level_of[unit] = (before >= (1 - 2 * _SHARE) * total) + (before >= (1 - _SHARE) * total)
        before += sizes[unit]
    return [level_of.get(unit) for unit in units]


def _by_cluster(samples: Sequence[Sample], clusters: Sequence[int]) -> list[str]:
    return [str(cluster) for cluster in clusters]


def _by_commit(samples: Sequence[Sample], clusters: Sequence[int]) -> list[str]:
    union = Union(len(samples))
    union.join_equal(map(str, clusters))
    union.join_equal(sample.commit for sample in samples)
    return [str(unit) for unit in union.sets()]


def _by_project(samples: Sequence[Sample], clusters: Sequence[int]) -> list[str]:
    return _named_or_alone((sample.project for sample in samples), clusters)


def _by_family(samples: Sequence[Sample], clusters: Sequence[int]) -> list[str]:
    return _named_or_alone((sample.family or sample.project for sample in samples), clusters)


def _named_or_alone(names: Iterable[str | None], clusters: Sequence[int]) -> list[str]:
    """The project; where it is unknown, the near-duplicates are the unit."""
    return [f"project {name}" if name else f"cluster {cluster}" for name, cluster in zip(names, clusters, strict=True)]


_UNITS: Mapping[str, Callable[[Sequence[Sample], Sequence[int]], list[str]]] = {
    "random": _by_cluster,
    "commit": _by_commit,
    "project": _by_project,
    "family": _by_family,
}


def _halve(clusters: Sequence[int], levels: _Levels, strata: Mapping[str, int], rng: Random) -> list[Part | None]:
    """Deal the training part to A and B by clusters, each half of it."""
    sizes: dict[str, int] = defaultdict(int)
    for cluster, level in zip(clusters, levels, strict=True):
        if level == 0:
            sizes[str(cluster)] += 1
    order = list(sizes)
    rng.shuffle(order)
    half_a = {
        cluster
        for alike in _by_stratum(order, strata)
        for cluster in _filled(alike, sizes, sum(sizes[one] for one in alike) // 2)
    }
    names: dict[int | None, Part | None] = {None: None, 1: "valid", 2: "test"}
    return [
        ("train_a" if str(cluster) in half_a else "train_b") if level == 0 else names[level]
        for cluster, level in zip(clusters, levels, strict=True)
    ]


def require_all_classes(
    labels: Sequence[int], parts: Sequence[Part | None], settings: Data, classes: Sequence[str]
) -> None:
    """Raise DataError if a part lacks a class."""
    for part in PARTS:
        found = {label for label, of in zip(labels, parts, strict=True) if of == part}
        missing = [name for label, name in enumerate(classes) if label not in found]
        if not missing:
            continue
        count = parts.count(part)
        if len(classes) > 2:
            raise DataError(
                f"the {part} part of split {settings.split!r} has {count:,} functions, but none of "
                f"{', '.join(missing)}; every class is needed. Raise data.class_min_samples above the size of these "
                "classes, use more data or another data.split"
            )
        what = "pairs" if settings.task == "pair" else "functions"
        has = f"{count} {what}, all with label {found.pop()}" if found else f"no {what.removesuffix('s')}"
        raise DataError(
            f"the {part} part of split {settings.split!r} has {has}; both classes are needed. "
            "Use more data, another data.split or another data.seed"
        )
