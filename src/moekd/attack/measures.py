"""Robustness in numbers: how often an attack succeeds, what it cost, and comparisons of models on the same samples.

Letters in shapes: n samples, b resamples. A share has a Wilson interval, a mean a bootstrap interval. Conventions:

    ASR by B (headline)  fooled / samples that the model classified correctly (methods.md 7.5 B)
    ASR by A             fooled / those of them with an identifier to rename (methods.md 7.5 A)
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from moekd.attack.victims import answers_of
from moekd.errors import DataError
from moekd.evaluate import Estimate, estimate, mcnemar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moekd.attack.victims import Victim
    from moekd.records import AttackResult


def wilson(hits: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Return the share hits / n with Wilson's score interval; NaN for n = 0.

    Source: Wilson 1927, JASA 22, "Probable inference, the law of succession, and statistical inference".
    """
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), n)


def robustness(
    results: Sequence[AttackResult], *, bootstrap: int = 1000, confidence: float = 0.95
) -> dict[str, Estimate]:
    """Return the measures of one attack on one model.

    Samples whose original text the model gave no usable answer to count in none of them.

    Returns:
        asr: ASR by B. asr_with_identifiers: ASR by A. accuracy: before the attack. accuracy_under_attack: correct and
        not fooled. queries: mean over attacked samples (fooled or withstood). queries_fooled: mean over the fooled.
        renamed_share: mean share of identifiers renamed in the fooled; minimal_share: the same of minimal
        counter-examples, where they were asked for. margin: mean logit of the label's probability
        before the attack, of attacked samples. What has no samples is NaN.
    Raises:
        DataError: there are no results.
    """
    if not results:
        raise DataError("no attack results to measure")
    answered = [one for one in results if one.p_original is not None]
    right = [one for one in answered if one.was_right]
    fooled = [one for one in right if one.outcome == "fooled"]
    attacked = [one for one in right if one.outcome in ("fooled", "withstood")]

    def share(hits: int, n: int) -> Estimate:
        return wilson(hits, n, confidence=confidence)

    def mean(values: Sequence[float]) -> Estimate:
        return _mean(values, bootstrap=bootstrap, confidence=confidence)

    found = {
        "asr": share(len(fooled), len(right)),
        "asr_with_identifiers": share(len(fooled), sum(one.identifiers > 0 for one in right)),
        "accuracy": share(len(right), len(answered)),
        "accuracy_under_attack": share(len(right) - len(fooled), len(answered)),
        "queries": mean([one.queries for one in attacked]),
        "queries_fooled": mean([one.queries for one in fooled]),
        "renamed_share": mean([len(one.renames) / one.identifiers for one in fooled]),
        "margin": mean([logit(one.p_original) for one in attacked if one.p_original is not None]),
    }
    smallest = [(one.minimal, one.identifiers) for one in fooled if one.minimal is not None]
    if smallest:
        found["minimal_share"] = mean([len(renames) / identifiers for renames, identifiers in smallest])
    return found


def logit(p: float) -> float:
    """Log-odds of a probability, in nats. Results keep six digits of it, so it is held within them."""
    held = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(held / (1 - held))


def counts(results: Sequence[AttackResult]) -> dict[str, int]:
    """Return how many samples ended in each way, reasons of samples that were not attacked and rejected renamings."""
    found: Counter[str] = Counter()
    for one in results:
        found[one.outcome] += 1
        if one.reason:
            found[f"{one.outcome}: {one.reason}"] += 1
        for fault, times in one.rejected.items():
            found[f"rejected: {fault}"] += times
    return dict(sorted(found.items()))


