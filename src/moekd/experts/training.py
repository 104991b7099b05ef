"""Single teacher, experts and router: the same encoder, fine-tuned for three questions.

The single teacher asks "is it vulnerable?" of the whole of half A, an expert "is it a vulnerability of this group?",
the router "which group would it be?" (methods.md 5.1, 6.3 steps 3 and 4).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics
from moekd.classifier import Classifier, build, ngrams, predict
from moekd.data import load_classes
from moekd.errors import DataError
from moekd.experts.corpus import ANSWERED, JUDGED, Corpus, save_answers, save_logits
from moekd.experts.losses import class_factors, focal_loss
from moekd.files import read_json, write_json
from moekd.partition import load as load_groups
from moekd.records import LABELS
from moekd.training import History, Task, fit, forget_checkpoints, freeze_biases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from moekd.config import MoekdSettings, Training


def train_teacher(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, system: str, seed: int
) -> dict[str, Any]:
    """Stage: fine-tune one encoder on half A, keep the epoch of the best validation accuracy.

    The system `teacher-random-weights` starts from random weights of the same shape, with the same tokenizer.
    """
    numerics.configure(settings.run.threads)
    corpus = Corpus.load(inputs)
    labels, valid = corpus.labels("train_a"), corpus.labels("valid")
    training = settings.teacher.training
    model = build(
        settings.encoder,
        corpus.tokenizer,
        labels=load_classes(settings, inputs["data"]),
        seed=numerics.seed_of(seed, "teacher"),
        dropout=training.dropout,
        random_weights=system == "teacher-random-weights",
    )
    task = Task(
        name="single teacher" if system == "teacher" else system,
        tokens=corpus.tokens["train_a"],
        draw=lambda epoch: np.arange(len(labels)),
        loss=partial(_cross_entropy, labels),
        measure=lambda model: float((_decisions(model, corpus, training) == valid).mean()),
    )
    history = fit(model, task, training, pad_id=corpus.pad_id, seed=numerics.seed_of(seed, "teacher"), folder=folder)
    save_model(model, corpus, folder / "model", settings)
    save_answers(model, corpus, folder, bf16=False)
    forget_checkpoints(folder)
    return {"rows": {"train_seconds": history.seconds}, "history": vars(history)}


#: Single teachers with defects of the references (methods.md 1.10 a and d), by system.
FLAWED_TEACHERS = {
    "teacher-one-output": frozenset({"one-output-teacher"}),
    "teacher-frozen-biases": frozenset({"frozen-biases"}),
    "teacher-reference": frozenset({"one-output-teacher", "frozen-biases"}),
}


def train_flawed_teacher(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, system: str, seed: int
) -> dict[str, Any]:
    """Stage: the single teacher with defects of the references; start, batches and budget are those of `teacher`.

    `one-output-teacher`: the loss is a binary cross-entropy on the sigmoid of the output for "vulnerable" alone. The
    other output stays near its random start; `targets.npz` holds both, as a student of the references was given them.
    A teacher of that kind decides by its trained output, so in `predictions.npz` the other one is 0.
    """
    numerics.configure(settings.run.threads)
    flaws = FLAWED_TEACHERS[system]
    corpus = Corpus.load(inputs)
    labels, valid = corpus.labels("train_a"), corpus.labels("valid")
    training = settings.teacher.training
    teacher_seed = numerics.seed_of(seed, "teacher")
    model = build(settings.encoder, corpus.tokenizer, seed=teacher_seed, dropout=training.dropout)
    if "frozen-biases" in flaws:
        freeze_biases(model)
    one_output = "one-output-teacher" in flaws

    def judged(logits: np.ndarray) -> np.ndarray:
        return logits * np.array([0, 1], dtype=np.float32) if one_output else logits

    def accuracy(model: Any) -> float:
        logits = predict(model, corpus.tokens["valid"], pad_id=corpus.pad_id, bf16=training.bf16)
        return float((judged(logits).argmax(1) == valid).mean())

    task = Task(
        name=system,
        tokens=corpus.tokens["train_a"],
        draw=lambda epoch: np.arange(len(labels)),
        loss=partial(_one_output_loss if one_output else _cross_entropy, labels),
        measure=accuracy,
    )
    history = fit(model, task, training, pad_id=corpus.pad_id, seed=teacher_seed, folder=folder)
    save_model(model, corpus, folder / "model", settings)
    logits = {part: predict(model, corpus.tokens[part], pad_id=corpus.pad_id) for part in ANSWERED}
    save_logits(logits | {part: judged(logits[part]) for part in JUDGED}, corpus, folder)
    forget_checkpoints(folder)
    return {"rows": {"train_seconds": history.seconds}, "history": vars(history)}


def _one_output_loss(labels: np.ndarray, logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    import torch

    target = torch.from_numpy(labels[rows]).to(logits)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, LABELS.index("vulnerable")], target)


def train_experts(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, partition: str, seed: int
) -> dict[str, Any]:
    """Stage: one fine-tuned encoder a group, each in a sub-folder of its own; finished ones are not trained again."""
    numerics.configure(settings.run.threads)
    corpus = Corpus.load(inputs)
    groups = load_groups(inputs["partition"])
    histories = {}
    for index, name in enumerate(groups.names):
        target = folder / f"expert-{name}"
        if not (target / "history.json").exists():
            history = _train_expert(settings, inputs, corpus, target, index, name, groups.of, seed)
            write_json(target / "history.json", vars(history))  # last: its presence means the expert is whole
        forget_checkpoints(target)
        histories[name] = read_json(target / "history.json")
    return {
        "rows": {"train_seconds": sum(history["seconds"] for history in histories.values())},
        "histories": histories,
    }


def _train_expert(
    settings: MoekdSettings,
    inputs: Mapping[str, Path],
    corpus: Corpus,
    folder: Path,
    index: int,
    name: str,
    group_of: Mapping[str, int],
    seed: int,
) -> History:
    training = settings.experts.training
    groups = corpus.groups("train_a", group_of)
    target = (groups == index).astype(np.int64)
    positives = np.flatnonzero(target)
    if len(positives) == 0:
        raise DataError(
            f"group {name!r} has no vulnerable function in half A, so its expert cannot learn; "
            "lower partition.min_samples or leave the group out of partition.groups"
        )
    negatives = np.flatnonzero(_negatives(settings, corpus.labels("train_a"), target))
    expert_seed = numerics.seed_of(seed, "expert", name)

    def draw(epoch: int) -> np.ndarray:
        """All positives and as many negatives, drawn anew each epoch."""
        rng = numerics.generator(expert_seed, "negatives", epoch)
        return np.concatenate([positives, _draw(rng, negatives, len(positives))])

    model = new_model(settings, corpus, training, LABELS, expert_seed)
    if settings.experts.start == "teacher":
        _start_from(model, inputs["teacher"] / "model", whole=True)
    task = Task(
        name=f"expert {name}",
        tokens=corpus.tokens["train_a"],
        draw=draw,
        loss=partial(_cross_entropy, target),
        measure=_expert_measure(settings, corpus, index, group_of, expert_seed),
    )
    history = fit(model, task, training, pad_id=corpus.pad_id, seed=expert_seed, folder=folder)
    save_model(model, corpus, folder, settings)
    return history


def _expert_measure(
    settings: MoekdSettings, corpus: Corpus, index: int, group_of: Mapping[str, int], seed: int
) -> Callable[[Any], float] | None:
    """F1 on the validation functions of the group against as many negatives; None if the group has none there."""
    target = (corpus.groups("valid", group_of) == index).astype(np.int64)
    positives = np.flatnonzero(target)
    if len(positives) == 0:
        return None
    negatives = np.flatnonzero(_negatives(settings, corpus.labels("valid"), target))
    drawn = _draw(numerics.generator(seed, "validation"), negatives, len(positives))
    rows = np.sort(np.concatenate([positives, drawn]))
    tokens = corpus.tokens["valid"].take(rows)

    def f1(model: Any) -> float:
        logits = predict(model, tokens, pad_id=corpus.pad_id, bf16=settings.experts.training.bf16)
        answer = logits.argmax(1)
        hits = int((answer & target[rows]).sum())
        return 2 * hits / max(1, int(answer.sum() + target[rows].sum()))

    return f1


def _negatives(settings: MoekdSettings, labels: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Everything else, or non-vulnerable functions only: the paper says both (methods.md 6.3 step 3)."""
    return (target == 0) if settings.experts.negatives == "all" else (labels == 0)


