"""A student's own tokenizer, trained on half B, and the texts of its data encoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from moekd.config import MoekdSettings
    from moekd.students.shapes import Shape


def tokenize(settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, student: str) -> dict[str, Any]:
    """Stage: the shape's BPE, and train_b, valid and test encoded with it.

    It is trained on the student's training text only; a shape with a pre-trained start brings its own.
    """
    from moekd.data import load_parts
    from moekd.students.shapes import shape_named
    from moekd.tokens import encode, functions_of

    shape = shape_named(student)
    parts = load_parts(inputs["data"])
    tokenizer = _tokenizer(shape, functions_of(sample.func for sample in parts["train_b"]))
    tokenizer.save_pretrained(str(folder))
    facts: dict[str, Any] = {"vocabulary": len(tokenizer), "vocabulary_asked": shape.vocabulary}
    for part in ("train_b", "valid", "test"):
        tokens = encode(tokenizer, [s.func for s in parts[part]], shape.max_length)
        tokens.save(folder / f"{part}.npz")
        facts[f"{part}_cut_share"] = float((tokens.lengths >= shape.max_length).mean())
    return facts


def _tokenizer(shape: Shape, texts: Sequence[str]) -> Any:
    from transformers import PreTrainedTokenizerFast

    from moekd.classifier import place_of
    from moekd.tokens import train_bpe

    if shape.start:
        return PreTrainedTokenizerFast.from_pretrained(place_of(shape.start))
    return train_bpe(texts, vocabulary=shape.vocabulary, max_length=shape.max_length, lowercase=shape.lowercase)
