"""Contextual embeddings of one place in many variants of a text, without reading the whole text anew for each.

A variant differs from the original at the place alone. Its tokens near the place are computed anew in every layer;
those farther away keep the keys and values that they have in the original, so every token still attends to the whole
text. What is left out is what the place changes in far tokens and they in turn at the place. Where the near tokens are
all tokens, that is the encoder itself.

Letters in shapes: r rows, c tokens near the place, m of them that are asked for, n tokens of the text, h hidden,
a heads, d hidden / heads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moekd import numerics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Original:
    """What an encoder made of the original text.

    Attributes:
        ids: tokens, specials included, (n,).
        states: of the last layer, (n, h).
        keys, values: of each layer, (a, n, d) each.
    """

    ids: Tensor
    states: Tensor
    keys: Sequence[Tensor] = ()
    values: Sequence[Tensor] = ()


class VariantReader(ABC):
    """An encoder that reads a text, and then variants of it."""

    @abstractmethod
    def original(self, ids: Sequence[int]) -> Original:
        """Read a text of token ids, specials included."""

    @abstractmethod
    def embeddings(self, original: Original, place: slice, replaced: Tensor, *, near: int) -> Tensor:
        """Return the last layer's states of a place in variants of the text, (r, m, h).

        Args:
            place: the tokens that differ.
            replaced: their ids in each variant, (r, m).
            near: how many tokens around the place's middle are computed anew; the place's own always are.
        """


class WholeRows(VariantReader):
    """Any encoder of the transformers library; all tokens of a variant are computed anew."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def original(self, ids: Sequence[int]) -> Original:
        import torch

        row = torch.tensor(ids, device=numerics.device())
        with torch.inference_mode():
            return Original(row, self.encoder(input_ids=row[None]).last_hidden_state[0])

    def embeddings(self, original: Original, place: slice, replaced: Tensor, *, near: int) -> Tensor:
        import torch

        rows = original.ids.repeat(len(replaced), 1)
        rows[:, place] = replaced
        at_once = max(1, numerics.tokens_at_once() // len(original.ids))
        with torch.inference_mode():
            parts = [self.encoder(input_ids=part).last_hidden_state[:, place] for part in rows.split(at_once)]
        return torch.cat(parts)


class NearRows(VariantReader):
    """An encoder of transformers in eval mode whose layers this class walks through itself.

    Attributes:
        heads: a.
        layers: the encoder's.
        reach: how many tokens ahead and behind a token attends to, of each layer; None: to all.
    """

    def __init__(self, config: Any, layers: Sequence[Any], reach: Sequence[int | None]) -> None:
        self.heads = config.num_attention_heads
        self.layers = layers
        self.reach = reach

    @abstractmethod
    def _embedded(self, ids: Tensor, positions: Tensor) -> Tensor:
        """What the first layer is given: (r, c) and (c,) -> (r, c, h)."""

    @abstractmethod
    def _projected(self, layer: Any, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (a, r, c, d) each, of (r, c, h)."""

    @abstractmethod
    def _finished(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        """What a layer makes of its input and of what its heads read, (r, c, h) each."""

    @abstractmethod
    def _normed(self, x: Tensor) -> Tensor:
        """What the encoder returns of the last layer's output."""

    def original(self, ids: Sequence[int]) -> Original:
        import torch

        row = torch.tensor(ids, device=numerics.device())
        positions = torch.arange(len(ids), device=row.device)
        keys, values = [], []
        with torch.inference_mode():
            x = self._embedded(row[None], positions)
            for layer, reach in zip(self.layers, self.reach, strict=True):
                q, k, v = self._projected(layer, x, positions)
                x = self._finished(layer, x, self._attended(q, [(k, v, positions)], positions, reach))
                keys.append(k[:, 0])
                values.append(v[:, 0])
            return Original(row, self._normed(x)[0], keys, values)

    def embeddings(self, original: Original, place: slice, replaced: Tensor, *, near: int) -> Tensor:
        import torch

        left = max(0, min(place.start, (place.start + place.stop - near) // 2))
        right = min(len(original.ids), max(place.stop, left + near))
        rows = original.ids[left:right].repeat(len(replaced), 1)
        rows[:, place.start - left : place.stop - left] = replaced
        at_once = max(1, numerics.tokens_at_once() // (right - left))
        with torch.inference_mode():
            return torch.cat([self._states(original, part, left, place) for part in rows.split(at_once)])

    def _states(self, original: Original, rows: Tensor, left: int, place: slice) -> Tensor:
        """States of the place, (r, m, h), in rows that begin at `left`, (r, c)."""
        import torch

        positions = torch.arange(left, left + rows.shape[1], device=rows.device)
        x = self._embedded(rows, positions)
        for number, (layer, reach) in enumerate(zip(self.layers, self.reach, strict=True)):
            q, k, v = self._projected(layer, x, positions)
            asked = positions
            if number == len(self.layers) - 1:
                part = slice(place.start - left, place.stop - left)
                q, x, asked = q[:, :, part], x[:, part], positions[part]
            far = self._far(original, number, positions)
            x = self._finished(layer, x, self._attended(q, [*far, (k, v, positions)], asked, reach))
        return self._normed(x)

    def _far(self, original: Original, number: int, near: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Keys and values, (a, 1, tokens, d) each, and positions of the far tokens that a layer can see, if any."""
        import torch

        n, reach = len(original.ids), self.reach[number]
        first, last = int(near[0]), int(near[-1])
        seen = range(n) if reach is None else range(max(0, first - reach), min(n, last + reach + 1))
        at = torch.arange(seen.start, seen.stop, device=near.device)
        at = at[(at < first) | (at > last)]
        return [(original.keys[number][:, None, at], original.values[number][:, None, at], at)] if len(at) else []

    @staticmethod
    def _attended(q: Tensor, read: Sequence[tuple[Tensor, Tensor, Tensor]], asked: Tensor, reach: int | None) -> Tensor:
        """What the heads read, (r, m, h), of keys and values in several parts, each with the positions of its tokens.

        A part with one row, (a, 1, tokens, d), is read by all rows.
        """
        import torch

        q = q / math.sqrt(q.shape[-1])
        scores = []
        for k, _, positions in read:
            score = _product(q, k.transpose(-1, -2))  # (a, r, m, tokens)
            if reach is not None:
                score.masked_fill_((asked[:, None] - positions).abs() > reach, -math.inf)
            scores.append(score)
        weights = torch.cat(scores, dim=-1).softmax(dim=-1).split([score.shape[-1] for score in scores], dim=-1)
        found = sum(_product(weight, v) for weight, (_, v, _) in zip(weights, read, strict=True))
        return found.permute(1, 2, 0, 3).flatten(2)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Matrix product of (a, r, m, k) and (a, r or 1, k, l)."""
    if y.shape[1] == 1:  # one large product for each head
        return (x.flatten(1, 2) @ y[:, 0]).unflatten(1, x.shape[1:3])
    return x @ y


class ModernBertRows(NearRows):
    """`ModernBertModel`."""

    def __init__(self, encoder: Any) -> None:
        config = encoder.config
        reach = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
        super().__init__(config, list(encoder.layers), reach)
        self.encoder = encoder

    def _embedded(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self.encoder.embeddings(ids)

    def _projected(self, layer: Any, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = layer.attn.Wqkv(layer.attn_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 3, 0, 1, 4)
        cos, sin = self.encoder.rotary_emb(x, positions[None], layer.attention_type)  # (1, c, d)
        return _turned(q, cos, sin), _turned(k, cos, sin), v

    def _finished(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        x = x + layer.attn.Wo(attended)
        return x + layer.mlp(layer.mlp_norm(x))

    def _normed(self, x: Tensor) -> Tensor:
        return self.encoder.final_norm(x)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of queries or keys."""
    import torch

    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class BertRows(NearRows):
    """`BertModel` and `RobertaModel`."""

    def __init__(self, encoder: Any) -> None:
        layers = list(encoder.encoder.layer)
        super().__init__(encoder.config, layers, [None] * len(layers))
        self.encoder = encoder
        self.first_position = encoder.config.pad_token_id + 1 if encoder.config.model_type == "roberta" else 0

    def _embedded(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self.encoder.embeddings(input_ids=ids, position_ids=(positions + self.first_position)[None])

    def _projected(self, layer: Any, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = layer.attention.self
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).permute(2, 0, 1, 3) for part in (own.query, own.key, own.value)
        )
        return q, k, v

    def _finished(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        return layer.feed_forward_chunk(layer.attention.output(attended, x))

    def _normed(self, x: Tensor) -> Tensor:
        return x


_KINDS: dict[str, type[ModernBertRows] | type[BertRows]] = {
    "ModernBertModel": ModernBertRows,
    "RobertaModel": BertRows,
    "BertModel": BertRows,
}


def variant_reader(encoder: Any) -> VariantReader:
    """Return the cheapest way to read variants with an encoder of the transformers library."""
    kind = _KINDS.get(type(encoder).__name__)
    return WholeRows(encoder) if kind is None or getattr(encoder.config, "is_decoder", False) else kind(encoder)