def _draw(rng: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
    return np.sort(rng.choice(rows, size=min(count, len(rows)), replace=False))


def train_router(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, system: str, seed: int
) -> dict[str, Any]:
    """Stage: a classifier over the groups, trained on half A's vulnerable functions, selected by macro-F1."""
    import torch

    numerics.configure(settings.run.threads)
    corpus = Corpus.load(inputs)
    groups = load_groups(inputs["partition"])
    training = settings.router.training
    target = corpus.groups("train_a", groups.of)
    rows = np.flatnonzero(target >= 0)
    factors = torch.tensor(class_factors(groups.names, group_counts(groups.names, target)))
    router_seed = numerics.seed_of(seed, "router")
    if settings.router.model == "n-grams":
        sizes = {"max_length": settings.encoder.max_length, "buckets": settings.encoder.ngram_buckets}
        model = ngrams(tokenizer=corpus.tokenizer, labels=groups.names, **sizes)
    else:
        model = new_model(settings, corpus, training, groups.names, router_seed)
    if settings.router.start == "teacher":
        _start_from(model, inputs["teacher"] / "model", whole=False)
    task = Task(
        name="router",
        tokens=corpus.tokens["train_a"],
        draw=lambda epoch: rows,
        loss=lambda logits, batch: focal_loss(
            logits,
            torch.from_numpy(target[batch]).to(logits.device),
            alpha=factors.to(logits.device),
            gamma=settings.router.gamma,
        ),
        measure=_router_measure(corpus, groups.of, len(groups.names), training),
    )
    history = fit(model, task, training, pad_id=corpus.pad_id, seed=router_seed, folder=folder)
    save_model(model, corpus, folder / "model", settings)
    save_answers(model, corpus, folder, bf16=settings.router.training.bf16)
    forget_checkpoints(folder)
    return {"rows": {"train_seconds": history.seconds}, "history": vars(history)}


def _router_measure(
    corpus: Corpus, group_of: Mapping[str, int], count: int, training: Training
) -> Callable[[Any], float]:
    groups = corpus.groups("valid", group_of)
    rows = np.flatnonzero(groups >= 0)
    tokens = corpus.tokens["valid"].take(rows)
    return lambda model: macro_f1(
        groups[rows], predict(model, tokens, pad_id=corpus.pad_id, bf16=training.bf16).argmax(1), count
    )


def macro_f1(truth: np.ndarray, answer: np.ndarray, classes: int) -> float:
    """Mean F1 over the classes that occur in the truth or the answers."""
    values = []
    for index in range(classes):
        in_truth, in_answer = truth == index, answer == index
        total = int(in_truth.sum() + in_answer.sum())
        if total:
            values.append(2 * int((in_truth & in_answer).sum()) / total)
    return float(np.mean(values)) if values else 0.0


def group_counts(names: Sequence[str], groups: np.ndarray) -> dict[str, int]:
    """Samples of each group by its name; `groups` holds indices into `names`, -1 for none."""
    return {name: int((groups == index).sum()) for index, name in enumerate(names)}


def new_model(settings: MoekdSettings, corpus: Corpus, training: Training, labels: Sequence[str], seed: int) -> Any:
    return build(settings.encoder, corpus.tokenizer, labels=labels, seed=seed, dropout=training.dropout)


def _start_from(model: Any, folder: Path, *, whole: bool) -> None:
    """Copy the teacher's weights: the whole model, whose question an expert narrows down, or the encoder only."""
    trained = Classifier.from_pretrained(folder).model
    if whole:
        model.load_state_dict(trained.state_dict())
    else:
        model.base_model.load_state_dict(trained.base_model.state_dict())


def _cross_entropy(labels: np.ndarray, logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    import torch

    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows]).to(logits.device))


def _decisions(model: Any, corpus: Corpus, training: Training) -> np.ndarray:
    return predict(model, corpus.tokens["valid"], pad_id=corpus.pad_id, bf16=training.bf16).argmax(1)


def save_model(model: Any, corpus: Corpus, folder: Path, settings: MoekdSettings) -> None:
    Classifier(model, corpus.tokenizer, settings.encoder.max_length).save_pretrained(folder)
