"""How it is taught, `[distill]`: one class for each kind of loss and of schedule."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from moekd.config.base import Added, Settings


class Kl(Settings):
    """T² KL(teacher ‖ student), the loss of MoEKD and of the references."""

    kind: Literal["kl"] = "kl"


class Skewed(Settings):
    """KL towards a mixture of both, which one confident mistake cannot rule."""

    kind: Literal["skewed"]
    skew: float = Field(0.1, gt=0, lt=1)  # share of the teacher in the mixture


class Decoupled(Settings):
    """KL in two parts with weights of their own. Of two classes it is target_weight times `kl`."""

    kind: Literal["decoupled"]
    target_weight: float = Field(1.0, ge=0)  # of "how sure of the label"
    other_weight: float = Field(8.0, ge=0)  # of "what among the other classes"


class Standardised(Settings):
    """`kl` of standardised logits: three classes or more."""

    kind: Literal["standardised"]


class Dist(Settings):
    """Correlations instead of values. Of two classes only the second term has a gradient."""

    kind: Literal["dist"]
    inter_weight: float = Field(1.0, ge=0)  # over the classes of a function
    intra_weight: float = Field(1.0, ge=0)  # over the functions of a batch


class Cosine(Settings):
    """`kl` plus 1 - cosine of the probabilities, as MORPH trains."""

    kind: Literal["cosine"]
    cosine_weight: float = Field(1.0, gt=0)


class Hidden(Settings):
    """Distance of the states of all matched layers, the student's projected to the teacher's width."""

    kind: Literal["hidden"]
    weight: float = Field(0.01, gt=0)  # the loss is a sum over the width, hence small


class Patient(Settings):
    """Distance of normalised states of matched layers but the last."""

    kind: Literal["patient"]
    weight: float = Field(10.0, gt=0)


class AttentionTransfer(Settings):
    """Distance of the maps of where in a function the last layer's states are large."""

    kind: Literal["attention"]
    weight: float = Field(1.0, gt=0)


class Contrastive(Settings):
    """Finding a function's teacher state among those of the batch."""

    kind: Literal["contrastive"]
    weight: float = Field(1.0, gt=0)
    temperature: float = Field(0.07, gt=0)  # of the cosines


class Relational(Settings):
    """Distances and angles between the places of a function and between the layers (CKD)."""

    kind: Literal["relational"]
    weight: float = Field(1.0, gt=0)
    layer_weight: float = Field(1.0, ge=0)  # of the relation between layers, beside the one between places
    angle_weight: float = Field(1.0, ge=0)  # of angles, beside distances
    window: int = Field(10, ge=2)  # places within window // 2 on either side are neighbours


class PriorKnowledge(Settings):
    """A decoder makes the teacher's places of the student's and of given ones: as many as the two are apart (DPK)."""

    kind: Literal["prior-knowledge"]
    weight: float = Field(0.01, gt=0)  # the loss is a sum over the width, hence small


class Constant(Settings):
    """Nothing changes during the run."""

    kind: Literal["constant"] = "constant"


class AnnealedTemperature(Settings):
    """The temperature goes from `distill.temperature` to `end` in a straight line."""

    kind: Literal["annealed-temperature"]
    end: float = Field(1.0, gt=0)


class Continuation(Settings):
    """The labels' share goes from `distill.label_share` to `end` in a straight line."""

    kind: Literal["continuation"]
    end: float = Field(1.0, ge=0, le=1)


class Competence(Settings):
    """Functions whose teacher is sure come first; the share that is used grows with the epochs."""

    kind: Literal["competence"]
    initial: float = Field(0.3, gt=0, le=1)  # share in the first epoch


class Uncertainty(Settings):
    """The teacher's term counts for a function as much as the student is unsure of it."""

    kind: Literal["uncertainty"]


class Balanced(Settings):
    """The labels' share of each step is the one that worsens neither loss, by their gradients."""

    kind: Literal["balanced"]


LogitLoss = Kl | Skewed | Decoupled | Standardised | Dist | Cosine
FeatureLoss = Hidden | Patient | AttentionTransfer | Contrastive | Relational | PriorKnowledge
Schedule = Constant | AnnealedTemperature | Continuation | Competence | Uncertainty | Balanced


class Distill(Settings):
    """How the student learns from a teacher (methods.md 6.2 equation 4, 9).

    label_share · cross-entropy with the labels + (1 - label_share) · (loss of logits + weight · loss of features)
    """

    temperature: float = Field(10.0, gt=0)  # T, no unit
    logits: LogitLoss = Added(Kl(), discriminator="kind")
    features: FeatureLoss | None = Added(None, discriminator="kind")  # of hidden states; none by default
    label_share: float = Added(0.0, ge=0, lt=1)  # share of the labels' cross-entropy; the teacher's terms get the rest
    schedule: Schedule = Added(Constant(), discriminator="kind")

    @model_validator(mode="after")
    def _has_a_meaning(self) -> Distill:
        schedule, loss = self.schedule.kind, self.logits.kind
        if schedule == "uncertainty" and loss != "kl":
            raise ValueError(
                f'schedule.kind = "uncertainty" weighs function by function, which only logits.kind = "kl" lets it; '
                f'got "{loss}"'
            )
        if schedule == "balanced" and (self.label_share or self.features):
            what = "label_share" if self.label_share else "features"
            raise ValueError(
                f'schedule.kind = "balanced" finds the share of the labels against the loss of logits alone: '
                f"leave {what} out, or choose another schedule"
            )
        if isinstance(self.schedule, Continuation) and self.schedule.end == self.label_share:
            raise ValueError(
                f"schedule.end and label_share are both {self.label_share:g}: the share would not move; "
                "leave schedule out or set another end"
            )
        if isinstance(self.schedule, AnnealedTemperature) and self.schedule.end == self.temperature:
            raise ValueError(
                f"schedule.end and temperature are both {self.temperature:g}: the temperature would not move; "
                "leave schedule out or set another end"
            )
        if isinstance(self.logits, Dist) and not self.logits.inter_weight + self.logits.intra_weight:
            raise ValueError("logits.inter_weight and logits.intra_weight are both 0: nothing would be learned")
        if isinstance(self.logits, Decoupled) and not self.logits.target_weight + self.logits.other_weight:
            raise ValueError("logits.target_weight and logits.other_weight are both 0: nothing would be learned")
        return self
