"""Logits of classifiers of RoBERTa's and ModernBERT's shape, computed in pieces that stay in a CPU core's cache.

The same functions as the transformers models within 1e-6, several times as fast on one core. What makes the difference
for models of 3 MB, whose weights fit into the cache but whose activations do not:

- rows lie one after another without padding, in small batches; attention runs row by row;
- exponentials of base 2, several times as fast as those of base e, without the row's largest value taken off first;
  sums of a row show afterwards whether that was safe, and where it was not the caller has the model do it;
- the sum that a row of attention weights is divided by comes out of the product with the values, as one more column;
- wide feed-forward layers run some tokens at a time, and GELU works in place;
- of RoBERTa's last layer only the first token is computed, which is all that the classifier reads;
- ModernBERT's queries and keys are turned in place as complex numbers.

Letters in shapes: t tokens of all rows, n rows, h hidden, a heads, d hidden / heads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_CACHED = 2**17  # numbers that may be worked on at once: half a megabyte, within a core's second-level cache
_SMALLEST, _LARGEST = 2.0**-64, 2.0**96  # sums of attention weights in which no term was lost
_ERF, _TANH = ("gelu",), ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class _Linear:
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: Any) -> _Linear:
        return cls(module.weight.detach(), None if module.bias is None else module.bias.detach())

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class _RobertaLayer:
    qkv: _Linear  # for each head: d of the query, scaled; d of the key; d of the value; a constant 1
    out: _Linear
    norm: _Linear
    wide: _Linear
    narrow: _Linear
    last_norm: _Linear


@dataclass(frozen=True)
class _ModernBertLayer:
    norm: _Linear | None  # the first layer has none
    qkv: _Linear  # as RoBERTa's, but q and k as complex numbers: halves interleaved, and a zero more for an even width
    out: _Linear
    middle_norm: _Linear
    wide: _Linear
    narrow: _Linear


class Forward(ABC):
    """A forward pass in eval mode on a CPU; the weights are copied.

    Attributes:
        heads, width: a and d.
        epsilon: of layer norms.
    """

    def __init__(self, config: Any, epsilon: float) -> None:
        self.heads = config.num_attention_heads
        self.width = config.hidden_size // self.heads
        self.epsilon = epsilon

    @abstractmethod
    def logits(self, rows: Sequence[np.ndarray]) -> np.ndarray | None:
        """Return float32 logits, (n, classes), of rows of token ids; None where the model itself must be asked.

        That is where attention scores lie beyond some 60 units, far from those of any trained model of ours, or where
        a text spells out RoBERTa's padding token, which takes no position.
        """

    @abstractmethod
    def _activated(self, x: Tensor) -> Tensor:
        """What lies between the two products of a feed-forward layer; may change its argument."""

    def _normed(self, x: Tensor, norm: _Linear) -> Tensor:
        import torch

        return torch.nn.functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, self.epsilon)

    def _attended(self, qkv: Tensor, lengths: Sequence[int], *, first_only: bool) -> tuple[Tensor, bool]:
        """Return what the heads read, (t, h), or (n, h) of the first tokens only, and whether nothing was lost."""
        import torch

        a, d = self.heads, self.width
        qkv = qkv.view(len(qkv), a, -1)
        read = qkv.new_empty(a, d + 1, len(lengths) if first_only else len(qkv))
        start = end = 0
        for number, length in enumerate(lengths):
            row = qkv[start : start + length]
            queries = row[:1] if first_only else row
            if first_only:
                end = number
            self._attend(queries, row, read[:, :, end : end + len(queries)])
            start += length
            end = start
        sums = read[:, d:]
        low, high = torch.aminmax(sums)
        safe = bool(low >= _SMALLEST) and bool(high <= _LARGEST)  # false for NaN, too
        return (read[:, :d] / sums).view(a * d, -1).t(), safe

    def _attend(self, queries: Tensor, row: Tensor, read: Tensor) -> None:
        """Fill `read`, (a, d + 1, queries): values weighted by 2 ** (query . key), and the sum of the weights."""
        import torch

        a, d = self.heads, self.width
        values = slice(2 * d, 3 * d + 1)  # and the constant 1
        at_once = min(a, max(1, _CACHED // (len(row) * len(queries))))
        if at_once == 1:  # plain products cost less than batches of one
            weights = row.new_empty(len(row), len(queries))
            for head in range(a):
                torch.mm(row[:, head, d : 2 * d], queries[:, head, :d].t(), out=weights)
                weights.exp2_()
                torch.mm(row[:, head, values].t(), weights, out=read[head])
            return
        q, k, v = queries[:, :, :d].permute(1, 2, 0), row[:, :, d : 2 * d].transpose(0, 1), row[:, :, values]
        for head in range(0, a, at_once):
            heads = slice(head, min(a, head + at_once))
            part = torch.bmm(k[heads], q[heads]).exp2_()
            read[heads] = torch.bmm(v[:, heads].permute(1, 2, 0), part)

    def _fed_forward(self, x: Tensor, wide: _Linear, narrow: _Linear) -> Tensor:
        import torch

        rows = max(32, _CACHED // len(wide.weight))
        if len(x) <= rows:
            return narrow(self._activated(wide(x)))
        return torch.cat([narrow(self._activated(wide(part))) for part in x.split(rows)])


class RobertaForward(Forward):
    """`RobertaForSequenceClassification`."""

    def __init__(self, model: Any) -> None:
        config, embeddings = model.config, model.roberta.embeddings
        super().__init__(config, config.layer_norm_eps)
        self.tanh = config.hidden_act in _TANH
        token_type = embeddings.token_type_embeddings.weight[0]
        self.words = (embeddings.word_embeddings.weight + token_type).detach()
        self.pad_id = config.pad_token_id
        self.positions = embeddings.position_embeddings.weight[config.pad_token_id + 1 :].detach()
        self.norm = _Linear.of(embeddings.LayerNorm)
        self.layers = [self._layer(layer) for layer in model.roberta.encoder.layer]
        self.dense, self.classes = _Linear.of(model.classifier.dense), _Linear.of(model.classifier.out_proj)

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether the model is one that this class computes."""
        config = model.config
        return (
            type(model).__name__ == "RobertaForSequenceClassification"
            and config.hidden_act in (*_ERF, *_TANH)
            and not config.is_decoder
        )

    def _layer(self, layer: Any) -> _RobertaLayer:
        import torch

        source, a, d = layer.attention.self, self.heads, self.width
        weight = torch.zeros(a, 3 * d + 1, a * d)
        bias = torch.zeros(a, 3 * d + 1)
        scale = _LOG2_E / math.sqrt(d)
        for start, module, factor in ((0, source.query, scale), (d, source.key, 1.0), (2 * d, source.value, 1.0)):
            weight[:, start : start + d] = module.weight.detach().view(a, d, a * d) * factor
            bias[:, start : start + d] = module.bias.detach().view(a, d) * factor
        bias[:, 3 * d] = 1.0
        return _RobertaLayer(
            _Linear(weight.view(-1, a * d), bias.view(-1)),
            _Linear.of(layer.attention.output.dense),
            _Linear.of(layer.attention.output.LayerNorm),
            _Linear.of(layer.intermediate.dense),
            _Linear.of(layer.output.dense),
            _Linear.of(layer.output.LayerNorm),
        )

    def logits(self, rows: Sequence[np.ndarray]) -> np.ndarray | None:
        import torch

        lengths = [len(row) for row in rows]
        with torch.inference_mode():
            ids = torch.from_numpy(np.concatenate(rows)).long()
            if bool((ids == self.pad_id).any()):
                return None
            x = self._normed(self.words[ids] + self.positions[_places(lengths)], self.norm)  # (t, h)
            firsts = torch.from_numpy(np.cumsum([0, *lengths[:-1]]))
            for number, layer in enumerate(self.layers):
                is_last = number == len(self.layers) - 1
                attended, safe = self._attended(layer.qkv(x), lengths, first_only=is_last)
                if not safe:
                    return None
                x = x[firsts] if is_last else x
                x = self._normed(layer.out(attended).add_(x), layer.norm)
                x = self._normed(self._fed_forward(x, layer.wide, layer.narrow).add_(x), layer.last_norm)
            return self.classes(torch.tanh(self.dense(x))).numpy()

    def _activated(self, x: Tensor) -> Tensor:
        import torch

        return _gelu_by_tanh(x) if self.tanh else torch.nn.functional.gelu(x)


