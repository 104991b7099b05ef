"""The one tree of settings, checked while loading (settings_loading.py reads TOML and `--set`).

Defaults live in these classes only. Every field that can change a result is part of the digest of the stages
that read it; `NotInKey` marks the few that change speed or place, never results, `Added` those that came later.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from moekd.records import TaskKind

_NOT_IN_KEY: dict[str, JsonValue] = {"not_in_key": True}
_ADDED: dict[str, JsonValue] = {"added": True}


def NotInKey(default: Any, **limits: Any) -> Any:
    """A field that changes speed or place but no result: left out of stage keys."""
    return Field(default, json_schema_extra=_NOT_IN_KEY, **limits)


def Added(default: Any, **limits: Any) -> Any:
    """A field whose default means what was done before the field existed.

    Left out of stage keys while it has its default, so that earlier results stay valid.
    """
    return Field(default, json_schema_extra=_ADDED, **limits)


class Settings(BaseModel):
    """Base of all settings: frozen; unknown names and infinite numbers are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, allow_inf_nan=False)


class Run(Settings):
    """Where results lie and which seeds are run."""

    folder: str = NotInKey("runs")  # holds one folder a stage
    seeds: tuple[int, ...] = Field((0,), min_length=1)  # training seeds; the data split has its own
    threads: int = NotInKey(2, ge=1)  # of torch; results are the same on the same number


class Source(Settings):
    """One input of the data stage; several are deduplicated across."""

    kind: Literal["embedded", "bigvul-csv", "parquet", "jsonl", "hub"]
    path: str | None = None  # file; $NAME is replaced from the environment
    name: str | None = None  # data set label in ids and reports; default: the file's stem
    columns: dict[str, str] = {}  # ours = theirs, where names differ; `func` and `label` are required
    count: int = Field(8000, ge=40)  # embedded: number of functions
    seed: int = 0  # embedded: generator seed
    revision: str | None = None  # hub: pinned revision
    split: str = "train"  # hub: which split

    @model_validator(mode="after")
    def _needs_a_place(self) -> Source:
        if self.kind != "embedded" and not self.path:
            raise ValueError(f"a source of kind {self.kind!r} needs `path`")
        return self


class Data(Settings):
    """Reading, cleaning, balancing and splitting (methods.md 6.3 step 1 and 6.7)."""

    sources: tuple[Source, ...] = Field(min_length=1)
    seed: int = 0  # of balancing, splitting and halving
    split: Literal["random", "commit", "project", "family", "time"] = "random"
    balance: bool = True  # one non-vulnerable function of the same project and length for each vulnerable one
    include_fixed: bool = False  # take functions after their fix as non-vulnerable candidates
    length_tolerance: float = Field(0.2, ge=0)  # share of the vulnerable function's lines
    near_duplicate_jaccard: float = Field(0.7, gt=0, le=1)  # of token 5-gram sets; candidates by MinHash
    max_characters: int = Field(40_000, ge=100)  # longer functions are dropped, with that reason
    limit: int | None = Field(None, ge=40)  # keep this many functions after balancing, drawn by seed
    shuffle_labels: bool = False  # a control: labels at random, so nothing can be learned
    # binary: vulnerable or not; multi-class: one of several named classes; pair: whether two functions are clones.
    task: TaskKind = Added("binary")
    classes: Literal["label", "cwe-group"] = Added("label")  # multi-class: column `label`, or group of a vulnerability
    class_min_samples: int = Added(20, ge=4)  # multi-class: functions of a class with fewer are dropped

    @model_validator(mode="after")
    def _fits_the_task(self) -> Data:
        if self.task == "binary":
            if self.classes != "label":
                raise ValueError(f'classes = "{self.classes}" is for task = "multi-class", got task = "binary"')
            return self
        if self.balance:
            raise ValueError(
                f"balance draws a non-vulnerable function for each vulnerable one, which task = "
                f'"{self.task}" has none of: set balance = false'
            )
        if self.task == "pair" and self.split != "random":
            raise ValueError(f'pairs are split by function, which is split = "random"; got "{self.split}"')
        if self.task == "pair" and self.classes != "label":
            raise ValueError(f'classes = "{self.classes}" is for task = "multi-class", got task = "pair"')
        named = ("parquet", "jsonl", "hub")
        if self.classes == "label" and any(source.kind not in named for source in self.sources):
            raise ValueError(
                f'task = "{self.task}" reads sources of kind {", ".join(named)}: others hold neither '
                "names of classes nor pairs"
            )
        return self


