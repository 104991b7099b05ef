"""Student architectures by name, with parameters counted both ways (methods.md 1.2, 2.6, 6.7, appendix A)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from moekd.errors import SettingsError
from moekd.records import LABELS
from moekd.students.cost import reference_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moekd.config import MoekdSettings


@dataclass(frozen=True)
class Shape:
    """A student. Vocabulary is what is asked for; small data may yield fewer entries."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    max_length: int  # tokens, specials included
    positions: int  # rows of the position table
    activation: str = "gelu"
    lowercase: bool = True  # both references lower-case the text before the BPE
    architecture: Literal["roberta", "modernbert", "bigru"] = "roberta"
    start: str | None = None  # pre-trained encoder of this shape that the package ships; None: random weights
    ngram_buckets: int = 0  # rows of the n-gram table (wide.py); 0: none

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be divisible by heads ({self.heads})")

    def parameters(self, vocabulary: int | None = None) -> int:
        """Parameters of the model that is built: one dense layer in the head, no pooler, one token type."""
        h, i, v = self.hidden, self.intermediate, vocabulary or self.vocabulary
        if self.architecture == "bigru":  # two directions of three gates; layers behind the first read both directions
            first, other = (2 * 3 * (h * width + h * h + 2 * h) for width in (h, 2 * h))
            return v * h + first + (self.layers - 1) * other + 2 * (2 * h + 1)
        if self.architecture == "modernbert":  # no biases; the first layer has one norm less, the end and the head one
            encoder = v * h + h + self.layers * (4 * h * h + 3 * h * i + 2 * h)
            return encoder + (h * h + h) + 2 * h + 2 + self.ngram_buckets
        embeddings = v * h + self.positions * h + h + 2 * h
        layer = 4 * (h * h + h) + 2 * h * i + i + h + 4 * h
        return embeddings + self.layers * layer + (h * h + h) + 2 * h + 2 + self.ngram_buckets

    def reference_parameters(self) -> int:
        """Parameters by the references' formula, which counts a pooler the model lacks (methods.md 1.10 j).

        It knows RoBERTa's shape only; of another one this is the true number.
        """
        if self.architecture != "roberta":
            return self.parameters()
        return int(
            reference_parameters(self.layers, self.hidden, self.intermediate, self.vocabulary, self.formula_length)
        )

    @property
    def formula_length(self) -> int:
        """The formula's s: Compressor counts its 514 positions, AVATAR its maximal length."""
        return self.max_length if self.positions == self.max_length + 2 else self.positions


def _compressor(hidden: int, intermediate: int) -> Shape:
    return Shape(
        layers=12,
        hidden=hidden,
        heads=8,
        intermediate=intermediate,
        vocabulary=1000,
        max_length=400,
        positions=514,
    )


def _avatar(vocabulary: int, intermediate: int) -> Shape:
    return Shape(
        layers=7,
        hidden=18,
        heads=6,
        intermediate=intermediate,
        vocabulary=vocabulary,
        max_length=351,
        positions=353,
        activation="gelu_new",
    )


def _transformer(vocabulary: int, layers: int, hidden: int, intermediate: int) -> Shape:
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=4,
        intermediate=intermediate,
        vocabulary=vocabulary,
        max_length=384,
        positions=386,
        lowercase=False,
    )


def _bigru(vocabulary: int, layers: int, hidden: int) -> Shape:
    """`hidden` is the width of one direction. There are no heads, no feed-forward layers and no positions."""
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=1,
        intermediate=0,
        vocabulary=vocabulary,
        max_length=384,
        positions=384,
        lowercase=False,
        architecture="bigru",
    )


def _morph(vocabulary: int, intermediate: int) -> Shape:
    return Shape(
        layers=2,
        hidden=127,
        heads=1,
        intermediate=intermediate,
        vocabulary=vocabulary,
        max_length=363,
        positions=365,
        activation="silu",
    )


def _rotary(layers: int, hidden: int, intermediate: int, vocabulary: int) -> Shape:
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=hidden // 32,
        intermediate=intermediate,
        vocabulary=vocabulary,
        max_length=384,
        positions=384,
        lowercase=False,
        architecture="modernbert",
    )


