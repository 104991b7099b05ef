"""What can be attacked: anything that answers texts with probabilities.

A victim is a callable, texts -> p_vulnerable, (texts,), or class probabilities, (texts, 2). Saved models become one by
`load_victim`. A plain callable is asked for the texts of many attacks in one call.

Models of ours have a method `session(text)`, which makes the callable that one attack on that function asks. In a
session every answer depends on that attack's own questions alone: sums in batches of another make differ in their last
digits, which is enough to turn a close decision, so results could not be repeated otherwise. It costs next to nothing,
since the variants of one function fill batches without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from moekd.attack.encoding import VariantEncoder
from moekd.attack.search import UnusableAnswerError
from moekd.errors import SettingsError

if TYPE_CHECKING:
    from moekd.classifier import Classifier
    from moekd.records import Scorer

#: Texts -> p_vulnerable, (texts,), or probabilities of the two classes, (texts, 2).
Victim = Callable[[Sequence[str]], np.ndarray]

DECIMALS = 6  # of probabilities: beyond is noise


@runtime_checkable
class HasSessions(Protocol):
    """A victim that answers each attack on its own."""

    def session(self, text: str) -> Victim: ...


class ClassifierVictim:
    """A classifier that is asked for many variants of the same function.

    Variants that are equal after the length cut are scored once, at their real lengths in batches sorted by length;
    answers are remembered. Takes over the classifier's model: attention is switched to the fused kernel, which without
    gradients is 3 to 5 times as fast as plain products from 256 tokens on, on a CPU as well.

    Attributes:
        scored: encodings that went through the model, in all sessions.
    """

    def __init__(self, classifier: Classifier, *, bf16: bool = False) -> None:
        self.classifier = classifier
        self.bf16 = bf16
        self.encoder = VariantEncoder(classifier.tokenizer, classifier.max_length)
        self.scored = 0
        self.lock = Lock()  # tokenizers are for one thread at a time
        use_fused_attention(classifier.model)

    def session(self, text: str) -> Victim:
        with self.lock:
            return _Session(self, is_local=self.encoder.is_local(text))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return p_vulnerable, float64, (texts,), without the memory of a session."""
        return _Session(self, is_local=False)(texts)

    def score(self, tokens: Any) -> np.ndarray:
        """Return p_vulnerable of encoded texts, float64, (texts,)."""
        from moekd.classifier import predict

        with self.lock:
            self.scored += len(tokens)
        pad_id = self.classifier.tokenizer.pad_token_id
        return p_vulnerable(predict(self.classifier.model, tokens, pad_id=pad_id, bf16=self.bf16))


class _Session:
    """The variants of one function: what was answered, and whether they may be encoded word by word."""

    def __init__(self, victim: ClassifierVictim, *, is_local: bool) -> None:
        self.victim = victim
        self.is_local = is_local
        self._answers: dict[bytes, float] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        encoder = self.victim.encoder
        with self.victim.lock:
            tokens = encoder.by_words(texts) if self.is_local else encoder.whole(texts)
        keys = [tokens.flat[start:end].tobytes() for start, end in pairwise(tokens.offsets)]
        fresh = {key: row for row, key in enumerate(keys) if key not in self._answers}
        if fresh:
            p = self.victim.score(tokens.take(np.array(list(fresh.values()))))
            self._answers |= dict(zip(fresh, p.tolist(), strict=True))
        return np.array([self._answers[key] for key in keys])


class ScorerVictim:
    """Any scorer, such as a saved mixture or the bag of tokens; asked by one thread at a time."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.lock = Lock()

    def session(self, text: str) -> Victim:
        return lambda texts: self(texts)  # an object of its own: its questions are not joined with others'

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return p_vulnerable, float64, (texts,)."""
        with self.lock:
            return p_vulnerable(self.scorer.logits(texts))


def use_fused_attention(model: Any) -> None:
    """Switch a model to the fused attention kernel, where it has one."""
    with suppress(ValueError, ImportError):
        model.set_attn_implementation("sdpa")


def p_vulnerable(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits, (n, 2) -> p_vulnerable, float64, (n,)."""
    return 1 / (1 + np.exp(np.clip(logits[:, 0].astype(np.float64) - logits[:, 1], -700, 700)))


def load_victim(place: str | Path, *, bf16: bool = False) -> Victim:
    """Load what can be attacked: the folder of a classifier, of a mixture, or of the bag of tokens, or a hub name.

    Raises:
        SettingsError: it is none of these; an ONNX file is not supported yet.
        DataError: a saved mixture is damaged.
    """
    path = Path(place)
    for recognised, load in _LOADERS:
        if recognised(path):
            return load(path, bf16)
    if path.exists():
        raise SettingsError(
            f"{path} is no model that can be attacked: wanted a folder with config.json (a classifier), moe.json "
            "(a mixture) or bag-of-tokens.npz"
        )
    return _load_classifier(place, bf16)


def _load_classifier(place: str | Path, bf16: bool) -> Victim:
    from moekd.classifier import Classifier

    try:
        return ClassifierVictim(Classifier.from_pretrained(place), bf16=bf16)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"the model {str(place)!r} could not be loaded: {str(error).splitlines()[0]} "
            "Give the folder of a saved model, or a hub name reachable from here."
        ) from error


def _load_mixture(path: Path, bf16: bool) -> Victim:
    from moekd.classifier import Classifier
    from moekd.mixture import Mixture

    mixture = Mixture.from_pretrained(path)
    for one in (mixture.router, *mixture.experts):
        if isinstance(one, Classifier):
            use_fused_attention(one.model)
    return ScorerVictim(mixture)


def _load_bag_of_tokens(path: Path, bf16: bool) -> Victim:
    from moekd.data.leaks import BagOfTokens

    return ScorerVictim(BagOfTokens.load(path))


def _refuse_onnx(path: Path, bf16: bool) -> Victim:
    raise SettingsError(f"{path}: ONNX files cannot be attacked yet; give the folder of the model it was made from")


#: How each kind of saved model is told, and how it is loaded; the first that fits counts.
_LOADERS: tuple[tuple[Callable[[Path], bool], Callable[[Path, bool], Victim]], ...] = (
    (lambda path: path.suffix == ".onnx", _refuse_onnx),
    (lambda path: (path / "moe.json").is_file(), _load_mixture),
    (lambda path: (path / "bag-of-tokens.npz").is_file(), _load_bag_of_tokens),
    (lambda path: (path / "config.json").is_file(), _load_classifier),
)


def answers_of(victim: Victim, texts: Sequence[str]) -> list[float]:
    """Ask a victim and check what it says: one finite probability a text, rounded to DECIMALS.

    Raises:
        UnusableAnswerError: NaN, a number outside 0 ... 1, or not one answer for each text.
    """
    found = np.asarray(victim(texts), dtype=np.float64)
    if found.ndim not in (1, 2) or len(found) != len(texts) or (found.ndim == 2 and found.shape[1] != 2):
        raise UnusableAnswerError(f"the model gave an array {found.shape} for {len(texts)} texts")
    p = found if found.ndim == 1 else found[:, 1]
    if not (np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all()):
        raise UnusableAnswerError("the model gave a number that is no probability")
    return np.round(p, DECIMALS).tolist()
