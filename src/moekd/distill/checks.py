"""What every loss refuses: shapes that would be broadcast, parameters that are not finite or out of range."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def require_same_logits(student: Tensor, teacher: Tensor) -> None:
    """Both are (batch, classes) of one shape, with two classes or more."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher logits have shape {tuple(teacher.shape)}, student {tuple(student.shape)}; they must be equal"
        )
    if student.ndim != 2 or student.shape[1] < 2:
        raise ValueError(f"logits must be (batch, classes) with two classes or more, got {tuple(student.shape)}")


def require_same_states(student: Tensor, teacher: Tensor, letters: str) -> None:
    """Both have exactly these axes, such as "batch, width", and one shape."""
    require_axes("student states", student, letters)
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher states have shape {tuple(teacher.shape)}, student {tuple(student.shape)}; they must be equal. "
            "A projection brings the student's width to the teacher's"
        )


def require_same_places(student: Tensor, teacher: Tensor, letters: str) -> None:
    """As `require_same_states`, but the last axis, the width, may differ."""
    require_axes("student states", student, letters)
    require_axes("teacher states", teacher, letters)
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"teacher states have shape {tuple(teacher.shape)}, student {tuple(student.shape)}; "
            "all axes but the width must be equal"
        )


def require_axes(name: str, values: Tensor, letters: str) -> None:
    if values.ndim != len(letters.split(", ")) or 0 in values.shape:
        raise ValueError(f"{name} must be ({letters}), none of them empty; got {tuple(values.shape)}")


def require_mask(mask: Tensor, states: Tensor) -> None:
    """A boolean mask of the first two axes of `states`; 0 and 1 as numbers would select rows, not places."""
    import torch

    if mask.shape != states.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"the mask must be boolean of shape {tuple(states.shape[:2])}, got {mask.dtype} of {tuple(mask.shape)}"
        )


def require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and positive, got {value!r}")


def require_not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")


def require_between(name: str, value: float, low: float, high: float) -> None:
    """low < value < high; NaN is not."""
    if not low < value < high:
        raise ValueError(f"{name} must lie between {low:g} and {high:g}, got {value!r}")


def require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a share from 0 to 1, got {value!r}")
