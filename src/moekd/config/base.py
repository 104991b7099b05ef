"""What sections are made of, and what several of them share: training and encoder."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

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
