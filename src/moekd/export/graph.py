"""A student as an ONNX graph: traced by torch, with attention as one fused operator, and quantised to int8 on demand.

The graph reads ids only: rows of a batch have equal lengths, so there is nothing to mask. As one operator attention
needs no matrix of all pairs of tokens in memory, and rotary positions need no copies of halves.

Tried without gain on `wide-3mb`, one text at a time on one core: residual and norm as one operator (a fifth to a third
slower), products of their own for query, key and value and for the halves of a gated layer, a split in place of slices,
attention that is not done in blocks. No option of a session gains 3 %: denormals as zero, no arena, no memory pattern.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from moekd import onnx_runtime

if TYPE_CHECKING:
    import torch

    from moekd.classifier import Classifier
    from moekd.distill.group_head import GroupHead
    from moekd.scan.model import Precision

_OPSET = 17  # the first with LayerNormalization as one operator
_DOMAIN = "com.microsoft"  # onnxruntime's own operators


def graph_of(classifier: Classifier, precision: Precision, head: GroupHead | None = None) -> bytes:
    """Return the graph: `input_ids` (batch, tokens) -> `logits` (batch, 2) and, with a head, `groups` (batch, K)."""
    graph = _folded(_traced(classifier, head))
    return graph if precision == "float32" else _quantised(graph)


def _quantised(graph: bytes) -> bytes:
    onnx_runtime.load()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory(prefix="moekd-int8-") as temporary:
        before, after = Path(temporary) / "float.onnx", Path(temporary) / "int8.onnx"
        before.write_bytes(graph)
        logging.disable(logging.WARNING)  # advice about pre-processing, which folding has done
        try:
            # The type is for outputs of onnxruntime's own operators, whose shapes onnx cannot infer.
            quantize_dynamic(
                before,
                after,
                weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": 1, "MatMulConstBOnly": True},
            )
        finally:
            logging.disable(logging.NOTSET)
        return after.read_bytes()


def _traced(classifier: Classifier, head: GroupHead | None) -> bytes:
    import torch

    buffer = io.BytesIO()
    module = _answers(_with_fused_attention(classifier.model.cpu().eval()), head)
    names = ["logits"] if head is None else ["logits", "groups"]
    # An odd length and two rows, so that a dimension which the tracer takes for a constant shows in parity.
    example = torch.full((2, 7), int(classifier.tokenizer.unk_token_id or 0), dtype=torch.long)
    with warnings.catch_warnings():
        # The newer exporter is 15 times slower and its files are 43 % larger (measured on Compressor's shape); the
        # tracer's warnings are about branches on batch size and mask, which parity checks.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            buffer,
            dynamo=False,
            opset_version=_OPSET,
            custom_opsets={_DOMAIN: 1},
            input_names=["input_ids"],
            output_names=names,
            dynamic_axes={"input_ids": {0: "batch", 1: "tokens"}} | {name: {0: "batch"} for name in names},
        )
    return buffer.getvalue()


def _answers(model: Any, head: GroupHead | None) -> Any:
    """A module of ids alone that gives the logits, and the groups' logits of the same pooled state."""
    import torch

    from moekd.distill.group_head import pooled_layer

    class Answers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            if head is not None:
                self.groups = torch.nn.Linear(head.weight.shape[1], head.weight.shape[0])
                self.groups.weight.data = torch.from_numpy(head.weight)
                self.groups.bias.data = torch.from_numpy(head.bias)

        def forward(self, input_ids: torch.Tensor) -> Any:
            if head is None:
                return self.model(input_ids=input_ids).logits
            read: list[torch.Tensor] = []
            hook = pooled_layer(self.model).register_forward_pre_hook(lambda _, given: read.append(given[0]))
            logits = self.model(input_ids=input_ids).logits
            hook.remove()
            return logits, self.groups(read[0])

    return Answers()


def _with_fused_attention(model: Any) -> Any:
    """A copy of the model whose attention is one operator; an architecture that we do not know stays as it is."""
    changed = copy.deepcopy(model)
    architecture = changed.config.model_type.removeprefix("moekd-wide-")  # a table of n-grams has no attention
    if architecture == "modernbert" and set(changed.config.layer_types) == {"full_attention"}:
        cos, sin = _rotations(changed)
        for layer in changed.model.layers:
            layer.attn = _rotary_attention(layer.attn, cos, sin, changed.config.num_attention_heads)
    elif architecture == "roberta":
        for layer in changed.roberta.encoder.layer:
            layer.attention.self = _plain_attention(layer.attention.self)
    return changed


def _rotations(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of all positions, (positions, head width / 2) each."""
    import torch

    positions = torch.arange(model.config.max_position_embeddings)[None]
    with torch.no_grad():
        cos, sin = model.model.rotary_emb(torch.zeros(1), positions, "full_attention")  # halves repeat each other
    half = cos.shape[-1] // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


def _rotary_attention(attention: Any, cos: torch.Tensor, sin: torch.Tensor, heads: int) -> Any:
    import torch

    class Rotary(torch.autograd.Function):
        """Rotated halves (Su et al. 2021, arXiv:2104.09864), (batch, tokens, hidden)."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, at: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
            return torch.empty_like(x)  # only the shape counts while tracing

        @staticmethod
        def symbolic(g: Any, x: Any, at: Any, cos: Any, sin: Any) -> Any:
            return g.op(f"{_DOMAIN}::RotaryEmbedding", x, at, cos, sin).setType(x.type())

    fused = _fused_attention(heads)

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projections, self.out = attention.Wqkv, attention.Wo
            self.register_buffer("at", torch.zeros(1, dtype=torch.long))
            self.register_buffer("cos", cos)
            self.register_buffer("sin", sin)

        def forward(self, states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
            query, key, value = self.projections(states).split(self.out.in_features, dim=-1)
            query, key = (Rotary.apply(one, self.at, self.cos, self.sin) for one in (query, key))
            return self.out(fused(query, key, value)), None

    return Attention()


def _plain_attention(attention: Any) -> Any:
    import torch

    fused = _fused_attention(attention.num_attention_heads)

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = attention.query, attention.key, attention.value

        def forward(self, states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
            return fused(self.query(states), self.key(states), self.value(states)), None

    return Attention()


def _fused_attention(heads: int) -> Any:
    """Attention of all tokens to all, scaled by the root of a head's width, as onnxruntime's operator."""
    import torch

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return torch.empty_like(value)  # only the shape counts while tracing

        @staticmethod
        def symbolic(g: Any, query: Any, key: Any, value: Any) -> Any:
            made = g.op(f"{_DOMAIN}::MultiHeadAttention", query, key, value, num_heads_i=heads)
            return made.setType(value.type())

    return Fused.apply


def _folded(graph: bytes) -> bytes:
    """Fold constants and drop identities: fewer nodes, about 600 bytes saved for each."""
    onnxruntime = onnx_runtime.load()
    with TemporaryDirectory(prefix="moekd-fold-") as temporary:
        after = Path(temporary) / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(after)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return after.read_bytes()
