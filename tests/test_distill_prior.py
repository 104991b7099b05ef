"""Dynamic prior knowledge: the measured gap by hand and against the published formula, what is given, the decoder."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from moekd.config import Distill
from moekd.distill.objective import FeatureTerm
from moekd.distill.prior import PriorDecoder, prior_share, similarity, with_prior
from moekd.distill.states import PLACES, States

#: No deadline: on a busy machine one call of torch may wait longer than hypothesis allows.
QUICKLY = settings(deadline=None, max_examples=50)
SEEDS = st.integers(0, 2**31)
#: Four states on a line, and three sets that see the same four things in another way.
LINE = [[1], [-1], [0], [0]]
CROSSED = [[1], [0], [-1], [0]]
BOTH = [[1, 1], [-1, 0], [0, -1], [0, 0]]


def states(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def at_random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everywhere(value: bool, *shape: int) -> torch.Tensor:
    return torch.full(shape, value)


# ---------------------------------------------------------------------------------------------- similarity


@pytest.mark.parametrize(("teacher", "expected"), [(LINE, 1), (BOTH, 1 / 2), (CROSSED, 0), ([[1], [1], [1], [1]], 0)])
def test_similarity_by_hand(teacher, expected):
    """LINE's U-centred Gram matrix is -1/3 at the pairs (1, 2) and (3, 4), 1/6 at the four others; CROSSED's has its
    -1/3 at (1, 3) and (2, 4); BOTH's is the sum of the two. Squared lengths over pairs: 1/3, 1/3, and 1/3 + 1/3 - 1/3,
    as LINE · CROSSED = 4 (-1/3)(1/6) + 2/36 = -1/6. So LINE and BOTH have (1/3 - 1/6) / (1/3) = 1/2, LINE and CROSSED
    -1/2, which is as unlike as can be told. States that are all the same are like nothing.
    """
    assert similarity(states(LINE), states(teacher)) == pytest.approx(expected, abs=1e-9)
    assert prior_share(states(LINE), states(teacher)) == pytest.approx(1 - expected, abs=1e-9)


def hsic(one: torch.Tensor, other: torch.Tensor) -> float:
    """Song et al.'s unbiased estimate as they write it, of two matrices of inner products."""
    n = len(one)
    one, other = (gram - torch.diag(torch.diag(gram)) for gram in (one, other))
    ones = torch.ones(n, dtype=one.dtype)
    middle = (ones @ one @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
    return float(torch.trace(one @ other) + middle - 2 / (n - 2) * (ones @ one @ other @ ones)) / (n * (n - 3))


@QUICKLY
@drawn(seed=SEEDS, count=st.integers(4, 9))
def test_similarity_against_the_published_formula(seed, count):
    student, teacher = at_random(seed, count, 3), at_random(seed + 1, count, 5)
    ours, theirs = student @ student.T, teacher @ teacher.T
    expected = hsic(ours, theirs) / math.sqrt(hsic(ours, ours) * hsic(theirs, theirs))
    assert similarity(student, teacher) == pytest.approx(min(1, max(0, expected)), abs=1e-9)


@QUICKLY
@drawn(seed=SEEDS, scale=st.floats(0.1, 10), shift=st.floats(-10, 10))
def test_similarity_knows_neither_place_nor_size_nor_turn(seed, scale, shift):
    student, teacher = at_random(seed, 8, 3), at_random(seed + 1, 8, 4)
    turn = torch.linalg.qr(at_random(seed + 2, 3, 3)).Q
    moved = scale * student @ turn + shift
    assert similarity(moved, teacher) == pytest.approx(similarity(student, teacher), abs=1e-9)
    assert similarity(moved, student) == pytest.approx(1)


def test_unrelated_states_are_unlike_even_where_they_are_few():
    """60 states of widths 64 and 768: the plain estimate, a cosine of centred Gram matrices, calls them alike."""
    student, teacher = at_random(0, 60, 64), at_random(1, 60, 768)
    ours, theirs = ((s - s.mean(dim=0)) @ (s - s.mean(dim=0)).T for s in (student, teacher))
    assert float((ours * theirs).sum() / (ours.norm() * theirs.norm())) > 0.5
    assert similarity(student, teacher) < 0.1


# ------------------------------------------------------------------------------------------- what is given


def test_given_states_are_the_teachers():
    """Of three places of a text the second is given."""
    student, teacher = states([[[1, 2], [3, 4], [5, 6]]]), states([[[9, 9], [8, 8], [7, 7]]])
    found = with_prior(student, teacher, torch.tensor([[False, True, False]]))
    assert found.tolist() == [[[1, 2], [8, 8], [5, 6]]]


class Copy(torch.nn.Module):
    """A decoder that changes nothing: then given places have no loss."""

    def forward(self, student, teacher, given, real):
        return with_prior(student, teacher, given)


def term_of(teacher: States, *, weight: float = 1.0, decoder: torch.nn.Module | None = None) -> FeatureTerm:
    chosen = Distill.model_validate({"features": {"kind": "prior-knowledge", "weight": weight}}).features
    config = SimpleNamespace(num_hidden_layers=2, hidden_size=2, model_type="roberta")
    term = FeatureTerm(chosen, config, teacher, seed=0)
    term.decoder = decoder or term.decoder
    return term


def at_places(places: torch.Tensor, real: torch.Tensor | None = None) -> States:
    if real is None:
        real = everywhere(True, *places.shape[:2])
    return States(torch.zeros(len(places), 3, places.shape[2]), places.float(), real)


def test_term_by_hand():
    """A teacher that sees the same at twice the size gives nothing: half of the squared lengths 1, 1, 0, 0, mean 1/4.

    One that sees all in another way (similarity 0) gives everything, and nothing is left to learn. The other twelve
    places are not real.
    """
    real = torch.arange(PLACES).unsqueeze(0) < 4
    line, crossed = (torch.zeros(1, PLACES, 2) for _ in range(2))
    line[0, :4, :1], crossed[0, :4, 1:] = states(LINE), states(CROSSED)
    student, rows = at_places(line, real), np.array([0])
    twice, other = at_places(2 * line, everywhere(True, 1, PLACES)), at_places(crossed, real)
    assert float(term_of(twice, weight=3.0, decoder=Copy())(student, rows)) == pytest.approx(3 / 4)
    assert float(term_of(other, decoder=Copy())(student, rows)) == 0


def test_the_more_alike_the_less_is_given():
    """Teachers between the student's own states and unrelated ones; with a decoder that copies, a given place has no
    loss, so the share of places without loss is the share that is given.
    """
    student, noise = at_random(0, 40, PLACES, 2).float(), at_random(1, 40, PLACES, 2).float()
    rows = np.arange(40)
    shares = []
    for part in (0.0, 0.5, 2.0):
        teacher = student + part * noise + 100.0  # moved, which the similarity does not see: no place is equal
        found = {}

        class Seen(Copy):
            def forward(self, student, teacher, given, real, found=found):
                found["share"] = float(given.float().mean())
                return super().forward(student, teacher, given, real)

        torch.manual_seed(0)
        term_of(at_places(teacher), decoder=Seen())(at_places(student), rows)
        expected = prior_share(student.flatten(0, 1), teacher.flatten(0, 1))
        assert found["share"] == pytest.approx(expected, abs=0.06)  # 640 places, 3 standard errors
        shares.append(found["share"])
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[2] > 0.7


def test_batches_that_tell_nothing_are_left_out():
    """A text without a real place takes no part; three states in all are too few, and then the loss is zero."""
    places, real = at_random(0, 2, PLACES, 2).float(), everywhere(True, 2, PLACES)
    real[1] = False
    teacher = at_places(at_random(1, 2, PLACES, 2).float(), everywhere(True, 2, PLACES))
    term = term_of(teacher)
    losses = []
    for rows in ([0, 1], [0]):
        torch.manual_seed(0)
        loss = term(States(torch.zeros(len(rows), 3, 2), places[rows], real[rows]), np.array(rows))
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] > 0
    real[0, 3:] = False
    assert float(term(at_places(places, real), np.array([0, 1]))) == 0


