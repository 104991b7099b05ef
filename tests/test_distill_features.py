"""Losses on hidden states, projections and schedules: by hand, their invariances, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.distill.feature_losses import (
    attention_transfer_loss,
    contrastive_loss,
    hidden_state_loss,
    matched_layers,
    patient_loss,
    relation_loss,
    skip_layers,
)
from moekd.distill.projection import projection
from moekd.distill.schedules import annealed, balance, competence, easiest, failures, uncertainty

#: No deadline: on a busy machine one call of torch may wait longer than hypothesis allows.
QUICKLY = settings(deadline=None, max_examples=50)
SEEDS = st.integers(0, 2**31)


def states(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def at_random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def real(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


NAMED = {
    "hidden": (hidden_state_loss, (4, 3)),
    "patient": (patient_loss, (4, 2, 3)),
    "attention": (lambda s, t: attention_transfer_loss(s, t, real(4, 5)), (4, 5, 3)),
    "relation": (lambda s, t: relation_loss(s, t, real(4, 5), window=4, angle_weight=2.0), (4, 5, 3)),
}


# ------------------------------------------------------------------------------------------------ by hand


def test_hidden_states_by_hand():
    """Differences (3, 4) and (0, 2): (25 + 4) / 2 over 2 rows, halved."""
    assert float(hidden_state_loss(states([[3, 4], [1, 3]]), states([[0, 0], [1, 1]]))) == 29 / 4


def test_patient_loss_by_hand():
    """Layer 1 at a right angle: distance squared 2. Layer 2 the same way, three times as long: 0."""
    assert float(patient_loss(states([[[5, 0], [3, 3]]]), states([[[0, 1], [1, 1]]]))) == pytest.approx(2)


def test_layers_as_published():
    """Sun et al.: 6 layers learn from 12; a deeper student repeats the teacher's, 0 being the embeddings."""
    assert skip_layers(6, 12) == (2, 4, 6, 8, 10)
    assert skip_layers(3, 6) == (2, 4)
    assert skip_layers(4, 2) == (0, 1, 1)
    assert matched_layers(3, 6) == (2, 4, 6)


def test_attention_transfer_by_hand():
    """Maps (9 + 16, 0) -> (1, 0) and (0, 4) -> (0, 1): distance sqrt(2). The third token is padding."""
    loss = attention_transfer_loss(
        states([[[3, 4], [0, 0], [9, 9]]]), states([[[0], [2], [7]]]), torch.tensor([[True, True, False]])
    )
    assert float(loss) == pytest.approx(math.sqrt(2))


def test_contrastive_by_hand():
    """Two texts at right angles, found at cosine 1 against 0: ln(1 + 1 / e) each at temperature 1."""
    pair = states([[2, 0], [0, 3]])
    assert float(contrastive_loss(pair, pair, temperature=1.0)) == pytest.approx(0.313262, abs=1e-6)


def test_relation_by_hand():
    """Student at 0, 1, 2 on a line; teacher at (0, 0), (1, 0), (1, 1): all steps of one unit, the middle angle differs.

    Distances agree. Cosines at the middle item between its two neighbours: -1 against 0, in 2 of the 6 ordered pairs of
    neighbours (the ends have one neighbour, which has cosine 1 with itself): 2 / 6.
    """
    student, teacher = states([[[0], [1], [2]]]), states([[[0, 0], [1, 0], [1, 1]]])
    assert float(relation_loss(student, teacher, real(1, 3), window=2, angle_weight=0.0)) == pytest.approx(0)
    assert float(relation_loss(student, teacher, real(1, 3), window=2, angle_weight=3.0)) == pytest.approx(1)


def test_relation_distances_by_hand():
    """Steps of 1 and 3, in units of their mean 1/2 and 3/2; of 1 and 1, 1 and 1: mean square 1/4."""
    student, teacher = states([[[0], [1], [4]]]), states([[[0], [1], [2]]])
    assert float(relation_loss(student, teacher, real(1, 3), window=2, angle_weight=1.0)) == pytest.approx(1 / 4)


def test_annealing_by_hand():
    assert [annealed(p, start=10, end=1) for p in (0, 0.5, 1)] == [10, 5.5, 1]