class Partition(Settings):
    """One subset of the vulnerable functions for each expert (methods.md 5.2, 6.3 step 2, appendix B)."""

    scheme: Literal["cwe", "random", "kmeans"] = "cwe"
    min_samples: int = Field(100, ge=1)  # vulnerable functions in half A; smaller groups go to `other`
    groups: tuple[str, ...] = ()  # pins the group names instead of the size rule
    clusters: int = Field(10, ge=2)  # kmeans only


class Training(Settings):
    """The one training loop's settings."""

    epochs: int = Field(5, ge=1)
    learning_rate: float = Field(2e-5, gt=0)  # AdamW, peak
    ngram_learning_rate: float = Added(2e-3, gt=0)  # peak, of an n-gram table beside the encoder
    # After warm-up: to zero linearly, along a cosine, or at the peak until the last fifth and then linearly.
    schedule: Literal["linear", "one-cycle", "trapezoid"] = "linear"
    warmup: float = Field(0.1, ge=0, lt=1)  # share of all steps
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)  # largest gradient norm
    dropout: float = Field(0.0, ge=0, lt=1)  # of hidden states; attention dropout is always 0 on CPU
    token_budget: int = Field(4096, ge=64)  # padded tokens a batch
    batch_limit: int = Field(64, ge=1)  # functions a batch at most
    bf16: bool = True  # autocast; weights stay fp32
    checkpoint_seconds: float = NotInKey(60.0, gt=0)  # between checkpoints inside an epoch


class LongTraining(Training):
    """Training of small models, which costs little an epoch."""

    epochs: int = Field(20, ge=1)


class StudentTraining(LongTraining):
    """Training of a student (methods.md 6.7)."""

    learning_rate: float = Field(1e-4, gt=0)  # AdamW, peak


class Encoder(Settings):
    """The teacher side's backbone: any Hugging Face sequence encoder, or a small random RoBERTa."""

    name: str = "random"  # hub name or folder; "random" builds the shape below
    revision: str | None = None  # pinned revision of a hub model
    max_length: int = Field(512, ge=8)  # tokens, specials included
    vocabulary: int = Field(8000, ge=300)  # random: byte-level BPE entries, trained on half A
    layers: int = Field(2, ge=1)
    hidden: int = Field(128, ge=8)
    heads: int = Field(4, ge=1)
    intermediate: int = Field(512, ge=8)
    ngram_buckets: int = Added(0, ge=0)  # rows of a linear model over hashed token n-grams beside the encoder; 0: none

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Encoder:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be divisible by heads ({self.heads})")
        return self


class Corpus(Settings):
    """Sources of the pre-training functions."""

    paths: tuple[str, ...] = Field(min_length=1)  # folders, archives and parquet files; $NAME is replaced
    column: str = "func"  # of parquet files
    exclude: tuple[str, ...] = ()  # parquet files: their `func` and near-duplicates of it must not be learned
    min_characters: int = Field(30, ge=1)  # of a normalised function; shorter ones are dropped
    max_characters: int = Field(40_000, ge=100)
    near_duplicate_jaccard: float = Field(0.7, gt=0, le=1)  # of token 5-gram sets; the first of a set is kept
    held_out: float = Field(0.01, gt=0, lt=1)  # share of files, for the held-out measures
    workers: int = NotInKey(2, ge=1)  # processes


class PretrainTraining(Training):
    """Training of the encoder on packed rows; `epochs` is not read: `pretrain.tokens` says how long."""

    learning_rate: float = Field(2e-3, gt=0)  # AdamW, peak
    schedule: Literal["linear", "one-cycle", "trapezoid"] = "trapezoid"
    warmup: float = Field(0.02, ge=0, lt=1)  # share of all steps
    token_budget: int = Field(8192, ge=64)  # tokens a batch, of all processes together


