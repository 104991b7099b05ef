"""Tokens pre-trained a second, and the share of it that its matrix products alone would take.

The products of one training step (mm, addmm, bmm and baddbmm of the forward and backward pass, with their shapes,
strides and types) are recorded while the step runs, then multiplied again on random numbers, one after the other and
nothing else. Rounds alternate, so that a busy machine slows both; the share is taken round by round.

    python benchmarks/pretraining.py --rounds 5
    python benchmarks/pretraining.py --layers 4 --hidden 128 --intermediate 128 --vocabulary 1500 --local-window 0
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moekd import console, numerics
from moekd.config import Corpus, Encoder, Pretrain, PretrainSettings
from moekd.data.embedded import generate
from moekd.pretrain.objectives import OBJECTIVES, as_ids
from moekd.tokens import Tokens, train_bpe
from moekd.training import Task, fit

STEPS = 4  # a round
_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
_TEXTS = 4000  # embedded functions that the tokenizer is trained on; what tokens say changes no time


@dataclass(frozen=True)
class Product:
    """One matrix product: shapes, strides and type of its two factors."""

    left: tuple[tuple[int, ...], tuple[int, ...]]
    right: tuple[tuple[int, ...], tuple[int, ...]]
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        *batch, rows, inner = self.left[0]
        return 2 * int(np.prod(batch, dtype=np.int64)) * rows * inner * self.right[0][-1]


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Notes every matrix product that runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in _PRODUCTS:
            left, right = [argument for argument in args if isinstance(argument, torch.Tensor)][-2:]
            self.products.append(Product(layout(left), layout(right), left.dtype))
        return function(*args, **(kwargs or {}))


def layout(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(tensor.shape), tensor.stride()


def main() -> None:
    arguments = parse()
    numerics.configure(arguments.threads)
    console.set_quiet(True)
    settings = settings_of(arguments)
    tokenizer = train_bpe(
        [sample.func for sample in generate(_TEXTS, 0)], vocabulary=300, max_length=settings.encoder.max_length
    )
    tokenizer.add_tokens([f"<{index}>" for index in range(arguments.vocabulary - len(tokenizer))])
    objective = OBJECTIVES["masked-tokens"](settings, tokenizer)
    torch.manual_seed(0)
    model = objective.build()
    length = settings.pretrain.row_length
    rows_a_step = settings.pretrain.training.token_budget // length
    rows = np.random.default_rng(0).integers(8, arguments.vocabulary, (STEPS * rows_a_step, length), dtype=np.uint16)
    with Recorder() as recorder, numerics.autocast(True):
        objective.loss(objective.forward(model, as_ids(rows[:rows_a_step]))).backward()
    operands = [made(product) for product in recorder.products]
    step_tokens, product_tokens = [], []
    for round_number in range(arguments.rounds):
        step_tokens.append(rows.size / train(settings, objective, model, rows))
        product_tokens.append(rows.size / (STEPS * multiply(operands)))
        print(f"round {round_number + 1}: {step_tokens[-1]:,.0f} of {product_tokens[-1]:,.0f} tokens/s", flush=True)
    shares = [step / product for step, product in zip(step_tokens, product_tokens, strict=True)]
    result = {
        "benchmark": "pretraining",
        "layers": arguments.layers,
        "hidden": arguments.hidden,
        "intermediate": arguments.intermediate,
        "vocabulary": arguments.vocabulary,
        "row_length": length,
        "tokens_a_step": settings.pretrain.training.token_budget,
        "device": numerics.device().type,
        "bf16": numerics.bf16_is_fast(),
        "threads": arguments.threads,
        "matrix_products_a_step": len(operands),
        "matrix_flops_a_token": sum(p.flops for p in recorder.products) / settings.pretrain.training.token_budget,
        "tokens_per_s": step_tokens,
        "matrix_products_tokens_per_s": product_tokens,
        "share_median": statistics.median(shares),
        "share_low": min(shares),
        "share_high": max(shares),
    }
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=640)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--local-window", type=int, default=Pretrain().local_window)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def settings_of(arguments: argparse.Namespace) -> PretrainSettings:
    return PretrainSettings(
        name="benchmark",
        corpus=Corpus(paths=("unused",)),
        encoder=Encoder(
            vocabulary=arguments.vocabulary,
            layers=arguments.layers,
            hidden=arguments.hidden,
            intermediate=arguments.intermediate,
        ),
        pretrain=Pretrain(local_window=arguments.local_window),
    )


def made(product: Product) -> tuple[torch.Tensor, torch.Tensor]:
    """Random factors, laid out in memory as those of the step."""
    left, right = (
        torch.empty_strided(shape, strides, dtype=product.dtype).normal_()
        for shape, strides in (product.left, product.right)
    )
    return left, right


def train(settings: PretrainSettings, objective: Any, model: Any, rows: np.ndarray) -> float:
    """Seconds of a round of steps, with all that `fit` does around them."""
    task = Task(
        name="benchmark",
        tokens=Tokens(rows.reshape(-1), np.arange(len(rows) + 1) * rows.shape[1]),
        draw=lambda epoch: np.arange(len(rows)),
        loss=lambda outputs, batch: objective.loss(outputs),
        measure=None,
        forward=lambda model, batch: objective.forward(model, as_ids(rows[batch])),
    )
    training = settings.pretrain.training.model_copy(
        update={"epochs": 1, "batch_limit": settings.pretrain.training.token_budget}
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        fit(model, task, training, pad_id=0, seed=0, folder=Path(folder))
        return time.perf_counter() - started


def multiply(operands: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Seconds of one step's matrix products, each into memory of its own, as in the step."""
    with torch.inference_mode():
        started = time.perf_counter()
        for left, right in operands:
            torch.matmul(left, right)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
