"""What feature losses compare: one state a text and layer, and one state for each place of a text.

Teacher and student cut a text in different tokens, and two families of students have no state in common. So a text's
state is whatever the model's own classifier reads, at every layer; and a place is a sixteenth of the text's characters,
the mean of the tokens that begin in it, which is there for every tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moekd import numerics
from moekd.classifier import model_inputs
from moekd.errors import SettingsError
from moekd.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

PLACES = 16


@dataclass(frozen=True)
class States:
    """States of some texts in one model.

    Attributes:
        layers: (texts, layers + 1, width), the embeddings first; without them for a student.
        places: means of the last layer, (texts, PLACES, width); zeros where no token begins.
        real: whether a token begins at the place, boolean, (texts, PLACES).
    """

    layers: Tensor
    places: Tensor
    real: Tensor

    def take(self, rows: np.ndarray, device: Any) -> States:
        """States of some texts in fp32 on a device."""
        import torch

        index = torch.from_numpy(rows)
        layers, places, real = (values[index].to(device) for values in (self.layers, self.places, self.real))
        return States(layers.float(), places.float(), real)


def token_places(tokenizer: Any, texts: Sequence[str], max_length: int) -> Tokens:
    """The place in which each token begins, 0 ... PLACES - 1, as ragged rows; PLACES for special tokens.

    Raises:
        SettingsError: the tokenizer does not tell where in the text its tokens are.
    """
    if not tokenizer.is_fast:
        raise SettingsError(
            f"feature losses need to know where tokens are, which a {type(tokenizer).__name__} does not tell: choose "
            "an encoder with a fast tokenizer or leave distill.features out"
        )
    rows: list[list[int]] = []
    step = 1000  # bounds the memory of the library's Encoding objects
    for first in range(0, len(texts), step):
        part = list(texts[first : first + step])
        found = tokenizer(part, truncation=True, max_length=max_length, return_offsets_mapping=True)["offset_mapping"]
        for text, spans in zip(part, found, strict=True):
            rows.append([begin * PLACES // len(text) if end > begin else PLACES for begin, end in spans])
    return Tokens.of(rows)


def read(model: Any, tokens: Tokens, places: Tokens, rows: np.ndarray, pad_id: int) -> tuple[Tensor, States]:
    """Logits, fp32, and states of some texts, with gradients where the model's mode asks for them."""
    import torch

    batch = model_inputs(tokens, rows, pad_id)
    answer = model(**batch, output_hidden_states=True)
    mask = batch.get("attention_mask")
    if mask is None:
        mask = torch.ones_like(batch["input_ids"])
    hidden = [states.float() for states in answer.hidden_states]
    if model.config.model_type == "moekd-bigru":
        hidden = hidden[1:]  # the embeddings have another width
    place = torch.from_numpy(places.padded(rows, PLACES)[0]).to(mask.device)
    with numerics.autocast(False):
        layers = torch.stack([_text_state(model.config, states, mask) for states in hidden], dim=1)
        return answer.logits.float(), States(layers, *place_means(hidden[-1], place))


def place_means(states: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the tokens of each place, (texts, PLACES, width), and which places have any, (texts, PLACES).

    Args:
        states: (texts, tokens, width). place: of each token, PLACES for none, int64, (texts, tokens).
    """
    import torch

    belongs = torch.nn.functional.one_hot(place, PLACES + 1)[..., :PLACES].to(states.dtype)  # (texts, tokens, PLACES)
    count = belongs.sum(dim=1)  # (texts, PLACES)
    sums = torch.einsum("ntp,ntw->npw", belongs, states)
    return sums / count.clamp_min(1).unsqueeze(-1), count > 0


def state_width(config: Any) -> int:
    """Width of the states that `read` returns."""
    return int(config.hidden_size * (2 if config.model_type == "moekd-bigru" else 1))


def _text_state(config: Any, states: Tensor, mask: Tensor) -> Tensor:
    """What the model's classifier reads of a layer, (texts, width)."""
    if config.model_type == "moekd-bigru":
        from moekd.bigru import ends

        return ends(states, mask.sum(dim=1))
    if getattr(config, "classifier_pooling", None) == "mean":
        real = mask.unsqueeze(-1)
        return (states * real).sum(dim=1) / real.sum(dim=1)
    return states[:, 0]
