"""Margins to probabilities, and thresholds by the false alarms they cost, measured on labelled functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moekd.scan.model import Threshold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moekd.records import Sample

#: False-alarm rates that a threshold is looked for; a rate needs at least one function that may be a false alarm.
_RATES = tuple(digit * 10.0**power for power in (-5, -4, -3, -2, -1) for digit in (1, 1.5, 2, 3, 5, 7))


@dataclass(frozen=True)
class Calibration:
    """From margins to probabilities (see `calibrate`), and the calibration error it leaves.

    Attributes:
        temperature: margins are divided by it.
        shift: added afterwards; 0 where validation data have the ratio that thresholds are measured at.
        ece_before, ece_after: on the validation functions, without and with the temperature.
        ece_natural: on the functions at natural ratio, with both.
    """

    temperature: float
    shift: float
    ece_before: float
    ece_after: float
    ece_natural: float


def calibrate(
    logits: np.ndarray, labels: np.ndarray, natural_logits: np.ndarray, natural_labels: np.ndarray
) -> Calibration:
    """Fit the temperature on validation functions and the shift to the natural share of vulnerable ones.

    The temperature minimises the negative log likelihood. The shift is the difference of the log odds of the
    classes: students learn from balanced classes, so unshifted they would call half of all functions vulnerable.

    Args:
        logits, natural_logits: (n, 2) and (m, 2).
        labels, natural_labels: 0 or 1, (n,) and (m,). Both classes must occur in both.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4; Saerens, Latinne, Decaestecker 2002 for the shift.
    """
    from scipy.optimize import minimize_scalar

    margins = margins_of(logits)

    def nll(log_temperature: float) -> float:
        scaled = margins / math.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - labels * scaled))

    temperature = math.exp(float(minimize_scalar(nll, bounds=(-5, 5), method="bounded").x))
    shift = _log_odds(natural_labels) - _log_odds(labels)
    return Calibration(
        temperature,
        shift,
        ece_before=_ece(margins, labels),
        ece_after=_ece(margins / temperature, labels),
        ece_natural=_ece(margins_of(natural_logits) / temperature + shift, natural_labels),
    )


def thresholds(samples: Sequence[Sample], p: np.ndarray) -> list[Threshold]:
    """Measure what each false-alarm rate costs and finds on functions at natural ratio.

    Args:
        p: calibrated probabilities of the samples, (samples,).
    Returns:
        One row a rate that the data resolve, by ascending rate: the lowest threshold that at most this share of the
        non-vulnerable functions reaches.
    """
    from moekd.data.text import count_lines

    vulnerable = labels_of(samples) == 1
    safe = np.sort(p[~vulnerable])[::-1]
    kloc = sum(count_lines(sample.func) for sample in samples) / 1000
    rows: dict[float, Threshold] = {}
    for rate in _RATES:
        allowed = int(rate * len(safe) + 1e-9)
        if not 1 <= allowed < len(safe) or safe[allowed] >= 1:
            continue
        limit = float(np.nextafter(safe[allowed], 2))  # just above the first that may not be reported
        reported = p >= limit
        rows[limit] = Threshold(
            limit,
            float(reported[~vulnerable].mean()),
            float(reported.sum() / kloc),
            float(reported[vulnerable].mean()) if vulnerable.any() else None,
        )
    return sorted(rows.values(), key=lambda row: (row.false_alarm_rate, -row.p))


def labels_of(samples: Sequence[Sample]) -> np.ndarray:
    return np.array([sample.label for sample in samples])


def margins_of(logits: np.ndarray) -> np.ndarray:
    return logits[:, 1].astype(np.float64) - logits[:, 0]


def probabilities(logits: np.ndarray, calibration: Calibration) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -(margins_of(logits) / calibration.temperature + calibration.shift)))


def _log_odds(labels: np.ndarray) -> float:
    share = float(np.mean(labels))
    return math.log(share / (1 - share))


def _ece(margins: np.ndarray, labels: np.ndarray) -> float:
    from moekd.evaluate import detection

    logits = np.stack([np.zeros_like(margins), margins], axis=1)
    return float(detection(logits, labels)(np.ones((1, len(labels))))["ece"][0])
