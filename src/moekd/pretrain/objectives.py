"""What an encoder learns from packed rows: to fill in masked tokens, or to tell which tokens were replaced.

Letters in shapes: B rows, L tokens of a row, M masked tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics
from moekd.classifier import loading, place_of, roberta_config, start_positions_as_sinusoids
from moekd.errors import SettingsError
from moekd.pretrain.rows import starts_word
from moekd.tokens import SPECIALS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from moekd.config import Encoder, PretrainSettings

#: Folder of the generator beside the weights of its detector.
LANGUAGE_MODEL = "language-model"
_MASK = SPECIALS.index("<mask>")


@dataclass(frozen=True)
class Masking:
    """Chooses the tokens to predict.

    Attributes:
        share: of all tokens, in expectation.
        first, last: `starts_word`, where whole identifiers are masked; None to choose each token by itself.
    """

    share: float
    first: Tensor | None
    last: Tensor | None

    @classmethod
    def of(cls, settings: PretrainSettings, tokenizer: Any) -> Masking:
        import torch

        if not settings.pretrain.whole_identifiers:
            return cls(settings.pretrain.mask_share, None, None)
        first, last = (torch.from_numpy(array) for array in starts_word(tokenizer))
        return cls(settings.pretrain.mask_share, first, last)

    def draw(self, ids: Tensor) -> Tensor:
        """Return which tokens are chosen, bool, (B, L). Never a special token."""
        import torch

        if self.first is None or self.last is None:
            chosen = torch.rand(ids.shape) < self.share
        else:
            begins = torch.ones(ids.shape, dtype=torch.bool)
            begins[:, 1:] = ~(self.first[ids[:, 1:]] & self.last[ids[:, :-1]])
            words = begins.reshape(-1).cumsum(0) - 1  # number of each token's word, over all rows
            chosen = (torch.rand(int(words[-1]) + 1) < self.share)[words].reshape(ids.shape)
        return chosen & (ids >= len(SPECIALS))


def masked_language_model(settings: PretrainSettings, tokenizer: Any, *, layers: int, hidden: int, heads: int) -> Any:
    """A RobertaForMaskedLM from random weights; the word embeddings are also the output's weights."""
    from transformers import RobertaForMaskedLM

    encoder = settings.encoder
    config = roberta_config(
        tokenizer=tokenizer,
        max_length=encoder.max_length,
        layers=layers,
        hidden=hidden,
        heads=heads,
        intermediate=encoder.intermediate * hidden // encoder.hidden,
        dropout=settings.pretrain.training.dropout,
    )
    model = RobertaForMaskedLM(config)
    model.set_attn_implementation(numerics.attention())
    start_positions_as_sinusoids(model.roberta.embeddings.position_embeddings.weight, config.initializer_range)
    return model


def replaced_token_model(settings: PretrainSettings, tokenizer: Any) -> torch.nn.Module:
    """A module of `detector` (the encoder, two logits a token) and `generator` (a small masked language model)."""
    import torch
    from transformers import RobertaForTokenClassification

    encoder, pretrain = settings.encoder, settings.pretrain
    generator = masked_language_model(
        settings,
        tokenizer,
        layers=pretrain.generator_layers,
        hidden=pretrain.generator_hidden,
        heads=pretrain.generator_heads,
    )
    config = roberta_config(
        tokenizer=tokenizer,
        max_length=encoder.max_length,
        layers=encoder.layers,
        hidden=encoder.hidden,
        heads=encoder.heads,
        intermediate=encoder.intermediate,
        dropout=pretrain.training.dropout,
        labels=("original", "replaced"),
    )
    detector = RobertaForTokenClassification(config)
    detector.set_attn_implementation(numerics.attention())
    start_positions_as_sinusoids(detector.roberta.embeddings.position_embeddings.weight, config.initializer_range)
    return torch.nn.ModuleDict({"generator": generator, "detector": detector})


def started(kind: Any, encoder: Encoder, place: Path) -> Any:
    """Load a RoBERTa of some kind in fp32. Raises SettingsError if it is another kind of model or cannot be loaded."""
    import torch

    with loading(encoder):
        model, found = kind.from_pretrained(
            str(place), dtype=torch.float32, attn_implementation=numerics.attention(), output_loading_info=True
        )
    if found["missing_keys"]:
        raise SettingsError(
            f"encoder.name = {encoder.name!r}: {place} is no {kind.__name__}, which this objective goes on with; it "
            f"lacks {sorted(found['missing_keys'])[0]}. Name an encoder that the same objective made"
        )
    return model


def positions(ids: Tensor, *, first: int, limit: int) -> Tensor:
    """Position ids, (B, L): half of the rows start at the first position, the others anywhere they fit.

    Rows are shorter than what the encoder shall read later; so its later positions are trained, too.

    Args:
        first: id of the first position.
        limit: number of positions.
    """
    import torch

    rows, length = ids.shape
    offsets = torch.randint(0, limit - length + 1, (rows,)) * torch.randint(0, 2, (rows,))
    return first + offsets[:, None] + torch.arange(length)


def masked_token_logits(model: Any, ids: Tensor, position_ids: Tensor, chosen: Tensor) -> Tensor:
    """Logits of the chosen tokens only, (M, V): the output layer costs as much as a layer of the encoder."""
    hidden = model.roberta(input_ids=ids, position_ids=position_ids).last_hidden_state
    return model.lm_head(hidden[chosen])


