"""Scores on disk and in hand: what every model is to evaluation, attacks and scan.

A model's outputs are kept as `Scores`, aligned to samples by id and content digest. Order never matters, and a table
made from other texts is refused instead of silently shifted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moekd.errors import DataError
from moekd.files import read_arrays, write_arrays
from moekd.records import Sample, Scores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np


def scores_of(samples: Sequence[Sample], logits: np.ndarray) -> Scores:
    """Tie `logits`, (samples, classes), to the samples they were computed from."""
    if len(samples) != len(logits):
        raise ValueError(f"{len(samples)} samples but {len(logits)} rows of logits")
    return Scores(tuple(s.id for s in samples), tuple(s.digest for s in samples), logits.astype("float32"))


def save_scores(path: Path, scores: Scores) -> None:
    import numpy as np

    write_arrays(
        path,
        {"ids": np.array(scores.ids), "digests": np.array(scores.digests), "logits": scores.logits},
    )


def load_scores(path: Path) -> Scores:
    arrays = read_arrays(path)
    return Scores(tuple(arrays["ids"].tolist()), tuple(arrays["digests"].tolist()), arrays["logits"])


def rows_of(
    ids: Sequence[str], digests: Sequence[str], samples: Sequence[Sample], *, source: str = "scores"
) -> np.ndarray:
    """Return the row of each sample in a table with these ids and digests, int64, (samples,).

    Raises:
        DataError: a sample is missing from the table, or its text is not the one that was scored.
    """
    import numpy as np

    row = {sample_id: index for index, sample_id in enumerate(ids)}
    missing = [s.id for s in samples if s.id not in row]
    if missing:
        raise DataError(
            f"{source}: no row for {len(missing)} of {len(samples)} samples, the first is {missing[0]!r}; "
            "score the same data set again"
        )
    changed = [s.id for s in samples if digests[row[s.id]] != s.digest]
    if changed:
        raise DataError(
            f"{source}: the text of {len(changed)} samples is not the one that was scored, the first is "
            f"{changed[0]!r}; score the data set again"
        )
    return np.array([row[s.id] for s in samples], dtype=np.int64)


def aligned(scores: Scores, samples: Sequence[Sample], *, source: str = "scores") -> np.ndarray:
    """Return the logits of `samples` in their order, (samples, classes). Raises DataError as `rows_of` does."""
    return scores.logits[rows_of(scores.ids, scores.digests, samples, source=source)]