def test_competence_by_hand():
    """c = 0.6: sqrt(0.36), sqrt(0.5 · 0.64 + 0.36) and 1."""
    assert [competence(p, initial=0.6) for p in (0, 0.5, 1)] == pytest.approx([0.6, math.sqrt(0.68), 1])


def test_the_easiest_rows_in_their_order():
    """Half of four rows; of equal ones the earlier; never none."""
    assert easiest(np.array([5.0, 1.0, 3.0, 1.0]), 0.5).tolist() == [1, 3]
    assert easiest(np.array([2.0, 1.0, 1.0]), 0.0).tolist() == [1]


def test_uncertainty_by_hand():
    """(1/2, 1/2): all of ln 2. (3/4, 1/4): 0.562335 nats of 0.693147. (1, 0): none."""
    found = uncertainty(states([[0, 0], [math.log(3), 0], [500, 0]]))
    assert found.tolist() == pytest.approx([1, 0.811278, 0], abs=1e-6)


def test_balance_by_hand():
    """Gradients (2, 0) and (0, 1): the foot of the perpendicular from 0 on the line between has w = 1 / 5."""
    assert balance(states([2, 0]), states([0, 1])) == pytest.approx(1 / 5)
    assert balance(states([1, 0]), states([3, 0])) == 1  # the shorter of two that agree
    assert balance(states([1, 0]), states([-1, 0])) == 0.5  # a trade-off: no step improves both
    assert balance(states([1, 2]), states([1, 2])) == 0.5


def test_failures_are_drawn_more_often_by_hand():
    """Right and as the teacher: 1. Right, half the L1 distance 0.3: 1.3. Wrong, 0.7 away: 2.7. Their sum is 5."""
    student, teacher = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]]), np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    assert failures(student, teacher, np.array([0, 1, 1])) == pytest.approx(np.array([1, 1.3, 2.7]) / 5)


# -------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", NAMED)
@QUICKLY
@given(seed=SEEDS)
def test_zero_at_equality_and_positive_elsewhere(name, seed):
    loss, shape = NAMED[name]
    teacher, learner = at_random(seed, *shape), at_random(seed + 1, *shape)
    assert float(loss(teacher, teacher)) == pytest.approx(0, abs=1e-9)
    assert float(loss(learner, teacher)) > 0


@pytest.mark.parametrize("name", NAMED)
def test_gradients_at_equality_are_finite_and_the_teachers_are_none(name):
    """Norms and roots have NaN gradients at zero if written carelessly."""
    loss, shape = NAMED[name]
    teacher = at_random(0, *shape).requires_grad_()
    learner = teacher.detach().clone().requires_grad_()
    loss(learner, teacher).backward()
    assert teacher.grad is None
    assert torch.isfinite(learner.grad).all()


@QUICKLY
@given(seed=SEEDS, scale=st.floats(0.1, 10), shift=st.floats(-10, 10))
def test_relations_know_neither_place_nor_size_nor_turn(seed, scale, shift):
    student, teacher, mask = at_random(seed, 2, 6, 3), at_random(seed + 1, 2, 6, 4), real(2, 6)
    turn = torch.linalg.qr(at_random(seed + 2, 3, 3)).Q
    moved = relation_loss(scale * student @ turn + shift, teacher, mask, window=4, angle_weight=2.0)
    torch.testing.assert_close(moved, relation_loss(student, teacher, mask, window=4, angle_weight=2.0))


@QUICKLY
@given(seed=SEEDS)
def test_padding_takes_no_part(seed):
    """Other values where the mask is false change no loss over tokens."""
    student, teacher = at_random(seed, 2, 6, 3), at_random(seed + 1, 2, 6, 3)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 5 + [False]])
    filled = torch.where(mask.unsqueeze(2), student, 100 * at_random(seed + 2, 2, 6, 3))
    for loss in (
        attention_transfer_loss,
        lambda s, t, m: relation_loss(s, t, m, window=4, angle_weight=1.0),
    ):
        torch.testing.assert_close(loss(filled, teacher, mask), loss(student, teacher, mask))


@QUICKLY
@given(seed=SEEDS, scale=st.floats(0.1, 10))
def test_contrast_knows_no_size_and_prefers_the_right_pairs(seed, scale):
    teacher = at_random(seed, 4, 6)
    right = contrastive_loss(teacher, teacher, temperature=0.5)
    torch.testing.assert_close(contrastive_loss(scale * teacher, teacher, temperature=0.5), right)
    assert float(contrastive_loss(teacher.roll(1, dims=0), teacher, temperature=0.5)) > float(right)


