"""Train one student from one teacher's scores, or from hard labels, on half B (methods.md 6.3 step 6)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moekd import numerics
from moekd.classifier import Classifier, predict
from moekd.data import load_classes, load_parts
from moekd.distill import lessons as lessons_of
from moekd.distill.features import teacher_states
from moekd.distill.objective import FeatureTerm, Learner, Objective
from moekd.distill.states import token_places
from moekd.errors import SettingsError
from moekd.scorer import save_scores, scores_of
from moekd.students.shapes import build_student, shape_named
from moekd.tokens import Tokens
from moekd.training import Task, fit, forget_checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from moekd.config import MoekdSettings
    from moekd.distill.lessons import Lessons
    from moekd.records import Part, Sample
    from moekd.training import History

#: What a student ships as; every byte of them counts.
SHIPPED = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
_LATENCY_SAMPLES = 50


def train_student(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, system: str, student: str, seed: int
) -> dict[str, Any]:
    """Stage: train a student; architecture, data, budget, start and decision rule are the same for every system.

    Args:
        inputs: `data`, `tokens` (the shape's), and `targets`, a folder with the teacher's `targets.npz`; a student of
            hard labels has none. `features`, the folder of a `collect` stage, where `distill.features` asks for it;
            `variants` for `student-pioneer`.
        student: name of the shape.
        seed: of the weights and the batches: equal for all systems of a seed, so that comparisons are paired.
    Raises:
        SettingsError: `distill.features` asks for the states of a teacher that has none.
    """
    from transformers import PreTrainedTokenizerFast

    numerics.configure(settings.run.threads)
    parts = load_parts(inputs["data"])
    tokens = {part: Tokens.load(inputs["tokens"] / f"{part}.npz") for part in ("train_b", "valid", "test")}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(inputs["tokens"]))
    pad_id = tokenizer.pad_token_id
    shape, training = shape_named(student), settings.student.training
    student_seed = numerics.seed_of(seed, "student", student)
    classes = load_classes(settings, inputs["data"])
    model = build_student(shape, tokenizer, labels=classes, seed=student_seed, dropout=training.dropout)
    labels = np.array([sample.label for sample in parts["valid"]])
    half_b = parts["train_b"]
    lessons = lessons_of.plain(inputs, half_b, tokens["train_b"], classes, settings.distill, training.epochs)
    if system == "student-pioneer":
        lessons = lessons_of.pioneer(lessons, inputs, half_b, tokenizer, shape.max_length)
    if system == "student-soda":
        lessons = lessons_of.soda(lessons, folder, pad_id=pad_id, seed=student_seed)
    taught = _taught(settings, inputs, model, lessons, half_b, tokenizer, shape.max_length, student_seed)

    def look_back(history: History) -> None:
        if len(history.losses) < training.epochs:  # nothing is drawn after the last one
            lessons.look_back(len(history.losses) - 1, model)

    task = Task(
        name=f"{system} {student}",
        tokens=lessons.tokens,
        draw=lessons.draw,
        loss=taught.loss,
        measure=lambda _: float(
            (predict(model, tokens["valid"], pad_id=pad_id, bf16=training.bf16).argmax(1) == labels).mean()
        ),
        forward=taught.forward,
        report=look_back,
        begin_step=taught.begin_step,
    )
    history = fit(taught.learner, task, training, pad_id=pad_id, seed=student_seed, folder=folder)
    classifier = Classifier(model, tokenizer, shape.max_length)
    facts = finish_student(classifier, history, parts, tokens, folder, shape.reference_parameters())
    lessons.forget()
    return facts


def finish_student(
    classifier: Classifier,
    history: History,
    parts: Mapping[Part, Sequence[Sample]],
    tokens: Mapping[str, Tokens],
    folder: Path,
    reference_parameters: int,
) -> dict[str, Any]:
    """Save a trained student as it ships and its answers to validation and test, and return the step's facts.

    Args:
        tokens: of `valid` and `test` at least, in the order of `parts`.
    """
    model, pad_id = classifier.model, classifier.tokenizer.pad_token_id
    classifier.save_pretrained(folder / "model")
    answers = [predict(model, tokens[part], pad_id=pad_id) for part in ("valid", "test")]
    save_scores(folder / "predictions.npz", scores_of([*parts["valid"], *parts["test"]], np.concatenate(answers)))
    forget_checkpoints(folder)
    texts = [sample.func for sample in parts["test"][:_LATENCY_SAMPLES]]
    sizes = {name: (folder / "model" / name).stat().st_size for name in SHIPPED}
    return {
        "rows": {
            "train_seconds": history.seconds,
            "parameters": model.num_parameters(),
            "reference_parameters": reference_parameters,
            "weight_bytes": 4 * model.num_parameters(),
            "file_bytes": sum(sizes.values()),
            "latency_ms": latency_ms(classifier, texts),
        },
        "history": vars(history),
        "files": sizes,
    }


@dataclass(frozen=True)
class _Taught:
    """What the training loop is given: what it trains, and how the loss comes about."""

    learner: Any  # the student, or the student with the projections of its feature loss
    loss: Callable[[Any, np.ndarray], torch.Tensor]
    forward: Callable[[Any, np.ndarray], Any] | None = None
    begin_step: Callable[[float], None] | None = None


def _taught(
    settings: MoekdSettings,
    inputs: Mapping[str, Path],
    model: Any,
    lessons: Lessons,
    samples: Sequence[Sample],
    tokenizer: Any,
    max_length: int,
    seed: int,
) -> _Taught:
    """The settings' loss of a student that has a teacher; cross-entropy of one that has none."""
    if lessons.teacher is None:
        labels = lessons.labels
        return _Taught(
            model,
            lambda logits, rows: torch.nn.functional.cross_entropy(
                logits, labels[torch.from_numpy(rows)].to(logits.device)
            ),
        )
    objective = Objective(settings.distill, lessons.labels, lessons.teacher)
    wanted = settings.distill.features
    if wanted is None:
        return _Taught(model, objective, begin_step=objective.begin_step)
    if "features" not in inputs:
        raise SettingsError(
            f'distill.features.kind = "{wanted.kind}" asks for hidden states of the teacher, and this one left none: '
            "leave distill.features out, or run the stage that collects them"
        )
    term = FeatureTerm(
        wanted,
        model.config,
        teacher_states(inputs["features"], samples),
        seed=numerics.seed_of(seed, "projection"),
    )
    places = token_places(tokenizer, [sample.func for sample in samples], max_length)
    learner = Learner(model, term, lessons.tokens, places, tokenizer.pad_token_id)
    return _Taught(
        learner,
        lambda outputs, rows: objective(outputs[0], rows, outputs[1]),
        lambda learner, rows: learner(rows),
        objective.begin_step,
    )


def latency_ms(classifier: Classifier, texts: Sequence[str]) -> float:
    """Median milliseconds of one text at a time, tokenising included, after a warm-up."""
    warm_up = texts[:5]
    times = []
    for text in (*warm_up, *texts):
        started = time.perf_counter()
        classifier.logits([text])
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times[len(warm_up) :]))
