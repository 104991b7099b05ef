"""Splits: shares, units that are never cut, near-duplicates on one side, both classes everywhere."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekd.config import Data, Source
from moekd.data.duplicates import Union
from moekd.data.split import assign, clusters_of
from moekd.data.tally import Tally
from moekd.errors import DataError
from moekd.records import PARTS, Sample


def samples_of(count: int, **columns: object) -> list[Sample]:
    """`count` functions with alternating labels; a column is a function of the number."""
    return [Sample(str(n), f"f{n}", n % 2, "a", **{name: of(n) for name, of in columns.items()}) for n in range(count)]


def split(samples, scheme, *, clusters=None, partner=None, seed=0):
    data = Data(sources=(Source(kind="embedded"),), split=scheme)
    tally = Tally(read=len(samples))
    if clusters is None:
        clusters = clusters_of(samples, Union(len(samples)))
    parts = assign(samples, clusters, partner or {}, data, tally, Random(seed))
    assert tally.kept == len(parts) - parts.count(None)
    return parts, dict(tally.dropped)


def sides(parts: list[str | None]) -> list[str | None]:
    """The halves of training are one side."""
    return ["train" if part in ("train_a", "train_b") else part for part in parts]


def sides_by(keys, parts) -> dict[object, set[str]]:
    found: dict[object, set[str]] = {}
    for key, side in zip(keys, sides(parts), strict=True):
        if key is not None and side is not None:
            found.setdefault(key, set()).add(side)
    return found


@pytest.mark.parametrize("scheme", ["random", "commit", "project", "family", "time"])
def test_shares_are_80_10_10_and_training_is_halved(scheme):
    """1,000 functions of 200 commits and 50 projects: within one project (20 functions) of the shares."""
    samples = samples_of(
        1000,
        project=lambda n: f"p{n // 20}",
        family=lambda n: f"p{n // 20}",
        commit=lambda n: f"c{n // 5}",
        date=lambda n: f"20{n // 5 % 20:02}-01-{1 + n // 100:02}",
    )
    parts, dropped = split(samples, scheme)
    counts = Counter(parts)
    assert not dropped
    assert abs(counts["test"] - 100) <= 20
    assert abs(counts["valid"] - 100) <= 20
    assert abs(counts["train_a"] - counts["train_b"]) <= 2


def test_random_shares_are_exact_and_seeded():
    parts, _ = split(samples_of(1000), "random")
    assert Counter(parts) == {"train_a": 400, "train_b": 400, "valid": 100, "test": 100}
    assert parts == split(samples_of(1000), "random")[0] != split(samples_of(1000), "random", seed=1)[0]


@given(st.lists(st.integers(0, 40), min_size=150, max_size=200), st.integers(0, 5))
def test_near_duplicates_are_in_one_part(clusters, seed):
    """Also not one in half A and the other in half B: what experts learn from, students are not to be scored on."""
    samples = samples_of(len(clusters))
    try:
        parts, dropped = split(samples, "random", clusters=clusters, seed=seed)
    except DataError:
        return  # a part with one class is refused, which these few clusters may come to
    assert not dropped
    assert all(len({p for c, p in zip(clusters, parts, strict=True) if c == each}) == 1 for each in set(clusters))


def test_a_function_and_its_fix_are_in_one_part():
    samples = samples_of(200, pair=lambda n: f"pair {n // 2}")
    parts, _ = split(samples, "random")
    assert parts[0::2] == parts[1::2]


def test_a_commit_is_in_one_part_with_its_near_duplicates():
    """Functions 0 to 9 share a commit, 9 and 10 are near-duplicates, 10 to 19 share another commit."""
    samples = samples_of(200, commit=lambda n: f"c{n // 10}" if n < 20 else None)
    clusters = list(range(200))
    clusters[10] = 9
    for seed in range(5):
        parts, dropped = split(samples, "commit", clusters=clusters, seed=seed)
        assert len(set(sides(parts)[:20])) == 1
        assert not dropped


@pytest.mark.parametrize("scheme", ["project", "family"])
def test_projects_are_in_one_part(scheme):
    """By family, sister projects too. Large projects go to training: test is never one project's."""
    samples = samples_of(
        1000,
        project=lambda n: "big" if n < 500 else f"p{n % 40}",
        family=lambda n: "big" if n < 500 else f"fam{n % 20}",
    )
    parts, _ = split(samples, scheme)
    by = sides_by([getattr(sample, scheme) for sample in samples], parts)
    assert all(len(found) == 1 for found in by.values())
    assert by["big"] == {"train"}
    assert Counter(sides(parts))["test"] >= 80


