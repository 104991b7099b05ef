"""Measures of robustness against hand numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moekd.attack import compare, counts, robustness, transfer
from moekd.attack.measures import cliffs_delta, holm, signed_ranks, wilson
from moekd.errors import DataError
from moekd.records import AttackResult


def result(name, outcome="withstood", **changes) -> AttackResult:
    fields = {
        "id": str(name),
        "attack": "mhm",
        "outcome": outcome,
        "reason": "",
        "label": 1,
        "p_original": 0.2 if outcome == "already wrong" else 0.9,
        "p_final": 0.3,
        "queries": 10,
        "identifiers": 4,
        "renames": {"a": "b"} if outcome == "fooled" else {},
        "text": f"adversarial {name}" if outcome == "fooled" else None,
        "trace": ((1, 0.9),),
        "rejected": {},
        "minimal": None,
        "minimal_queries": 0,
    }
    return AttackResult(**fields | changes)


MIXED = [
    result(0, "fooled", queries=5, renames={"a": "x", "b": "y"}),
    result(1, "fooled", queries=15, renames={"a": "x"}),
    result(2, "withstood", queries=40),
    result(3, "no identifiers", queries=1, identifiers=0),
    result(4, "not attacked", queries=1, reason="does not parse", identifiers=0),
    result(5, "already wrong", queries=1),
    result(6, "not attacked", p_original=None, reason="budget of 0", queries=0),
]


def test_wilson_by_hand():
    """1 of 10 at 95 %: the textbook's 0.018 ... 0.404; no samples, no share."""
    found = wilson(1, 10)
    assert (found.value, found.n) == (0.1, 10)
    assert found.low == pytest.approx(0.01788, abs=1e-5)
    assert found.high == pytest.approx(0.40415, abs=1e-5)
    assert wilson(0, 10).low == pytest.approx(0.0, abs=1e-12)
    assert wilson(10, 10).high == pytest.approx(1.0)
    assert math.isnan(wilson(0, 0).value)


def test_robustness_by_hand():
    """Seven samples: six answered, five right, three of them with identifiers, two fooled."""
    found = robustness(MIXED, bootstrap=100)
    assert {name: (one.value, one.n) for name, one in found.items()} == {
        "asr": (2 / 5, 5),
        "asr_with_identifiers": (2 / 3, 3),
        "accuracy": (5 / 6, 6),
        "accuracy_under_attack": (3 / 6, 6),
        "queries": (20.0, 3),
        "queries_fooled": (10.0, 2),
        "renamed_share": (3 / 8, 2),
        "margin": (pytest.approx(math.log(9)), 3),
    }
    assert found["queries"].low < 20 < found["queries"].high


def test_margins_are_finite_for_a_model_that_is_certain():
    """Six digits are kept of a probability: 1.0 may be a little less, so it counts as 1 - 1e-6."""
    found = robustness([result(0, "withstood", p_original=1.0, p_final=1.0)], bootstrap=100)
    assert found["margin"].value == pytest.approx(math.log(1e6), abs=1e-5)


def test_minimal_share_only_where_asked_for():
    results = [result(0, "fooled", renames={"a": "x", "b": "y"}, minimal={"b": "y"})]
    assert robustness(results, bootstrap=100)["minimal_share"].value == 1 / 4


def test_nothing_to_measure():
    """No success leaves means undefined, not zero; no results at all are refused."""
    found = robustness([result(0)], bootstrap=100)
    assert found["asr"].value == 0.0
    assert math.isnan(found["queries_fooled"].value)
    with pytest.raises(DataError, match="no attack results"):
        robustness([])


def test_counts_tell_outcomes_reasons_and_rejections():
    found = counts([*MIXED, result(7, rejected={"name in use": 3}), result(8, rejected={"name in use": 1})])
    assert found == {
        "already wrong": 1,
        "fooled": 2,
        "no identifiers": 1,
        "not attacked": 2,
        "not attacked: budget of 0": 1,
        "not attacked: does not parse": 1,
        "rejected: name in use": 4,
        "withstood": 3,
    }


