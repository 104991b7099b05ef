"""The two architectures that can be pre-trained: RoBERTa's, and ModernBERT's with rotary positions and pre-norm.

Ours is ModernBERT's (arXiv:2412.13663). Four layers x 256 of it reach in 120 steps a loss that RoBERTa's do not reach
in 700 (docs/experiments.md): relative positions need not be learned first, and pre-norm bears a high learning rate.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from moekd import numerics
from moekd.classifier import loading, modernbert_config, roberta_config, start_positions_as_sinusoids
from moekd.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from moekd.config import Encoder, PretrainSettings


def new_model(
    kind: Any,
    settings: PretrainSettings,
    tokenizer: Any,
    sizes: Mapping[str, Any],
    labels: Sequence[str] | None = None,
) -> Any:
    """A model from random weights.

    Args:
        kind: `AutoModelForMaskedLM` or another Auto class of transformers.
        sizes: layers, hidden, heads and intermediate.
        labels: names of the classes, for models that classify tokens.
    """
    encoder = settings.encoder
    pretrain = settings.pretrain
    make = (
        partial(modernbert_config, local_window=pretrain.local_window)
        if pretrain.architecture == "modernbert"
        else roberta_config
    )
    config = make(
        tokenizer=tokenizer,
        max_length=encoder.max_length,
        **sizes,
        dropout=pretrain.training.dropout,
    )
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: index for index, name in enumerate(labels)}
    model = kind.from_config(config, attn_implementation=numerics.attention())
    if config.model_type == "roberta":
        start_positions_as_sinusoids(model.roberta.embeddings.position_embeddings.weight, config.initializer_range)
    return model.float()


def started(kind: Any, encoder: Encoder, place: Path) -> Any:
    """Load a model of some kind in fp32. Raises SettingsError if it is another kind of model or cannot be loaded."""
    import torch

    with loading(encoder):
        model, found = kind.from_pretrained(
            str(place), dtype=torch.float32, attn_implementation=numerics.attention(), output_loading_info=True
        )
    if found["missing_keys"]:
        raise SettingsError(
            f"encoder.name = {encoder.name!r}: {place} is no model for {kind.__name__}, which this objective goes on "
            f"with; it lacks {sorted(found['missing_keys'])[0]}. Name an encoder that the same objective made"
        )
    return model


def require_its_shape(encoder: Encoder, config: Any) -> None:
    """Raise SettingsError where a config file asks for other sizes than those of the encoder that it goes on from."""
    has = {
        "vocabulary": config.vocab_size,
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "intermediate": config.intermediate_size,
    }
    for name, value in has.items():
        wanted = getattr(encoder, name)
        if name in encoder.model_fields_set and wanted != value:
            raise SettingsError(
                f"encoder.{name} is {wanted}, but {encoder.name!r}, from which this run goes on, has {value} and keeps "
                f"its shape: set encoder.{name} to {value}, or leave it out"
            )


def token_states(model: Any, ids: Tensor, offsets: Tensor) -> dict[str, Tensor]:
    """What the model reads: ids (B, L), and for learned positions also their ids, shifted by `offsets` (B,)."""
    import torch

    if model.config.model_type != "roberta":
        return {"input_ids": ids}
    first = model.config.pad_token_id + 1  # RoBERTa's positions start behind the padding id
    positions = first + offsets[:, None] + torch.arange(ids.shape[1])
    return {"input_ids": ids, "position_ids": positions.to(ids.device)}


def draw_offsets(rows: int, length: int, limit: int) -> Tensor:
    """Draw where each row's learned positions start, int64, (rows,): half at 0, the others anywhere they fit.

    Rows are shorter than what the encoder shall read later; so its later positions are trained, too.
    """
    import torch

    return torch.randint(0, limit - length + 1, (rows,)) * torch.randint(0, 2, (rows,))


def masked_token_logits(model: Any, inputs: dict[str, Tensor], chosen: Tensor) -> Tensor:
    """Logits of the chosen tokens only, (M, V): the output layer costs as much as a layer of the encoder."""
    hidden = model.base_model(**inputs).last_hidden_state[chosen]
    if model.config.model_type == "modernbert":
        return model.decoder(model.head(hidden))
    return model.lm_head(hidden)
