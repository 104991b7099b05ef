"""Measures against scikit-learn and hand numbers, intervals against theory, and the two paired tests."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from moekd.errors import DataError
from moekd.evaluate import (
    MEASURES,
    Estimate,
    classification,
    detection,
    difference,
    estimate,
    mcnemar,
    measure,
    over_seeds,
    pair_detection,
    resamples,
    routing,
    share,
)
from moekd.records import Sample


def values(measures, n: int) -> dict[str, float]:
    return {name: float(value[0]) for name, value in measures(np.ones((1, n))).items()}


def logits_of(margins) -> np.ndarray:
    margins = np.asarray(margins, dtype=np.float32)
    return np.stack([np.zeros_like(margins), margins], axis=1)


def data(n: int, seed: int = 0, *, step: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Logits that know the labels a little; rounded to `step`, so that there are ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    margins = rng.normal(size=n) + 0.8 * (labels - 0.5)
    return logits_of(np.round(margins / step) * step if step else margins), labels


# ------------------------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize("step", [None, 0.5])
def test_detection_agrees_with_scikit_learn(step):
    """Every measure with an independent implementation, with and without tied scores."""
    logits, labels = data(500, step=step)
    margin = logits[:, 1].astype(float)
    p = 1 / (1 + np.exp(-margin))
    called = p > 0.5
    found = values(detection(logits, labels), 500)
    assert found == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(labels, called),
            "precision": metrics.precision_score(labels, called),
            "recall": metrics.recall_score(labels, called),
            "f1": metrics.f1_score(labels, called),
            "mcc": metrics.matthews_corrcoef(labels, called),
            "auroc": metrics.roc_auc_score(labels, margin),
            "ece": found["ece"],  # has its own tests
            "brier": metrics.brier_score_loss(labels, p),
            "nll_nats": metrics.log_loss(labels, p),
        }
    )


def test_detection_by_hand():
    """Two of three vulnerable found, one false alarm among two: accuracy 3/5, precision and recall 2/3."""
    found = values(detection(logits_of([2, 1, -1, 1, -3]), np.array([1, 1, 1, 0, 0])), 5)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["precision"] == found["recall"] == found["f1"] == pytest.approx(2 / 3)
    assert found["mcc"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert found["auroc"] == pytest.approx((2 + 1.5 + 1) / 6)  # pairs won, the tie at 1 counted half


def test_classification_agrees_with_scikit_learn():
    """Four classes, one of which is never true and never chosen: macro-F1 is over the others."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=400)
    logits = rng.normal(size=(400, 4)) + np.eye(4)[labels]
    logits[:, 3] = -9
    found = values(classification(logits, labels), 400)
    chosen, p = logits.argmax(axis=1), np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(labels, chosen),
            "macro_f1": metrics.f1_score(labels, chosen, average="macro"),
            "nll_nats": metrics.log_loss(labels, p, labels=range(4)),
            "ece": found["ece"],  # has its own tests
        }
    )


def test_pairs_have_the_measures_of_a_detector_and_macro_f1():
    """Clones and others are equally a class: F1 of clones 2/3, of others 1/2, so macro-F1 7/12."""
    logits, labels = logits_of([2, 1, -1, 1, -3]), np.array([1, 1, 1, 0, 0])
    found = values(pair_detection(logits, labels), 5)
    assert found.pop("macro_f1") == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found == pytest.approx(values(detection(logits, labels), 5))


@pytest.mark.parametrize("task", MEASURES)
def test_undefined_logits_are_refused_by_every_task(task):
    with pytest.raises(DataError, match="NaN"):
        MEASURES[task](np.array([[0.0, math.nan], [0, 1]]), np.array([0, 1]))


def test_equal_logits_mean_not_vulnerable():
    """The tie of the decision rule is fixed: p = 1/2 raises no alarm."""
    assert values(detection(logits_of([0, 0]), np.array([1, 0])), 2)["recall"] == 0.0


@pytest.mark.parametrize(
    ("margins", "labels", "expected"),
    [
        ([-1, -1], [1, 0], {"precision": 0.0, "recall": 0.0, "f1": 0.0, "mcc": 0.0, "auroc": 0.5}),
        ([1, -1], [0, 0], {"precision": 0.0, "recall": None, "f1": None, "mcc": 0.0, "auroc": None}),
        ([1, 1], [1, 1], {"precision": 1.0, "recall": 1.0, "f1": 1.0, "mcc": 0.0, "auroc": None}),
    ],
)
def test_degenerate_cases_are_defined(margins, labels, expected):
    """No alarm, no vulnerable function, nothing but vulnerable functions; None is undefined."""
    found = values(detection(logits_of(margins), np.array(labels)), 2)
    assert {name: None if math.isnan(found[name]) else found[name] for name in expected} == expected


