"""Train and measure candidate students for the surrogates of an architecture search (methods.md 2.4, 3.3)."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics
from moekd.classifier import predict, roberta, sizes_of
from moekd.data import load_parts
from moekd.distill.losses import soft_target_loss
from moekd.distill.targets import teacher_logits
from moekd.distill.variants import renamed_functions
from moekd.files import sha256_text
from moekd.students.ledger import evaluate_all
from moekd.students.search import RECIPES
from moekd.students.surrogate import spread
from moekd.tokens import Tokens, encode, train_bpe
from moekd.training import Task, fit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from moekd.config import MoekdSettings
    from moekd.students.search import Kind
    from moekd.students.space import Configuration

POINTS_FILE = "points.jsonl"


def train_candidates(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, search: Kind, budget_bytes: int, seed: int
) -> dict[str, Any]:
    """Stage: train `search.points` candidates spread over a search's space, and write their measures as a ledger.

    Of AVATAR's space only what our code builds is drawn: a BPE and absolute positions. MORPH's code draws them by Latin
    hypercube instead, within no budget (methods.md 3.3).

    Args:
        inputs: `data`, and `targets`, a folder with the teacher's `targets.npz`.
        search: which space; for MORPH flips are measured as well.
        budget_bytes: candidates are within it, counted as that search counts.
    """
    recipe = RECIPES[search]
    space = recipe.space(budget_bytes).only(tokenizer="bpe", position="absolute")
    chosen = spread(
        space,
        settings.search.points,
        lambda one: recipe.size_bytes(one) <= budget_bytes,
        numerics.generator(seed, "candidates"),
    )
    evaluation = partial(
        measure_candidate,
        settings=settings,
        inputs=dict(inputs),
        folder=folder,
        seed=seed,
        flips="flips" in recipe.measures,
    )
    about = {"search": search, "budget_bytes": budget_bytes, "seed": seed}
    evaluate_all(chosen, evaluation, folder / POINTS_FILE, about=about, workers=settings.search.workers)
    return {"points": len(chosen), "file": POINTS_FILE}


def measure_candidate(
    configuration: Configuration,
    *,
    settings: MoekdSettings,
    inputs: Mapping[str, Path],
    folder: Path,
    seed: int,
    flips: bool,
) -> dict[str, float]:
    """Train one candidate from the teacher's soft targets on half B and measure it on validation functions.

    Returns:
        `accuracy`, and with `flips` the share of renamed functions whose predicted label is another one, each from 0
        to 1; both at the epoch of best accuracy.
    """
    import torch

    numerics.configure(settings.run.threads)
    parts = load_parts(inputs["data"])
    train, valid = parts["train_b"], parts["valid"]
    tokenizer = train_bpe(
        [sample.func for sample in train],
        vocabulary=configuration.vocabulary,
        max_length=configuration.max_length,
        lowercase=True,
    )
    tokens = _encoded(tokenizer, [sample.func for sample in train], configuration)
    judged = _encoded(tokenizer, [sample.func for sample in valid], configuration)
    labels = np.array([sample.label for sample in valid])
    teacher = teacher_logits(inputs["targets"], train)
    model = build_candidate(configuration, tokenizer, seed=numerics.seed_of(seed, "candidate"))
    pad_id = tokenizer.pad_token_id

    def answers(model: Any, asked: Tokens) -> np.ndarray:
        return predict(model, asked, pad_id=pad_id).argmax(axis=1)

    task = Task(
        name=f"candidate of {configuration.layers} x {configuration.hidden}",
        tokens=tokens,
        draw=lambda epoch: np.arange(len(train)),
        loss=lambda logits, rows: soft_target_loss(
            logits, teacher[torch.from_numpy(rows)].to(logits.device), temperature=settings.distill.temperature
        ),
        measure=lambda model: float((answers(model, judged) == labels).mean()),
    )
    work = folder / sha256_text(repr(asdict(configuration)))[:16]  # checkpoints: a stopped candidate continues
    history = fit(model, task, _training(settings, configuration), pad_id=pad_id, seed=seed, folder=work)
    measures = {"accuracy": history.measures[history.best_epoch]}
    if flips:
        renamed = _encoded(tokenizer, renamed_functions(valid, train, seed=seed), configuration)
        measures["flips"] = float((answers(model, judged) != answers(model, renamed)).mean())
    shutil.rmtree(work)
    return measures


def _encoded(tokenizer: Any, texts: Sequence[str], configuration: Configuration) -> Tokens:
    return encode(tokenizer, texts, configuration.max_length)


def build_candidate(configuration: Configuration, tokenizer: Any, *, seed: int) -> Any:
    """The configuration's RoBERTa from random weights, with its dropouts."""
    import torch

    torch.manual_seed(seed)
    return roberta(
        tokenizer=tokenizer,
        max_length=configuration.max_length,
        **sizes_of(configuration),
        dropout=configuration.hidden_dropout,
        attention_dropout=configuration.attention_dropout,
        activation=configuration.activation,
    )


def _training(settings: MoekdSettings, configuration: Configuration) -> Any:
    return settings.student.training.model_copy(
        update={
            "epochs": settings.search.epochs,
            "learning_rate": configuration.learning_rate,
            "batch_limit": configuration.batch_size,
        }
    )
