"""How much of what a student learns from, and when: pure functions of progress, of outputs and of gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moekd.distill.checks import require_share

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def annealed(progress: float, *, start: float, end: float) -> float:
    """A temperature or a weight on the straight line from `start` to `end`, in the unit of both.

    A high temperature first makes the targets smooth and easy; a weight that moves from the teacher's term to the
    labels' follows the same idea, from a simple objective to the real one. Both are our reading: Annealing KD goes
    through temperatures step by step and learns from the labels alone at the end.

    Args:
        progress: share of the run that is over, 0 to 1.
    Raises:
        ValueError: progress is no share, or a bound is not finite.
    Source: Jafari et al. 2021 (Annealing KD), arXiv:2104.07163; 2022 (Continuation KD), arXiv:2212.05998.
    """
    require_share("progress", progress)
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ValueError(f"start and end must be finite, got {start!r} and {end!r}")
    return start + (end - start) * progress


def competence(progress: float, *, initial: float) -> float:
    """Share of the training functions, the easiest first, that the student is ready for: sqrt(p (1 - c²) + c²).

    Args:
        progress: p, share of the run that is over, 0 to 1.
        initial: c, the share at the start, 0 < c <= 1.
    Raises:
        ValueError: progress is no share, or initial is out of range.
    Source: Platanios et al. 2019, arXiv:1903.09848, its square-root competence.
    """
    require_share("progress", progress)
    if not 0 < initial <= 1:
        raise ValueError(f"initial competence must be above 0 and at most 1, got {initial!r}")
    return math.sqrt(progress * (1 - initial**2) + initial**2)


def easiest(difficulty: np.ndarray, share: float) -> np.ndarray:
    """Rows of the easiest share, at least one, int64, in their order; equal difficulties by row.

    Args:
        difficulty: (rows,), larger is harder, such as the teacher's entropy in nats or the length in tokens.
        share: 0 to 1, as from `competence`.
    Raises:
        ValueError: no rows, a difficulty that is not finite, or a share out of range.
    """
    import numpy as np

    require_share("share", share)
    if difficulty.ndim != 1 or not difficulty.size or not np.isfinite(difficulty).all():
        raise ValueError(f"difficulty must be (rows,), finite and not empty, got shape {difficulty.shape}")
    count = max(1, math.ceil(share * len(difficulty)))
    return np.sort(np.argsort(difficulty, kind="stable")[:count])


def uncertainty(logits: Tensor) -> Tensor:
    """Entropy of each row's class probabilities as a share of the largest possible one, (batch,), no gradient.

    Weighs the teacher's term by what the student does not know yet: 0 where it is sure, 1 where it has no idea.

    Args:
        logits: of the student, (batch, classes), two classes or more.
    Raises:
        ValueError: another shape.
    Source: Li et al. 2021 (Dynamic KD), arXiv:2109.11295, whose code scales it likewise to tell two teachers' shares;
    as the weight of one teacher's term it is our reading.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be (batch, classes) with two classes or more, got {tuple(logits.shape)}")
    log_p = logits.detach().log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1) / math.log(logits.shape[1])


def balance(task: Tensor, teacher: Tensor) -> float:
    """Weight w of the task's gradient for which w · task + (1 - w) · teacher is shortest.

    Moving against that vector worsens neither loss to first order; where it is zero no step improves both, and the
    two losses are at a trade-off. The closed form for two objectives.

    Args:
        task, teacher: gradients of the two losses, flat, (parameters,).
    Returns:
        w, 0 to 1; 0.5 for equal gradients, where every w is as good.
    Raises:
        ValueError: shapes differ or are not flat, or a value is not finite.
    Source: Sener, Koltun 2018 (MGDA), arXiv:1810.04650, section 3.2, equation 4 and algorithm 1.
    """
    if task.shape != teacher.shape or task.ndim != 1:
        raise ValueError(f"gradients must be flat and of one shape, got {tuple(task.shape)} and {tuple(teacher.shape)}")
    difference = teacher.double() - task.double()
    squared = float(difference @ difference)
    if not math.isfinite(squared):
        raise ValueError("a gradient holds a value that is not finite")
    if squared == 0:
        return 0.5
    return min(1.0, max(0.0, float(difference @ teacher.double()) / squared))


def failures(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How often each function is drawn next, from what the student makes of it now: shares of sum 1, (rows,).

    In proportion to 1 + half the L1 distance of the two models' probabilities + 1 if the student's label is wrong: a
    mastered function is still seen, a failure up to three times as often.

    Args:
        student, teacher: class probabilities, (rows, classes), the same shape. labels: class indices, (rows,).
    Raises:
        ValueError: shapes do not fit together.
    Source: our reading of SODA (Chen et al., arXiv:2408.03680) for classifiers (methods.md 4.2).
    """
    import numpy as np

    if student.shape != teacher.shape or student.ndim != 2 or labels.shape != student.shape[:1]:
        raise ValueError(
            f"probabilities must be (rows, classes) and labels (rows,), got {student.shape}, {teacher.shape} and "
            f"{labels.shape}"
        )
    distance = np.abs(student - teacher).sum(axis=1, dtype=np.float64) / 2
    weight = 1 + distance + (student.argmax(axis=1) != labels)
    return weight / weight.sum()