def _mean(values: Sequence[float], *, bootstrap: int, confidence: float) -> Estimate:
    if not values:
        return Estimate(math.nan, math.nan, math.nan, 0)
    array = np.asarray(values, dtype=np.float64)

    def measures(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean": weights @ array / weights.sum(axis=1)}

    return estimate(measures, len(array), bootstrap=bootstrap, confidence=confidence)["mean"]


# ----------------------------------------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Comparison:
    """Two models under one attack on the same samples.

    Attributes:
        difference: ASR by B of the first minus that of the second; negative where the first is more robust.
        reduction: 1 - ASR of the first / ASR of the second; positive where the first is more robust. NaN where the
            second was never fooled.
        only_first_fooled, only_second_fooled: among samples that both classified correctly.
        p: exact McNemar test of these two counts.
    """

    difference: Estimate
    reduction: Estimate
    only_first_fooled: int
    only_second_fooled: int
    p: float


def compare(
    first: Sequence[AttackResult], second: Sequence[AttackResult], *, bootstrap: int = 1000, confidence: float = 0.95
) -> Comparison:
    """Compare two models on the samples that both were attacked on; intervals by a paired bootstrap.

    Raises:
        DataError: they have no sample in common, or results of more than one attack.
    """
    pairs = _paired(first, second)
    right = np.array([[one.was_right for one in pair] for pair in pairs], dtype=np.float64)  # (n, 2)
    fooled = np.array([[one.outcome == "fooled" for one in pair] for pair in pairs], dtype=np.float64)

    def rates(weights: np.ndarray) -> np.ndarray:
        """ASR of both, (b, 2); NaN where a resample has no correct sample."""
        n_right = weights @ right
        return np.where(n_right > 0, weights @ fooled / np.where(n_right > 0, n_right, 1), np.nan)

    def measures(weights: np.ndarray) -> dict[str, np.ndarray]:
        a, b = rates(weights).T
        return {"difference": a - b, "reduction": 1 - np.where(b > 0, a / np.where(b > 0, b, 1), np.nan)}

    found = estimate(measures, len(pairs), bootstrap=bootstrap, confidence=confidence)
    both = right.all(axis=1)
    stood = fooled[both] == 0
    only_second, only_first, p = mcnemar(stood[:, 0], stood[:, 1])
    return Comparison(found["difference"], found["reduction"], only_first, only_second, p)


def _paired(first: Sequence[AttackResult], second: Sequence[AttackResult]) -> list[tuple[AttackResult, AttackResult]]:
    if len({one.attack for one in (*first, *second)}) > 1:
        raise DataError("results of several attacks: compare one attack at a time")
    others = {one.id: one for one in second}
    pairs = [(one, others[one.id]) for one in first if one.id in others]
    if not pairs:
        raise DataError("the two models were attacked on no common sample")
    return pairs


def signed_ranks(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the p of the two-sided Wilcoxon signed-rank test that paired values, one a setting, do not differ.

    1.0 if no pair differs. Source: Wilcoxon 1945; exact for up to 50 pairs without ties, as scipy decides.
    """
    from scipy.stats import wilcoxon

    differences = np.subtract(first, second).round(9)  # 0.62 - 0.51 and 0.55 - 0.44 differ in their last bits: a tie
    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return p adjusted for the number of tests, in the order given.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p}


def cliffs_delta(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Cliff's delta: P(first > second) - P(first < second) over all pairs of a value of each, in -1 ... 1.

    Positive where the first tends to be larger; with attack success rates, where the first model is less robust.

    Source: Cliff 1993, "Dominance statistics: ordinal analyses to answer ordinal questions".
    """
    return float(np.sign(np.subtract.outer(np.asarray(first), np.asarray(second))).mean())


# -------------------------------------------------------------------------------------------------- transfer


def transfer(
    results: Sequence[AttackResult],
    originals: Mapping[str, str],
    victim: Victim,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """Return how often the adversarial texts that fooled one model fool another one, too.

    The share counts texts whose originals the other model classifies correctly; NaN where there is none.

    Args:
        results: of an attack on the first model.
        originals: the attacked functions' texts by sample id.
        victim: the other model.
    Raises:
        UnusableAnswerError: it gives NaN, or not one answer for each text.
    """
    fooled = [one for one in results if one.text is not None]
    if not fooled:
        return wilson(0, 0)
    labels = np.array([one.label for one in fooled])
    before = np.array(answers_of(victim, [originals[one.id] for one in fooled])) > 0.5
    after = np.array(answers_of(victim, [one.text for one in fooled if one.text is not None])) > 0.5
    right = before == (labels == 1)
    return wilson(int((after != before)[right].sum()), int(right.sum()), confidence=confidence)
