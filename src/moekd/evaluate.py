"""Measures with intervals for any model's logits, and paired comparisons of two models on the same samples.

A measure is a function of sample weights: ones give its value, and the counts of a bootstrap resample give
one draw of it, by the same code, many resamples at once. Letters in shapes: n samples, b resamples.

The decision is the larger logit, so "vulnerable" means p > 1/2; a tie is "not vulnerable".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moekd.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from moekd.records import Sample, Scorer, TaskKind

#: Weights, (b, n), non-negative with positive sums -> values by name, (b,) each; NaN where undefined.
Measures = Callable[[np.ndarray], dict[str, np.ndarray]]

CALIBRATION_BINS = 15
#: Measures that resampling inflates: noise in a bin adds to its distance, and a resample has twice the noise.
_INFLATED = ("ece",)
_CHUNK_ELEMENTS = 1_000_000  # of one weight matrix: keeps memory flat for any number of samples


@dataclass(frozen=True)
class Estimate:
    """One number with its interval.

    Attributes:
        value: NaN where the measure is undefined, such as AUROC with one class.
        low, high: ends of the percentile interval; NaN where there is none.
        n: samples it was computed from.
    """

    value: float
    low: float
    high: float
    n: int


# ------------------------------------------------------------------------------------------- what is measured


def decisions(logits: np.ndarray) -> np.ndarray:
    """Return whether each sample is called vulnerable, bool, (n,), from logits (n, 2)."""
    return logits[:, 1] > logits[:, 0]


def detection(logits: np.ndarray, labels: np.ndarray) -> Measures:
    """Return the measures of a detector.

    accuracy, precision, recall, f1, mcc, auroc (ties count half), ece (of p_vulnerable, in bins of equal
    mass), brier (squared error of p_vulnerable) and nll_nats. Precision is 0 where nothing is called
    vulnerable; recall and f1 are undefined where nothing is; auroc needs both classes; mcc is 0 with one
    class or one decision.

    Args:
        logits: (n, 2), not vulnerable and vulnerable.
        labels: 0 or 1, (n,).
    """
    _require_samples(logits, labels, width=2)
    margin = logits[:, 1].astype(np.float64) - logits[:, 0]
    p = np.exp(-np.logaddexp(0, -margin))
    positive, called = labels == 1, decisions(logits)
    columns = np.stack(
        [
            positive & called,
            ~positive & called,
            positive & ~called,
            ~positive & ~called,
            (p - positive) ** 2,
            np.logaddexp(0, margin) - positive * margin,
        ],
        axis=1,
    ).astype(np.float64)
    auroc, ece = _auroc(margin, positive), _calibration_error(p, positive)

    def measures(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(axis=1)
        tp, fp, fn, tn, brier, nll = (weights @ columns).T
        margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return {
            "accuracy": (tp + tn) / total,
            "precision": _ratio(tp, tp + fp, undefined=0.0),
            "recall": _ratio(tp, tp + fn),
            "f1": np.where(tp + fn > 0, _ratio(2 * tp, 2 * tp + fp + fn), np.nan),
            "mcc": _ratio(tp * tn - fp * fn, np.sqrt(margins), undefined=0.0),
            "auroc": auroc(weights),
            "ece": ece(weights),
            "brier": brier / total,
            "nll_nats": nll / total,
        }

    return measures


def routing(logits: np.ndarray, groups: np.ndarray) -> Measures:
    """Return the measures of a router: accuracy, macro_f1 and ece of the probability of its first choice.

    macro_f1 is the mean over the groups that occur among the true or the chosen ones.

    Args:
        logits: (n, K).
        groups: true group of each sample, 0 ... K - 1, (n,).
    """
    _require_samples(logits, groups)
    chosen = logits.argmax(axis=1)
    p = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    right = chosen == groups
    names = np.arange(logits.shape[1])
    is_true, is_chosen = groups[:, None] == names, chosen[:, None] == names  # (n, K)
    columns = np.concatenate([is_true & is_chosen, is_true, is_chosen], axis=1).astype(np.float64)
    ece = _calibration_error(1 / p.sum(axis=1), right)  # the largest of p is 1 before normalising

    def measures(weights: np.ndarray) -> dict[str, np.ndarray]:
        both, true, said = np.split(weights @ columns, 3, axis=1)  # (b, K) each
        occurs = true + said > 0
        f1 = 2 * both / np.where(occurs, true + said, 1.0)
        return {
            "accuracy": weights @ right / weights.sum(axis=1),
            "macro_f1": (f1 * occurs).sum(axis=1) / occurs.sum(axis=1),
            "ece": ece(weights),
        }

    return measures


def classification(logits: np.ndarray, labels: np.ndarray) -> Measures:
    """Return the measures of a classifier of several classes: those of `routing`, and nll_nats.

    Args:
        logits: (n, C).
        labels: class of each sample, 0 ... C - 1, (n,).
    """
    choices = routing(logits, labels)
    largest = logits.max(axis=1).astype(np.float64)
    normaliser = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    nll = normaliser - logits[np.arange(len(labels)), labels]

    def measures(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {**choices(weights), "nll_nats": weights @ nll / weights.sum(axis=1)}

    return measures


def pair_detection(logits: np.ndarray, labels: np.ndarray) -> Measures:
    """Return the measures of a clone detector: those of `detection`, and macro_f1 over clones and others."""
    clones, both = detection(logits, labels), routing(logits, labels)

    def measures(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {**clones(weights), "macro_f1": both(weights)["macro_f1"]}

    return measures


#: (logits, labels) -> measures of each task.
MEASURES: Mapping[TaskKind, Callable[[np.ndarray, np.ndarray], Measures]] = {
    "binary": detection,
    "multi-class": classification,
    "pair": pair_detection,
}


def share(name: str, hits: np.ndarray) -> Measures:
    """Return one measure: the share of samples with `hits`, bool, (n,)."""
    return lambda weights: {name: weights @ hits / weights.sum(axis=1)}


def _auroc(scores: np.ndarray, positive: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Probability that a positive sample scores above a negative one, ties counted half (Mann-Whitney)."""
    ties = _Ties(scores)

    def measure(weights: np.ndarray) -> np.ndarray:
        wins, losses = ties.sums(weights * positive), ties.sums(weights * ~positive)
        below = np.cumsum(losses, axis=1) - losses / 2
        return _ratio((wins * below).sum(axis=1), wins.sum(axis=1) * losses.sum(axis=1))

    return measure


