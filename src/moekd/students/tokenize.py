"""A student's own tokenizer, trained on half B, and the texts of its data encoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from moekd.config import MoekdSettings


def tokenize(settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, student: str) -> dict[str, Any]:
    """Stage: train the shape's BPE on the student's training text only and encode train_b, valid and test."""
    from moekd.data import load_parts
    from moekd.students.shapes import shape_named
    from moekd.tokens import encode, train_bpe

    shape = shape_named(student)
    parts = load_parts(inputs["data"])
    texts = [sample.func for sample in parts["train_b"]]
    tokenizer = train_bpe(texts, vocabulary=shape.vocabulary, max_length=shape.max_length, lowercase=shape.lowercase)
    tokenizer.save_pretrained(str(folder))
    facts: dict[str, Any] = {"vocabulary": len(tokenizer), "vocabulary_asked": shape.vocabulary}
    for part in ("train_b", "valid", "test"):
        tokens = encode(tokenizer, [s.func for s in parts[part]], shape.max_length)
        tokens.save(folder / f"{part}.npz")
        facts[f"{part}_cut_share"] = float((tokens.lengths >= shape.max_length).mean())
    return facts
