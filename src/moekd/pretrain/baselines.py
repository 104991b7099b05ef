"""What a masked language model must beat: the most frequent token in a context of two or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

_IDS = 1 << 16  # token ids are below this


@dataclass(frozen=True)
class NGrams:
    """The most frequent token for each context; contexts that were never seen fall back to the most frequent token.

    Attributes:
        offsets: which neighbours are the context: (-2, -1) is a trigram model, () a unigram model.
        contexts: codes of the seen contexts, sorted, uint64, (n,).
        best: the most frequent token of each, (n,).
        fallback: the most frequent token of all.
    """

    CONTEXTS: ClassVar[dict[str, tuple[int, ...]]] = {"unigram": (), "trigram": (-2, -1), "both_neighbours": (-1, 1)}

    offsets: tuple[int, ...]
    contexts: np.ndarray
    best: np.ndarray
    fallback: int

    @classmethod
    def count(cls, rows: np.ndarray, offsets: tuple[int, ...]) -> NGrams:
        """Count in packed rows (rows, length); tokens without a whole context in their row are left out.

        Ties go to the smaller id.
        """
        fallback = int(np.bincount(np.asarray(rows).reshape(-1), minlength=1).argmax())
        if not offsets:
            return cls(offsets, np.empty(0, np.uint64), np.empty(0, np.int64), fallback)
        codes, inner = _codes(np.asarray(rows), offsets)
        keys, counts = np.unique(codes * np.uint64(_IDS) + inner.reshape(-1).astype(np.uint64), return_counts=True)
        contexts = keys // np.uint64(_IDS)
        order = np.lexsort((-counts, contexts))  # stable: equal counts stay in the order of ids
        first = np.r_[True, contexts[order][1:] != contexts[order][:-1]] if len(order) else np.empty(0, bool)
        chosen = order[first]
        return cls(offsets, contexts[chosen], (keys[chosen] % np.uint64(_IDS)).astype(np.int64), fallback)

    def guess(self, ids: np.ndarray) -> np.ndarray:
        """Return the guess for every token of rows (B, L) from its true neighbours, int64, (B, L)."""
        guesses = np.full(ids.shape, self.fallback, dtype=np.int64)
        if not len(self.contexts):
            return guesses
        codes, inner = _codes(ids, self.offsets)
        places = np.searchsorted(self.contexts, codes).clip(max=len(self.contexts) - 1)
        known = self.contexts[places] == codes
        before = max(0, -min(self.offsets))
        guesses[:, before : before + inner.shape[1]] = np.where(
            known.reshape(inner.shape), self.best[places].reshape(inner.shape), self.fallback
        )
        return guesses


def _codes(rows: np.ndarray, offsets: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Context codes, uint64, (n,), and the tokens they are contexts of, (rows, inner length), where they are whole."""
    before, after = max(0, -min(offsets)), max(0, *offsets)
    end = rows.shape[1] - after
    inner = rows[:, before:end]
    codes = np.zeros(inner.shape, dtype=np.uint64)
    for offset in offsets:
        codes = codes * np.uint64(_IDS) + rows[:, before + offset : end + offset].astype(np.uint64)
    return codes.reshape(-1), inner
