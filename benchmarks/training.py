"""Functions trained a second: our training loop against the plain way, on the same functions and the same encoder.

Plain is what fine-tuning scripts do: each epoch tokenises its texts again, takes them in random order, pads every batch
to the maximal length, and trains in fp32 with dropout 0.1 of hidden states and attention and the library's default
attention kernel. Ours is `moekd.training.fit` as the stages call it: encoded once, token-budget batches sorted by
length, bf16 autocast, no dropout. Rounds alternate, so that a busy machine slows both; the ratio is taken round by
round. One round is one epoch from fresh weights, ours with all that `fit` does around it.

    python benchmarks/training.py --functions 256 --rounds 3
    python benchmarks/training.py --data bigvul.parquet --layers 4 --hidden 256
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moekd import console, numerics
from moekd.classifier import roberta
from moekd.config import Encoder, Training
from moekd.tokens import Tokens, encode, train_bpe
from moekd.training import Task, fit

PLAIN_BATCH = 16  # functions, as in the references (methods.md 1.6)
MAX_LENGTH = 512


def main() -> None:
    arguments = parse()
    numerics.configure(arguments.threads)
    console.set_quiet(True)
    texts, labels = read(arguments.data, arguments.functions)
    tokenizer = train_bpe(texts, vocabulary=Encoder().vocabulary, max_length=MAX_LENGTH)
    started = time.perf_counter()
    tokens = encode(tokenizer, texts, MAX_LENGTH)
    encode_seconds = time.perf_counter() - started
    plain, ours = [], []
    for round_number in range(arguments.rounds):
        plain.append(len(texts) / plain_epoch(texts, labels, tokenizer, arguments, seed=round_number))
        ours.append(len(texts) / our_epoch(tokens, labels, tokenizer, arguments, seed=round_number))
        print(f"round {round_number + 1}: plain {plain[-1]:.2f}, ours {ours[-1]:.2f} functions/s", flush=True)
    ratios = [fast / slow for fast, slow in zip(ours, plain, strict=True)]
    result = {
        "benchmark": "training",
        "data": Path(arguments.data).name if arguments.data else "embedded",
        "functions": len(texts),
        "mean_tokens": float(tokens.lengths.mean()),
        "encode_seconds_once": encode_seconds,
        "layers": arguments.layers,
        "hidden": arguments.hidden,
        "device": numerics.device().type,
        "bf16": numerics.bf16_is_fast(),
        "threads": arguments.threads,
        "plain_functions_per_s": plain,
        "ours_functions_per_s": ours,
        "ratio_median": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }
    print(table(result))
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="parquet file with `func` and `label`; default: embedded functions")
    parser.add_argument("--functions", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=Encoder().layers)
    parser.add_argument("--hidden", type=int, default=Encoder().hidden)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def read(path: str | None, count: int) -> tuple[list[str], np.ndarray]:
    """Functions and labels; of a file vulnerable ones only, because a balanced set has their lengths."""
    if path is None:
        from moekd.data.embedded import generate

        samples = generate(count, 0)
        return [sample.func for sample in samples], np.array([sample.label for sample in samples])
    import pyarrow.parquet as pq

    stored = pq.read_table(path, columns=["func", "label"])
    vulnerable = np.flatnonzero(stored.column("label").to_numpy() == 1)
    rows = np.random.default_rng(0).choice(vulnerable, size=min(count, len(vulnerable)), replace=False)
    texts: list[str] = stored.column("func").take(rows).to_pylist()
    return texts, np.arange(len(texts)) % 2  # what the labels are changes no time


def plain_epoch(texts: list[str], labels: np.ndarray, tokenizer: Any, size: argparse.Namespace, *, seed: int) -> float:
    """Seconds of one epoch the plain way."""
    model = new_model(tokenizer, size, seed, dropout=0.1)
    model.set_attn_implementation("sdpa")  # the library's default
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    order = np.random.default_rng(seed).permutation(len(texts))
    batches = np.array_split(order, max(1, round(len(order) / PLAIN_BATCH)))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=len(batches))
    model.train()
    synchronise()
    started = time.perf_counter()
    for rows in batches:
        encoded = tokenizer(
            [texts[row] for row in rows],
            padding="max_length",
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        ).to(numerics.device())
        logits = model(**encoded).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows]).to(logits.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    synchronise()
    return time.perf_counter() - started


def our_epoch(tokens: Tokens, labels: np.ndarray, tokenizer: Any, size: argparse.Namespace, *, seed: int) -> float:
    """Seconds of one epoch of `fit` with its default settings."""
    training = Training(epochs=1, learning_rate=1e-4)
    model = new_model(tokenizer, size, seed, dropout=training.dropout)
    task = Task(
        name="benchmark",
        tokens=tokens,
        draw=lambda epoch: np.arange(len(tokens)),
        loss=lambda logits, rows: torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(labels[rows]).to(logits.device)
        ),
        measure=None,
    )
    with tempfile.TemporaryDirectory() as folder:
        synchronise()
        started = time.perf_counter()
        fit(model, task, training, pad_id=tokenizer.pad_token_id, seed=seed, folder=Path(folder))
        synchronise()
        return time.perf_counter() - started


def new_model(tokenizer: Any, size: argparse.Namespace, seed: int, *, dropout: float) -> Any:
    torch.manual_seed(seed)
    model = roberta(
        tokenizer=tokenizer,
        max_length=MAX_LENGTH,
        layers=size.layers,
        hidden=size.hidden,
        heads=Encoder().heads,
        intermediate=4 * size.hidden,
        dropout=dropout,
        attention_dropout=dropout,
    )
    return model.to(numerics.device())


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(result: dict[str, Any]) -> str:
    lines = ["", "| way   | functions/s, median | range |", "| ----- | ------------------- | ----- |"]
    for way in ("plain", "ours"):
        speeds = result[f"{way}_functions_per_s"]
        lines.append(f"| {way:5} | {statistics.median(speeds):19.2f} | {min(speeds):.2f} to {max(speeds):.2f} |")
    lines.append("")
    lines.append(
        f"ours / plain: {result['ratio_median']:.2f} times, {result['ratio_low']:.2f} to {result['ratio_high']:.2f} "
        f"({result['functions']} functions of {result['data']}, {result['mean_tokens']:.0f} tokens on average, "
        f"{result['layers']} x {result['hidden']}, {result['threads']} threads)"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
