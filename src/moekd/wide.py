"""A linear model over hashed token n-grams beside the encoder: "wide and deep".

What tells vulnerable functions of a data set from others is to a good part which rare names they use. A linear model
remembers names at once; an encoder that sees some thousand functions has to put them together from pieces of words
first. Both add up to one logit here and are trained together. The table reads the same token ids as the encoder, so
a model stays one file, and texts are cut at the same place.

Source of the idea: Cheng et al. 2016, arXiv:1606.07792. Importing this module tells transformers' Auto classes of the
architectures; without it they refuse the saved models instead of loading them without their table.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from moekd.errors import SettingsError

ORDERS = (1, 2, 3)  # tokens of an n-gram
# A random linear function modulo a prime (Carter and Wegman 1979). Ids stay below 2**18 and factors below 2**31, so
# nothing overflows, in torch and in an exported graph alike.
_PRIME = 2**31 - 1
_FACTORS = (1_103_515_245, 1_640_531_527, 1_013_904_223)
_OFFSET = 374_761_393  # times the order, so that a pair is not taken for a single token
# Of the table's logits, so that its weights stay as small as others of the model. Saved models are read with it, too:
# another factor would be another model type.
_SCALE = 16.0


class NGramTable(torch.nn.Module):
    """Logits of the set of n-grams of a text.

    Attributes:
        weight: (buckets, 1), log-odds of the second of two classes, or (buckets, classes) of more; zero at the start.
            Of more than two none may be left out as the one to compare with: it would be the answer to texts of
            which the table knows nothing, and the optimiser would move all others' weights for each of its examples.
    """

    def __init__(self, buckets: int, classes: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(buckets, 1 if classes == 2 else classes))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits, float32, (texts, classes), of ids (texts, tokens); `mask` is 0 at padding."""
        buckets = len(self.weight)
        found = ngram_buckets(ids, mask, buckets=buckets)
        new = torch.cat([torch.ones_like(found[:, :1], dtype=torch.bool), found[:, 1:] != found[:, :-1]], dim=1)
        counted = (new & (found < buckets)).to(self.weight.dtype)
        weights = torch.nn.functional.embedding(found.clamp(max=buckets - 1), self.weight)
        total = (weights * counted[..., None]).sum(1)  # (texts, 1) or (texts, classes)
        norm = counted.sum(1, keepdim=True).clamp(min=1).sqrt()
        logits = total * (_SCALE / norm)
        return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def ngram_buckets(ids: torch.Tensor, mask: torch.Tensor | None, *, buckets: int) -> torch.Tensor:
    """Return the bucket of every n-gram, ascending in each row, int64; `buckets` for one that touches padding.

    Args:
        ids: (texts, tokens).
        mask: (texts, tokens), 0 at padding; None where nothing is padded.
    """
    columns = []
    for order in ORDERS:
        count = ids.shape[1] - order + 1
        parts = [ids[:, place : count + place] for place in range(order)]
        hashed = sum(part * factor for part, factor in zip(parts, _FACTORS, strict=False)) + order * _OFFSET
        bucket = hashed % _PRIME % buckets
        if mask is not None:
            last = mask[:, order - 1 :]  # padding comes last, so it touches the n-gram's last token first
            bucket = torch.where(last > 0, bucket, torch.full_like(bucket, buckets))
        columns.append(bucket)
    return torch.cat(columns, dim=1).sort(dim=1).values


class WideModernBertConfig(ModernBertConfig):
    """A ModernBertConfig with `ngram_buckets`, rows of the table."""

    model_type = "moekd-wide-modernbert"

    def __init__(self, ngram_buckets: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self.ngram_buckets = ngram_buckets


class WideRobertaConfig(RobertaConfig):
    """A RobertaConfig with `ngram_buckets`, rows of the table."""

    model_type = "moekd-wide-roberta"

    def __init__(self, ngram_buckets: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self.ngram_buckets = ngram_buckets


class _Wide:
    """Adds the table to a classifier of transformers; a mixin, so that weights keep the library's names."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.ngrams = NGramTable(config.ngram_buckets, config.num_labels)

    def _init_weights(self, module: Any) -> None:
        if isinstance(module, NGramTable):
            init.zeros_(module.weight)
        else:
            super()._init_weights(module)  # type: ignore[misc]

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None, **inputs: Any) -> Any:
        outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask, **inputs)  # type: ignore[misc]
        outputs.logits = outputs.logits + self.ngrams(input_ids, attention_mask)
        if labels is not None:
            outputs.loss = torch.nn.functional.cross_entropy(outputs.logits.float(), labels)
        return outputs


class WideModernBertForSequenceClassification(_Wide, ModernBertForSequenceClassification):
    """ModernBERT's classifier with the table."""

    config_class = WideModernBertConfig


class WideRobertaForSequenceClassification(_Wide, RobertaForSequenceClassification):
    """RoBERTa's classifier with the table."""

    config_class = WideRobertaConfig


_WIDE: dict[str, tuple[Any, Any]] = {
    "modernbert": (WideModernBertConfig, WideModernBertForSequenceClassification),
    "roberta": (WideRobertaConfig, WideRobertaForSequenceClassification),
}


class NGramConfig(PreTrainedConfig):
    """Sizes of an `NGramForSequenceClassification`: `ngram_buckets`, and the tokens that are read of a text."""

    model_type = "moekd-ngrams"

    def __init__(self, ngram_buckets: int = 1, max_position_embeddings: int = 512, **settings: Any) -> None:
        self.ngram_buckets = ngram_buckets
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**settings)


class NGramForSequenceClassification(PreTrainedModel):
    """The table alone: a linear classifier with the habits of any other."""

    config_class = NGramConfig
    _supports_sdpa = True  # it has no attention, so any kernel will do

    def __init__(self, config: NGramConfig) -> None:
        super().__init__(config)
        self.ngrams = NGramTable(config.ngram_buckets, config.num_labels)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        if isinstance(module, NGramTable):
            init.zeros_(module.weight)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.ngrams(input_ids, attention_mask))


for _config, _model in (*_WIDE.values(), (NGramConfig, NGramForSequenceClassification)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForSequenceClassification.register(_config, _model, exist_ok=True)


def widened(config: Any, buckets: int) -> Any:
    """Return the config of the same classifier with a table of `buckets` rows.

    Raises:
        SettingsError: the encoder is of another architecture than these two.
    """
    if config.model_type not in _WIDE:
        raise SettingsError(
            f"an n-gram table (ngram_buckets = {buckets}) goes beside encoders of the types {', '.join(_WIDE)}; "
            f"this one is a {config.model_type}. Set encoder.ngram_buckets to 0"
        )
    kept = config.to_dict()
    kept.pop("model_type")
    return _WIDE[config.model_type][0](**kept, ngram_buckets=buckets)