# ------------------------------------------------------------------------------------------------- decoder


def decoded(decoder: PriorDecoder, student, teacher, given, real) -> torch.Tensor:
    with torch.no_grad():
        return decoder(student, teacher, given, real)


def test_decoder_reads_each_place_once_and_no_place_that_is_not_real():
    """The student's state where the teacher's is given, the teacher's where it is not, and what is not real: no input.

    Any other state is, for every place.
    """
    decoder = PriorDecoder(4, 6, seed=0)
    student, teacher = at_random(0, 1, 5, 4).float(), at_random(1, 1, 5, 6).float()
    given = torch.tensor([[True, False, False, True, False]])
    real = torch.tensor([[True, True, True, True, False]])
    before = decoded(decoder, student, teacher, given, real)[:, :4]
    assert before.shape == (1, 4, 6)
    ours, theirs = student.clone(), teacher.clone()
    ours[:, [0, 3, 4]] += 1
    theirs[:, [1, 2, 4]] += 1
    torch.testing.assert_close(decoded(decoder, ours, theirs, given, real)[:, :4], before)
    ours, theirs = student.clone(), teacher.clone()
    ours[0, 1, 0] += 1
    theirs[0, 3, 0] += 1
    for changed in (
        decoded(decoder, ours, teacher, given, real),
        decoded(decoder, student, theirs, given, real),
    ):
        assert ((changed[:, :4] - before).abs().amax(dim=2) > 1e-6).all()


