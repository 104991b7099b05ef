"""What a student costs, in one place: parameters as built, bytes as shipped, matrix work, and the references' formulas.

The formulas take whole numbers, arrays or solver terms alike, so that a search prunes and counts by the same one.
h hidden width, i intermediate width, v vocabulary, s maximal length, a heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moekd.students.shapes import Shape

# Measured on our exports, rounded up: bytes of an ONNX graph without its weights, at start and for each layer.
_GRAPH_BYTES = {"float32": (13_500, 3_700), "int8": (18_500, 15_000)}
_TOKENIZER_BYTES = 30  # for each vocabulary entry of the shipped tokenizer, rounded up


@dataclass(frozen=True)
class Cost:
    """All costs of one architecture.

    Attributes:
        parameters: of the model that is built.
        reference_parameters: by the references' formula, which counts a pooler that the model lacks.
        weight_bytes: parameters x 4; what "3 MB" means in the references.
        fp32_bytes: shipped files in fp32 with graph and tokenizer; an estimate, up to a tenth above the real files.
        int8_bytes: the same with matrices in int8 and vectors in fp32.
        matrix_flops: of one text of `length` tokens; a multiply-add is 2.
        reference_flops: by the references' formula, at the maximal length, with look-ups counted as matrix products.
    """

    parameters: int
    reference_parameters: int
    weight_bytes: int
    fp32_bytes: int
    int8_bytes: int
    matrix_flops: int
    reference_flops: int


def cost_of(shape: Shape, *, length: int) -> Cost:
    """Count everything for a shape.

    Args:
        length: real tokens of a text, such as the data's median; 1 to the shape's maximal length.
    Raises:
        ValueError: the length is out of range, or the shape is no transformer.
    """
    if shape.architecture == "bigru":
        raise ValueError("costs are counted for transformers; of a BiGRU only Shape.parameters is known")
    if not 1 <= length <= shape.max_length:
        raise ValueError(f"length must be 1 to {shape.max_length}, the shape's maximal length; got {length}")
    parameters = shape.parameters()
    matrices = matrix_parameters(shape)
    return Cost(
        parameters=parameters,
        reference_parameters=shape.reference_parameters(),
        weight_bytes=4 * parameters,
        fp32_bytes=4 * parameters + _beside_weights(shape, "float32"),
        int8_bytes=matrices + 4 * (parameters - matrices) + _beside_weights(shape, "int8"),
        matrix_flops=matrix_flops(
            shape.layers, shape.hidden, shape.intermediate, length, feed_forward=_feed_forward_matrices(shape)
        ),
        reference_flops=reference_flops(
            shape.layers, shape.hidden, shape.intermediate, shape.vocabulary, shape.heads, shape.formula_length
        ),
    )


def matrix_parameters(shape: Shape) -> int:
    """Parameters in matrices and tables, which int8 stores in one byte each; the rest are biases and norms."""
    h, i = shape.hidden, shape.intermediate
    learned_positions = shape.positions + 1 if shape.architecture == "roberta" else 0  # and one token type
    tables = (shape.vocabulary + learned_positions) * h + shape.ngram_buckets
    return tables + shape.layers * (4 * h * h + _feed_forward_matrices(shape) * h * i) + h * h + 2 * h


def _feed_forward_matrices(shape: Shape) -> int:
    """Matrices of hidden x intermediate in a layer: one up and one down, and one for the gate where there is one."""
    return 3 if shape.architecture == "modernbert" else 2


def matrix_flops(layers: Any, hidden: Any, intermediate: Any, length: Any, *, feed_forward: int = 2) -> Any:
    """Matrix work of one text of `length` tokens, multiply-add = 2 (methods.md appendix A, "physical cost").

    `feed_forward`: matrices of hidden x intermediate in a layer.
    """
    h, i, n = hidden, intermediate, length
    return layers * n * (8 * h * h + 4 * h * n + 2 * feed_forward * h * i) + 2 * h * h + 4 * h


def reference_parameters(layers: Any, hidden: Any, intermediate: Any, vocabulary: Any, length: Any) -> Any:
    """Parameters by the formula of Compressor, AVATAR and MORPH (methods.md appendix A)."""
    h, i = hidden, intermediate
    layer = 4 * (h * h + h) + 2 * h * i + i + h + 4 * h
    return vocabulary * h + length * h + 3 * h + layers * layer + 2 * (h * h + h) + 2 * h + 2


def reference_flops(layers: Any, hidden: Any, intermediate: Any, vocabulary: Any, heads: Any, length: Any) -> Any:
    """FLOPs by the formula of Compressor, AVATAR and MORPH (methods.md appendix A).

    It counts the embedding look-up as a product with one-hot vectors, and the head for each token.
    """
    h, i, s = hidden, intermediate, length
    layer = 8 * h * h + 4 * h * s + 10 * s * heads + 4 * h * i + 9 * i + 20 * h + 5
    return s * (layers * layer + 2 * h * vocabulary + 2 * h * (s + 2) + 11 * h + 2 * h * h + 15 * h)


def _beside_weights(shape: Shape, precision: str) -> int:
    start, each = _GRAPH_BYTES[precision]
    # The graph of a ModernBERT holds the cosines and sines of every position, half a head's width each.
    angles = 4 * shape.positions * shape.hidden // shape.heads if shape.architecture == "modernbert" else 0
    return start + shape.layers * each + angles + shape.vocabulary * _TOKENIZER_BYTES
