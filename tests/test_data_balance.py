"""Balancing: one non-vulnerable function for each vulnerable one, alike in project and length."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from moekd.data.balance import Balanced, balance
from moekd.data.tally import Tally
from moekd.data.text import count_lines
from moekd.records import Sample


def sample(name: str, lines: int, label: int, project: str | None = "p", dataset: str = "a") -> Sample:
    return Sample(name, "\n".join(["x"] * lines), label, dataset, project=project)


def balanced(samples: list[Sample], seed: int = 0, tolerance: float = 0.2) -> tuple[Balanced, Tally]:
    tally = Tally(read=len(samples))
    found = balance(samples, tally, Random(seed), tolerance=tolerance)
    assert tally.kept == 2 * len(found.pairs)
    return found, tally


def partners(samples: list[Sample], **options: float) -> dict[str, str]:
    return {vulnerable.id: other.id for vulnerable, other in balanced(samples, **options)[0].pairs}


def rules(found: Balanced) -> dict[str, int]:
    return {rule: count for rule, count in found.matched.items() if count}


def test_same_project_within_a_fifth_of_the_lines():
    """10 lines: 8 and 12 are within 20 %, 7 and 13 are not, nor is another project's 10."""
    others = [sample(f"o{n}", n, 0) for n in (7, 13)] + [sample("q", 10, 0, "q")]
    for lines in (8, 12):
        found, tally = balanced([sample("v", 10, 1), *others, sample("fit", lines, 0)])
        assert [other.id for _, other in found.pairs] == ["fit"]
        assert rules(found) == {"project and length": 1}
        assert tally.dropped == {"not drawn by balancing": 3}


def test_the_paper_falls_back_to_any_length_of_the_project():
    found, _ = balanced([sample("v", 10, 1), sample("long", 90, 0), sample("q", 10, 0, "q")])
    assert [other.id for _, other in found.pairs] == ["long"]
    assert rules(found) == {"project": 1}


def test_an_unknown_project_is_matched_by_data_set_and_length_then_by_length():
    """None is no project: two functions of unknown project are not of the same one."""
    near, far = sample("near", 11, 0, None, "a"), sample("far", 10, 0, "q", "b")
    vulnerable = sample("v", 10, 1, None, "a")
    assert rules(balanced([vulnerable, near, far])[0]) == {"data set and length": 1}
    assert rules(balanced([vulnerable, far])[0]) == {"length": 1}
    found, _ = balanced([vulnerable, sample("x", 90, 0, "q"), sample("y", 40, 0, "q"), sample("z", 1, 0, "q")])
    assert (rules(found), found.pairs[0][1].id) == ({"nearest length": 1}, "z")


def test_a_poor_match_takes_no_good_one_away():
    """The only function of 10 lines goes to who fits, whoever comes first."""
    samples = [sample("v1", 50, 1), sample("v2", 10, 1), sample("ten", 10, 0), sample("thirty", 30, 0)]
    for seed in range(20):
        assert partners(samples, seed=seed) == {"v1": "thirty", "v2": "ten"}


def test_nothing_left_is_a_reason():
    found, tally = balanced([sample("v1", 10, 1), sample("v2", 10, 1), sample("o", 10, 0)])
    assert len(found.pairs) == 1
    assert tally.dropped == {"nothing left to balance it with": 1}


drawn = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 1), st.sampled_from(["p", "q", None])), max_size=40)


@given(drawn, st.integers(0, 3))
def test_each_function_is_drawn_at_most_once(shapes, seed):
    """And as many pairs are found as the smaller class allows; each vulnerable function has its place kept."""
    samples = [sample(str(n), *shape) for n, shape in enumerate(shapes)]
    found, _ = balanced(samples, seed)
    others = [other.id for _, other in found.pairs]
    assert len(set(others)) == len(others) == min(sum(s.label for s in samples), sum(1 - s.label for s in samples))
    assert all(vulnerable.label == 1 and other.label == 0 for vulnerable, other in found.pairs)
    order = [int(vulnerable.id) for vulnerable, _ in found.pairs]
    assert order == sorted(order)
    assert found == balanced(samples, seed)[0]  # one seed, one result
    if "project and length" in rules(found):
        good = [
            pair
            for pair in found.pairs
            if pair[0].project == pair[1].project is not None
            and abs(count_lines(pair[1].func) - count_lines(pair[0].func)) <= 0.2 * count_lines(pair[0].func)
        ]
        assert len(good) >= found.matched["project and length"]


def test_no_candidate_is_preferred():
    """Each of four equally good functions is drawn about a quarter of the time."""
    samples = [sample("v", 10, 1), *(sample(f"o{n}", 9 + n % 2, 0) for n in range(4))]
    counts = [sum(partners(samples, seed=seed)["v"] == f"o{n}" for seed in range(400)) for n in range(4)]
    assert all(60 < count < 140 for count in counts), counts