def test_ece_by_hand_with_one_sample_a_bin():
    """15 samples, 15 bins: the mean of |p - label|."""
    p = np.linspace(0.02, 0.98, 15)
    labels = np.arange(15) % 2
    found = values(detection(logits_of(np.log(p / (1 - p))), labels), 15)
    assert found["ece"] == pytest.approx(np.abs(p - labels).mean(), rel=1e-6)


def test_ece_of_a_constant_answer_is_its_distance_from_the_base_rate():
    """All p equal share one bin in any order of samples: |1/2 - 3/10|."""
    labels = np.array([1] * 30 + [0] * 70)
    assert values(detection(logits_of(np.zeros(100)), labels), 100)["ece"] == pytest.approx(0.2)


def test_ece_agrees_with_plain_equal_mass_bins():
    """Without ties: sort by p, cut into 15 runs of 20, add up weighted distances of means."""
    logits, labels = data(300)
    p = 1 / (1 + np.exp(-logits[:, 1].astype(float)))
    order = np.argsort(p)
    runs = zip(np.split(p[order], 15), np.split(labels[order], 15), strict=True)
    expected = sum(abs(a.mean() - b.mean()) / 15 for a, b in runs)
    assert values(detection(logits, labels), 300)["ece"] == pytest.approx(expected)


def test_extreme_logits_stay_finite():
    """A margin of 2000 overflows exp; the loss of the wrong answer is the margin itself."""
    found = values(detection(logits_of([2000, -2000]), np.array([0, 0])), 2)
    assert found["nll_nats"] == pytest.approx(1000)
    assert found["brier"] == pytest.approx(0.5)


def test_routing_agrees_with_scikit_learn():
    """Accuracy and macro-F1, where one group is never true and another never chosen."""
    rng = np.random.default_rng(0)
    logits, groups = rng.normal(size=(200, 5)), rng.integers(4, size=200)
    logits[:, 0] = -10
    chosen = logits.argmax(axis=1)
    found = values(routing(logits, groups), 200)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(groups, chosen))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(groups, chosen, average="macro"))


def test_routing_calibration_is_of_the_first_choice():
    """Probabilities 3/4, 1/8, 1/8 always, right half of the time: |3/4 - 1/2|."""
    logits = np.tile(np.log([6.0, 1.0, 1.0]), (10, 1))
    assert values(routing(logits, np.arange(10) % 2), 10)["ece"] == pytest.approx(0.25)


@given(st.integers(2, 40), st.integers(0, 1000))
def test_weights_are_repetitions(n, seed):
    """Every measure under weights is that of the samples repeated as often, in any order."""
    rng = np.random.default_rng(seed)
    logits, labels = data(n, seed, step=0.5)
    weights = next(resamples(n, count=1, seed=seed))
    repeated = rng.permutation(np.repeat(np.arange(n), weights[0].astype(int)))
    for make, targets in ((detection, labels), (routing, labels)):
        by_weights = {name: v[0] for name, v in make(logits, targets)(weights).items()}
        by_hand = values(make(logits[repeated], targets[repeated]), n)
        assert by_weights == pytest.approx(by_hand, nan_ok=True)


@pytest.mark.parametrize("make", [detection, routing])
def test_no_samples_and_diverged_models_are_refused(make):
    """An empty part and NaN logits would both give numbers that look like results."""
    with pytest.raises(DataError, match="no samples"):
        make(np.zeros((0, 2)), np.zeros(0, dtype=int))
    with pytest.raises(DataError, match="diverged"):
        make(np.array([[0.0, np.nan]]), np.array([1]))
    with pytest.raises(ValueError, match=r"logits \(3, 2\) do not fit 2 samples"):
        make(np.zeros((3, 2)), np.array([1, 0]))


# ------------------------------------------------------------------------------------------------- intervals


def test_resamples_are_shared_and_seeded():
    """Each row adds up to n; the same seed gives the same rows, whatever the chunks."""
    rows = np.concatenate(list(resamples(30_000, count=70)))  # three chunks
    assert rows.shape == (70, 30_000)
    assert (rows.sum(axis=1) == 30_000).all()
    np.testing.assert_array_equal(rows, np.concatenate(list(resamples(30_000, count=70))))
    assert (rows[0] != next(resamples(30_000, count=1, seed=1))[0]).any()


def test_interval_of_a_share_is_the_normal_one():
    """200 hits of 400: standard error sqrt(.25 / 400) = 0.025, so 0.5 -+ 1.96 * 0.025."""
    hits = np.arange(400) < 200
    found = estimate(share("recall", hits), 400, bootstrap=5000)["recall"]
    assert (found.value, found.n) == (0.5, 400)
    assert found.low == pytest.approx(0.451, abs=0.004)
    assert found.high == pytest.approx(0.549, abs=0.004)
    narrow = estimate(share("recall", hits), 400, bootstrap=5000, confidence=0.5)["recall"]
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * 0.025, abs=0.005)


