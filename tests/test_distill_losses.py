"""Losses on logits: by hand, against each other, and what each refuses. (Plain soft targets: test_distill.py.)"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.config import Distill
from moekd.distill.losses import (
    cosine_loss,
    decoupled_loss,
    dist_loss,
    pearson_distance,
    skewed_kl_loss,
    soft_target_loss,
    standardise_logits,
)

#: No deadline: on a busy machine one call of torch may wait longer than hypothesis allows.
QUICKLY = settings(deadline=None, max_examples=50)
BATCHES = st.integers(0, 2**31)
CLASSES = st.integers(2, 5)


def logits(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def at_random(seed: int, *shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LN3 = math.log(3)
NAMED = {
    "skewed": lambda s, t: skewed_kl_loss(s, t, temperature=2.0, skew=0.1),
    "decoupled": lambda s, t: decoupled_loss(
        s, t, torch.zeros(len(s), dtype=torch.int64), temperature=2.0, target_weight=1.0, other_weight=8.0
    ),
    "dist": lambda s, t: dist_loss(s, t, temperature=2.0, inter_weight=1.0, intra_weight=1.0),
    "cosine": lambda s, t: cosine_loss(s, t, temperature=2.0),
}


# ------------------------------------------------------------------------------------------------ by hand


def test_skewed_kl_by_hand():
    """Teacher (3/4, 1/4), student (1/2, 1/2), skew 1/2: mixture (5/8, 3/8), 0.75 ln(6/5) + 0.25 ln(2/3)."""
    loss = skewed_kl_loss(logits([0, 0]), logits([LN3, 0]), temperature=1.0, skew=0.5)
    assert float(loss) == pytest.approx(0.136741 - 0.101366, abs=1e-6)


def test_decoupled_by_hand():
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/2, 1/4), label 0.

    Label against the rest: 0.5 ln 2 + 0.5 ln(2/3) = 0.143841. Among the rest, teacher (1/2, 1/2) and student
    (2/3, 1/3): 0.5 ln(3/4) + 0.5 ln(3/2) = 0.058892. With weights 1 and 4 the sum is 0.379407.
    """
    teacher, learner = logits([math.log(2), 0, 0]), logits([0, math.log(2), 0])
    loss = decoupled_loss(learner, teacher, torch.tensor([0]), temperature=1.0, target_weight=1.0, other_weight=4.0)
    assert float(loss) == pytest.approx(0.143841 + 4 * 0.058892, abs=2e-6)


def test_decoupled_has_the_authors_weights_by_default():
    """Zhao et al.'s code: alpha 1 and beta 8. Other defaults would be another method under the same name."""
    chosen = Distill.model_validate({"logits": {"kind": "decoupled"}}).logits
    assert (chosen.target_weight, chosen.other_weight) == (1, 8)


def test_dist_by_hand():
    """Teacher (3/4, 1/4), (1/4, 3/4), (1/2, 1/2); student (3/4, 1/4), (1/2, 1/2), (1/4, 3/4).

    Over samples, either class: centred (1, -1, 0) / 4 and (1, 0, -1) / 4 correlate by 1 / 2. Over classes: 1 where both
    prefer the same class and 0 where a row is constant: distances 0, 1 and 1.
    """
    teacher, learner = logits([LN3, 0], [0, LN3], [0, 0]), logits([LN3, 0], [0, 0], [0, LN3])
    both = dist_loss(learner, teacher, temperature=1.0, inter_weight=3.0, intra_weight=10.0)
    assert float(both) == pytest.approx(3 * 2 / 3 + 10 * 1 / 2)