# ----------------------------------------------------------------------------------------------- comparisons


def test_comparison_by_hand():
    """First fooled 2 of 8, second 4 of 8, one sample wrong for the second only and left out of McNemar's counts."""
    first = [result(n, "fooled" if n < 2 else "withstood") for n in range(8)]
    second = [result(n, "fooled" if n in (1, 2, 3, 4) else "withstood") for n in range(8)]
    found = compare(first, second, bootstrap=200)
    assert found.difference.value == pytest.approx(2 / 8 - 4 / 8)
    assert found.reduction.value == pytest.approx(1 / 2)
    assert (found.only_first_fooled, found.only_second_fooled) == (1, 3)
    assert found.p == pytest.approx(2 * (1 + 4) / 16)
    wrong = [*second[:7], result(7, "already wrong")]
    assert compare(first, wrong, bootstrap=200).difference.value == pytest.approx(2 / 8 - 4 / 7)


def test_comparison_matches_samples_by_id():
    """Another order and further samples change nothing."""
    first = [result(n, "fooled" if n % 3 else "withstood") for n in range(9)]
    second = [result(n, "fooled" if n % 2 else "withstood") for n in range(9)]
    again = compare(first, [result(99, "fooled"), *second[::-1]], bootstrap=100)
    assert again == compare(first, second, bootstrap=100)


def test_comparison_with_itself_is_zero():
    found = compare(MIXED, MIXED, bootstrap=100)
    assert (found.difference.low, found.difference.high, found.p) == (0.0, 0.0, 1.0)
    assert found.reduction.value == 0.0


def test_comparisons_that_make_no_sense_are_refused():
    with pytest.raises(DataError, match="one attack at a time"):
        compare([result(0)], [result(0, attack="alert")])
    with pytest.raises(DataError, match="no common sample"):
        compare([result(0)], [result(1)])


def test_signed_ranks_by_hand():
    """Five settings, the first always lower: 2 / 2**5; equal values differ in nothing."""
    assert signed_ranks([1, 2, 3, 4, 5], [1.1, 2.2, 3.3, 4.4, 5.5]) == pytest.approx(2 / 32)
    assert signed_ranks([1, 2], [1, 2]) == 1.0


def test_signed_ranks_share_equal_differences():
    """Six differences of 0.11, one of them up: of the 64 signs 2 * (1 + 6) are as uneven, whatever the last bits."""
    first, second = [0.62, 0.76, 0.72, 0.60, 0.55, 0.70], [0.51, 0.65, 0.61, 0.71, 0.44, 0.59]
    assert signed_ranks(first, second) == pytest.approx(14 / 64)


def test_holm_by_hand():
    """Smallest times 3, next times 2, last times 1, never falling, at most 1."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_sign_of_cliffs_delta():
    """Positive where the first is larger: 3 pairs won, 1 lost of 4."""
    assert cliffs_delta([3, 5], [1, 4]) == pytest.approx((3 - 1) / 4)
    assert cliffs_delta([1, 2], [3, 4]) == -1.0
    assert cliffs_delta([1, 2], [1, 2]) == 0.0


# -------------------------------------------------------------------------------------------------- transfer


def test_transfer_by_hand():
    """Three fooled the first; the second had two of their originals right and falls for one of these."""
    results = [result(n, "fooled") for n in range(3)] + [result(3)]
    originals = {str(n): f"original {n}" for n in range(4)}
    p = {"original 0": 0.9, "original 1": 0.8, "original 2": 0.1}
    p |= {"adversarial 0": 0.2, "adversarial 1": 0.7, "adversarial 2": 0.1}
    found = transfer(results, originals, lambda texts: np.array([p[text] for text in texts]))
    assert (found.value, found.n) == (0.5, 2)
    assert math.isnan(transfer([result(0)], originals, lambda texts: np.zeros(len(texts))).value)
