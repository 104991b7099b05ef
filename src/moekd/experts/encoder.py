"""The teacher side's tokenizer and the texts of all parts encoded once, for every model that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moekd.errors import SettingsError
from moekd.records import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from moekd.config import Encoder, MoekdSettings


def tokenize(settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Stage: the encoder's tokenizer (trained on half A for `random`) and `<part>.npz` with every part's tokens."""
    from moekd.data import load_parts
    from moekd.tokens import encode, functions_of

    parts = load_parts(inputs["data"])
    tokenizer = _tokenizer(settings.encoder, functions_of(sample.func for sample in parts["train_a"]))
    tokenizer.save_pretrained(str(folder))
    facts: dict[str, Any] = {"vocabulary": len(tokenizer)}
    for part in PARTS:
        tokens = encode(tokenizer, [s.func for s in parts[part]], settings.encoder.max_length)
        tokens.save(folder / f"{part}.npz")
        facts[f"{part}_tokens"] = len(tokens.flat)
        facts[f"{part}_cut_share"] = float((tokens.lengths >= settings.encoder.max_length).mean())
    return facts


def _tokenizer(encoder: Encoder, half_a: list[str]) -> Any:
    from transformers import AutoConfig, AutoTokenizer

    from moekd.classifier import length_limit, loading, place_of
    from moekd.tokens import train_bpe

    if encoder.name == "random":
        return train_bpe(half_a, vocabulary=encoder.vocabulary, max_length=encoder.max_length)
    with loading(encoder):
        tokenizer = AutoTokenizer.from_pretrained(place_of(encoder.name), revision=encoder.revision)
        config = AutoConfig.from_pretrained(place_of(encoder.name), revision=encoder.revision)
    limit = length_limit(config, tokenizer)
    if encoder.max_length > limit:
        raise SettingsError(
            f"encoder.max_length is {encoder.max_length}, but {encoder.name!r} reads {limit} tokens at most; "
            f"set encoder.max_length to {limit} or less"
        )
    tokenizer.model_max_length = encoder.max_length
    return tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a `tokenize` stage's folder."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder))