def test_decoder_trains_the_student_and_itself_and_never_the_teacher():
    decoder = PriorDecoder(4, 6, seed=0)
    student = at_random(0, 2, 5, 4).float().requires_grad_()
    teacher = at_random(1, 2, 5, 6).float().requires_grad_()
    given = everywhere(False, 2, 5)
    given[:, 0] = True
    decoder(student, teacher, given, everywhere(True, 2, 5)).square().sum().backward()
    assert teacher.grad is None
    assert (student.grad[:, 0] == 0).all()
    assert (student.grad[:, 1:].abs().sum(dim=2) > 0).all()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_one_seed_gives_one_decoder_and_leaves_other_draws_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, same, other = (PriorDecoder(4, 6, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["mix.linear1.weight"], other["mix.linear1.weight"])


# ------------------------------------------------------------------------------------------------- refused


def test_what_does_not_fit_together_is_refused():
    decoder, places = PriorDecoder(2, 3, seed=0), torch.zeros(1, 4, 2)
    whole, wider = everywhere(True, 1, 4), torch.zeros(1, 4, 3)
    for wrong, said in (
        (lambda: similarity(torch.zeros(4, 2), torch.zeros(1, 2)), "all axes but the width must be equal"),
        (lambda: similarity(torch.zeros(4), torch.zeros(4)), "student states must be"),
        (lambda: similarity(torch.zeros(3, 2), torch.zeros(3, 2)), "4 states or more, got 3"),
        (lambda: with_prior(places, torch.zeros(1, 4, 1), whole), r"\(1, 4, 1\), student \(1, 4, 2\)"),
        (lambda: with_prior(places, places, whole.float()), "mask must be boolean"),
        (lambda: with_prior(places, places, whole[:, :1]), "mask must be boolean of shape"),
        (lambda: decoder(places, wider, whole, whole[:, :1]), "mask must be boolean of shape"),
        (lambda: decoder(places, wider[:, :1], whole, whole), "they must be equal"),
        (lambda: decoder(places, wider, whole, ~whole), "a text has no real place"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()
