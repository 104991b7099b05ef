"""The leak check: how far length alone, or a bag of tokens, gets on the same split.

A model that knows nothing of code beats neither by much. Both are rows of every results table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moekd.data import load_parts
from moekd.data.text import count_lines, ngrams, tokens
from moekd.files import read_arrays, write_arrays
from moekd.records import PAIR_MARK
from moekd.scorer import save_scores, scores_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from scipy.sparse import csr_array

    from moekd.config import MoekdSettings
    from moekd.records import Part, Sample

#: What each system learns from. The students' teacher sees half A only, so the bag of tokens has a row for each.
TRAINING_PARTS: Mapping[str, tuple[Part, ...]] = {
    "length": ("train_a", "train_b"),
    "bag-of-tokens": ("train_a", "train_b"),
    "bag-of-tokens-half-a": ("train_a",),
}
_STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # C, the inverse of the L2 penalty; chosen on validation data
_SAVED = "bag-of-tokens.npz"
_BUCKETS = 2**20  # of hashed tokens and token pairs; real data have about as many


def baseline(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, system: str, **_: Any
) -> dict[str, Any]:
    """Stage: train a logistic regression and write its `predictions.npz` for validation and test.

    Args:
        inputs: "data", the data stage's folder.
        system: a key of TRAINING_PARTS.
    Returns:
        Facts: the penalty chosen and the validation AUROC it was chosen by; of several classes, the accuracy.
    """
    import numpy as np

    features = length_features if system == "length" else token_features
    parts = load_parts(inputs["data"])
    learned = [sample for part in TRAINING_PARTS[system] for sample in parts[part]]
    judged = parts["valid"] + parts["test"]
    valid = slice(0, len(parts["valid"]))
    truth = [sample.label for sample in judged[valid]]
    x, y = features(learned), [sample.label for sample in learned]
    x_judged = features(judged)
    if settings.data.task != "binary":
        x, x_judged = _seen_only(x, x_judged)

    best = None
    measure = "valid_accuracy" if settings.data.task == "multi-class" else "valid_auroc"
    for strength in _STRENGTHS:
        decision = _decide(x, y, x_judged, strength)
        value = _merit(truth, decision[valid])
        if best is None or value > best[0]:
            best = (value, strength, decision)
    assert best is not None
    value, strength, decision = best
    two = decision.ndim == 1
    logits = np.stack([np.zeros_like(decision), decision], axis=1) if two else decision  # (judged, classes)
    save_scores(folder / "predictions.npz", scores_of(judged, logits))
    return {"functions": len(learned), "inverse_penalty": strength, measure: value}


def _merit(truth: Sequence[int], decision: np.ndarray) -> float:
    """AUROC of log-odds, (n,), or accuracy of a score for each class, (n, classes)."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, decision) if decision.ndim == 1 else (decision.argmax(axis=1) == truth).mean())


def _seen_only(x: Any, x_judged: Any) -> tuple[Any, Any]:
    """Leave out features that no training sample has: their weights stay zero, and each class would hold a million."""
    import numpy as np
    from scipy.sparse import issparse

    if not issparse(x):
        return x, x_judged
    seen = np.unique(x.indices)
    return x[:, seen], x_judged[:, seen]


class BagOfTokens:
    """The bag of tokens as a model: texts in, logits out.

    Attributes:
        weights: log-odds of each feature of `token_features`, float64, (2**20,).
        intercept: log-odds of a text without tokens.
    """

    def __init__(self, weights: np.ndarray, intercept: float) -> None:
        self.weights = weights
        self.intercept = intercept

    @classmethod
    def fit(cls, samples: Sequence[Sample], inverse_penalty: float) -> BagOfTokens:
        """Fit the logistic regression that `baseline` chose: its manifest names `inverse_penalty`."""
        model = _fitted(token_features(samples), [s.label for s in samples], inverse_penalty)
        return cls(model.coef_[0], float(model.intercept_[0]))

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 logits, (texts, 2): zero, and the log-odds of being vulnerable."""
        import numpy as np

        log_odds = _hashed_tokens(texts) @ self.weights + self.intercept
        return np.stack([np.zeros_like(log_odds), log_odds], axis=1).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write `bag-of-tokens.npz`; most weights are zero and are left out."""
        import numpy as np

        used = np.flatnonzero(self.weights)
        write_arrays(
            folder / _SAVED,
            {"buckets": used, "weights": self.weights[used], "intercept": np.array(self.intercept)},
        )

    @classmethod
    def load(cls, folder: Path) -> BagOfTokens:
        import numpy as np

        stored = read_arrays(folder / _SAVED)
        weights = np.zeros(_BUCKETS)
        weights[stored["buckets"]] = stored["weights"]
        return cls(weights, float(stored["intercept"]))


def length_features(samples: Sequence[Sample]) -> np.ndarray:
    """Return logarithms of lines and characters, (samples, 2); of pairs, their sums and absolute differences."""
    import numpy as np

    sides = zip(*(sample.func.split(PAIR_MARK) for sample in samples), strict=True)
    lengths = [np.log([(count_lines(text), len(text)) for text in side]) for side in sides]
    if len(lengths) == 1:
        return lengths[0]
    one, other = lengths
    return np.concatenate([one + other, np.abs(one - other)], axis=1)


def token_features(samples: Sequence[Sample]) -> csr_array:
    """Return 1 + log of the counts of hashed tokens and token pairs, rows of unit length, (samples, 2**20).

    Of pairs: what the two functions share (the product, feature by feature), how they differ (the absolute difference)
    and their cosine similarity, (samples, 2**21 + 1): the same for either order.
    """
    from scipy.sparse import csr_array, hstack

    sides = [_hashed_tokens(side) for side in zip(*(sample.func.split(PAIR_MARK) for sample in samples), strict=True)]
    if len(sides) == 1:
        return sides[0]
    one, other = sides
    shared = one.multiply(other)
    similarity = csr_array(shared.sum(axis=1)[:, None])
    return csr_array(hstack([shared, abs(one - other), similarity]))


def _hashed_tokens(texts: Sequence[str]) -> csr_array:
    import numpy as np
    from scipy.sparse import csr_array

    columns, values, ends = [], [], [0]
    for text in texts:
        words = tokens(text)
        hashes = np.concatenate([ngrams(words, 1), ngrams(words, 2)]) % _BUCKETS
        buckets, counts = np.unique(hashes, return_counts=True)
        weights = 1 + np.log(counts)
        columns.append(buckets)
        values.append(weights / np.linalg.norm(weights))
        ends.append(ends[-1] + len(buckets))
    shape = (len(texts), _BUCKETS)
    indices = np.concatenate(columns).astype(np.int32)
    return csr_array((np.concatenate(values), indices, np.array(ends, dtype=np.int32)), shape=shape)


def _decide(x: Any, y: Sequence[int], x_judged: Any, strength: float) -> np.ndarray:
    """Log-odds of being vulnerable for each row of `x_judged`, float64, (judged,)."""
    return _fitted(x, y, strength).decision_function(x_judged)


def _fitted(x: Any, y: Sequence[int], strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    # newton-cg: same answer as liblinear and lbfgs, a quarter of their time at a million features.
    return LogisticRegression(C=strength, solver="newton-cg", max_iter=1000).fit(x, y)
