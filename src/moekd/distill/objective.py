"""The one loss that a student minimises, put together as the settings say.

    share · CE(labels) + (1 - share) · (loss of logits + weight · loss of features)

A schedule may change the share, the temperature, or how much each function counts.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from moekd import numerics
from moekd.config import (
    AnnealedTemperature,
    AttentionTransfer,
    Continuation,
    Contrastive,
    Cosine,
    Decoupled,
    Dist,
    Hidden,
    Patient,
    PriorKnowledge,
    Relational,
    Skewed,
    Standardised,
)
from moekd.distill import schedules
from moekd.distill.feature_losses import (
    attention_transfer_loss,
    contrastive_loss,
    has_neighbours,
    hidden_state_loss,
    matched_layers,
    patient_loss,
    relation_loss,
    skip_layers,
)
from moekd.distill.losses import (
    cosine_loss,
    decoupled_loss,
    dist_loss,
    skewed_kl_loss,
    soft_target_loss,
    standardise_logits,
)
from moekd.distill.prior import FEWEST_STATES, PriorDecoder, prior_share
from moekd.distill.projection import projection
from moekd.distill.states import States, read, state_width

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from moekd.config import Distill, FeatureLoss, LogitLoss
    from moekd.tokens import Tokens


class Objective:
    """The loss of one batch.

    Attributes:
        progress: share of the run that is over, set by the training loop before each step.
    """

    def __init__(self, distill: Distill, labels: Tensor, teacher: Tensor) -> None:
        """Take the labels, int64, (rows,), and the teacher's logits, (rows, classes), of all training functions."""
        self.distill = distill
        self.labels = labels
        self.teacher = teacher
        self.progress = 0.0

    def begin_step(self, progress: float) -> None:
        self.progress = progress

    def __call__(self, logits: Tensor, rows: np.ndarray, features: Tensor | None = None) -> Tensor:
        """The loss of a batch, scalar.

        Args:
            logits: of the student, fp32, (batch, classes). rows: of the batch among all training functions.
            features: the weighted loss of features, scalar; None where there is none.
        """
        index = torch.from_numpy(rows)
        teacher, labels = (values[index].to(logits.device) for values in (self.teacher, self.labels))
        taught = self._logit_loss(logits, teacher, labels)
        if features is not None:
            taught = taught + features
        balanced = self.distill.schedule.kind == "balanced"
        share = balanced_share(logits, labels, taught) if balanced else self.label_share
        if share == 0:
            return taught
        return share * F.cross_entropy(logits, labels) + (1 - share) * taught

    @property
    def label_share(self) -> float:
        """The labels' share now; `balanced` finds another for each batch."""
        start, schedule = self.distill.label_share, self.distill.schedule
        if isinstance(schedule, Continuation):
            return schedules.annealed(self.progress, start=start, end=schedule.end)
        return start

    @property
    def temperature(self) -> float:
        start, schedule = self.distill.temperature, self.distill.schedule
        if isinstance(schedule, AnnealedTemperature):
            return schedules.annealed(self.progress, start=start, end=schedule.end)
        return start

    def _logit_loss(self, logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        if self.distill.schedule.kind == "uncertainty":
            return soft_target_loss(
                logits, teacher, temperature=self.temperature, weights=schedules.uncertainty(logits)
            )
        return logit_loss(self.distill.logits, logits, teacher, labels, temperature=self.temperature)


def logit_loss(wanted: LogitLoss, student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """The loss of logits that the settings name; see `losses`. DIST leaves a batch of one out: nothing to correlate."""
    if isinstance(wanted, Skewed):
        return skewed_kl_loss(student, teacher, temperature=temperature, skew=wanted.skew)
    if isinstance(wanted, Decoupled):
        return decoupled_loss(
            student,
            teacher,
            labels,
            temperature=temperature,
            target_weight=wanted.target_weight,
            other_weight=wanted.other_weight,
        )
    if isinstance(wanted, Dist):
        if len(student) < 2:
            return 0 * student.sum()
        return dist_loss(
            student,
            teacher,
            temperature=temperature,
            inter_weight=wanted.inter_weight,
            intra_weight=wanted.intra_weight,
        )
    if isinstance(wanted, Standardised):
        student, teacher = standardise_logits(student), standardise_logits(teacher)
    soft = soft_target_loss(student, teacher, temperature=temperature)
    if isinstance(wanted, Cosine):
        return soft + wanted.cosine_weight * cosine_loss(student, teacher, temperature=temperature)
    return soft


def balanced_share(logits: Tensor, labels: Tensor, taught: Tensor) -> float:
    """The labels' share for which the step worsens neither loss, by the gradients of the logits.

    The whole model lies below the logits, so theirs bound those of all parameters, and cost nothing: the upper bound
    of Sener, Koltun 2018, arXiv:1810.04650, section 3.3.
    """
    (task,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits, retain_graph=True)
    (teacher,) = torch.autograd.grad(taught, logits, retain_graph=True)
    return schedules.balance(task.flatten(), teacher.flatten())


class FeatureTerm(torch.nn.Module):
    """The weighted loss of features of one student, with the modules that are trained with it and thrown away.

    `hidden` and `patient` match each layer of the student with one of the teacher's; the others look at the last layer,
    `relational` also at the relations between layers.
    """

    def __init__(self, wanted: FeatureLoss, config: Any, teacher: States, *, seed: int) -> None:
        """Take the student's config and the teacher's states of all training functions.

        Raises:
            ValueError: a student of one layer, whose only layer meets the teacher in the logits, asks for `patient`.
        """
        super().__init__()
        self.wanted, self.teacher = wanted, teacher
        self.layers = int(config.num_hidden_layers)
        depth, width = teacher.layers.shape[1] - 1, teacher.layers.shape[2]
        if isinstance(wanted, Patient):
            self.matched = skip_layers(self.layers, depth)
            if not self.matched:
                raise ValueError("patient distillation needs a student of two layers or more, got 1")
        else:
            self.matched = matched_layers(self.layers, depth)
        projected = {Hidden: self.layers, Patient: len(self.matched), Contrastive: 1}.get(type(wanted), 0)
        self.projections = torch.nn.ModuleList(
            projection(state_width(config), width, seed=seed + index) for index in range(projected)
        )
        if isinstance(wanted, PriorKnowledge):
            self.decoder = PriorDecoder(state_width(config), width, seed=seed)

    def forward(self, student: States, rows: np.ndarray) -> Tensor:
        """The loss of a batch times its weight, scalar. What cannot be told in a batch of one function is left out."""
        with numerics.autocast(False):  # differences of states, which bfloat16 would round away
            return self._loss(student, rows)

    def _loss(self, student: States, rows: np.ndarray) -> Tensor:
        wanted = self.wanted
        teacher = self.teacher.take(rows, student.layers.device)
        own = student.layers[:, -self.layers :]  # without the embeddings
        theirs = teacher.layers[:, list(self.matched)]
        real = student.real & teacher.real
        if isinstance(wanted, Hidden):
            loss = hidden_state_loss(self._projected(own).flatten(0, 1), theirs.flatten(0, 1))
        elif isinstance(wanted, Patient):
            loss = patient_loss(self._projected(own[:, :-1]), theirs)
        elif isinstance(wanted, AttentionTransfer):
            loss = attention_transfer_loss(student.places, teacher.places, real)
        elif isinstance(wanted, Contrastive):
            if len(rows) < 2:
                return 0 * own.sum()
            loss = contrastive_loss(self._projected(own[:, -1:])[:, 0], theirs[:, -1], temperature=wanted.temperature)
        elif isinstance(wanted, PriorKnowledge):
            loss = _with_prior_knowledge(self.decoder, student.places, teacher.places, real)
        else:
            loss = _relations(wanted, student.places, teacher.places, real, own, theirs)
        return wanted.weight * loss

    def _projected(self, states: Tensor) -> Tensor:
        """(texts, layers, width) to the teacher's width, each layer by a projection of its own."""
        return torch.stack([layer(states[:, index]) for index, layer in enumerate(self.projections)], dim=1)


class Learner(torch.nn.Module):
    """A student and its feature term, trained as one and saved apart."""

    def __init__(self, student: Any, term: FeatureTerm, tokens: Tokens, places: Tokens, pad_id: int) -> None:
        super().__init__()
        self.student, self.term = student, term
        self.tokens, self.places, self.pad_id = tokens, places, pad_id

    def forward(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Logits, (batch, classes), and the weighted loss of features of some training functions."""
        logits, states = read(self.student, self.tokens, self.places, rows, self.pad_id)
        return logits, self.term(states, rows)


def _with_prior_knowledge(decoder: PriorDecoder, places: Tensor, their_places: Tensor, real: Tensor) -> Tensor:
    """Distance of the decoded places from the teacher's; a batch with too few places to tell the gap is left out.

    What is given is drawn from torch's own generator, which the training loop seeds anew for each step.
    """
    if real.sum() < FEWEST_STATES:
        return 0 * places.sum()
    some = real.any(dim=1)
    places, their_places, real = places[some], their_places[some], real[some]
    share = prior_share(places[real], their_places[real])
    given = torch.rand(real.shape, device=real.device) < share
    return hidden_state_loss(decoder(places, their_places, given, real)[real], their_places[real])


def _relations(
    wanted: Relational, places: Tensor, their_places: Tensor, real: Tensor, layers: Tensor, their_layers: Tensor
) -> Tensor:
    """CKD's two relations: between the places of a text, and between a text's layers."""
    loss = 0 * places.sum()
    compare = partial(relation_loss, window=wanted.window, angle_weight=wanted.angle_weight)
    if has_neighbours(real, wanted.window):
        loss = loss + compare(places, their_places, real)
    every = torch.ones(layers.shape[:2], dtype=torch.bool, device=layers.device)
    return loss + wanted.layer_weight * compare(layers, their_layers, every)
