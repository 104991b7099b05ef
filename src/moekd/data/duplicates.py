"""Near-duplicates: functions that share most of their token 5-grams, found by MinHash and checked exactly.

MinHash: Broder 1997, "On the resemblance and containment of documents". Bands: Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from moekd.data.text import ngrams, tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np

_SHINGLE = 5  # tokens
# A pair of similarity s meets in at least one of 32 bands of 4 with probability 1 - (1 - s**4)**32: 0.9998 for 0.7.
_BANDS, _ROWS = 32, 4
# The share of equal minima estimates the similarity with a standard deviation of at most 0.044: pairs estimated this
# much below the threshold are not checked exactly, which keeps large buckets of merely similar functions cheap.
_ESTIMATE_MARGIN = 0.15


class Union:
    """Disjoint sets of the numbers below `size`."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        """Return the smallest member of the item's set."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low

    def join_equal(self, keys: Iterable[str | None]) -> None:
        """Join the items whose keys are equal; None is no key."""
        first: dict[str, int] = {}
        for item, key in enumerate(keys):
            if key is not None:
                self.join(first.setdefault(key, item), item)

    def sets(self) -> list[int]:
        """Return for each item the smallest member of its set."""
        return [self.find(item) for item in range(len(self._parent))]


def join_near_duplicates(
    functions: Sequence[str], union: Union, *, jaccard: float, advance: Callable[[int], None] = lambda n: None
) -> None:
    """Join in `union` the functions whose sets of token 5-grams have a Jaccard similarity of at least `jaccard`.

    Candidates come from MinHash, and each is checked on the sets themselves. Joining is transitive: a chain of similar
    functions is one set. `advance` is told of each function hashed.
    """
    import numpy as np

    shingles = []
    signatures = np.empty((len(functions), _BANDS * _ROWS), dtype=np.uint32)
    permute = _permutations(_BANDS * _ROWS)
    for index, func in enumerate(functions):
        shingles.append(np.unique(ngrams(tokens(func), _SHINGLE)))
        signatures[index] = permute(shingles[-1])
        advance(1)
    for band in range(_BANDS):
        rows = np.ascontiguousarray(signatures[:, band * _ROWS : (band + 1) * _ROWS])
        keys = rows.view([("", rows.dtype)] * _ROWS).ravel()
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1], True])
        for start, end in pairwise(starts.tolist()):
            if end - start > 1:
                _join_bucket(order[start:end], shingles, signatures, union, jaccard)


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Jaccard similarity of two sorted arrays of distinct values, 0 to 1."""
    import numpy as np

    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _join_bucket(
    bucket: np.ndarray, shingles: Sequence[np.ndarray], signatures: np.ndarray, union: Union, jaccard: float
) -> None:
    """Compare the members of a bucket, int64, that are not in one set already."""
    import numpy as np

    sets = np.array([union.find(item) for item in bucket.tolist()])
    for place, one in enumerate(bucket):
        if (sets == sets[0]).all():
            return
        apart = place + np.flatnonzero(sets[place:] != sets[place])
        agreeing = (signatures[bucket[apart]] == signatures[one]).mean(axis=1)
        for other in apart[agreeing >= jaccard - _ESTIMATE_MARGIN]:
            joined = sets[other] == sets[place]
            if not joined and similarity(shingles[one], shingles[bucket[other]]) >= jaccard:
                union.join(int(one), int(bucket[other]))
                sets[sets == sets[other]] = sets[place]


def _permutations(count: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from a set of hashes to its `count` minima, each under another multiply-shift hash."""
    import numpy as np

    rng = np.random.Generator(np.random.PCG64(5))  # fixed: which functions are alike is no matter of a run's seed
    factors = rng.integers(0, 2**64, size=count, dtype=np.uint64, endpoint=False) | np.uint64(1)
    offsets = rng.integers(0, 2**64, size=count, dtype=np.uint64, endpoint=False)

    def minima(values: np.ndarray) -> np.ndarray:
        hashed = values.astype(np.uint64)[:, None] * factors + offsets  # (values, count), wraps at 2**64
        return (hashed >> np.uint64(32)).min(axis=0).astype(np.uint32)

    return minima
