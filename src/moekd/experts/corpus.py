"""The samples of all parts with their encoded texts, as every teacher-side model reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd.classifier import predict
from moekd.data import load_parts
from moekd.experts.encoder import load_tokenizer
from moekd.scorer import save_scores, scores_of
from moekd.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from moekd.records import Part, Sample


@dataclass(frozen=True)
class Corpus:
    """Samples and tokens of each part in the same order, and the tokenizer that made the tokens."""

    samples: dict[Part, list[Sample]]
    tokens: dict[Part, Tokens]
    tokenizer: Any

    @staticmethod
    def load(inputs: Mapping[str, Path]) -> Corpus:
        samples = load_parts(inputs["data"])
        folder = inputs["encoder"]
        return Corpus(samples, {part: Tokens.load(folder / f"{part}.npz") for part in samples}, load_tokenizer(folder))

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def labels(self, part: Part) -> np.ndarray:
        """1 for vulnerable, of other tasks the class, int64, (samples,)."""
        return np.array([sample.label for sample in self.samples[part]], dtype=np.int64)

    def groups(self, part: Part, group_of: Mapping[str, int]) -> np.ndarray:
        """Group index of each sample, -1 for those without one (not vulnerable), int64, (samples,)."""
        return np.array([group_of.get(sample.id, -1) for sample in self.samples[part]], dtype=np.int64)


def save_answers(model: Any, corpus: Corpus, folder: Path, *, bf16: bool) -> None:
    """Score half B into targets.npz, validation and test into predictions.npz."""
    save_logits(
        {part: predict(model, corpus.tokens[part], pad_id=corpus.pad_id, bf16=bf16) for part in ANSWERED},
        corpus,
        folder,
    )


JUDGED: tuple[Part, ...] = ("valid", "test")
ANSWERED: tuple[Part, ...] = ("train_b", *JUDGED)


def save_logits(logits: Mapping[Part, np.ndarray], corpus: Corpus, folder: Path) -> None:
    """Write the logits of train_b to targets.npz, those of valid and test to predictions.npz."""
    save_scores(folder / "targets.npz", scores_of(corpus.samples["train_b"], logits["train_b"]))
    judged = corpus.samples["valid"] + corpus.samples["test"]
    save_scores(folder / "predictions.npz", scores_of(judged, np.concatenate([logits["valid"], logits["test"]])))