#: The published 3 MB students, our readings of their 2 and 1.6 MB versions (not published), and some of ours whose
#: shipped files, tokenizer included, stay under 3,000,000 bytes and which train several times faster on a CPU: two
#: as float32, and two, wide and deep, that have four times the parameters and stay under it as exported to int8.
SHAPES: dict[str, Shape] = {
    "compressor-3mb": _compressor(96, 64),
    "compressor-2mb": _compressor(80, 32),
    "compressor-1.6mb": _compressor(64, 64),
    "avatar-3mb": _avatar(19_302, 1491),
    "avatar-2mb": _avatar(12_500, 994),
    "avatar-1.6mb": _avatar(10_000, 781),
    # MORPH published a pick for each of its runs (Results/VulnerabilityDetection/CodeBERT of its repository); this one
    # stands there twice, and its positions are absolute, which is what the library still builds.
    "morph-3mb": _morph(3022, 309),
    "morph-2mb": _morph(1705, 174),
    "morph-1.6mb": _morph(1147, 117),
    "compact-3mb": Shape(
        layers=3,
        hidden=128,
        heads=4,
        intermediate=256,
        vocabulary=1500,
        max_length=384,
        positions=386,
        lowercase=False,
    ),
    "rotary-3mb": _rotary(4, 128, 128, 1500),
    "rotary-3mb-int8": _rotary(4, 256, 256, 3000),
    "rotary-3mb-int8-deep": _rotary(8, 192, 192, 3000),
    # Two families of equal sizes, about 7, 1.5 and 0.75 million parameters. The study's nearest BiGRU students have
    # (hidden, layers, vocabulary) = (320, 3, 5000) and (176, 2, 2000); its transformers' exact shapes are not known
    # (methods.md 9, arXiv:2508.15423).
    "transformer-7m": _transformer(5000, layers=6, hidden=256, intermediate=1280),
    "transformer-1.5m": _transformer(2000, layers=4, hidden=160, intermediate=512),
    "transformer-0.75m": _transformer(1500, layers=3, hidden=128, intermediate=346),
    "bigru-7m": _bigru(5000, layers=3, hidden=332),
    "bigru-1.5m": _bigru(2000, layers=2, hidden=192),
    "bigru-0.75m": _bigru(1500, layers=2, hidden=132),
}


# The same student, but pre-trained on C and C++ first, with the tokenizer of that; with an n-gram table beside it; with
# the table that fits once the encoder is exported to int8; and, as the control, with a table from random weights.
SHAPES["rotary-3mb-pretrained"] = replace(SHAPES["rotary-3mb"], start="moekd-mini-student")
SHAPES["wide-3mb"] = replace(SHAPES["rotary-3mb-pretrained"], ngram_buckets=2**15)
SHAPES["wide-3mb-int8"] = replace(SHAPES["wide-3mb"], ngram_buckets=2**18)
SHAPES["wide-3mb-random"] = replace(SHAPES["wide-3mb"], start=None)


def shape_named(name: str) -> Shape:
    """Return a shape; an unknown name is a SettingsError that lists the known ones."""
    if name in SHAPES:
        return SHAPES[name]
    near = difflib.get_close_matches(name, SHAPES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise SettingsError(f"unknown student shape {name!r} in student.shapes{hint} Known: {', '.join(SHAPES)}")


def start_digests(settings: MoekdSettings) -> list[str]:
    """Return the digests of the pre-trained encoders that the config's students start from."""
    from moekd.classifier import weights_digests

    starts = (shape_named(name).start for name in settings.student.shapes)
    return [digest for start in starts if start for digest in weights_digests(start, settings)]


def build_student(shape: Shape, tokenizer: Any, *, labels: Sequence[str] = LABELS, seed: int, dropout: float) -> Any:
    """A student with random weights, as in both references (methods.md 1.3), or with those of `shape.start`.

    The seed is of every weight that starts at random, the head's at least.
    """
    import torch

    from moekd.classifier import bigru, build, modernbert, roberta, sizes_of
    from moekd.config import Encoder

    torch.manual_seed(seed)
    if shape.start:
        start = Encoder(name=shape.start, ngram_buckets=shape.ngram_buckets)
        return build(start, tokenizer, labels=labels, seed=seed, dropout=dropout)
    if shape.architecture == "bigru":
        return bigru(
            tokenizer=tokenizer,
            max_length=shape.positions,
            layers=shape.layers,
            hidden=shape.hidden,
            dropout=dropout,
            labels=labels,
        )
    sizes = sizes_of(shape) | {"ngram_buckets": shape.ngram_buckets}
    if shape.architecture == "modernbert":
        return modernbert(tokenizer=tokenizer, max_length=shape.positions, dropout=dropout, labels=labels, **sizes)
    return roberta(
        tokenizer=tokenizer,
        max_length=shape.positions - tokenizer.pad_token_id - 1,
        activation=shape.activation,
        dropout=dropout,
        labels=labels,
        **sizes,
    )