def test_interval_of_the_ece_covers_the_true_one():
    """Overconfident by a known factor: of 40 data sets of 1,000, intervals cover the ECE of 200,000 in most, and each
    holds its own value."""

    def drawn(n, seed):
        rng = np.random.default_rng(seed)
        margin = rng.normal(0, 1.2, n)
        return logits_of(margin), (rng.random(n) < 1 / (1 + np.exp(-0.7 * margin))).astype(int)

    truth = values(detection(*drawn(200_000, 99)), 200_000)["ece"]
    found = [estimate(detection(*drawn(1000, seed)), 1000, bootstrap=100)["ece"] for seed in range(40)]
    assert all(0 <= one.low <= one.value <= one.high for one in found)
    assert sum(one.low <= truth <= one.high for one in found) >= 30


def test_a_difference_of_two_eces_may_be_negative():
    """Turned over like an ECE of its own, but not cut off at 0; a model and itself differ by nothing."""
    logits, labels = data(300)
    sharper = difference(detection(logits, labels), detection(5 * logits, labels))
    assert estimate(sharper, 300)["ece"].low < estimate(sharper, 300)["ece"].value < 0
    same = difference(detection(logits, labels), detection(logits, labels))
    assert estimate(same, 300)["ece"] == Estimate(0.0, 0.0, 0.0, 300)


def test_undefined_draws_do_not_spoil_the_interval():
    """With one vulnerable function of 5 many resamples have none: recall is undefined there, not zero."""
    found = estimate(detection(logits_of([1, -1, -1, -1, -1]), np.array([1, 0, 0, 0, 0])), 5)
    assert found["recall"] == Estimate(1.0, 1.0, 1.0, 5)
    undefined = estimate(detection(logits_of([1, 1]), np.array([1, 1])), 2)["auroc"]
    assert math.isnan(undefined.value)
    assert math.isnan(undefined.low)


def test_thousand_resamples_of_two_thousand_samples_take_seconds():
    """All measures of one system: a results table has tens of them."""
    logits, labels = data(2000)
    started = time.perf_counter()
    estimate(detection(logits, labels), 2000)
    assert time.perf_counter() - started < 5


def test_evaluate_scores_texts():
    """From a scorer and samples to estimates, in one call."""

    class LongIsVulnerable:
        def logits(self, texts):
            return logits_of([len(text) - 5 for text in texts])

    samples = [
        Sample("a", "short;", 0, "toy"),
        Sample("b", "longer one;", 1, "toy"),
        Sample("c", ";", 0, "toy"),
    ]
    found = measure(LongIsVulnerable(), samples, bootstrap=100)
    assert found["accuracy"].value == pytest.approx(2 / 3)
    assert found["auroc"].value == 1.0


# ----------------------------------------------------------------------------------------------- comparisons


def test_difference_of_a_system_and_itself_is_zero():
    """Shared resamples: every draw of the difference is zero, not only their mean."""
    logits, labels = data(100)
    same = difference(detection(logits, labels), detection(logits, labels))
    assert estimate(same, 100)["auroc"] == Estimate(0.0, 0.0, 0.0, 100)


def test_paired_interval_is_narrower_than_unpaired():
    """Two systems that differ in 10 of 400 decisions: the paired interval sees only those."""
    logits, labels = data(400)
    worse = logits.copy()
    right = np.flatnonzero((logits[:, 1] > 0) == (labels == 1))[:10]
    worse[right, 1] *= -1
    found = estimate(difference(detection(logits, labels), detection(worse, labels)), 400)["accuracy"]
    assert found.value == pytest.approx(0.025)
    assert 0.01 < found.low < found.high < 0.045


@pytest.mark.parametrize(
    ("first_only", "second_only", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (6, 0, 2 / 64), (1, 7, 2 * (1 + 8) / 256)],
)
def test_mcnemar_by_hand(first_only, second_only, p):
    """Twice the binomial tail at 1/2, at most 1; samples both have right or wrong do not count."""
    first = np.array([True] * first_only + [False] * second_only + [True, False] * 3)
    second = np.array([False] * first_only + [True] * second_only + [True, False] * 3)
    assert mcnemar(first, second) == (first_only, second_only, pytest.approx(p))


def test_mcnemar_with_many_samples():
    """Thousands of disagreements: exact integers, no overflow; agrees with scipy."""
    from scipy.stats import binomtest

    first, second = np.arange(5000) < 2600, np.arange(5000) >= 2600
    assert mcnemar(first, second)[2] == pytest.approx(binomtest(2400, 5000).pvalue)


def test_mean_over_seeds_by_hand():
    """0.6, 0.62, 0.64: mean 0.62, standard error 0.02 / sqrt(3), t(0.975, 2) = 4.3027."""
    found = over_seeds([0.60, 0.62, 0.64])
    assert (found.value, found.n) == (pytest.approx(0.62), 3)
    assert found.high - 0.62 == pytest.approx(4.3027 * 0.02 / math.sqrt(3), abs=1e-5)
    assert 0.62 - found.low == pytest.approx(found.high - 0.62)
    assert math.isnan(over_seeds([0.6]).low)
