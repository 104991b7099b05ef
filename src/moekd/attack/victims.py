"""What can be attacked: anything that answers texts with probabilities.

A victim is a callable, texts -> p_vulnerable, (texts,), or class probabilities, (texts, 2). Saved models become one by
`load_victim`. A plain callable is asked for the texts of many attacks in one call.

Models of ours have a method `session(text)`, which makes the callable that one attack on that function asks. In a
session every answer depends on that attack's own questions alone: sums in batches of another make differ in their last
digits, which is enough to turn a close decision, so results could not be repeated otherwise. It costs next to nothing,
since the variants of one function fill batches without padding.
"""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np

from moekd import numerics, onnx_runtime
from moekd.attack.encoding import VariantEncoder
from moekd.attack.forward import forward_of
from moekd.attack.search import UnusableAnswerError
from moekd.errors import SettingsError
from moekd.files import read_json
from moekd.tokens import token_batches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moekd.classifier import Classifier
    from moekd.mixture import Mixture
    from moekd.records import Scorer
    from moekd.tokens import Tokens

#: Texts -> p_vulnerable, (texts,), or probabilities of the two classes, (texts, 2).
Victim = Callable[[Sequence[str]], np.ndarray]

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # package.module:name
_ASSETS = Path(__file__).parent.parent / "assets"
DECIMALS = 6  # of probabilities: beyond is noise


@runtime_checkable
class HasSessions(Protocol):
    """A victim that answers each attack on its own."""

    def session(self, text: str) -> Victim: ...


class TokenVictim(ABC):
    """A model that reads token ids, asked for many variants of the same function.

    Variants that are equal after the length cut are scored once; answers are remembered within a session.

    Attributes:
        encoder: texts -> token ids.
        scored: encodings that went through the model, in all sessions.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.encoder = VariantEncoder(tokenizer, max_length)
        self.scored = 0

    def session(self, text: str) -> Victim:
        return _Session(self, is_local=self.encoder.is_local(text))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return p_vulnerable, float64, (texts,), without the memory of a session."""
        return _Session(self, is_local=False)(texts)

    def score(self, tokens: Tokens) -> np.ndarray:
        """Return p_vulnerable of encoded texts, float64, (texts,)."""
        self.scored += len(tokens)
        return p_vulnerable(self._logits(tokens))

    @abstractmethod
    def _logits(self, tokens: Tokens) -> np.ndarray:
        """Return logits of encoded texts, (texts, 2)."""


