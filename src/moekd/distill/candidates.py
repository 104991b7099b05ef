"""Train and measure candidate students for the surrogates of an architecture search (methods.md 2.4, 3.3)."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics
from moekd.classifier import predict
from moekd.data import load_parts
from moekd.distill.losses import soft_target_loss
from moekd.distill.published import measure_published
from moekd.distill.targets import teacher_logits
from moekd.files import sha256_text
from moekd.students.ledger import evaluate_all
from moekd.students.search import RECIPES
from moekd.students.space import build_candidate
from moekd.students.surrogate import spread
from moekd.tokens import Tokens, encode, train_bpe
from moekd.training import Task, fit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from moekd.config import MoekdSettings
    from moekd.records import Sample
    from moekd.students.search import Kind
    from moekd.students.space import Configuration

POINTS_FILE = "points.jsonl"


def train_candidates(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, search: Kind, budget_bytes: int, seed: int
) -> dict[str, Any]:
    """Stage: train `search.points` candidates spread over a search's space, and write their measures as a ledger.

    Candidates of AVATAR and MORPH are trained as their method trains its student, but for `search.epochs`; of their
    space all but relative positions is drawn, which the library no longer builds. MORPH's code draws its points by
    Latin hypercube instead, within no budget (methods.md 3.3).

    Args:
        inputs: `data`, and `targets`, a folder with the teacher's `targets.npz`; for MORPH also `renamed` and
            `renamed-targets`.
        search: which space; for MORPH flips are measured as well.
        budget_bytes: candidates are within it, counted as that search counts.
    """
    chosen = to_train(search, settings.search.points, budget_bytes, seed)
    measure = measure_candidate if search == "moekd" else partial(measure_published, search=search)
    given = partial(measure, settings=settings, inputs=dict(inputs), seed=seed)
    evaluation = partial(in_its_own_folder, given, folder)
    about = {"search": search, "budget_bytes": budget_bytes, "seed": seed}
    evaluate_all(chosen, evaluation, folder / POINTS_FILE, about=about, workers=settings.search.workers)
    return {"points": len(chosen), "file": POINTS_FILE}


def to_train(search: Kind, count: int, budget_bytes: int, seed: int) -> list[Configuration]:
    """The candidates that a search asks for.

    Raises:
        SettingsError: within the budget there is nothing, or less than so many.
    """
    recipe = RECIPES[search]
    return spread(
        recipe.space(budget_bytes).only(position="absolute"),
        count,
        lambda one: recipe.size_bytes(one) <= budget_bytes,
        numerics.generator(seed, "candidates"),
    )


def in_its_own_folder(
    measure: Callable[..., dict[str, float]], folder: Path, configuration: Configuration
) -> dict[str, float]:
    """Measure one candidate with a folder for its checkpoints, so that a stopped one continues; removed at the end."""
    work = folder / sha256_text(repr(asdict(configuration)))[:16]
    measures = measure(configuration, folder=work)
    shutil.rmtree(work)
    return measures


def measure_candidate(
    configuration: Configuration, *, settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, seed: int
) -> dict[str, float]:
    """Train one candidate of our search from the teacher's soft targets on half B.

    Args:
        folder: holds checkpoints while it is trained.
    Returns:
        `accuracy` on validation functions, from 0 to 1, at the best epoch.
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
    tokens = _encoded(tokenizer, train, configuration)
    judged = _encoded(tokenizer, valid, configuration)
    labels = np.array([sample.label for sample in valid])
    teacher = teacher_logits(inputs["targets"], train)
    model = build_candidate(configuration, tokenizer, seed=numerics.seed_of(seed, "candidate"))
    pad_id = tokenizer.pad_token_id
    task = Task(
        name=f"candidate of {configuration.layers} x {configuration.hidden}",
        tokens=tokens,
        draw=lambda epoch: np.arange(len(train)),
        loss=lambda logits, rows: soft_target_loss(
            logits, teacher[torch.from_numpy(rows)].to(logits.device), temperature=settings.distill.temperature
        ),
        measure=lambda model: float((predict(model, judged, pad_id=pad_id).argmax(axis=1) == labels).mean()),
    )
    history = fit(model, task, _training(settings, configuration), pad_id=pad_id, seed=seed, folder=folder)
    return {"accuracy": history.measures[history.best_epoch]}


def _encoded(tokenizer: Any, samples: Sequence[Sample], configuration: Configuration) -> Tokens:
    return encode(tokenizer, [sample.func for sample in samples], configuration.max_length)


def _training(settings: MoekdSettings, configuration: Configuration) -> Any:
    return settings.student.training.model_copy(
        update={
            "epochs": settings.search.epochs,
            "learning_rate": configuration.learning_rate,
            "batch_limit": configuration.batch_size,
        }
    )
