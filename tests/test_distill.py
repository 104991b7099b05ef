"""The loss that students learn by, and the training around it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moekd.classifier import Classifier
from moekd.distill import student
from moekd.distill.losses import soft_target_loss

LOGITS = st.floats(-30, 30)


def logits(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_soft_targets_by_hand():
    """Teacher (3/4, 1/4), student (1/2, 1/2), T = 1: 0.75 ln 1.5 + 0.25 ln 0.5 nats."""
    loss = soft_target_loss(logits([0, 0]), logits([math.log(3), 0]), temperature=1.0)
    assert float(loss) == pytest.approx(0.130812, abs=1e-6)


def test_soft_targets_by_hand_at_two():
    """Logits ln 9 at T = 2 are ln 3 at T = 1, and T^2 = 4."""
    loss = soft_target_loss(logits([0, 0]), logits([math.log(9), 0]), temperature=2.0)
    assert float(loss) == pytest.approx(4 * 0.130812, abs=4e-6)


def test_the_loss_is_the_mean_over_the_batch():
    rows = [([0, 0], [1, 2]), ([3, 1], [0, 5]), ([2, 2], [2, 2])]
    each = [float(soft_target_loss(logits(s), logits(t), temperature=3.0)) for s, t in rows]
    both = soft_target_loss(logits(*(s for s, _ in rows)), logits(*(t for _, t in rows)), temperature=3.0)
    assert float(both) == pytest.approx(sum(each) / 3)


@given(st.lists(st.tuples(LOGITS, LOGITS, LOGITS), min_size=1, max_size=4), st.floats(0.5, 20))
def test_zero_at_equal_probabilities(rows, temperature):
    """A constant added to a row's logits changes no probability."""
    teacher = logits(*rows)
    loss = soft_target_loss(teacher + 5, teacher, temperature=temperature)
    assert float(loss) == pytest.approx(0, abs=1e-9)


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.tuples(*[st.lists(st.tuples(LOGITS, LOGITS, LOGITS), min_size=n, max_size=n)] * 2)
    ),
    st.floats(0.5, 20),
)
def test_against_a_slow_reference(pair, temperature):
    """T^2 times the sum of p ln(p / q), row by row, class by class."""
    total = 0.0
    for student_row, teacher_row in zip(*pair, strict=True):
        p, q = (softmax(np.array(row) / temperature) for row in (teacher_row, student_row))
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)
    loss = soft_target_loss(*(logits(*rows) for rows in pair), temperature=temperature)
    assert float(loss) == pytest.approx(temperature**2 * total / len(pair[0]), rel=1e-6, abs=1e-7)
    assert float(loss) >= -1e-9


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def test_only_the_student_receives_a_gradient():
    teacher, learner = logits([2, 0]).requires_grad_(), logits([0, 1]).requires_grad_()
    soft_target_loss(learner, teacher, temperature=4.0).backward()
    assert teacher.grad is None
    assert learner.grad.abs().sum() > 0


def test_the_gradients_size_is_kept_as_t_grows():
    """The gradient is T (q - p), which tends to (z_s - z_t) / classes for zero-mean logits; without T^2 to zero."""
    teacher = logits([0.8, -0.8], [-0.3, 0.3])
    for temperature in (10.0, 100.0, 1000.0):
        learner = logits([-0.4, 0.4], [0.5, -0.5]).requires_grad_()
        soft_target_loss(learner, teacher, temperature=temperature).backward()
        expected = (learner.detach() - teacher) / 2 / len(teacher)
        torch.testing.assert_close(learner.grad, expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize(("teacher_gap", "student_gap"), [(1.0, 0.0), (0.5, -1.5), (-2.0, 1.0)])
def test_two_classes_and_small_gaps_are_a_regression(teacher_gap, student_gap):
    """methods.md 1.7: at gaps small against T the loss is (d_t - d_s)^2 / 8."""
    loss = soft_target_loss(logits([student_gap, 0]), logits([teacher_gap, 0]), temperature=100.0)
    assert float(loss) == pytest.approx((teacher_gap - student_gap) ** 2 / 8, rel=1e-3)


def test_narrow_teacher_is_refused():
    """Broadcasting would train towards one score for all classes at a plausible loss."""
    with pytest.raises(ValueError, match=r"teacher .* \(2, 1\), student \(2, 2\)"):
        soft_target_loss(torch.zeros(2, 2), torch.zeros(2, 1), temperature=1.0)


@pytest.mark.parametrize("shape", [(2, 1), (2,), (2, 2, 2)])
def test_what_is_no_batch_of_classes_is_refused(shape):
    with pytest.raises(ValueError, match="two classes or more"):
        soft_target_loss(torch.zeros(shape), torch.zeros(shape), temperature=1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_is_finite_and_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be finite and positive"):
        soft_target_loss(torch.zeros(2, 2), torch.zeros(2, 2), temperature=temperature)


# --------------------------------------------------------------------------------------------- latency


@pytest.mark.parametrize("count", [1, 3, 8])
def test_latency_of_few_texts(make_model, tokenizer, functions, count):
    """The warm-up is left out and every text counts, however few there are."""
    texts = [sample.func for sample in functions[:count]]
    clock = iter(np.arange(1000.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student.time, "perf_counter", lambda: next(clock))
        assert student.latency_ms(Classifier(make_model(), tokenizer, 64), texts) == pytest.approx(1000.0)
