"""The fusion itself, pure functions of arrays (MoEKD, arXiv:2603.13213, section 3.2).

Letters in shapes: n samples, K experts, k of them selected.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from moekd.errors import DataError, SettingsError

Weights = Literal["renormalised", "softmax-of-probabilities"]
Fusion = Literal["logits", "probabilities", "maximum"]

#: Bounds of a calibration temperature. A sharper or flatter expert than this has too few rows to tell.
_TEMPERATURES = (0.05, 20.0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log of the softmax over the last axis, float64, without overflow."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def top_k(router_logits: np.ndarray, k: int) -> np.ndarray:
    """Return the k most probable experts of each sample, most probable first, int64, (n, k).

    Args:
        router_logits: (n, K). The softmax keeps their order, so probabilities select the same; but very small
            ones round to equal values, so everything here selects by logits. Equal logits: lower index first.
    Raises:
        SettingsError: k is larger than the number of experts.
    """
    experts = router_logits.shape[1]
    if not 1 <= k <= experts:
        raise SettingsError(f"mixture.k is {k}, but there are {experts} experts; set it to 1 ... {experts}")
    return np.argsort(-router_logits, axis=1, kind="stable")[:, :k]


def selected_weights(router_probabilities: np.ndarray, selected: np.ndarray, *, rule: Weights) -> np.ndarray:
    """Return the weight of each selected expert, (n, k), non-negative, each row adding up to 1.

    Args:
        router_probabilities: (n, K).
        selected: experts, (n, k), as `top_k` returns them.
        rule: `renormalised` divides by the sum over the selected (MoEKD); `softmax-of-probabilities` takes
            the softmax of the probabilities themselves, which flattens them: 0.9 and 0.05 become 0.70 and
            0.30 (what MoEVD's published scripts do, arXiv:2501.16454).
    """
    chosen = np.take_along_axis(router_probabilities, selected, axis=1)  # (n, k)
    if rule == "softmax-of-probabilities":
        return np.exp(log_softmax(chosen))
    return chosen / chosen.sum(axis=1, keepdims=True)


def fuse(
    router_logits: np.ndarray, expert_logits: np.ndarray, *, k: int, weights: Weights, fusion: Fusion
) -> np.ndarray:
    """Return the mixture's logits, float64, (n, 2).

    Args:
        router_logits: (n, K).
        expert_logits: (n, K, 2); NaN where an expert was not asked. Calibrated ones are divided by their
            temperature before.
        k: experts selected for a sample.
        weights: see `selected_weights`.
        fusion: `logits` is the weighted mean of logits (MoEKD, equation 3); `probabilities` the log of the
            weighted mean of class probabilities; `maximum` the logits of the selected expert that is surest
            of "vulnerable", whatever its weight: one expert's alarm is the mixture's. Of equally sure ones
            the router's first choice counts.
    Raises:
        SettingsError: k is larger than the number of experts.
        DataError: a selected expert was not asked about its sample.
    """
    require_shapes(router_logits, expert_logits)
    probabilities = np.exp(log_softmax(router_logits))
    selected = top_k(router_logits, k)
    share = selected_weights(probabilities, selected, rule=weights)[:, :, None]  # (n, k, 1)
    chosen = np.take_along_axis(expert_logits, selected[:, :, None], axis=1).astype(np.float64)  # (n, k, 2)
    _require_answers(chosen, f"the {k} experts that the router selects")
    if fusion == "maximum":
        surest = (chosen[:, :, 1] - chosen[:, :, 0]).argmax(axis=1)
        return np.take_along_axis(chosen, surest[:, None, None], axis=1)[:, 0]
    if fusion == "probabilities":
        log_p = log_softmax(chosen)
        peak = log_p.max(axis=1, keepdims=True)  # taken out so that no probability underflows to log 0
        return np.log((share * np.exp(log_p - peak)).sum(axis=1)) + peak[:, 0]
    return (share * chosen).sum(axis=1)


def expert_shares(
    router_logits: np.ndarray, expert_logits: np.ndarray, *, k: int, weights: Weights, fusion: Fusion
) -> np.ndarray:
    """Return each expert's share in the mixture of a sample, (n, K), each row adding up to 1; 0 if not selected.

    By these shares the experts' hidden states make the mixture's. Under `maximum` the one expert whose logits are taken
    has all; `probabilities` mixes other things than `logits`, by the same weights. Arguments and errors as in `fuse`.
    """
    require_shapes(router_logits, expert_logits)
    selected = top_k(router_logits, k)
    if fusion == "maximum":
        chosen = np.take_along_axis(expert_logits, selected[:, :, None], axis=1)  # (n, k, 2)
        _require_answers(chosen, f"the {k} experts that the router selects")
        surest = (chosen[:, :, 1] - chosen[:, :, 0]).argmax(axis=1)
        share = np.eye(k)[surest]  # (n, k)
    else:
        share = selected_weights(np.exp(log_softmax(router_logits)), selected, rule=weights)
    shares = np.zeros(router_logits.shape)
    np.put_along_axis(shares, selected, share, axis=1)
    return shares


def plain_ensemble(expert_logits: np.ndarray) -> np.ndarray:
    """Return the mean of all experts' logits, float64, (n, 2): the control without a router.

    Raises DataError if an expert was not asked about a sample.
    """
    _require_answers(expert_logits, "all experts, whose mean is the plain ensemble")
    return expert_logits.mean(axis=1, dtype=np.float64)


def calibration_temperatures(expert_logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the temperature of each expert that makes its answers fit the labels best, (K,).

    One positive number divides an expert's logits; it minimises the mean negative log-likelihood on the rows
    that the expert was asked about and never changes the expert's decisions. An expert with no rows, or with
    rows of one class, keeps 1.0.

    Args:
        expert_logits: (n, K, 2) of validation samples; rows with NaN are left out, expert by expert.
        labels: 0 or 1, (n,).
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    return np.array([_temperature(expert_logits[:, e], labels) for e in range(expert_logits.shape[1])])


def _temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    from scipy.optimize import minimize_scalar

    asked = ~np.isnan(logits).any(axis=1)
    known, wanted = logits[asked], labels[asked]
    if len(np.unique(wanted)) < 2:
        return 1.0

    def loss_nats(log_temperature: float) -> float:
        return -log_softmax(known / np.exp(log_temperature))[np.arange(len(wanted)), wanted].mean()

    # The loss is convex in 1/T, so it has one valley in log T as well.
    bounds = tuple(np.log(_TEMPERATURES))
    return float(np.exp(minimize_scalar(loss_nats, bounds=bounds, method="bounded").x))


def require_shapes(router_logits: np.ndarray, expert_logits: np.ndarray) -> None:
    if router_logits.ndim != 2 or expert_logits.shape != (*router_logits.shape, 2):
        raise ValueError(
            f"router logits must be (n, K) and expert logits (n, K, 2), got {router_logits.shape} and "
            f"{expert_logits.shape}"
        )


def _require_answers(logits: np.ndarray, who: str) -> None:
    unanswered = int(np.isnan(logits).any(axis=(1, 2)).sum())
    if unanswered:
        raise DataError(
            f"{unanswered} of {len(logits)} samples lack an answer of {who}: the table holds only the "
            'experts that were selected when it was made. Set mixture.table = "complete" to ask all of them'
        )
