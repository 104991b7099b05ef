"""Train one student from one teacher's scores, or from hard labels, on half B (methods.md 6.3 step 6)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics
from moekd.classifier import Classifier, predict
from moekd.data import load_parts
from moekd.distill.losses import soft_target_loss
from moekd.distill.targets import teacher_logits
from moekd.scorer import save_scores, scores_of
from moekd.students.shapes import build_student, shape_named
from moekd.tokens import Tokens
from moekd.training import Task, fit, forget_checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from moekd.config import MoekdSettings
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
            hard labels has none.
        student: name of the shape.
        seed: of the weights and the batches: equal for all systems of a seed, so that comparisons are paired.
    """
    from transformers import PreTrainedTokenizerFast

    numerics.configure(settings.run.threads)
    parts = load_parts(inputs["data"])
    tokens = {part: Tokens.load(inputs["tokens"] / f"{part}.npz") for part in ("train_b", "valid", "test")}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(inputs["tokens"]))
    shape, training = shape_named(student), settings.student.training
    student_seed = numerics.seed_of(seed, "student", student)
    model = build_student(shape, tokenizer, seed=student_seed, dropout=training.dropout)
    labels = np.array([sample.label for sample in parts["valid"]])
    task = Task(
        name=f"{system} {student}",
        tokens=tokens["train_b"],
        draw=lambda epoch: np.arange(len(parts["train_b"])),
        loss=_loss(settings, inputs, parts["train_b"]),
        measure=lambda model: float(
            (
                predict(model, tokens["valid"], pad_id=tokenizer.pad_token_id, bf16=training.bf16).argmax(1) == labels
            ).mean()
        ),
    )
    history = fit(model, task, training, pad_id=tokenizer.pad_token_id, seed=student_seed, folder=folder)
    classifier = Classifier(model, tokenizer, shape.max_length)
    return finish_student(classifier, history, parts, tokens, folder, shape.reference_parameters())


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


def _loss(
    settings: MoekdSettings, inputs: Mapping[str, Path], samples: Sequence[Sample]
) -> Callable[[torch.Tensor, np.ndarray], torch.Tensor]:
    """Equation 4 on the teacher's logits, found by id and digest; cross-entropy where there is no teacher."""
    import torch

    if "targets" not in inputs:
        labels = torch.tensor([sample.label for sample in samples])
        return lambda logits, rows: torch.nn.functional.cross_entropy(
            logits, labels[torch.from_numpy(rows)].to(logits.device)
        )
    teacher = teacher_logits(inputs["targets"], samples)
    return lambda logits, rows: soft_target_loss(
        logits, teacher[torch.from_numpy(rows)].to(logits.device), temperature=settings.distill.temperature
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
