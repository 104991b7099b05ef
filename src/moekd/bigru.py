"""A bidirectional GRU as a Hugging Face sequence classifier, for students without attention.

Imported where a classifier is loaded or built, so that `transformers.AutoModelForSequenceClassification` knows it. A
program that does not import moekd cannot load such a student; its ONNX export it can.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from moekd.recurrence import read_both_ways


class BiGruConfig(PreTrainedConfig):
    """Sizes of a `BiGruForSequenceClassification`.

    Args:
        hidden_size: of one direction, and width of the embeddings; a layer's state has twice as many values.
        max_position_embeddings: tokens that are read of a text. The model itself knows no limit.
    """

    model_type = "moekd-bigru"

    def __init__(
        self,
        vocab_size: int = 1000,
        hidden_size: int = 128,
        num_hidden_layers: int = 2,
        max_position_embeddings: int = 384,
        hidden_dropout_prob: float = 0.0,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.max_position_embeddings = max_position_embeddings
        self.hidden_dropout_prob = hidden_dropout_prob
        super().__init__(**others)


class BiGruForSequenceClassification(PreTrainedModel):
    """Embeddings, layers of forward and backward GRU, and a linear layer on the last state of each direction.

    The last state forward is that of the last real token, the last one backward that of the first. Padding is never
    read, so a text's logits do not depend on what it is batched with.

    Source: the shape of the study's students (methods.md 9, arXiv:2508.15423).
    """

    config_class = BiGruConfig
    _supports_sdpa = True  # it has no attention, so any kernel will do

    def __init__(self, config: BiGruConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, hidden, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList(
            nn.GRU(hidden if layer == 0 else 2 * hidden, hidden, batch_first=True, bidirectional=True)
            for layer in range(config.num_hidden_layers)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(2 * hidden, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own start, uniform within 1 / sqrt(hidden), suits a GRU; the embeddings' would be too large."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Logits, (batch, classes); hidden states are the embeddings, (batch, tokens, hidden), then each layer's.

        Args:
            input_ids: (batch, tokens). attention_mask: the same shape, ones before zeros; None where all are real.
        """
        states = self.embeddings(input_ids)
        seen = [states]
        lengths = None if attention_mask is None else attention_mask.sum(dim=1)
        for layer in self.layers:
            states = _read(layer, self.dropout(states), lengths)  # (batch, tokens, 2 hidden)
            seen.append(states)
        logits = self.classifier(self.dropout(ends(states, lengths)))
        return SequenceClassifierOutput(logits=logits, hidden_states=tuple(seen) if output_hidden_states else None)


def ends(states: Tensor, lengths: Tensor | None) -> Tensor:
    """The forward half at the last real token beside the backward half at the first, (batch, 2 hidden)."""
    half = states.shape[-1] // 2
    if lengths is None:
        last = states[:, -1, :half]
    else:
        last = states[torch.arange(len(states), device=states.device), lengths - 1, :half]
    return torch.cat((last, states[:, 0, half:]), dim=-1)


def _read(layer: nn.GRU, states: Tensor, lengths: Tensor | None) -> Tensor:
    """One layer over texts of these lengths; zeros at padding."""
    if layer.training and states.device.type == "cpu":  # nn.GRU trains at a fifth to a half of the speed
        return read_both_ways(layer, states, lengths)
    if lengths is None:
        return layer(states)[0]
    packed = pack_padded_sequence(states, lengths.cpu(), batch_first=True, enforce_sorted=False)
    read: PackedSequence = layer(packed)[0]
    return pad_packed_sequence(read, batch_first=True, total_length=states.shape[1])[0]


AutoConfig.register(BiGruConfig.model_type, BiGruConfig, exist_ok=True)
AutoModelForSequenceClassification.register(BiGruConfig, BiGruForSequenceClassification, exist_ok=True)
