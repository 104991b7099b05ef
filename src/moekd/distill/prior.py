"""Dynamic prior knowledge: the teacher's states stand in for some of the student's before the two are compared.

From the student's states and the given ones of the teacher a decoder makes all of the teacher's. The further the two
models are apart, the more is given, so the task stays of a difficulty that the student can bear.

Qiu et al. 2022 (DPK), arXiv:2206.06067. Known to us: its abstract (part of the teacher's features is input, not only
target, and its share follows the gap), the authors' answers to reviewers (the gap is the CKA of minibatches), a later
paper's summary (masks, a decoder, a reconstruction loss) and, since theirs was not published, an implementation by
others: it gives a place with probability 1 - CKA, of a running mean, and compares all places. Our reading: the CKA of
the batch at hand, over the places of the last layer; one small layer as decoder; all places compared, given ones too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moekd.distill.checks import require_axes, require_mask, require_same_places, require_same_states
from moekd.distill.projection import projection

#: The estimate below has n (n - 3) in its denominator.
FEWEST_STATES = 4


def similarity(student: Tensor, teacher: Tensor) -> float:
    """How alike two models see the same things: linear CKA of the states, from an unbiased estimate; no gradient.

    The cosine of the two models' U-centred Gram matrices, which is the ratio of HSIC estimates in the source: the plain
    estimate calls unrelated states alike where they are fewer than their width. Unchanged when a model's states are
    moved, turned, or scaled as a whole; widths may differ.

    Args:
        student: (states, width); teacher: (states, other width), of the same places in the same order.
    Returns:
        Without unit, 0 to 1; negative estimates are 0, and so is the likeness with states that are all the same.
    Raises:
        ValueError: the numbers of states differ, or are below FEWEST_STATES.
    Source: the minibatch CKA of Nguyen, Raghu, Kornblith 2021, arXiv:2010.15327, with the HSIC_1 of Song et al. 2012.
    """
    require_same_places(student, teacher, "states, width")
    if len(student) < FEWEST_STATES:
        raise ValueError(f"similarity needs {FEWEST_STATES} states or more, got {len(student)}")
    ours, theirs = (_centred_gram(states.detach()).flatten() for states in (student, teacher))
    return min(1.0, max(0.0, float(F.cosine_similarity(ours, theirs, dim=0, eps=1e-12))))


def prior_share(student: Tensor, teacher: Tensor) -> float:
    """Share of the places where the teacher's states are given, 0 to 1: 1 - `similarity`, whose inputs it takes.

    Nothing of the student is read at 1: that step trains the decoder alone.
    """
    return 1 - similarity(student, teacher)


def with_prior(student: Tensor, teacher: Tensor, given: Tensor) -> Tensor:
    """The student's states, and the teacher's in their place where they are given; (batch, places, width).

    Args:
        student, teacher: (batch, places, width), the same shape. The teacher's keep their gradient: here they are
            input, and what brought them to this width is trained.
        given: boolean, (batch, places).
    Raises:
        ValueError: shapes differ, or `given` is no mask of the places.
    """
    require_same_states(student, teacher, "batch, places, width")
    require_mask(given, student)
    return torch.where(given.unsqueeze(-1), teacher, student)


class PriorDecoder(nn.Module):
    """From the student's and the given states to the teacher's: trained with the student and then thrown away.

    A linear map brings the teacher's states to the student's width; one transformer layer of one head, without
    dropout, lets places see each other, since a given state at one place is prior knowledge for another; a linear map
    leads to the teacher's width.
    """

    def __init__(self, student_width: int, teacher_width: int, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the layer draws from torch's own generator
            torch.manual_seed(seed)
            self.narrow = projection(teacher_width, student_width, seed=seed + 1)
            self.widen = projection(student_width, teacher_width, seed=seed + 2)
            self.mix = nn.TransformerEncoderLayer(
                student_width, nhead=1, dim_feedforward=2 * student_width, dropout=0.0, batch_first=True
            )

    def forward(self, student: Tensor, teacher: Tensor, given: Tensor, real: Tensor) -> Tensor:
        """What the decoder makes of the teacher's states, (batch, places, teacher's width).

        Args:
            student: (batch, places, student's width). teacher: (batch, places, teacher's width), no gradient.
            given: where the teacher's state is input, boolean, (batch, places).
            real: which places there are, boolean, (batch, places), one a text at least; the answer is of no meaning
                elsewhere.
        Raises:
            ValueError: shapes do not fit together, or a text has no real place.
        """
        require_axes("teacher states", teacher, "batch, places, width")
        require_mask(real, student)
        if not real.any(dim=1).all():
            raise ValueError("a text has no real place, so there is nothing to attend to")
        hybrid = with_prior(student, self.narrow(teacher.detach()), given)
        return self.widen(self.mix(hybrid, src_key_padding_mask=~real))


def _centred_gram(states: Tensor) -> Tensor:
    """The U-centred matrix of inner products, (states, states): zero diagonal, and rows that sum to zero.

    Source: Székely, Rizzo 2014, doi:10.1214/14-AOS1255, definition 2, for inner products.
    """
    count = len(states)
    states = states - states.mean(dim=0)  # changes nothing but the rounding
    off_diagonal = ~torch.eye(count, dtype=torch.bool, device=states.device)
    gram = states @ states.T * off_diagonal
    sums = gram.sum(dim=1, keepdim=True) / (count - 2)
    return (gram - sums - sums.T + gram.sum() / ((count - 1) * (count - 2))) * off_diagonal
