"""Losses on logits, as pure functions: shapes checked, units stated, nothing broadcast.

Losses on hidden states are in `feature_losses`. The teacher never receives a gradient.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moekd.distill.checks import (
    require_between,
    require_not_negative,
    require_positive,
    require_same_logits,
)

if TYPE_CHECKING:
    from torch import Tensor


def soft_target_loss(student: Tensor, teacher: Tensor, *, temperature: float, weights: Tensor | None = None) -> Tensor:
    """Divergence of the student's softened class probabilities from the teacher's.

    The batch mean of T² · KL(softmax(teacher / T) ‖ softmax(student / T)); no hard labels take part. The T² keeps the
    gradient's size about the same as T grows. For two classes and logit gaps small against T it is a regression on
    the gap: (d_teacher - d_student)² / 8 (methods.md 1.7).

    Args:
        student: logits, (batch, classes). The only input that receives a gradient.
        teacher: logits, exactly the same shape; a (batch, 1) tensor is refused, not broadcast.
        temperature: T, finite and > 0, no unit.
        weights: of the rows, (batch,), >= 0, as from `schedules.uncertainty`; None: each counts 1.
    Returns:
        Scalar in nats, >= 0; zero when both give the same probabilities.
    Raises:
        ValueError: shapes differ, fewer than two classes, T is not finite and positive, or weights are no row each.
    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2; MoEKD, arXiv:2603.13213, equation 4.
    """
    from torch.nn import functional as F

    log_p, log_q = _log_probabilities(student, teacher, temperature)
    if weights is not None:
        if weights.shape != student.shape[:1]:
            raise ValueError(f"weights must be ({len(student)},), one a row; got {tuple(weights.shape)}")
        each = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)  # (batch,)
        return temperature**2 * (weights * each).mean()
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def skewed_kl_loss(student: Tensor, teacher: Tensor, *, temperature: float, skew: float) -> Tensor:
    """Divergence of a mixture of both from the teacher: T² · KL(p ‖ skew · p + (1 - skew) · q), batch mean.

    p and q are the tempered probabilities of teacher and student. The mixture bounds the loss by -T² ln(skew) where
    plain KL is unbounded, so one confident mistake cannot rule a batch. It tends to `soft_target_loss` as skew -> 0.

    Args:
        student, teacher: logits, (batch, classes), the same shape.
        temperature: T, finite and > 0. The authors' code has none, which is T = 1.
        skew: share of the teacher in the mixture, 0 < skew < 1. The authors' code has 0.1.
    Returns:
        Scalar in nats, >= 0; zero when both give the same probabilities.
    Raises:
        ValueError: shapes differ, fewer than two classes, or a parameter is out of range.
    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898, section 3; T is ours.
    """
    import torch
    from torch.nn import functional as F

    require_between("skew", skew, 0, 1)
    log_p, log_q = _log_probabilities(student, teacher, temperature)
    log_mixture = torch.logaddexp(log_p + math.log(skew), log_q + math.log1p(-skew))
    return temperature**2 * F.kl_div(log_mixture, log_p, reduction="batchmean", log_target=True)


def decoupled_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    target_weight: float,
    other_weight: float,
) -> Tensor:
    """KL split in "how sure of the label" and "what among the other classes", each with its own weight.

    T² · (target_weight · KL(b_t ‖ b_s) + other_weight · KL(o_t ‖ o_s)), batch mean, where b = (p_label, 1 - p_label)
    and o are the probabilities of the other classes, scaled to sum 1. Plain KL is the same with other_weight =
    1 - p_label of the teacher, which is near zero just where the teacher is sure.

    With two classes there is one other class, so the second term is zero: the loss is then
    target_weight · `soft_target_loss`, and other_weight changes nothing.

    Args:
        student, teacher: logits, (batch, classes), the same shape.
        labels: class indices, int64, (batch,).
        temperature: T, finite and > 0.
        target_weight, other_weight: alpha and beta, finite, >= 0. The authors' code has 1 and 8 by default.
    Returns:
        Scalar in nats, >= 0; zero when both give the same probabilities.
    Raises:
        ValueError: shapes differ, fewer than two classes, labels that are no classes, or a parameter out of range.
    Source: Zhao et al. 2022 (DKD), arXiv:2203.08679; alpha and beta are theirs.
    """
    import torch
    from torch.nn import functional as F

    require_not_negative("target_weight", target_weight)
    require_not_negative("other_weight", other_weight)
    log_p, log_q = _log_probabilities(student, teacher, temperature)
    is_label = _one_hot(labels, log_q)
    log_p, log_q = (
        torch.cat(_label_and_others(log, is_label), dim=1) for log in (log_p, log_q)
    )  # (batch, classes + 1)
    target = F.kl_div(log_q[:, :2], log_p[:, :2], reduction="batchmean", log_target=True)
    others = F.kl_div(log_q[:, 2:], log_p[:, 2:], reduction="batchmean", log_target=True)
    return temperature**2 * (target_weight * target + other_weight * others)


def dist_loss(
    student: Tensor, teacher: Tensor, *, temperature: float, inter_weight: float, intra_weight: float
) -> Tensor:
    """What is not linear between the two models' tempered probabilities, across classes and across samples.

    inter_weight · mean over samples of (1 - correlation over classes)
    + intra_weight · mean over classes of (1 - correlation over samples).

    Matching relations instead of values is easier for a student much smaller than its teacher. For two classes the
    first term has no gradient: centred, a row is (d, -d), so its correlation is 1 or -1 whatever d. The second needs
    a batch of two or more, and the larger the batch, the less noisy it is. No factor T², as in the study's code
    (methods.md 9); copies of the authors' code have one.

    Args:
        student, teacher: logits, (batch, classes), the same shape; batch >= 2.
        temperature: T, finite and > 0.
        inter_weight, intra_weight: beta and gamma, finite, >= 0.
    Returns:
        Scalar without unit, 0 to 2 · (inter_weight + intra_weight); zero at equal probabilities that vary.
    Raises:
        ValueError: shapes differ, fewer than two classes or samples, or a parameter is out of range.
    Source: Huang et al. 2022 (DIST), arXiv:2205.10536.
    """
    require_not_negative("inter_weight", inter_weight)
    require_not_negative("intra_weight", intra_weight)
    log_p, log_q = _log_probabilities(student, teacher, temperature)
    if len(student) < 2:
        raise ValueError("DIST correlates over samples and needs two or more in a batch, got 1")
    inter = pearson_distance(log_q.exp(), log_p.exp())
    intra = pearson_distance(log_q.exp().T, log_p.exp().T)
    return inter_weight * inter + intra_weight * intra


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of 1 - Pearson's correlation; both (rows, values).

    Unchanged when a row is shifted or scaled by a positive number. A constant row correlates with nothing: distance 1.

    Returns:
        Scalar without unit, 0 to 2.
    Raises:
        ValueError: shapes differ or are not (rows, values).
    Source: Huang et al. 2022 (DIST), arXiv:2205.10536.
    """
    from torch.nn import functional as F

    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(
            f"rows to correlate must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    centred = (values - values.mean(dim=1, keepdim=True) for values in (student, teacher))
    return (1 - F.cosine_similarity(*centred, dim=1, eps=1e-12)).mean()


def cosine_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Batch mean of 1 - cosine of the two models' tempered probabilities; MORPH adds it to the soft targets.

    Args:
        student, teacher: logits, (batch, classes), the same shape.
        temperature: T, finite and > 0.
    Returns:
        Scalar without unit, 0 to 1; zero when both give the same probabilities.
    Raises:
        ValueError: shapes differ, fewer than two classes, or T is not finite and positive.
    Source: Panichella 2025 (MORPH), ICSE; methods.md 3.5.
    """
    from torch.nn import functional as F

    log_p, log_q = _log_probabilities(student, teacher, temperature)
    return (1 - F.cosine_similarity(log_q.exp(), log_p.exp(), dim=1)).mean()


def standardise_logits(logits: Tensor) -> Tensor:
    """Each row minus its mean, divided by its standard deviation, so that a loss compares shapes and not sizes.

    Apply to student and teacher before a loss with temperature. Unchanged when a row is shifted or scaled by a positive
    number. A constant row becomes zeros. Two classes are refused: the result would be (1, -1) or (-1, 1) for every
    sample, and all but the predicted label would be lost.

    Args:
        logits: (batch, classes), three classes or more. Receives a gradient.
    Returns:
        The same shape, without unit; mean 0 and population variance 1 in each row.
    Raises:
        ValueError: another shape, or fewer than three classes.
    Source: Sun et al. 2024, arXiv:2403.01427, algorithm 1.
    """
    if logits.ndim != 2 or logits.shape[1] < 3:
        raise ValueError(
            "logit standardisation needs (batch, classes) with three classes or more: of two classes it leaves only "
            f"which one is larger. Got {tuple(logits.shape)}"
        )
    centred = logits - logits.mean(dim=1, keepdim=True)
    # Not torch.std: its gradient at a constant row is NaN.
    return centred * (centred.square().mean(dim=1, keepdim=True) + 1e-14).rsqrt()


def _log_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tempered log-probabilities, (batch, classes), of the teacher (no gradient) and of the student."""
    from torch.nn import functional as F

    require_same_logits(student, teacher)
    require_positive("temperature", temperature)
    log_p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    return log_p, F.log_softmax(student / temperature, dim=-1)


def _one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """Boolean, (batch, classes)."""
    import torch

    batch, classes = like.shape
    if labels.shape != (batch,) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 of shape ({batch},), got {labels.dtype} of {tuple(labels.shape)}")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels must be 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    return torch.nn.functional.one_hot(labels, classes).bool()


def _label_and_others(log_p: Tensor, is_label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the label and of all else, (batch, 1) each, and within all else, (batch, classes - 1)."""
    others = log_p[~is_label].reshape(len(log_p), -1)
    rest = others.logsumexp(dim=1, keepdim=True)  # of probabilities, not 1 - p: exact where p is near 1
    return log_p[is_label].unsqueeze(1), rest, others - rest
