"""What a student reads: functions, what is known of them, and which of them each epoch takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics
from moekd.classifier import predict
from moekd.config import Competence
from moekd.distill import schedules
from moekd.distill.targets import teacher_logits
from moekd.distill.variants import load_variants
from moekd.files import read_arrays, write_arrays
from moekd.tokens import Tokens, encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from moekd.config import Distill
    from moekd.records import Sample


@dataclass(frozen=True)
class Lessons:
    """Training functions of one student.

    Attributes:
        tokens: of all functions. labels: int64, (functions,).
        teacher: logits, float32, (functions, classes); None for a student of hard labels.
        draw: epoch -> rows of that epoch.
        look_back: told the student after each epoch, where the next one depends on what it has learned.
        forget: removes what `look_back` left on disk.
    """

    tokens: Tokens
    labels: torch.Tensor
    teacher: torch.Tensor | None
    draw: Callable[[int], np.ndarray]
    look_back: Callable[[int, Any], None] = lambda epoch, model: None
    forget: Callable[[], None] = lambda: None


def plain(
    inputs: Mapping[str, Path],
    samples: Sequence[Sample],
    tokens: Tokens,
    classes: Sequence[str],
    distill: Distill,
    epochs: int,
) -> Lessons:
    """Every function in every epoch, or under `competence` those whose teacher is sure first."""
    teacher = teacher_logits(inputs["targets"], samples, classes) if "targets" in inputs else None
    draw = _all_rows(len(samples))
    if teacher is not None and isinstance(distill.schedule, Competence):
        draw = by_competence(schedules.uncertainty(teacher).numpy(), epochs, initial=distill.schedule.initial)
    return Lessons(tokens, _labels(samples), teacher, draw)


def by_competence(difficulty: np.ndarray, epochs: int, *, initial: float) -> Callable[[int], np.ndarray]:
    """Rows of an epoch: the easiest, `initial` of them in the first epoch and all in the last."""

    def draw(epoch: int) -> np.ndarray:
        progress = epoch / (epochs - 1) if epochs > 1 else 1.0
        return schedules.easiest(difficulty, schedules.competence(progress, initial=initial))

    return draw


def pioneer(
    lessons: Lessons, inputs: Mapping[str, Path], samples: Sequence[Sample], tokenizer: Any, max_length: int
) -> Lessons:
    """Robustness-aware training: each epoch also has one renamed variant of each of its functions, in turn.

    Our reading of PIONEER (Liu et al. 2026, doi 10.1007/s10515-025-00560-2), of which only the abstract was available:
    the student learns from the teacher's distributions on original and on adversarial examples, both as soft labels.
    Ours are renamed at random and checked, not searched for with an attack, and the loss is the mean over both. Its
    choice of an architecture by robustness is not part of this. An epoch has up to twice as many functions as that of
    other students. Not known: how its examples are made, how many there are, its losses' weights and its training.

    Args:
        inputs: `variants`, the folder of a `score_variants` stage. samples: of the lessons, in their order.
    """
    import torch

    by_row = load_variants(inputs["variants"], samples)
    variants = [one for row in sorted(by_row) for one in by_row[row]]
    number = {one.id: len(samples) + index for index, one in enumerate(variants)}
    rows_of = {row: [number[one.id] for one in ones] for row, ones in by_row.items()}
    added = encode(tokenizer, [one.func for one in variants], max_length)

    def draw(epoch: int) -> np.ndarray:
        originals = lessons.draw(epoch)
        extra = [rows_of[row][epoch % len(rows_of[row])] for row in originals.tolist() if row in rows_of]
        return np.concatenate([originals, np.array(extra, dtype=np.int64)])

    assert lessons.teacher is not None, "pioneer has a teacher"
    return Lessons(
        _joined(lessons.tokens, added),
        torch.cat([lessons.labels, _labels(variants)]),
        torch.cat([lessons.teacher, teacher_logits(inputs["variants"], variants)]),
        draw,
    )


def soda(lessons: Lessons, folder: Path, *, pad_id: int, seed: int) -> Lessons:
    """Self-paced training: after each epoch the student's failures are found, and the next one draws them more often.

    Our reading of SODA (Chen et al. 2025, arXiv:2408.03680) for a classifier. SODA distils code generation in a cycle
    of knowledge delivery, feedback from several views and new questions of adapted difficulty; here the views are the
    teacher's probabilities and the label, and the questions are drawn anew from half B, with replacement and as many
    as before, by `schedules.failures`. Its contrast with faulty answers and its questions made by a language model have
    no counterpart. Not known: how it would be done for classification, which its text does not treat.

    Args:
        folder: of the student's step; keeps what the next epoch draws by, so that a stopped run continues alike.
    """
    assert lessons.teacher is not None, "soda has a teacher"
    teacher, labels = lessons.teacher.softmax(dim=1).numpy(), lessons.labels.numpy()
    count = len(labels)

    def note(epoch: int) -> Path:
        return folder / f"pace-{epoch}.npz"

    def draw(epoch: int) -> np.ndarray:
        if epoch == 0:
            return np.arange(count)
        shares = read_arrays(note(epoch - 1))["shares"]
        return np.sort(numerics.generator(seed, "pace", epoch).choice(count, size=count, p=shares))

    def look_back(epoch: int, model: Any) -> None:
        logits = predict(model, lessons.tokens, pad_id=pad_id)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        student = powers / powers.sum(axis=1, keepdims=True)
        write_arrays(note(epoch), {"shares": schedules.failures(student, teacher, labels)})

    def forget() -> None:
        for path in folder.glob("pace-*.npz"):
            path.unlink()

    return Lessons(lessons.tokens, lessons.labels, lessons.teacher, draw, look_back, forget)


def _all_rows(count: int) -> Callable[[int], np.ndarray]:
    return lambda epoch: np.arange(count)


def _labels(samples: Sequence[Sample]) -> torch.Tensor:
    import torch

    return torch.tensor([sample.label for sample in samples], dtype=torch.int64)


def _joined(one: Tokens, other: Tokens) -> Tokens:
    return Tokens(
        np.concatenate([one.flat, other.flat]), np.concatenate([one.offsets, one.offsets[-1] + other.offsets[1:]])
    )