def _calibration_error(p: np.ndarray, happened: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Mean distance of p and what happened, over bins of equal mass.

    Equal values of p share the bin of their middle, so the order of samples never matters; without ties each
    bin holds n / bins samples up to rounding.
    """
    ties = _Ties(p)

    def measure(weights: np.ndarray) -> np.ndarray:
        mass = ties.sums(weights)  # (b, distinct values)
        total = mass.sum(axis=1, keepdims=True)
        middle = (np.cumsum(mass, axis=1) - mass / 2) / total
        bins = np.minimum(middle * CALIBRATION_BINS, CALIBRATION_BINS - 1).astype(np.int64)
        excess = ties.sums(weights * (happened - p))
        resamples = len(weights)
        bins += CALIBRATION_BINS * np.arange(resamples)[:, None]
        gaps = np.bincount(bins.ravel(), excess.ravel(), minlength=CALIBRATION_BINS * resamples)
        return np.abs(gaps).reshape(resamples, CALIBRATION_BINS).sum(axis=1) / total[:, 0]

    return measure


class _Ties:
    """Samples sorted by a value, equal values together."""

    def __init__(self, values: np.ndarray) -> None:
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))

    def sums(self, columns: np.ndarray) -> np.ndarray:
        """Add up columns of equal value: (b, n) -> (b, distinct values), ascending."""
        return np.add.reduceat(columns[:, self.order], self.starts, axis=1)


def _ratio(above: np.ndarray, below: np.ndarray, undefined: float = math.nan) -> np.ndarray:
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), undefined)


def _require_samples(logits: np.ndarray, targets: np.ndarray, width: int | None = None) -> None:
    if not len(targets):
        raise DataError("nothing to evaluate: the part has no samples")
    if logits.ndim != 2 or len(logits) != len(targets) or logits.shape[1] != (width or logits.shape[1]):
        raise ValueError(f"logits {logits.shape} do not fit {len(targets)} samples of {width or 'K'} classes")
    if not np.isfinite(logits).all():
        raise DataError("logits hold NaN or infinity: the model that made them has diverged; lower its learning rate")


# ------------------------------------------------------------------------------------------------- intervals


def resamples(n: int, *, count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield bootstrap resamples of n samples as weights, (b, n), `count` rows in all.

    The same n, count and seed give the same resamples, so systems judged on the same samples share them.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // n)
    for start in range(0, count, rows):
        b = min(rows, count - start)
        drawn = rng.integers(n, size=(b, n)) + n * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n).astype(np.float64)


def estimate(
    measures: Measures, n: int, *, bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    """Return each measure with its bootstrap percentile interval; draws that are undefined are left out.

    The ECE has the basic interval, whose ends are as far from the value as the draws' but on the other side: its draws
    lie above the value as the value lies above the truth, so their percentiles are too high by twice that and often
    leave out the value itself. At a true ECE near 0 both are too high.

    Args:
        measures: what to compute, on n samples.
        bootstrap: number of resamples.
        confidence: share of draws inside the interval.
    Source: Efron 1979; percentile intervals as in Efron and Tibshirani 1993, chapter 13; basic ones as in Davison and
    Hinkley 1997, section 5.2.
    """
    values = measures(np.ones((1, n)))
    drawn = [measures(weights) for weights in resamples(n, count=bootstrap, seed=seed)]
    found = {}
    for name, value in values.items():
        draws = np.concatenate([chunk[name] for chunk in drawn])
        low, high = _interval(draws[~np.isnan(draws)], confidence)
        if name in _INFLATED:
            low, high = _basic(float(value[0]), low, high, never_negative=bool((draws >= 0).all()))
        found[name] = Estimate(float(value[0]), low, high, n)
    return found


def _basic(value: float, low: float, high: float, *, never_negative: bool) -> tuple[float, float]:
    """Turn a percentile interval over at the value, which stays inside; cut off what the measure cannot be."""
    lower, upper = min(value, 2 * value - high), max(value, 2 * value - low)
    return max(0.0, lower) if never_negative else lower, upper


def _interval(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    if not draws.size:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def measure(
    scorer: Scorer, samples: Sequence[Sample], *, bootstrap: int = 1000, confidence: float = 0.95
) -> dict[str, Estimate]:
    """Score labelled samples and return every detection measure with its interval.

    Raises:
        DataError: there are no samples, or the scorer answers with NaN.
    """
    logits = scorer.logits([s.func for s in samples])
    measures = detection(logits, np.array([s.label for s in samples]))
    return estimate(measures, len(samples), bootstrap=bootstrap, confidence=confidence)


# ----------------------------------------------------------------------------------------------- comparisons


def difference(first: Measures, second: Measures) -> Measures:
    """Return first minus second, measure by measure, on the same samples and the same resamples."""

    def measures(weights: np.ndarray) -> dict[str, np.ndarray]:
        a, b = first(weights), second(weights)
        return {name: a[name] - b[name] for name in a}

    return measures


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> tuple[int, int, float]:
    """Compare two systems' right and wrong decisions on the same samples.

    Returns:
        samples only the first has right, samples only the second has right, and the exact two-sided p that
        their difference is chance: under it each of them falls to either side with probability 1/2.
    Source: McNemar 1947; exact binomial form.
    """
    first_only = int((first_right & ~second_right).sum())
    second_only = int((second_right & ~first_right).sum())
    n = first_only + second_only
    tail, ways = 0, 1  # exact integers: ways to choose i of n
    for i in range(min(first_only, second_only) + 1):
        tail += ways
        ways = ways * (n - i) // (i + 1)
    return first_only, second_only, min(1.0, 2 * tail / 2**n)


def over_seeds(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Return the mean over training seeds with Student's t interval; no interval for fewer than two seeds.

    It tells how much training varies, on these test samples; the bootstrap tells how much the samples do.
    """
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n)
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