class ClassifierVictim(TokenVictim):
    """A classifier in torch, at the real lengths of the texts in batches that fit into a core's cache.

    RoBERTa's and ModernBERT's shapes are computed by `forward.py`, from a copy of their weights. Other models are taken
    over: attention is switched to the fused kernel, which without gradients is faster than plain products, on a CPU as
    well.
    """

    def __init__(self, classifier: Classifier, *, bf16: bool = False) -> None:
        super().__init__(classifier.tokenizer, classifier.max_length)
        self.classifier = classifier
        self.bf16 = bf16
        self._forward = None if bf16 else forward_of(classifier.model)
        use_fused_attention(classifier.model)

    def _logits(self, tokens: Tokens) -> np.ndarray:
        logits = np.zeros((len(tokens), self.classifier.model.config.num_labels), dtype=np.float32)
        for rows in self._batches(tokens.lengths):
            logits[rows] = self._logits_of_batch(tokens.take(rows))
        return logits

    def _batches(self, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """Row numbers of batches; of one length where the model would pad."""
        budget = numerics.tokens_at_once()
        if self._forward is not None:
            yield from token_batches(lengths, budget=budget, limit=budget)
            return
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            yield from (rows[part] for part in token_batches(lengths[rows], budget=budget, limit=budget))

    def _logits_of_batch(self, tokens: Tokens) -> np.ndarray:
        from moekd.classifier import predict

        found = None
        if self._forward is not None:
            found = self._forward.logits(np.split(tokens.flat, tokens.offsets[1:-1]))
        if found is None:
            pad_id = self.classifier.tokenizer.pad_token_id
            found = predict(self.classifier.model, tokens, pad_id=pad_id, bf16=self.bf16)
        return found


class MixtureVictim(TokenVictim):
    """A mixture of classifiers that read the same tokens: a text is encoded once, for router and experts."""

    def __init__(self, mixture: Mixture, *, bf16: bool = False) -> None:
        scorers = (mixture.router, *mixture.experts)
        self._parts = {id(one): ClassifierVictim(cast("Classifier", one), bf16=bf16) for one in scorers}
        first = self._parts[id(mixture.router)].classifier
        super().__init__(first.tokenizer, first.max_length)
        self.mixture = mixture

    @staticmethod
    def fits(mixture: Mixture) -> bool:
        """Whether router and experts are classifiers that make the same tokens of a text."""
        from moekd.classifier import Classifier

        scorers = (mixture.router, *mixture.experts)
        classifiers = [one for one in scorers if isinstance(one, Classifier)]
        readings = {(one.tokenizer.backend_tokenizer.to_str(), one.max_length) for one in classifiers}
        return len(classifiers) == len(scorers) and len(readings) == 1

    def _logits(self, tokens: Tokens) -> np.ndarray:
        return self.mixture.fused(len(tokens), lambda one, rows: self._parts[id(one)]._logits(tokens.take(rows)))


class OnnxVictim(TokenVictim):
    """An ONNX file with `tokenizer.json` beside it, such as `moekd export` writes.

    The graph takes `input_ids` and, where it wants them, `attention_mask` and `token_type_ids`; its first output is
    the logits of the two classes. Each row is run alone, which makes its answer a function of the text (dynamic int8
    takes its scales from the batch) and costs nothing: onnxruntime gains nothing from batches on a CPU. The
    calibration in `model.json` is left out: attacks are judged by the student's own decision, at 1/2.

    Attributes:
        path: of the graph.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        onnxruntime = onnx_runtime.load()

        tokenizer_file = path.with_name("tokenizer.json")
        if not tokenizer_file.is_file():
            raise SettingsError(f"{path}: wanted its tokenizer beside it, but there is no {tokenizer_file.name}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        try:
            self._runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # neither library's exceptions have a base of their own
            raise SettingsError(f"{path} or its tokenizer could not be loaded: {str(error).splitlines()[0]}") from error
        self._inputs = {one.name for one in self._runtime.get_inputs()}
        if not {"input_ids"} <= self._inputs <= {"input_ids", "attention_mask", "token_type_ids"}:
            wanted = "wanted input_ids and perhaps attention_mask and token_type_ids"
            raise SettingsError(f"{path} takes {', '.join(sorted(self._inputs))}: {wanted}")
        self.path = path
        max_length = _max_tokens(path, tokenizer)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        super().__init__(PreTrainedTokenizerFast(tokenizer_object=tokenizer), max_length)

    def _logits(self, tokens: Tokens) -> np.ndarray:
        return np.concatenate([self._run(tokens.flat[start:end]) for start, end in pairwise(tokens.offsets)])

    def _run(self, row: np.ndarray) -> np.ndarray:
        ids = row.astype(np.int64)[None]
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        logits = self._runtime.run(None, {name: given[name] for name in self._inputs})[0]
        if logits.shape != (1, 2):
            raise UnusableAnswerError(f"{self.path.name} gave an array {logits.shape} for 1 text of 2 classes")
        return logits


def _max_tokens(path: Path, tokenizer: Any) -> int:
    """Tokens read of a text: as `model.json` beside the graph has it, else as the tokenizer cuts, else 512."""
    try:
        return int(read_json(path.with_name("model.json"))["max_tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return int((tokenizer.truncation or {}).get("max_length", 512))


class _Session:
    """The variants of one function: what was answered, and whether they may be encoded word by word."""

    def __init__(self, victim: TokenVictim, *, is_local: bool) -> None:
        self.victim = victim
        self.is_local = is_local
        self._answers: dict[bytes, float] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        encoder = self.victim.encoder
        tokens = encoder.by_words(texts) if self.is_local else encoder.whole(texts)
        keys = [tokens.flat[start:end].tobytes() for start, end in pairwise(tokens.offsets)]
        fresh = {key: row for row, key in enumerate(keys) if key not in self._answers}
        if fresh:
            p = self.victim.score(tokens.take(np.array(list(fresh.values()))))
            self._answers |= dict(zip(fresh, p.tolist(), strict=True))
        return np.array([self._answers[key] for key in keys])


class ScorerVictim:
    """Any scorer, such as a saved mixture or the bag of tokens."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def session(self, text: str) -> Victim:
        return lambda texts: self(texts)  # an object of its own: its questions are not joined with others'

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return p_vulnerable, float64, (texts,)."""
        return p_vulnerable(self.scorer.logits(texts))


def use_fused_attention(model: Any) -> None:
    """Switch a model to the fused attention kernel, where it has one."""
    with suppress(ValueError, ImportError):
        model.set_attn_implementation("sdpa")


def p_vulnerable(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits, (n, 2) -> p_vulnerable, float64, (n,)."""
    return 1 / (1 + np.exp(np.clip(logits[:, 0].astype(np.float64) - logits[:, 1], -700, 700)))


@dataclass(frozen=True)
class SavedVictim:
    """A model by its place, which each process that attacks it loads for itself; fields as of `load_victim`."""

    place: str | Path
    bf16: bool = False

    def load(self) -> Victim:
        return load_victim(self.place, bf16=self.bf16)


def is_callable(place: str | Path) -> bool:
    """Whether a place is the `package.module:name` of a callable."""
    return _CALLABLE.fullmatch(str(place)) is not None and not Path(place).exists()


def load_victim(place: str | Path, *, bf16: bool = False) -> Victim:
    """Load what can be attacked.

    Args:
        place: the folder of a classifier, of a mixture, of the bag of tokens or of an export; an ONNX file with its
            `tokenizer.json` beside it; `package.module:name` of a callable, texts -> probabilities; the name of a model
            that the package ships, such as moekd-scan; or a hub name.
        bf16: of classifiers.
    Raises:
        SettingsError: it is none of these, or cannot be loaded.
        DataError: a saved mixture is damaged.
    """
    if is_callable(place):
        return _load_callable(str(place))
    path = place_of_victim(place)
    for recognised, load in _LOADERS:
        if recognised(path):
            return load(path, bf16)
    if path.exists():
        raise SettingsError(
            f"{path} is no model that can be attacked: wanted a folder with config.json (a classifier), moe.json "
            "(a mixture), bag-of-tokens.npz or model.onnx, or an ONNX file"
        )
    return _load_classifier(place, bf16)


def place_of_victim(place: str | Path) -> Path:
    """Return the folder of a model that the package ships, else the place as it is."""
    packaged = _ASSETS / place
    return packaged if len(Path(place).parts) == 1 and not Path(place).exists() and packaged.is_dir() else Path(place)


def _load_classifier(place: str | Path, bf16: bool) -> Victim:
    from moekd.classifier import Classifier, why_not_loaded

    _require_trained(Path(place))
    try:
        classifier = Classifier.from_pretrained(place)
        if classifier.model.config.num_labels != 2:
            raise SettingsError(
                f"the model {str(place)!r} has {classifier.model.config.num_labels} classes: an attack needs a "
                "detector of two, not vulnerable and vulnerable"
            )
        return ClassifierVictim(classifier, bf16=bf16)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"the model {str(place)!r} could not be loaded: {why_not_loaded(place, error)} "
            "Give the folder of a saved model, or a hub name reachable from here."
        ) from error