def hide(ids: Tensor, chosen: Tensor, *, vocabulary: int) -> Tensor:
    """Of the chosen tokens 80 % become `<mask>`, 10 % a random token, 10 % stay.

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    import torch

    draw = torch.rand(ids.shape)
    hidden = torch.where(chosen & (draw < 0.8), torch.full_like(ids, _MASK), ids)
    random = torch.randint(len(SPECIALS), vocabulary, ids.shape)
    return torch.where(chosen & (draw >= 0.8) & (draw < 0.9), random, hidden)


def sample(logits: Tensor) -> Tensor:
    """Draw one token id for each row of logits (M, V), int64, (M,), by inverting the cumulative distribution."""
    import torch

    cumulative = torch.softmax(logits.float(), dim=-1).cumsum(-1)
    drawn = torch.rand(len(logits), 1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, drawn, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


@dataclass(frozen=True)
class _Objective:
    settings: PretrainSettings
    tokenizer: Any

    @cached_property
    def masking(self) -> Masking:
        return Masking.of(self.settings, self.tokenizer)


class MaskedTokens(_Objective):
    """Masked language model: Devlin et al. 2019; RoBERTa's form, masked anew each time (arXiv:1907.11692, 4.1)."""

    def build(self) -> Any:
        """A masked language model from random weights, or the one that `encoder.name` names, to go on with."""
        from transformers import RobertaForMaskedLM

        encoder = self.settings.encoder
        if encoder.name != "random":
            return started(RobertaForMaskedLM, encoder, Path(place_of(encoder)))
        return masked_language_model(
            self.settings, self.tokenizer, layers=encoder.layers, hidden=encoder.hidden, heads=encoder.heads
        )

    def forward(self, model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (M, V) and targets (M,) of a batch of ids (B, L)."""
        chosen = self.masking.draw(ids)
        where = _positions(ids, model.config)
        logits = masked_token_logits(model, hide(ids, chosen, vocabulary=model.config.vocab_size), where, chosen)
        return logits.float(), ids[chosen]

    def loss(self, outputs: Any) -> Tensor:
        """Mean cross-entropy of what `forward` returns, nats a masked token."""
        import torch

        return torch.nn.functional.cross_entropy(*outputs)

    def encoder_of(self, model: Any) -> Any:
        return model

    def language_model_of(self, model: Any) -> Any:
        return model


class ReplacedTokens(_Objective):
    """Replaced-token detection: Clark et al. 2020, arXiv:2003.10555, section 2, with embeddings of its own for each."""

    def build(self) -> Any:
        """Detector and generator from random weights, or those of an earlier run that `encoder.name` names."""
        import torch
        from transformers import RobertaForMaskedLM, RobertaForTokenClassification

        encoder = self.settings.encoder
        if encoder.name == "random":
            return replaced_token_model(self.settings, self.tokenizer)
        place = Path(place_of(encoder))
        return torch.nn.ModuleDict(
            {
                "generator": started(RobertaForMaskedLM, encoder, place / LANGUAGE_MODEL),
                "detector": started(RobertaForTokenClassification, encoder, place),
            }
        )

    def forward(self, model: Any, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the generator's logits (M, V) and targets (M,), the detector's log-odds and targets, (n,).

        n counts all tokens but the special ones. A token that the generator guessed right is an original one.
        """
        import torch

        generator, detector = model["generator"], model["detector"]
        chosen = self.masking.draw(ids)
        where = _positions(ids, generator.config)
        masked = torch.where(chosen, torch.full_like(ids, _MASK), ids)
        guesses = masked_token_logits(generator, masked, where, chosen).float()
        corrupted = ids.clone()
        corrupted[chosen] = sample(guesses.detach())
        plain = ids >= len(SPECIALS)
        logits = detector(input_ids=corrupted, position_ids=where).logits[plain].float()
        return guesses, ids[chosen], logits[:, 1] - logits[:, 0], (corrupted != ids)[plain].float()

    def loss(self, outputs: Any) -> Tensor:
        """Cross-entropy of the generator plus the weighted one of the detector, of what `forward` returns."""
        import torch

        guesses, targets, detected, replaced = outputs
        generator = torch.nn.functional.cross_entropy(guesses, targets)
        detection = torch.nn.functional.binary_cross_entropy_with_logits(detected, replaced)
        return generator + self.settings.pretrain.detection_weight * detection

    def encoder_of(self, model: Any) -> Any:
        return model["detector"]

    def language_model_of(self, model: Any) -> Any:
        return model["generator"]


Objective = MaskedTokens | ReplacedTokens
OBJECTIVES: dict[str, type[Objective]] = {"masked-tokens": MaskedTokens, "replaced-tokens": ReplacedTokens}


def as_ids(rows: np.ndarray) -> Tensor:
    """Packed rows as int64 ids on the device, (B, L)."""
    import torch

    return torch.from_numpy(rows.astype(np.int64)).to(numerics.device())


def _positions(ids: Tensor, config: Any) -> Tensor:
    first = config.pad_token_id + 1  # RoBERTa's positions start behind the padding id
    return positions(ids, first=first, limit=config.max_position_embeddings - first)