# ------------------------------------------------------------------------------------- a list to work through


def precision_at_top(scores: np.ndarray, labels: np.ndarray, share: float) -> float:
    """Return the share of vulnerable functions among those with the highest scores.

    Functions of one score that the end of the list cuts through count by their mean: a scanner with a few levels
    gets what breaking its ties at random would give.

    Args:
        scores: higher is more suspicious, (n,).
        labels: 0 or 1, (n,).
        share: of the n functions that are looked at, rounded, at least one.
    """
    count = max(1, round(share * len(scores)))
    limit = np.sort(scores)[::-1][count - 1]
    above, tied = scores > limit, scores == limit
    hits = labels[above].sum() + (count - above.sum()) * labels[tied].mean()
    return float(hits / count)


def recall_at_alarms(scores: np.ndarray, labels: np.ndarray, lines: np.ndarray, alarms_per_kloc: float) -> float:
    """Return the recall of the lowest threshold with at most so many false alarms per 1,000 lines.

    A threshold reports all functions of one score or none.

    Args:
        scores, labels: as for `precision_at_top`.
        lines: of each function, (n,).
    Raises:
        DataError: no function is vulnerable.
    """
    if not labels.any():
        raise DataError("recall needs a vulnerable function")
    allowed = alarms_per_kloc * lines.sum() / 1000
    false_alarms = np.sort(scores[labels == 0])[::-1]
    if len(false_alarms) <= allowed:
        return 1.0
    first_too_many = false_alarms[int(allowed)]  # this one must not be reported, nor its equals
    return float((scores[labels == 1] > first_too_many).mean())
