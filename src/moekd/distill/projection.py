"""From the student's width to the teacher's: a small module that is trained with the student and then thrown away."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def projection(student_width: int, teacher_width: int, *, seed: int) -> nn.Linear:
    """A linear map (..., student_width) -> (..., teacher_width) without bias, from orthogonal random weights.

    Orthogonal, so that the student's distances and angles are kept at the start where the teacher is the wider one.

    Raises:
        ValueError: a width is below 1.
    Source: the regressor of Romero et al. 2015 (FitNets), arXiv:1412.6550, for vectors.
    """
    import torch

    if min(student_width, teacher_width) < 1:
        raise ValueError(f"widths must be positive, got student {student_width}, teacher {teacher_width}")
    layer = torch.nn.Linear(student_width, teacher_width, bias=False)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.orthogonal_(layer.weight, generator=generator)
    return layer
