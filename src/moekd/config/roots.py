"""Whole configs, of `moekd run` and of `moekd pretrain`, and what must hold between their sections."""

from __future__ import annotations

from pydantic import Field, model_validator

from moekd.config.base import Encoder, NotInKey, Settings
from moekd.config.data import Data, Partition
from moekd.config.distill import Distill
from moekd.config.evaluate import Attack, Evaluate
from moekd.config.students import Published, Search, Student
from moekd.config.teachers import Corpus, Experts, Mixture, Pretrain, Router, Teacher


class Run(Settings):
    """Where results lie and which seeds are run."""

    folder: str = NotInKey("runs")  # holds one folder a stage
    seeds: tuple[int, ...] = Field((0,), min_length=1)  # training seeds; the data split has its own
    threads: int = NotInKey(2, ge=1)  # of torch, and processes of an attack; results are the same on the same number


class RootSettings(Settings):
    """What every config has."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")  # of the data set, or of the encoder
    run: Run = Run()


_WHY_NO_MIXTURE = {
    "multi-class": "its router predicts the group of a function, which here is the task itself",
    "pair": "its experts are of groups of vulnerabilities, and pairs of functions have none",
}


class MoekdSettings(RootSettings):
    """Everything one `moekd run` needs."""

    data: Data
    partition: Partition = Partition()
    encoder: Encoder = Encoder()
    teacher: Teacher = Teacher()
    experts: Experts = Experts()
    router: Router = Router()
    mixture: Mixture = Mixture()
    student: Student = Student()
    distill: Distill = Distill()
    published: Published = Published()
    search: Search = Search()
    evaluate: Evaluate = Evaluate()
    attack: Attack = Attack()

    @model_validator(mode="after")
    def _systems_have_a_meaning(self) -> MoekdSettings:
        """Refuse before any training what has no meaning beyond binary detection, instead of leaving it out."""
        task = self.data.task
        if task == "binary":
            return self
        without = [system for system in self.student.systems if system not in ("single", "hard")]
        if without:
            raise ValueError(
                f'student.systems holds {", ".join(without)}, but with data.task = "{task}" there is no mixture to '
                f'learn from: {_WHY_NO_MIXTURE[task]}. Set student.systems = ["single", "hard"]'
            )
        sections = [name for name in ("partition", "experts", "router", "mixture") if name in self.model_fields_set]
        for_detectors = {
            "attack.attacks": self.attack.attacks,
            "search.points": self.search.points,
            "published.systems": self.published.systems,
            "student.group_head": self.student.group_head,
        }
        unused = sections + [name for name, value in for_detectors.items() if value]
        if unused:
            raise ValueError(f'{", ".join(unused)} cannot be used with data.task = "{task}": leave it out')
        return self

    @model_validator(mode="after")
    def _mixture_is_saved(self) -> MoekdSettings:
        if self.attack.attacks and "mixture" in self.attack.systems and self.experts.mode == "shared":
            raise ValueError(
                'attack.systems holds "mixture", which is saved as a model only with experts.mode = "full": '
                'leave "mixture" out'
            )
        return self

    @model_validator(mode="after")
    def _linear_router_is_possible(self) -> MoekdSettings:
        if self.router.model == "encoder":
            return self
        if self.experts.mode == "shared":
            raise ValueError('experts.mode = "shared" brings a router of its own: leave router.model out')
        if self.router.start == "teacher":
            raise ValueError(
                f'router.model = "{self.router.model}" is a linear model, which cannot start from an encoder: leave '
                'router.start out, or choose router.model = "encoder"'
            )
        if not self.encoder.ngram_buckets:
            raise ValueError(
                f'router.model = "{self.router.model}" has encoder.ngram_buckets rows, which is 0: set it, for example '
                "to 262144"
            )
        return self

    @model_validator(mode="after")
    def _groups_have_a_name(self) -> MoekdSettings:
        if self.student.group_head and self.partition.scheme != "cwe":
            raise ValueError('student.group_head needs groups that are CWE groups: set partition.scheme = "cwe"')
        return self

    @model_validator(mode="after")
    def _ensemble_needs_all_scores(self) -> MoekdSettings:
        if self.mixture.table == "selected" and "ensemble" in self.student.systems:
            raise ValueError(
                'student.systems holds "ensemble", which needs every expert\'s score: '
                'set mixture.table = "complete" or leave "ensemble" out'
            )
        return self

    @model_validator(mode="after")
    def _students_can_be_taught(self) -> MoekdSettings:
        """A loss or schedule that some of the wanted students cannot have."""
        wanted, distill = self.student.systems, self.distill
        if distill.logits.kind == "standardised" and self.data.task != "multi-class":
            raise ValueError(
                'distill.logits.kind = "standardised" needs three classes or more, and there are 2: of two it leaves '
                'only which one is larger. Choose "kl"'
            )
        needed = {"dist": "intra_weight", "decoupled": "target_weight"}.get(distill.logits.kind)
        if needed and self.data.task != "multi-class" and getattr(distill.logits, needed) == 0:
            raise ValueError(
                f"distill.logits.{needed} is 0, and of two classes the other term of "
                f'"{distill.logits.kind}" has no gradient: the teacher would teach nothing. Set it above 0'
            )
        if distill.features and self.data.task == "pair":
            raise ValueError(
                "distill.features compares states at places of one text, and a pair is two: leave distill.features out"
            )
        if distill.features and set(wanted) == {"hard"}:
            raise ValueError(
                'distill.features asks for hidden states of a teacher, but student.systems holds only "hard", which '
                "has no teacher: leave distill.features out or add a system that has one"
            )
        if distill.features and "pioneer" in wanted:
            raise ValueError(
                'student.systems holds "pioneer", whose teacher leaves only logits of the renamed variants: leave '
                'distill.features or "pioneer" out'
            )
        if distill.schedule.kind == "competence" and "soda" in wanted:
            raise ValueError(
                'student.systems holds "soda", which paces itself: leave distill.schedule.kind = "competence" or '
                '"soda" out'
            )
        return self

    @model_validator(mode="after")
    def _k_experts_exist(self) -> MoekdSettings:
        """Catch it hours before fusion does, where the number of experts is known from the settings alone."""
        if self.partition.scheme == "kmeans":
            name, experts = "partition.clusters", self.partition.clusters
        else:
            name, experts = "partition.groups", len(self.partition.groups)
        if 0 < experts < self.mixture.k:
            raise ValueError(
                f"mixture.k is {self.mixture.k}, but {name} makes only {experts} experts; choose mixture.k <= {experts}"
            )
        return self


class PretrainSettings(RootSettings):
    """Everything one `moekd pretrain` needs."""

    corpus: Corpus
    encoder: Encoder = Encoder(vocabulary=8192, layers=4, hidden=256, intermediate=640)
    pretrain: Pretrain = Pretrain()

    @model_validator(mode="after")
    def _rows_fit(self) -> PretrainSettings:
        if self.pretrain.row_length > self.encoder.max_length:
            raise ValueError(
                f"pretrain.row_length ({self.pretrain.row_length}) must be at most encoder.max_length "
                f"({self.encoder.max_length})"
            )
        if self.encoder.vocabulary > 65_536:
            raise ValueError(f"encoder.vocabulary is {self.encoder.vocabulary}, but rows hold ids below 65,536")
        return self