class ModernBertForward(Forward):
    """`ModernBertForSequenceClassification` whose layers all attend to all tokens, with or without an n-gram table."""

    def __init__(self, model: Any) -> None:
        import torch

        config, encoder = model.config, model.model
        super().__init__(config, config.norm_eps)
        self.words = encoder.embeddings.tok_embeddings.weight.detach()
        self.norm, self.last_norm = _Linear.of(encoder.embeddings.norm), _Linear.of(encoder.final_norm)
        angles = torch.arange(config.max_position_embeddings)[:, None] * encoder.rotary_emb.full_attention_inv_freq
        self.turns = torch.polar(torch.ones_like(angles), angles)[:, None, None]  # (positions, 1, 1, d / 2)
        self.layers = [self._layer(layer) for layer in encoder.layers]
        self.dense, self.head_norm = _Linear.of(model.head.dense), _Linear.of(model.head.norm)
        self.classes = _Linear.of(model.classifier)
        self.ngrams = getattr(model, "ngrams", None)

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether the model is one that this class computes."""
        config = model.config
        return (
            type(model).__name__ in ("ModernBertForSequenceClassification", "WideModernBertForSequenceClassification")
            and set(config.layer_types) == {"full_attention"}
            and config.rope_parameters["full_attention"]["rope_type"] == "default"
            and config.hidden_activation == config.classifier_activation == "gelu"
            and config.classifier_pooling == "mean"
            and not config.attention_bias
        )

    def _layer(self, layer: Any) -> _ModernBertLayer:
        import torch

        a, d = self.heads, self.width
        q, k, v = layer.attn.Wqkv.weight.detach().view(3, a, d, a * d)
        q, k = (part.unflatten(1, (2, d // 2)).transpose(1, 2).flatten(1, 2) for part in (q, k))
        weight = torch.cat([q * (_LOG2_E / math.sqrt(d)), k, v, torch.zeros(a, 2, a * d)], dim=1)
        bias = torch.zeros(a, 3 * d + 2)
        bias[:, 3 * d] = 1.0
        return _ModernBertLayer(
            None if isinstance(layer.attn_norm, torch.nn.Identity) else _Linear.of(layer.attn_norm),
            _Linear(weight.view(-1, a * d), bias.view(-1)),
            _Linear.of(layer.attn.Wo),
            _Linear.of(layer.mlp_norm),
            _Linear.of(layer.mlp.Wi),
            _Linear.of(layer.mlp.Wo),
        )

    def logits(self, rows: Sequence[np.ndarray]) -> np.ndarray | None:
        import torch

        lengths = [len(row) for row in rows]
        with torch.inference_mode():
            ids = torch.from_numpy(np.concatenate(rows)).long()
            turns = self.turns[_places(lengths)]  # (t, 1, 1, d / 2)
            x = self._normed(self.words[ids], self.norm)  # (t, h)
            for layer in self.layers:
                qkv = layer.qkv(x if layer.norm is None else self._normed(x, layer.norm))
                self._turn(qkv, turns)
                attended, safe = self._attended(qkv, lengths, first_only=False)
                if not safe:
                    return None
                x = layer.out(attended).add_(x)
                x = self._fed_forward(self._normed(x, layer.middle_norm), layer.wide, layer.narrow).add_(x)
            x = torch.stack([part.mean(dim=0) for part in self._normed(x, self.last_norm).split(lengths)])
            found = self.classes(self._normed(torch.nn.functional.gelu(self.dense(x)), self.head_norm))
            if self.ngrams is not None:
                found += torch.cat([self.ngrams(part[None]) for part in ids.split(lengths)])
            return found.numpy()

    def _turn(self, qkv: Tensor, turns: Tensor) -> None:
        """Apply rotary positions to queries and keys in place."""
        import torch

        a, d = self.heads, self.width
        pairs = qkv.view(len(qkv), a, -1)[:, :, : 2 * d].unflatten(-1, (2, d // 2, 2))
        torch.view_as_complex(pairs).mul_(turns)

    def _activated(self, x: Tensor) -> Tensor:
        import torch

        values, gates = x.chunk(2, dim=-1)
        return torch.nn.functional.gelu(values).mul_(gates)


def _places(lengths: Sequence[int]) -> Tensor:
    """Position of each token in its row, (t,)."""
    import torch

    return torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))


def forward_of(model: Any) -> Forward | None:
    """Return the fast forward pass of a classifier; None if it is none of those that this module computes."""
    if next(model.parameters()).device.type != "cpu":
        return None
    for kind in (RobertaForward, ModernBertForward):
        if kind.fits(model):
            return kind(model)
    return None


def _gelu_by_tanh(x: Tensor) -> Tensor:
    """GELU with tanh, x * sigmoid(2 u) where u is what tanh takes; changes its argument."""
    import torch

    double = 2 * math.sqrt(2 / math.pi) * _LOG2_E
    inner = torch.square(x).mul_(-0.044715 * double).sub_(double).mul_(x)  # -2 u in units of base 2
    return x.div_(inner.exp2_().add_(1.0))
