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
from moekd.classifier import place_of, sizes_of
from moekd.errors import SettingsError
from moekd.pretrain.architectures import (
    draw_offsets,
    masked_token_logits,
    new_model,
    require_its_shape,
    started,
    token_states,
)
from moekd.pretrain.rows import starts_word
from moekd.tokens import SPECIALS

if TYPE_CHECKING:
    from torch import Tensor

    from moekd.config import PretrainSettings

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
        first, last = (torch.from_numpy(array).to(numerics.device()) for array in starts_word(tokenizer))
        return cls(settings.pretrain.mask_share, first, last)

    def draw(self, ids: Tensor) -> Tensor:
        """Return which tokens are chosen, bool, (B, L). Never a special token."""
        import torch

        if self.first is None or self.last is None:
            chosen = torch.rand(ids.shape, device=ids.device) < self.share
        else:
            begins = torch.ones(ids.shape, dtype=torch.bool, device=ids.device)
            begins[:, 1:] = ~(self.first[ids[:, 1:]] & self.last[ids[:, :-1]])
            words = begins.reshape(-1).cumsum(0) - 1  # number of each token's word, over all rows
            drawn = torch.rand(int(words[-1]) + 1, device=ids.device) < self.share
            chosen = drawn[words].reshape(ids.shape)
        return chosen & (ids >= len(SPECIALS))


def hide(ids: Tensor, chosen: Tensor, *, vocabulary: int) -> Tensor:
    """Of the chosen tokens 80 % become `<mask>`, 10 % a random token, 10 % stay.

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    import torch

    draw = torch.rand(ids.shape, device=ids.device)
    hidden = torch.where(chosen & (draw < 0.8), torch.full_like(ids, _MASK), ids)
    random = torch.randint(len(SPECIALS), vocabulary, ids.shape, device=ids.device)
    return torch.where(chosen & (draw >= 0.8) & (draw < 0.9), random, hidden)


def sample(logits: Tensor) -> Tensor:
    """Draw one token id for each row of logits (M, V), int64, (M,), by inverting the cumulative distribution."""
    import torch

    # On the CPU in any case: a GPU's cumulative sums are not deterministic, and refused for it.
    cumulative = torch.softmax(logits.float(), dim=-1).cpu().cumsum(-1)
    drawn = torch.rand(len(logits), 1) * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, drawn, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)
    return found.to(logits.device)


@dataclass(frozen=True)
class _Objective:
    settings: PretrainSettings
    tokenizer: Any

    @cached_property
    def masking(self) -> Masking:
        return Masking.of(self.settings, self.tokenizer)

    def offsets(self, ids: Tensor) -> Tensor:
        rows, length = ids.shape
        return draw_offsets(rows, length, self.settings.encoder.max_length)


class MaskedTokens(_Objective):
    """Masked language model: Devlin et al. 2019; RoBERTa's form, masked anew each time (arXiv:1907.11692, 4.1)."""

    def build(self) -> Any:
        """A masked language model from random weights, or the one that `encoder.name` names, to go on with."""
        from transformers import AutoModelForMaskedLM

        encoder = self.settings.encoder
        if encoder.name != "random":
            model = started(AutoModelForMaskedLM, encoder, Path(place_of(encoder.name)))
            require_its_shape(encoder, model.config)
            return model
        return new_model(AutoModelForMaskedLM, self.settings, self.tokenizer, sizes_of(encoder))

    def forward(self, model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (M, V) and targets (M,) of a batch of ids (B, L)."""
        chosen = self.masking.draw(ids)
        hidden = hide(ids, chosen, vocabulary=model.config.vocab_size)
        logits = masked_token_logits(model, token_states(model, hidden, self.offsets(ids)), chosen)
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
        """`detector` (the encoder, two logits a token) and `generator`, from random weights or from an earlier run."""
        import torch
        from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification

        encoder, pretrain = self.settings.encoder, self.settings.pretrain
        if encoder.name != "random":
            place = Path(place_of(encoder.name))
            if place.is_dir() and not (place / LANGUAGE_MODEL).is_dir():
                raise SettingsError(
                    f"encoder.name = {encoder.name!r}: {place} has no generator ({LANGUAGE_MODEL}/), which "
                    "replaced-tokens goes on with, too. Name an encoder that the same objective made"
                )
            generator = started(AutoModelForMaskedLM, encoder, place / LANGUAGE_MODEL)
            detector = started(AutoModelForTokenClassification, encoder, place)
            require_its_shape(encoder, detector.config)
        else:
            generator_sizes = {
                "layers": pretrain.generator_layers,
                "hidden": pretrain.generator_hidden,
                "heads": pretrain.generator_heads,
                "intermediate": encoder.intermediate * pretrain.generator_hidden // encoder.hidden,
            }
            generator = new_model(AutoModelForMaskedLM, self.settings, self.tokenizer, generator_sizes)
            detector = new_model(
                AutoModelForTokenClassification,
                self.settings,
                self.tokenizer,
                sizes_of(encoder),
                labels=("original", "replaced"),
            )
        return torch.nn.ModuleDict({"generator": generator, "detector": detector})

    def forward(self, model: Any, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the generator's logits (M, V) and targets (M,), the detector's log-odds and targets, (n,).

        n counts all tokens but the special ones. A token that the generator guessed right is an original one.
        """
        import torch

        generator, detector = model["generator"], model["detector"]
        chosen = self.masking.draw(ids)
        offsets = self.offsets(ids)
        masked = torch.where(chosen, torch.full_like(ids, _MASK), ids)
        guesses = masked_token_logits(generator, token_states(generator, masked, offsets), chosen).float()
        corrupted = ids.clone()
        corrupted[chosen] = sample(guesses.detach())
        plain = ids >= len(SPECIALS)
        logits = detector(**token_states(detector, corrupted, offsets)).logits[plain].float()
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
