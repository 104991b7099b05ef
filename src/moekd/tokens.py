"""Texts as token ids: encoded once, kept ragged, padded only inside a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd.files import read_arrays, write_arrays
from moekd.records import PAIR_MARK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

#: Special tokens and their ids: four as in both references (methods.md 1.4), and `<mask>`, which costs a student of
#: theirs one merge.
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts in one array.

    Attributes:
        flat: ids of all texts one after another, int32, (sum of lengths,).
        offsets: text i is flat[offsets[i]:offsets[i + 1]], int64, (n + 1,).
    """

    flat: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def padded(self, rows: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and attention mask of some rows, both int64, (rows, longest of them)."""
        lengths = self.lengths[rows]
        columns = np.arange(int(lengths.max()))
        mask = columns < lengths[:, None]
        where = np.where(mask, self.offsets[rows][:, None] + columns, 0)
        ids = np.where(mask, self.flat[where], pad_id)
        return ids.astype(np.int64), mask.astype(np.int64)

    def take(self, rows: np.ndarray) -> Tokens:
        """The tokens of some rows, in the order of `rows`."""
        return Tokens.of(self.flat[self.offsets[row] : self.offsets[row + 1]] for row in rows)

    def followed_by(self, others: Tokens) -> Tokens:
        """These texts, then the others."""
        offsets = np.concatenate([self.offsets, self.offsets[-1] + others.offsets[1:]])
        return Tokens(np.concatenate([self.flat, others.flat]), offsets)

    def save(self, path: Path) -> None:
        write_arrays(path, {"flat": self.flat, "offsets": self.offsets})

    @staticmethod
    def load(path: Path) -> Tokens:
        arrays = read_arrays(path)
        return Tokens(arrays["flat"], arrays["offsets"])

    @staticmethod
    def of(rows: Iterable[Sequence[int] | np.ndarray]) -> Tokens:
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(a) for a in arrays], out=offsets[1:])
        return Tokens(np.concatenate(arrays) if arrays else np.empty(0, np.int32), offsets)


def token_batches(
    lengths: np.ndarray, *, budget: int, limit: int, rng: np.random.Generator | None = None
) -> Iterator[np.ndarray]:
    """Cut rows into batches of similar length whose padded size stays within a token budget.

    Sorting by length makes nearly every token of a batch a real one; random order and padding would waste two thirds
    of the work on real functions. With `rng`, rows of equal length and the batches come in random order; without,
    longest first, so that a lack of memory shows at once.

    Args:
        lengths: tokens of each row, (n,).
        budget: largest rows x longest row of a batch; a single longer row is a batch of its own.
        limit: most rows of a batch.
    Yields:
        Row numbers, each exactly once over all batches.
    """
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    batches = []
    start = 0
    while start < len(order):
        size = min(limit, max(1, budget // max(1, int(lengths[order[start]]))))
        batches.append(order[start : start + size])
        start += size
    if rng is not None:
        rng.shuffle(batches)
    yield from batches


def train_bpe(texts: Iterable[str], *, vocabulary: int, max_length: int, lowercase: bool = False) -> Any:
    """Train a byte-level BPE with RoBERTa's special tokens (methods.md 1.4) and wrap it for transformers.

    Args:
        texts: training text only, never validation or test.
        vocabulary: wanted entries, the 256 bytes and the specials included; fewer result where the text has no more
            pairs to merge.
        max_length: tokens kept of a text, `<s>` and `</s>` included.
    Returns:
        A `transformers.PreTrainedTokenizerFast`.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return wrapped(tokenizer, max_length)


def wrapped(tokenizer: Any, max_length: int) -> Any:
    """A tokenizer of the `tokenizers` library, which has our special tokens, for transformers."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def encode(tokenizer: Any, texts: Sequence[str], max_length: int) -> Tokens:
    """Encode texts once, cut at `max_length` tokens with specials included.

    Texts of pairs, all of them or none, become `<s> first </s> second </s>`: one sequence, so that the model can
    compare the two. A function that is too long gives way to a shorter one only beyond half of the room.
    """
    if not texts:
        return Tokens.of(())
    step = 1000  # bounds the memory of the library's Encoding objects
    rows: list[list[int]] = []
    for start in range(0, len(texts), step):
        part = list(texts[start : start + step])
        if PAIR_MARK in part[0]:
            rows += _pairs_encoded(tokenizer, part, max_length)
        else:
            rows += tokenizer(part, truncation=True, max_length=max_length)["input_ids"]
    return Tokens.of(rows)


def _pairs_encoded(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    room = max_length - 3
    first, second = (
        tokenizer(list(side), truncation=True, max_length=room, add_special_tokens=False)["input_ids"]
        for side in zip(*(text.split(PAIR_MARK) for text in texts), strict=True)
    )
    start, end = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    rows = []
    for one, other in zip(first, second, strict=True):
        of_one = max(room // 2, room - len(other))
        kept = one[:of_one]
        rows.append(start + kept + end + other[: room - len(kept)] + end)
    return rows


def functions_of(texts: Iterable[str]) -> list[str]:
    """The functions that texts hold: the text itself, or both functions of a pair."""
    return [function for text in texts for function in text.split(PAIR_MARK)]
