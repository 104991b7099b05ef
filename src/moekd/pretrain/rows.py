"""Functions as packed rows: one stream of token ids, cut into rows of equal length, so that nothing is padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import console, numerics
from moekd.classifier import length_limit, loading, place_of
from moekd.errors import DataError, SettingsError
from moekd.files import writing
from moekd.pretrain.corpus import functions_of
from moekd.tokens import SPECIALS, train_bpe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from moekd.config import Encoder, PretrainSettings

PARTS = ("train", "held_out")
_BPE_CHARACTERS = 60_000_000  # that the tokenizer is trained on: half a minute; more text changes its tail only
_CHUNK = 2000  # functions encoded at once; bounds the memory of the library's Encoding objects


def pack(settings: PretrainSettings, inputs: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Stage: the tokenizer, and `train.npy` and `held_out.npy`, packed rows of token ids, uint16, (rows, row_length).

    Functions come in an order drawn once. Each is `<s> tokens </s>`; one that does not fit runs on in the next row.

    Raises:
        SettingsError: the corpus supports fewer BPE entries than `encoder.vocabulary`, or the named encoder does not
            fit.
        DataError: a part has not even one row, or the training part not one batch.
    """
    functions, held_out = functions_of(inputs["corpus"])
    order = numerics.generator("pack").permutation(len(functions))
    texts = {
        "train": [functions[i] for i in order if not held_out[i]],
        "held_out": [functions[i] for i in order if held_out[i]],
    }
    tokenizer = _tokenizer(texts["train"], settings)
    tokenizer.save_pretrained(str(folder))
    length = settings.pretrain.row_length
    facts: dict[str, Any] = {"vocabulary": len(tokenizer)}
    for part in PARTS:
        rows = _packed(_encoded(tokenizer, texts[part]), length)
        require_a_batch(rows, part, settings)
        with writing(folder):
            np.save(folder / f"{part}.npy", rows)
        facts[f"{part}_tokens"] = int(rows.size)
    return facts


def rows_a_batch(settings: PretrainSettings) -> int:
    return max(1, settings.pretrain.training.token_budget // settings.pretrain.row_length)


def require_a_batch(rows: np.ndarray, part: str, settings: PretrainSettings) -> None:
    """Raise DataError where the training part has no whole batch of rows, or the held-out part no row.

    Told while packing, before anything is trained, and again of rows that were packed for smaller batches.
    """
    wanted, less = (1, "raise corpus.held_out")
    if part == "train":
        wanted, less = rows_a_batch(settings), "lower pretrain.training.token_budget"
    if len(rows) < wanted:
        raise DataError(
            f"the corpus is too small: its {part} part makes {len(rows):,} rows of {settings.pretrain.row_length} "
            f"tokens, wanted at least {wanted:,}. Add sources to corpus.paths, or {less}"
        )


def load_rows(folder: Path, part: str) -> np.ndarray:
    """Packed rows of a `pack` stage's folder, uint16, (rows, row_length), mapped from the file."""
    return np.load(folder / f"{part}.npy", mmap_mode="r")


def starts_word(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """For each token id, whether its first and whether its last character can be inside an identifier, bool, (ids,).

    A token continues the identifier of the token before it where that one's last and its own first character can.
    """
    words = [_bare(token) for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    first = np.array([bool(word) and _in_identifier(word[0]) for word in words])
    last = np.array([bool(word) and _in_identifier(word[-1]) for word in words])
    return first, last


def _bare(token: str) -> str:
    return "" if token in SPECIALS else token


def _in_identifier(character: str) -> bool:
    return character == "_" or (character.isascii() and character.isalnum())


def _tokenizer(texts: Sequence[str], settings: PretrainSettings) -> Any:
    if settings.encoder.name != "random":
        return _tokenizer_of_the_named(settings.encoder)
    wanted = settings.encoder.vocabulary
    tokenizer = train_bpe(_first(texts, _BPE_CHARACTERS), vocabulary=wanted, max_length=settings.encoder.max_length)
    if len(tokenizer) < wanted:
        raise SettingsError(
            f"encoder.vocabulary is {wanted}, but the corpus supports {len(tokenizer)} entries only; set "
            f"encoder.vocabulary to {len(tokenizer)} or less, or add sources to corpus.paths"
        )
    return tokenizer


def _tokenizer_of_the_named(encoder: Encoder) -> Any:
    """The tokenizer of the encoder to go on from, whose special tokens must be ours: objectives know them by id."""
    from transformers import AutoConfig, AutoTokenizer

    with loading(encoder):
        tokenizer = AutoTokenizer.from_pretrained(place_of(encoder.name), revision=encoder.revision)
        config = AutoConfig.from_pretrained(place_of(encoder.name), revision=encoder.revision)
    ids = tokenizer.convert_tokens_to_ids(list(SPECIALS))
    if ids != list(range(len(SPECIALS))):
        raise SettingsError(
            f"encoder.name = {encoder.name!r}: its tokenizer has the ids {ids} for {' '.join(SPECIALS)}, wanted 0 to "
            f"{len(SPECIALS) - 1}. Name an encoder that `moekd pretrain` made"
        )
    limit = length_limit(config, tokenizer)
    if encoder.max_length > limit:
        raise SettingsError(
            f"encoder.max_length is {encoder.max_length}, but {encoder.name!r} reads {limit} tokens at most; "
            f"set encoder.max_length to {limit} or less"
        )
    return tokenizer


def _first(texts: Sequence[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def _encoded(tokenizer: Any, texts: Sequence[str]) -> Iterator[np.ndarray]:
    with console.bar(len(texts), "functions encoded") as advance:
        for start in range(0, len(texts), _CHUNK):
            part = list(texts[start : start + _CHUNK])
            for encoding in tokenizer.backend_tokenizer.encode_batch_fast(part):
                yield np.array(encoding.ids, dtype=np.uint16)
            advance(len(part))


def _packed(encoded: Iterator[np.ndarray], length: int) -> np.ndarray:
    stream = np.concatenate([np.empty(0, np.uint16), *encoded])
    count = len(stream) // length
    return stream[: count * length].reshape(count, length)