@QUICKLY
@given(seed=SEEDS)
def test_the_balanced_step_worsens_neither(seed):
    """The shortest mixture d has d · g >= d · d for both gradients g."""
    task, teacher = at_random(seed, 7), at_random(seed + 1, 7)
    weight = balance(task, teacher)
    step = weight * task + (1 - weight) * teacher
    assert min(float(step @ task), float(step @ teacher)) >= float(step @ step) - 1e-9


@QUICKLY
@given(st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
def test_competence_grows(initial, one, other):
    low, high = sorted((one, other))
    assert initial - 1e-9 <= competence(low, initial=initial) <= competence(high, initial=initial) <= 1 + 1e-9


def test_projection_keeps_lengths_at_the_start():
    """Orthogonal columns: a student's state is as long in the teacher's width, and one seed gives one module."""
    layer, batch = projection(3, 8, seed=0), at_random(0, 5, 3).float()
    torch.testing.assert_close(layer(batch).norm(dim=1), batch.norm(dim=1))
    assert torch.equal(layer.weight, projection(3, 8, seed=0).weight)
    assert not torch.equal(layer.weight, projection(3, 8, seed=1).weight)


# ----------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("name", ["hidden", "patient"])
def test_another_width_is_refused(name):
    """A teacher of width 1 would be broadcast."""
    loss, shape = NAMED[name]
    with pytest.raises(ValueError, match="A projection brings"):
        loss(torch.zeros(shape), torch.zeros(*shape[:-1], 1))


@pytest.mark.parametrize("name", ["attention", "relation"])
def test_other_tokens_are_refused(name):
    with pytest.raises(ValueError, match="all axes but the width must be equal"):
        NAMED[name][0](torch.zeros(4, 5, 3), torch.zeros(4, 1, 3))


@pytest.mark.parametrize("name", NAMED)
def test_other_axes_are_refused(name):
    with pytest.raises(ValueError, match="student states must be"):
        NAMED[name][0](torch.zeros(4), torch.zeros(4))


@pytest.mark.parametrize("mask", [torch.ones(4, 5), torch.ones(4, 1, dtype=torch.bool)])
def test_a_mask_of_numbers_or_of_another_shape_is_refused(mask):
    """Numbers would select rows, and one column would be broadcast."""
    with pytest.raises(ValueError, match=r"mask must be boolean of shape \(4, 5\)"):
        relation_loss(torch.zeros(4, 5, 3), torch.zeros(4, 5, 3), mask, window=2, angle_weight=1.0)


def test_relations_need_neighbours():
    alone = torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match="no two neighbours are real"):
        relation_loss(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), alone, window=2, angle_weight=1.0)
    with pytest.raises(ValueError, match="window must be 2 or more"):
        relation_loss(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), real(1, 3), window=1, angle_weight=1.0)


def test_nothing_to_contrast_with():
    with pytest.raises(ValueError, match="two or more texts"):
        contrastive_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature=1.0)


def test_schedules_refuse_what_is_out_of_range():
    for wrong, said in (
        (lambda: annealed(1.1, start=1, end=2), "progress must be a share"),
        (lambda: annealed(math.nan, start=1, end=2), "progress must be a share"),
        (lambda: annealed(0.5, start=math.inf, end=2), "start and end must be finite"),
        (lambda: competence(0.5, initial=0), "initial competence"),
        (lambda: easiest(np.array([1.0, math.nan]), 0.5), "difficulty must be"),
        (lambda: easiest(np.array([1.0]), 1.5), "share must be a share"),
        (lambda: uncertainty(torch.zeros(3, 1)), "two classes or more"),
        (lambda: balance(torch.zeros(3), torch.zeros(1)), "of one shape"),
        (lambda: balance(torch.tensor([math.inf]), torch.zeros(1)), "not finite"),
        (lambda: failures(np.ones((3, 2)), np.ones((3, 1)), np.ones(3)), r"\(3, 2\), \(3, 1\)"),
        (lambda: projection(0, 4, seed=0), "widths must be positive"),
        (lambda: skip_layers(0, 4), "a layer at least"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()