class Pretrain(Settings):
    """Objective and budget of pre-training."""

    architecture: Literal["roberta", "modernbert"] = "modernbert"  # of a new encoder: pretrain/architectures.py
    # modernbert: tokens around its own that every second layer attends to; 0: every layer attends to all, as the
    # export to ONNX by tracing wants it.
    local_window: int = Added(64, ge=0)
    # Masked language model, or detection of tokens that a small masked language model replaced.
    objective: Literal["masked-tokens", "replaced-tokens"] = "masked-tokens"
    mask_share: float = Field(0.15, gt=0, lt=1)  # of all tokens
    whole_identifiers: bool = False  # mask all tokens of an identifier or none
    row_length: int = Field(256, ge=16)  # tokens of a packed row; at most encoder.max_length
    tokens: int = Field(60_000_000, ge=1000)  # trained on, over all epochs of the corpus
    round_tokens: int = Field(1_000_000, ge=500)  # between two measures on held-out rows
    generator_layers: int = Field(2, ge=1)  # replaced-tokens: of the masked language model
    generator_hidden: int = Field(128, ge=8)
    generator_heads: int = Field(4, ge=1)
    detection_weight: float = Field(50.0, gt=0)  # replaced-tokens: of the detector's loss beside the generator's
    training: PretrainTraining = PretrainTraining()


class Teacher(Settings):
    """The single teacher: one encoder fine-tuned on the whole of half A."""

    training: Training = Training()
    random_control: bool = False  # also train the same shape from random weights, to tell what pre-training is worth


class Experts(Settings):
    """One detector a group (methods.md 6.3 step 3; choices in 6.7)."""

    mode: Literal["full", "shared"] = "full"  # one fine-tuned encoder each, or heads on one shared encoder
    negatives: Literal["all", "benign"] = "all"  # other groups and non-vulnerable code, or the latter only
    start: Literal["encoder", "teacher"] = "encoder"  # full: weights to start from, the teacher's head included
    training: Training = Training()  # full: each expert; shared: the shared encoder
    head_epochs: int = Field(30, ge=1)  # shared: epochs of the light heads on cached features
    head_learning_rate: float = Field(1e-3, gt=0)


class Router(Settings):
    """Chooses experts by predicted CWE group (methods.md 5.4, 6.3 step 4)."""

    gamma: float = Field(1.0, ge=0)  # focusing parameter of the focal loss
    start: Literal["encoder", "teacher"] = "encoder"  # weights to start from; head and n-gram table are fresh
    training: LongTraining = LongTraining()


class Mixture(Settings):
    """Fusion of the experts' outputs (methods.md 6.2 equation 3, 6.7). Free to change once scored."""

    k: int = Field(2, ge=1)  # experts selected for a sample
    table: Literal["complete", "selected"] = "complete"  # score all experts, or only the k selected ones
    weights: Literal["renormalised", "softmax-of-probabilities"] = "renormalised"
    fusion: Literal["logits", "probabilities", "maximum"] = "logits"
    calibration: Literal["none", "temperature"] = "none"  # each expert, on validation data, before fusion


StudentSystem = Literal["moe", "single", "hard", "ensemble", "random-partition", "pioneer", "soda"]


class Student(Settings):
    """Which students are trained (methods.md 1.2, 2.6, 6.7)."""

    shapes: tuple[str, ...] = Field(("compressor-3mb",), min_length=1)  # names of students/shapes.py
    systems: tuple[StudentSystem, ...] = Field(("moe", "single", "hard", "ensemble", "random-partition"), min_length=1)
    group_head: bool = Added(False)  # also learn the router's CWE group, on the finished student: `moekd scan` shows it
    training: StudentTraining = StudentTraining()


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
    other_weight: float = Field(4.0, ge=0)  # of "what among the other classes"


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
        return self


