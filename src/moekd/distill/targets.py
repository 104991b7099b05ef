"""The teacher's cached logits, found by id and content: no student waits for a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moekd.errors import DataError
from moekd.records import LABELS
from moekd.scorer import aligned, load_scores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from moekd.records import Sample

TARGETS_FILE = "targets.npz"


def teacher_logits(folder: Path, samples: Sequence[Sample], classes: Sequence[str] = LABELS) -> torch.Tensor:
    """Logits of the samples in their order, float32, (samples, classes), from a folder's `targets.npz`.

    Raises:
        DataError: a sample is missing or was scored with another text, or the teacher has other classes than students.
    """
    import torch

    logits = aligned(load_scores(folder / TARGETS_FILE), samples)
    if logits.shape[1] != len(classes):
        raise DataError(
            f"the teacher of {folder / TARGETS_FILE} tells {logits.shape[1]} classes apart, its student {len(classes)} "
            f"({', '.join(classes)}): distil from a teacher with the same classes"
        )
    return torch.from_numpy(logits)