def test_three_classes_by_hand():
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/2, 1/4): 0.5 ln 2 + 0.25 ln(1/2) = 0.25 ln 2 nats."""
    teacher, learner = logits([math.log(2), 0, 0]), logits([0, math.log(2), 0])
    assert float(soft_target_loss(learner, teacher, temperature=1.0)) == pytest.approx(0.25 * math.log(2))


def test_dist_of_three_classes_by_hand():
    """Teacher (2, 1, 1)/4 and (1, 2, 1)/4, student twice (1, 2, 1)/4.

    Over classes: centred (2, -1, -1) and (-1, 2, -1) correlate by -1/2; the second rows are equal: distances 3/2 and 0.
    Over samples the student is constant in every class: distance 1. Unlike with two classes, the first term teaches.
    """
    double = math.log(2)
    teacher, learner = logits([double, 0, 0], [0, double, 0]), logits([0, double, 0], [0, double, 0])
    loss = dist_loss(learner.requires_grad_(), teacher, temperature=1.0, inter_weight=4.0, intra_weight=0.0)
    assert float(loss.detach()) == pytest.approx(4 * 3 / 4)
    loss.backward()
    assert float(learner.grad[0].abs().max()) > 0.1
    both = dist_loss(learner.detach(), teacher, temperature=1.0, inter_weight=0.0, intra_weight=10.0)
    assert float(both) == pytest.approx(10)


def test_cosine_by_hand():
    """(3/4, 1/4) and (1/4, 3/4): the products sum to 6/16, the lengths squared are 10/16 each, so cosine 0.6."""
    assert float(cosine_loss(logits([0, LN3]), logits([LN3, 0]), temperature=1.0)) == pytest.approx(0.4)


def test_standardised_by_hand():
    """(0, 3, 6): mean 3, population variance 6."""
    z = 3 / math.sqrt(6)
    torch.testing.assert_close(standardise_logits(logits([0, 3, 6])), logits([-z, 0, z]))


# -------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", NAMED)
@QUICKLY
@given(seed=BATCHES, classes=CLASSES)
def test_zero_at_equal_probabilities(name, seed, classes):
    """A constant added to a row's logits changes no probability."""
    teacher = at_random(seed, 3, classes)
    assert float(NAMED[name](teacher + 5, teacher)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", NAMED)
@QUICKLY
@given(seed=BATCHES, classes=CLASSES)
def test_not_negative_and_the_teacher_has_no_gradient(name, seed, classes):
    teacher, learner = at_random(seed, 3, classes).requires_grad_(), at_random(seed + 1, 3, classes).requires_grad_()
    loss = NAMED[name](learner, teacher)
    loss.backward()
    assert float(loss.detach()) >= -1e-9
    assert teacher.grad is None
    assert torch.isfinite(learner.grad).all()


@QUICKLY
@given(seed=BATCHES, temperature=st.floats(2, 20))
def test_skewed_kl_tends_to_soft_targets(seed, temperature):
    teacher, learner = at_random(seed, 4, 3), at_random(seed + 1, 4, 3)
    skewed = skewed_kl_loss(learner, teacher, temperature=temperature, skew=1e-12)
    torch.testing.assert_close(
        skewed, soft_target_loss(learner, teacher, temperature=temperature), rtol=1e-4, atol=1e-6
    )


@QUICKLY
@given(seed=BATCHES, skew=st.floats(0.01, 0.99))
def test_skewed_kl_is_bounded(seed, skew):
    """However wrong the student is: -ln(skew) nats."""
    loss = skewed_kl_loss(100 * at_random(seed, 4, 3), at_random(seed + 1, 4, 3), temperature=1.0, skew=skew)
    assert float(loss) <= -math.log(skew) + 1e-9


@QUICKLY
@given(seed=BATCHES, classes=CLASSES)
def test_decoupled_with_the_teachers_own_weight_is_plain_kl(seed, classes):
    """KL = target term + (1 - p_label) · other term, for one sample."""
    teacher, learner = at_random(seed, 1, classes), at_random(seed + 1, 1, classes)
    weight = 1 - float(teacher.softmax(dim=1)[0, 1])
    loss = decoupled_loss(learner, teacher, torch.tensor([1]), temperature=1.0, target_weight=1, other_weight=weight)
    torch.testing.assert_close(loss, soft_target_loss(learner, teacher, temperature=1.0), rtol=1e-6, atol=1e-9)


def test_two_classes_have_no_other_classes():
    """`other_weight` changes nothing then, and the loss is that of soft targets."""
    teacher, learner = at_random(0, 5, 2), at_random(1, 5, 2)
    loss = decoupled_loss(
        learner, teacher, torch.tensor([0, 1, 0, 1, 1]), temperature=3.0, target_weight=1.0, other_weight=8.0
    )
    torch.testing.assert_close(loss, soft_target_loss(learner, teacher, temperature=3.0))


@QUICKLY
@given(seed=BATCHES, scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_correlation_knows_neither_scale_nor_shift(seed, scale, shift):
    teacher, learner = at_random(seed, 3, 4), at_random(seed + 1, 3, 4)
    torch.testing.assert_close(pearson_distance(scale * learner + shift, teacher), pearson_distance(learner, teacher))
    assert float(pearson_distance(scale * teacher + shift, teacher)) == pytest.approx(0, abs=1e-9)


def test_the_first_term_of_dist_has_no_gradient_for_two_classes():
    """methods.md 9: two centred values are (d, -d), so the correlation is 1 or -1."""
    teacher, learner = at_random(0, 6, 2), at_random(1, 6, 2).requires_grad_()
    dist_loss(learner, teacher, temperature=1.0, inter_weight=1.0, intra_weight=0.0).backward()
    assert float(learner.grad.abs().max()) < 1e-12


@QUICKLY
@given(seed=BATCHES, classes=st.integers(3, 6), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_standardised_logits_know_neither_scale_nor_shift(seed, classes, scale, shift):
    rows = at_random(seed, 3, classes)
    standard = standardise_logits(rows)
    torch.testing.assert_close(standardise_logits(scale * rows + shift), standard, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(standard.mean(dim=1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(standard.square().mean(dim=1), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)


def test_constant_logits_standardise_to_zero():
    rows = logits([4, 4, 4]).requires_grad_()
    standard = standardise_logits(rows)
    standard.sum().backward()
    assert standard.tolist() == [[0, 0, 0]]
    assert torch.isfinite(rows.grad).all()


# ----------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("name", NAMED)
def test_a_narrow_teacher_is_refused(name):
    """Broadcasting would train towards one score for all classes at a plausible loss."""
    with pytest.raises(ValueError, match=r"teacher .* \(2, 1\), student \(2, 2\)"):
        NAMED[name](torch.zeros(2, 2), torch.zeros(2, 1))


@pytest.mark.parametrize("name", NAMED)
def test_one_class_is_refused(name):
    with pytest.raises(ValueError, match="two classes or more"):
        NAMED[name](torch.zeros(2, 1), torch.zeros(2, 1))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_is_finite_and_positive(temperature):
    pair = torch.zeros(2, 2), torch.zeros(2, 2)
    for loss in (
        lambda: skewed_kl_loss(*pair, temperature=temperature, skew=0.1),
        lambda: cosine_loss(*pair, temperature=temperature),
        lambda: dist_loss(*pair, temperature=temperature, inter_weight=1, intra_weight=1),
        lambda: decoupled_loss(
            *pair, torch.tensor([0, 1]), temperature=temperature, target_weight=1.0, other_weight=1.0
        ),
    ):
        with pytest.raises(ValueError, match="temperature must be finite and positive"):
            loss()


@pytest.mark.parametrize("skew", [0.0, 1.0, -0.1, math.nan])
def test_skew_is_inside_0_and_1(skew):
    with pytest.raises(ValueError, match="skew must lie between 0 and 1"):
        skewed_kl_loss(torch.zeros(2, 2), torch.zeros(2, 2), temperature=1.0, skew=skew)


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_weights_are_finite_and_not_negative(weight):
    pair = torch.zeros(2, 2), torch.zeros(2, 2)
    with pytest.raises(ValueError, match="intra_weight must be finite and not negative"):
        dist_loss(*pair, temperature=1.0, inter_weight=1.0, intra_weight=weight)
    with pytest.raises(ValueError, match="other_weight must be finite and not negative"):
        decoupled_loss(*pair, torch.tensor([0, 1]), temperature=1.0, target_weight=1.0, other_weight=weight)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([0, 2]), "labels must be 0 to 1, got 0 to 2"),
        (torch.tensor([-1, 0]), "labels must be 0 to 1, got -1 to 0"),
        (torch.tensor([0.0, 1.0]), "labels must be int64"),
        (torch.tensor([0]), r"labels must be int64 of shape \(2,\)"),
    ],
)
def test_labels_are_classes(labels, said):
    with pytest.raises(ValueError, match=said):
        decoupled_loss(
            torch.zeros(2, 2), torch.zeros(2, 2), labels, temperature=1.0, target_weight=1.0, other_weight=1.0
        )


@pytest.mark.parametrize("shape", [(1,), (3, 1), (3, 3)])
def test_weights_are_one_a_row(shape):
    """A column of weights would be broadcast to every pair of rows."""
    with pytest.raises(ValueError, match=r"weights must be \(3,\), one a row; got"):
        soft_target_loss(torch.zeros(3, 2), torch.zeros(3, 2), temperature=1.0, weights=torch.ones(shape))


def test_dist_of_one_sample_is_refused():
    with pytest.raises(ValueError, match="two or more in a batch"):
        dist_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature=1.0, inter_weight=1.0, intra_weight=1.0)


def test_standardising_two_classes_is_refused():
    """It would leave (1, -1) or (-1, 1) and nothing of how sure the teacher is."""
    with pytest.raises(ValueError, match=r"three classes or more.*\(4, 2\)"):
        standardise_logits(torch.zeros(4, 2))