def test_a_near_duplicate_across_projects_stays_in_test_only():
    """The copy on the training side is dropped, with its reason; test is whole."""
    samples = samples_of(400, project=lambda n: f"p{n // 20}")
    plain, _ = split(samples, "project")
    in_test, in_train = plain.index("test"), plain.index("train_a")
    in_valid = plain.index("valid")
    clusters = list(range(400))
    clusters[in_train] = clusters[in_valid] = clusters[in_test]
    parts, dropped = split(samples, "project", clusters=clusters)
    assert parts[in_test] == "test"
    assert parts[in_train] is parts[in_valid] is None
    assert dropped == {"near-duplicate across the split": 2}
    assert Counter(parts)["test"] == Counter(plain)["test"]


def test_few_projects_still_give_every_part_one():
    """Five projects of 20 % each: none fits into a tenth, so validation and test get one each."""
    parts, _ = split(samples_of(100, project=lambda n: f"p{n // 20}"), "project")
    assert Counter(sides(parts)) == {"train": 60, "valid": 20, "test": 20}


def test_an_unknown_project_is_no_project():
    """Functions of unknown project are not kept together."""
    parts, _ = split(samples_of(400), "project")
    assert set(parts) == set(PARTS)


def test_time_puts_the_latest_into_test():
    """Nothing in training is later than anything in validation, nor that than anything in test."""
    samples = samples_of(400, date=lambda n: f"{2000 + n * 7 % 400 // 20}-{1 + n % 12:02}-01")
    parts, _ = split(samples, "time")
    dates = {
        side: [s.date for s, of in zip(samples, sides(parts), strict=True) if of == side] for side in set(sides(parts))
    }
    assert max(dates["train"]) <= min(dates["valid"])
    assert max(dates["valid"]) <= min(dates["test"])


def test_a_commit_is_as_late_as_its_latest_function():
    """A commit with functions dated 2001 and 2020 is in test as a whole."""
    samples = samples_of(
        100,
        commit=lambda n: "c" if n in (0, 99) else None,
        date=lambda n: "2020-01-01" if n == 99 else f"2001-01-{1 + n // 10:02}",
    )
    parts, _ = split(samples, "time")
    assert (parts[0], parts[99]) == ("test", "test")


def test_an_unknown_date_is_the_partners_or_a_reason():
    """Non-vulnerable functions without a date are as old as the vulnerable ones they were matched with."""
    samples = samples_of(200, date=lambda n: f"20{n // 10:02}" if n % 2 else None)
    partner = {str(n): str(n + 1) for n in range(0, 190, 2)}
    parts, dropped = split(samples, "time", partner=partner)
    assert dropped == {"date unknown": 5}
    assert [n for n, part in enumerate(parts) if part is None] == [190, 192, 194, 196, 198]
    same = [a == b for a, b in zip(sides(parts)[0:190:2], sides(parts)[1:190:2], strict=True)]
    assert sum(same) > 85  # equal years are cut at random


@pytest.mark.parametrize(
    ("samples", "scheme", "message"),
    [
        (samples_of(100, project=lambda n: "only"), "project", "the train_a part of split 'project' has no function"),
        (samples_of(100, project=lambda n: f"p{n % 4}"), "project", "all with label"),
        (samples_of(4), "random", "part of split 'random'"),
        (samples_of(100), "time", "has no function"),
    ],
)
def test_a_part_without_both_classes_is_refused(samples, scheme, message):
    with pytest.raises(DataError, match=message):
        split(samples, scheme)
