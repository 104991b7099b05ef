"""Losses as pure functions: shapes checked, units stated, nothing broadcast."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def soft_target_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Divergence of the student's softened class probabilities from the teacher's.

    The batch mean of T² · KL(softmax(teacher / T) ‖ softmax(student / T)); no hard labels take part. The T² keeps the
    gradient's size about the same as T grows. For two classes and logit gaps small against T it is a regression on
    the gap: (d_teacher - d_student)² / 8 (methods.md 1.7).

    Args:
        student: logits, (batch, classes). The only input that receives a gradient.
        teacher: logits, exactly the same shape; a (batch, 1) tensor is refused, not broadcast.
        temperature: T, finite and > 0, no unit.
    Returns:
        Scalar in nats, >= 0; zero when both give the same probabilities.
    Raises:
        ValueError: shapes differ, fewer than two classes, or T is not finite and positive.
    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2; MoEKD, arXiv:2603.13213, equation 4.
    """
    from torch.nn import functional as F

    _require_same_logits(student, teacher)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and positive, got {temperature!r}")
    log_q = F.log_softmax(student / temperature, dim=-1)
    log_p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _require_same_logits(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher logits have shape {tuple(teacher.shape)}, student {tuple(student.shape)}; they must be equal"
        )
    if student.ndim != 2 or student.shape[1] < 2:
        raise ValueError(f"logits must be (batch, classes) with two classes or more, got {tuple(student.shape)}")