PublishedMethod = Literal["compressor", "avatar", "morph"]
#: `reference`: with every defect of the method's code that changes results; `fixed`: with none; else `fixed` with that
#: one defect (students/published.py says what each is).
Way = Literal["reference", "fixed", "one-output-teacher", "sigmoid-targets", "frozen-biases", "unscaled-loss"]


class Published(Settings):
    """Published methods as whole systems: architecture, single teacher, their training (methods.md sections 1 to 3)."""

    systems: tuple[PublishedMethod, ...] = ()  # none: none is trained
    ways: tuple[Way, ...] = Field(("reference", "fixed"), min_length=1)
    sizes: tuple[Literal["3mb", "2mb", "1.6mb"], ...] = Field(("3mb",), min_length=1)
    epochs: int | None = Field(None, ge=1)  # of every student; None: each method's own, 20, 50 and 40
    # `avatar-3mb` = search.json of `moekd search avatar --budget 3MB --out FOLDER`: its pick replaces the published one
    searched: dict[str, str] = {}

    @model_validator(mode="after")
    def _searched_students_exist(self) -> Published:
        for student in self.searched:
            method, _, size = student.partition("-")
            if method not in ("avatar", "morph") or method not in self.systems or size not in self.sizes:
                raise ValueError(
                    f"published.searched holds {student!r}, which is not trained: name a method of published.systems "
                    "(avatar or morph; Compressor's architectures are optima already) and a size of published.sizes, "
                    "such as avatar-3mb"
                )
        return self


class Search(Settings):
    """Candidates that `moekd search` trains for its surrogates; none unless asked for."""

    points: int = Field(0, ge=0)  # candidates; a surrogate needs 10, AVATAR trains 20
    epochs: int = Field(20, ge=1)  # of each candidate; the rest as student.training and its own configuration
    workers: int = NotInKey(1, ge=1)  # processes


class Evaluate(Settings):
    """Measures and their uncertainty."""

    bootstrap: int = Field(1000, ge=100)  # resamples for intervals and paired tests
    confidence: float = Field(0.95, gt=0, lt=1)


AttackName = Literal["alert", "mhm", "wir-random"]
AttackedSystem = Literal["bag-of-tokens", "teacher", "mixture", "students"]


class Attack(Settings):
    """Attacks by renaming local variables (methods.md 7.2 to 7.4)."""

    attacks: tuple[AttackName, ...] = ()  # none: nothing is attacked
    systems: tuple[AttackedSystem, ...] = Field(("bag-of-tokens", "teacher", "mixture", "students"), min_length=1)
    samples: int = Field(200, ge=1)  # test functions, drawn by seed; the same ones for every model
    seed: int = 0  # of the functions and of every attack
    budget: int = Field(2000, ge=0)  # most distinct texts that a model is asked for in one attack, original included
    candidates: int = Field(30, ge=1)  # names tried for an identifier at a time
    vocabulary: int = Field(5000, ge=1)  # mhm, wir-random: most frequent names of the training functions to draw from
    iterations: int = Field(100, ge=1)  # mhm
    mhm_rule: Literal["metropolis", "hill-climbing"] = "metropolis"  # the latter as in the references' runs
    masked_lm: str = "moekd-mini"  # alert: masked language model that proposes names; ours, a folder or a hub name
    masked_lm_revision: str | None = None  # alert: pinned revision of a hub model
    ranks: int = Field(60, ge=1)  # alert: predictions considered at each token
    occurrences: int = Field(3, ge=1)  # alert: places of an identifier where predictions are made
    context: int = Field(128, ge=16)  # alert: tokens around a place that the similarity is computed in
    genetic: bool = True  # alert: the second stage
    generations: int = Field(5, ge=1)  # alert, genetic: for each member of the population, 10 in all at least
    children: int = Field(64, ge=1)  # alert, genetic: of a generation
    crossover: float = Field(0.7, ge=0, le=1)  # alert, genetic: probability; else mutation
    minimal: bool = False  # look for the fewest renames of each success; their queries come on top of the budget
    bf16: bool = False  # score in bfloat16 where it is fast; figures are quoted from fp32


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
