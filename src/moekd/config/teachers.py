"""What teaches: `[corpus]` and `[pretrain]`; `[teacher]`, `[experts]`, `[router]`, `[mixture]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from moekd.config.base import Added, LongTraining, NotInKey, Settings, Training


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

    # One more encoder with its table, or a linear model over hashed token n-grams alone, of encoder.ngram_buckets rows.
    model: Literal["encoder", "n-grams"] = Added("encoder")
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