def _require_trained(folder: Path) -> None:
    """Refuse an encoder: the library would put a classifier of random weights on it, and say so in a warning only."""
    try:
        kinds = read_json(folder / "config.json").get("architectures") or []
    except (OSError, ValueError):
        return  # a hub name, or an error that loading it will tell better
    if kinds and not any(kind.endswith("Classification") for kind in kinds):
        raise SettingsError(
            f"{folder} is no detector but {kinds[0]}, an encoder without a trained classifier: give the folder of a "
            "student, a teacher or another saved classifier"
        )


def _load_mixture(path: Path, bf16: bool) -> Victim:
    from moekd.mixture import Mixture

    mixture = Mixture.from_pretrained(path)
    return MixtureVictim(mixture, bf16=bf16) if MixtureVictim.fits(mixture) else ScorerVictim(mixture)


def _load_bag_of_tokens(path: Path, bf16: bool) -> Victim:
    from moekd.data.leaks import BagOfTokens

    return ScorerVictim(BagOfTokens.load(path))


def _load_onnx(path: Path, bf16: bool) -> Victim:
    return OnnxVictim(path if path.is_file() else path / "model.onnx")


def _load_callable(name: str) -> Victim:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module may raise anything
        raise SettingsError(
            f"the victim {name!r} could not be imported: {error}. PYTHONPATH=. before the command finds modules in "
            "this folder"
        ) from error
    if not callable(found):
        raise SettingsError(f"the victim {name!r} is no callable: wanted texts -> probabilities")
    if isinstance(found, HasSessions):
        return cast("Victim", found)

    def asked(texts: Sequence[str]) -> np.ndarray:
        try:
            return found(texts)
        except Exception as error:  # the user's code, too
            raise SettingsError(
                f"the victim {name!r} failed when asked for {len(texts)} texts: {type(error).__name__}: {error}. "
                "Finished attacks are kept, and the same command continues from there"
            ) from error

    return asked


def _is_export(path: Path) -> bool:
    return (path / "model.onnx").is_file() and not (path / "model.safetensors").is_file()


#: How each kind of saved model is told, and how it is loaded; the first that fits counts.
_LOADERS: tuple[tuple[Callable[[Path], bool], Callable[[Path, bool], Victim]], ...] = (
    (lambda path: path.is_file() and path.suffix == ".onnx", _load_onnx),
    (_is_export, _load_onnx),
    (lambda path: (path / "moe.json").is_file(), _load_mixture),
    (lambda path: (path / "bag-of-tokens.npz").is_file(), _load_bag_of_tokens),
    (lambda path: (path / "config.json").is_file(), _load_classifier),
)


def answers_of(victim: Victim, texts: Sequence[str]) -> list[float]:
    """Ask a victim and check what it says: one finite probability a text, rounded to DECIMALS.

    Raises:
        UnusableAnswerError: no numbers, NaN, a number outside 0 ... 1, or not one answer for each text.
    """
    answered = victim(texts)
    try:
        found = np.asarray(answered, dtype=np.float64)
    except (TypeError, ValueError):
        raise UnusableAnswerError("the model gave something that is no array of numbers") from None
    if found.ndim not in (1, 2) or len(found) != len(texts) or (found.ndim == 2 and found.shape[1] != 2):
        raise UnusableAnswerError(f"the model gave an array {found.shape} for {len(texts)} texts")
    p = found if found.ndim == 1 else found[:, 1]
    if not (np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all()):
        raise UnusableAnswerError("the model gave a number that is no probability")
    return np.round(p, DECIMALS).tolist()
