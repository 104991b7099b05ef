"""Learning is real: each loss can be driven to perfection on real functions, and nothing is learned from noise."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import settings
from scipy.stats import binom

from moekd import stages
from moekd.classifier import predict, roberta
from moekd.config import Training
from moekd.data import load_parts
from moekd.distill.losses import soft_target_loss
from moekd.experts.losses import focal_loss
from moekd.scorer import aligned, load_scores
from moekd.steps import run_steps
from moekd.tokens import Tokens, encode, train_bpe
from moekd.training import Task, fit

COUNT, LENGTH, GROUPS = 64, 96, 4


@pytest.fixture(scope="module")
def real() -> tuple[list[str], np.ndarray]:
    """32 vulnerable and 32 other functions of BigVul, and their labels."""
    if "MOEKD_DATA" not in os.environ:
        pytest.skip("MOEKD_DATA names no folder of data sets")
    import pyarrow.parquet as pq

    table = pq.read_table(Path(os.environ["MOEKD_DATA"]) / "bigvul.parquet", columns=["func", "label"])
    labels = table.column("label").to_numpy()
    rows = np.concatenate([np.flatnonzero(labels == label)[::100][: COUNT // 2] for label in (0, 1)])
    return table.column("func").take(rows).to_pylist(), labels[rows].astype(np.int64)


def learn(texts: list[str], loss, wanted: np.ndarray, classes: int, folder: Path, *, epochs: int = 20) -> list[float]:
    """Train 2 layers x 64 on the texts; returns the accuracy on the same texts after each epoch."""
    tokenizer = train_bpe(texts, vocabulary=600, max_length=LENGTH)
    tokens: Tokens = encode(tokenizer, texts, LENGTH)
    torch.manual_seed(0)
    model = roberta(
        tokenizer=tokenizer,
        max_length=LENGTH,
        layers=2,
        hidden=64,
        heads=4,
        intermediate=128,
        dropout=0.0,
        labels=[f"class {index}" for index in range(classes)],
    )
    task = Task(
        name="overfit",
        tokens=tokens,
        draw=lambda epoch: np.arange(len(texts)),
        loss=loss,
        measure=lambda model: float((predict(model, tokens, pad_id=tokenizer.pad_token_id).argmax(1) == wanted).mean()),
    )
    training = Training(epochs=epochs, learning_rate=3e-3, token_budget=16 * LENGTH, schedule="one-cycle")
    history = fit(model, task, training, pad_id=tokenizer.pad_token_id, seed=0, folder=folder)
    assert history.losses[-1] < history.losses[0] / 3
    return history.measures


def test_hard_labels_overfit(real, tmp_path):
    texts, labels = real

    def loss(logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows]))

    assert learn(texts, loss, labels, 2, tmp_path)[-1] == 1.0


def test_soft_targets_overfit(real, tmp_path):
    """A teacher that is right and of varied sureness: the student ends with its decisions. Softer, so more epochs."""
    texts, labels = real
    sure = np.random.default_rng(0).uniform(2, 6, (COUNT, 1))
    teacher = torch.from_numpy((np.eye(2)[labels] * sure).astype(np.float32))

    def loss(logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        return soft_target_loss(logits, teacher[torch.from_numpy(rows)], temperature=10.0)

    assert learn(texts, loss, labels, 2, tmp_path, epochs=40)[-1] == 1.0


def test_focal_loss_overfits(real, tmp_path):
    """A router of four groups, as unequal as real ones."""
    texts, _ = real
    groups = np.random.default_rng(0).choice(GROUPS, COUNT, p=[0.55, 0.25, 0.15, 0.05])
    share = np.bincount(groups, minlength=GROUPS) / COUNT
    alpha = torch.from_numpy((1 / share / (1 / share).sum()).astype(np.float32))

    def loss(logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        return focal_loss(logits, torch.from_numpy(groups[rows]), alpha=alpha, gamma=1.0)

    assert learn(texts, loss, groups, GROUPS, tmp_path)[-1] == 1.0


def test_shuffled_labels_stay_at_chance(tmp_path):
    """Labels dealt at random within each part: teacher and student are right as often as a coin, 99.9 % of the time.

    Judged on the test part: validation chose the epoch and is therefore better than chance.
    """
    chosen = settings(
        tmp_path / "runs",
        data={"sources": [{"kind": "embedded", "count": 1200}], "shuffle_labels": True},
        teacher={"training": {"epochs": 2, "learning_rate": 1e-3}},
        student={"systems": ["hard"], "training": {"epochs": 1, "learning_rate": 1e-3}},
    )
    steps = [step for step in stages.plan(chosen) if step.stage in ("teacher", "student")]
    folders = run_steps(steps, chosen)
    samples = load_parts(run_steps([stages.data_step()], chosen)["data"])["test"]
    labels = np.array([sample.label for sample in samples])
    assert len(labels) >= 100
    low, high = binom.interval(0.999, len(labels), 0.5)
    for step in steps:
        logits = aligned(load_scores(folders[step.label] / "predictions.npz"), samples)
        assert low <= (logits.argmax(1) == labels).sum() <= high, step.label
