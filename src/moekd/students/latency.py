"""Milliseconds that a student takes for a text, guessed from a few architectures that were timed.

Time does not depend on what weights have learned, so students with random weights are timed, and nothing is trained.
The guess is a sum of kinds of work, each with a price that is fitted. FLOPs are no such guess: attention's softmax and
the activation count next to nothing in them and take a third of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics
from moekd.classifier import sizes_of
from moekd.students.shapes import SHAPES
from moekd.students.space import Configuration, moekd_space, shipped_bytes
from moekd.students.surrogate import spread

if TYPE_CHECKING:
    from moekd.students.ledger import Evaluated

ARCHITECTURES = 30  # with half as many the error on others is 5 % larger, with ten more 3 % smaller
_LEAST_BYTES = 1_000_000  # with less there are few different architectures to learn from
_FOLDS = 5
_PUBLISHED = SHAPES["compressor-3mb"]
#: Compressor's published student of 3 MB. Nobody waits longer for ours: the bound of the hypervolume, at every budget.
PUBLISHED = Configuration(
    **sizes_of(_PUBLISHED), vocabulary=_PUBLISHED.vocabulary, max_length=_PUBLISHED.max_length, tokenizer="bpe"
)


@dataclass(frozen=True)
class Latency:
    """A fitted guess of milliseconds.

    Attributes:
        about: what was measured, and where.
        prices: milliseconds for each unit of a kind of work (`work`), >= 0.
        architectures: how many were timed, at the `lengths` in tokens.
        error: mean absolute error on architectures left out of the fit (5 folds), in milliseconds.
        constant_error: the same of guessing the mean.
        relative_error: as `error`, each a share of the measured time.
        published_ms: measured, of `PUBLISHED` for a text that fills it.
        seconds: of wall time that timing took.
    """

    about: Mapping[str, Any]
    prices: Mapping[str, float]
    architectures: int
    lengths: tuple[int, ...]
    error: float
    constant_error: float
    relative_error: float
    published_ms: float
    seconds: float

    def predict(self, configurations: Sequence[Configuration]) -> np.ndarray:
        """Milliseconds for a text as long as each student reads, `max_length`; float64, (configurations,), >= 0."""
        table = np.array([list(work(one, one.max_length).values()) for one in configurations])
        return np.asarray(table @ np.array(list(self.prices.values())))


def work(one: Configuration, length: int) -> dict[str, float]:
    """Kinds of work of one text of `length` tokens, in units of a million. No part of it depends on the vocabulary."""
    tokens = one.layers * length
    return {
        "layer": one.layers / 1e6,  # operators started, whatever their size
        "state": tokens * one.hidden / 1e6,  # sums, norms and scales of int8
        "activation": tokens * one.intermediate / 1e6,
        "product": tokens * one.hidden * (4 * one.hidden + 2 * one.intermediate) / 1e6,
        "attention": tokens * length * one.hidden / 1e6,
        "softmax": tokens * length * one.heads / 1e6,
    }


def to_time(budget_bytes: int) -> dict[Configuration, tuple[int, ...]]:
    """Architectures spread over our space within a budget, and `PUBLISHED`, with the lengths in tokens to time them at.

    The same for every seed of a search, so that seeds can share what was measured.
    """
    budget_bytes = max(budget_bytes, _LEAST_BYTES)
    space = moekd_space(budget_bytes)
    lengths = tuple(space.axes["max_length"])
    space = space.only(vocabulary=space.axes["vocabulary"][0], max_length=lengths[-1])
    rng = numerics.generator("latency")
    chosen = spread(space, ARCHITECTURES, lambda one: shipped_bytes(one) <= budget_bytes, rng)
    return dict.fromkeys(chosen, lengths) | {PUBLISHED: (PUBLISHED.max_length,)}


def fit_latency(timed: Sequence[Evaluated], *, about: Mapping[str, Any], seconds: float) -> Latency:
    """Fit prices to measured times.

    Prices are the non-negative ones of least squared relative error: a student of half a millisecond counts as much as
    one of thirty.

    Args:
        timed: with `values` tokens -> milliseconds, tokens as text. `PUBLISHED`, the last of them, is not fitted.
    """
    *ours, published = timed
    rows = [
        (number, work(one.configuration, int(length)), milliseconds)
        for number, one in enumerate(ours)
        for length, milliseconds in one.values.items()
    ]
    group = np.array([number for number, _, _ in rows])
    table = np.array([list(done.values()) for _, done, _ in rows])  # (times, kinds of work)
    times = np.array([milliseconds for _, _, milliseconds in rows])
    guesses, means = np.empty_like(times), np.empty_like(times)
    order = numerics.generator("latency folds").permutation(len(ours))
    for fold in range(_FOLDS):
        out = np.isin(group, order[fold::_FOLDS])  # all lengths of an architecture together
        guesses[out] = table[out] @ _prices(table[~out], times[~out])
        means[out] = times[~out].mean()
    return Latency(
        about=about,
        prices=dict(zip(rows[0][1], map(float, _prices(table, times)), strict=True)),
        architectures=len(ours),
        lengths=tuple(map(int, timed[0].values)),
        error=float(np.abs(guesses - times).mean()),
        constant_error=float(np.abs(means - times).mean()),
        relative_error=float(np.abs(guesses / times - 1).mean()),
        published_ms=published.values[str(PUBLISHED.max_length)],
        seconds=seconds,
    )


def _prices(table: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(times, kinds), (times,) -> (kinds,)."""
    from scipy.optimize import nnls

    largest = table.max(axis=0)  # kinds differ by orders of magnitude
    return np.asarray(nnls(table / largest / times[:, None], np.ones(len(times)))[0] / largest)
