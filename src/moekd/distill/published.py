"""Train the students of published methods as their authors did, with all, none or one of their code's defects."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics
from moekd.classifier import Classifier, predict
from moekd.config import Training
from moekd.data import load_parts
from moekd.distill.losses import cosine_loss, soft_target_loss
from moekd.distill.student import finish_student
from moekd.distill.targets import TARGETS_FILE, teacher_logits
from moekd.distill.variants import renamed_functions
from moekd.files import read_json, write_json
from moekd.scorer import save_scores, scores_of
from moekd.students.published import METHODS, RENAMED_FILE, configuration_of, parts_of, train_published_tokenizer
from moekd.students.shapes import SHAPES
from moekd.students.space import build_candidate
from moekd.tokens import Tokens, encode
from moekd.training import Task, fit, freeze_biases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from moekd.config import MoekdSettings, PublishedMethod, Way
    from moekd.records import Part, Sample
    from moekd.students.published import Method
    from moekd.students.space import Configuration
    from moekd.training import History

_NO_CLIPPING = 1e9
_RENAMED: tuple[Part, ...] = ("train_b", "valid")


def train_published(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, system: str, student: str, seed: int
) -> dict[str, Any]:
    """Stage: train a student as its method does; seed, start and batches are equal for all ways of a method.

    Two things are ours in every way: batches hold functions of similar length, and MORPH's rule that lets half a
    percent of accuracy go for fewer flips is left out, because its choice depends on the order of epochs.

    Args:
        inputs: `data`, `tokens` (the student's), and `targets`, a folder with the single teacher's `targets.npz`; of
            MORPH also `renamed-targets`, with those of half B's renamed functions.
        system: method and way, such as `avatar-fixed`.
        student: method and size, such as `avatar-3mb`.
    """
    from transformers import PreTrainedTokenizerFast

    numerics.configure(settings.run.threads)
    method, defects = parts_of(system)
    configuration = configuration_of(student, settings)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(inputs["tokens"]))
    parts = load_parts(inputs["data"])
    tokens = {path.stem: Tokens.load(path) for path in sorted(inputs["tokens"].glob("*.npz"))}
    student_seed = numerics.seed_of(seed, "student", student)
    model = build_published(configuration, tokenizer, seed=student_seed)
    history = _fit(
        model,
        tokens,
        inputs,
        parts,
        _How(f"{system} {student}", method, defects, training_of(method, configuration, settings), student_seed),
        pad_id=tokenizer.pad_token_id,
        folder=folder,
    )
    classifier = Classifier(model, tokenizer, tokenizer.model_max_length)
    shape = SHAPES.get(student) or configuration.shape()  # Compressor reads less than its positions would bear
    return finish_student(classifier, history, parts, tokens, folder, shape.reference_parameters()) | {
        "configuration": asdict(configuration),
        "defects": sorted(defects),
    }


def measure_published(
    configuration: Configuration,
    *,
    search: PublishedMethod,
    settings: MoekdSettings,
    inputs: Mapping[str, Path],
    folder: Path,
    seed: int,
) -> dict[str, float]:
    """Train one candidate of a published search as its method trains its student, without defects, and measure it.

    Args:
        inputs: `data`, and `targets`, a folder with the single teacher's `targets.npz`; for MORPH also `renamed` and
            `renamed-targets`.
        folder: holds checkpoints while the candidate is trained: a stopped one continues.
    Returns:
        `accuracy` on validation functions, and for MORPH `flips`, the share of them whose predicted label is another
        one once they are renamed, each from 0 to 1; both at the epoch that the method would keep.
    """
    numerics.configure(settings.run.threads)
    method, parts = METHODS[search], load_parts(inputs["data"])
    texts: dict[str, list[str]] = {part: [sample.func for sample in parts[part]] for part in _RENAMED}
    tokenizer = train_published_tokenizer(method, configuration, texts["train_b"])
    if method.renamed:
        renamed = read_json(inputs["renamed"] / RENAMED_FILE)
        texts |= {f"{part}-renamed": renamed[part] for part in _RENAMED}
    tokens = {name: encode(tokenizer, found, tokenizer.model_max_length) for name, found in texts.items()}
    training = training_of(method, configuration, settings).model_copy(update={"epochs": settings.search.epochs})
    candidate_seed = numerics.seed_of(seed, "candidate")
    model = build_published(configuration, tokenizer, seed=candidate_seed)
    pad_id = tokenizer.pad_token_id
    name = f"candidate of {configuration.layers} x {configuration.hidden}"
    _fit(
        model,
        tokens,
        inputs,
        parts,
        _How(name, method, frozenset(), training, candidate_seed),
        pad_id=pad_id,
        folder=folder,
    )
    labels = np.array([sample.label for sample in parts["valid"]])
    answers = {name: predict(model, tokens[name], pad_id=pad_id).argmax(1) for name in tokens if "valid" in name}
    measures = {"accuracy": float((answers["valid"] == labels).mean())}
    if method.renamed:
        measures["flips"] = float((answers["valid"] != answers["valid-renamed"]).mean())
    return measures


@dataclass(frozen=True)
class _How:
    """How one student is trained."""

    name: str  # shown with the progress
    method: Method
    defects: frozenset[Way]
    training: Training
    seed: int


def _fit(
    model: Any,
    tokens: Mapping[str, Tokens],
    inputs: Mapping[str, Path],
    parts: Mapping[Part, Sequence[Sample]],
    how: _How,
    *,
    pad_id: int,
    folder: Path,
) -> History:
    """Train a model in place on half B, and of MORPH on its renamed functions, and keep the epoch of best accuracy."""
    labels = np.array([sample.label for sample in parts["valid"]])
    teacher = teacher_logits(inputs["targets"], parts["train_b"])
    learned, judged = tokens["train_b"], [tokens["valid"]]
    if how.method.renamed:
        import torch

        teacher = torch.cat([teacher, teacher_logits(inputs["renamed-targets"], parts["train_b"])])
        learned = learned.followed_by(tokens["train_b-renamed"])
        judged.append(tokens["valid-renamed"])
    if "frozen-biases" in how.defects:
        freeze_biases(model)

    def accuracy(model: Any) -> float:
        answers = [predict(model, one, pad_id=pad_id, bf16=how.training.bf16).argmax(1) for one in judged]
        return float(np.mean([(answer == labels).mean() for answer in answers]))

    task = Task(
        name=how.name,
        tokens=learned,
        draw=lambda epoch: np.arange(len(learned)),
        loss=_loss(how.method, how.defects, teacher),
        measure=accuracy,
        latest_of_equals=True,  # methods.md 1.7
    )
    return fit(model, task, how.training, pad_id=pad_id, seed=how.seed, folder=folder)


def training_of(method: Method, configuration: Configuration, settings: MoekdSettings) -> Training:
    """The method's training (methods.md 1.7, 2.6, 3.5): AdamW without decay or clipping, linear, a tenth of warm-up."""
    ours = settings.student.training
    length = method.tokens or configuration.max_length
    return Training(
        epochs=settings.published.epochs or method.epochs,
        learning_rate=configuration.learning_rate,
        schedule="linear",
        warmup=0.1,
        weight_decay=0.0,
        clip=_NO_CLIPPING,
        token_budget=max(64, configuration.batch_size * length),
        batch_limit=configuration.batch_size,
        bf16=ours.bf16,
        checkpoint_seconds=ours.checkpoint_seconds,
    )


def build_published(configuration: Configuration, tokenizer: Any, *, seed: int) -> Any:
    """The student from random weights; its positions start as noise, as in the references, and not as sinusoids."""
    import torch

    model = build_candidate(configuration, tokenizer, seed=seed)
    positions = model.roberta.embeddings.position_embeddings
    with torch.no_grad():
        positions.weight.normal_(0.0, model.config.initializer_range)
        positions.weight[positions.padding_idx] = 0.0
    return model


def _loss(
    method: Method, defects: frozenset[Way], teacher: torch.Tensor
) -> Callable[[torch.Tensor, np.ndarray], torch.Tensor]:
    """Loss of logits and the batch's rows, which number `teacher`'s."""
    import torch

    targets = targets_of(teacher, method, defects)

    def loss(logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        target = targets[torch.from_numpy(rows)].to(logits.device)
        if not method.renamed:
            return soft_target_loss(logits, target, temperature=10.0)
        return morph_loss(logits, target, unscaled="unscaled-loss" in defects)

    return loss


def targets_of(teacher: torch.Tensor, method: Method, defects: frozenset[Way]) -> torch.Tensor:
    """What the student's loss takes for the teacher's logits, (samples, 2).

    With `sigmoid-targets` these are the sigmoids of the outputs; MORPH takes their logarithms, centred.
    """
    import torch

    if "sigmoid-targets" not in defects:
        return teacher
    if not method.renamed:
        return torch.sigmoid(teacher)
    logs = torch.nn.functional.logsigmoid(teacher)
    return logs - logs.mean(dim=1, keepdim=True)


def morph_loss(student: torch.Tensor, teacher: torch.Tensor, *, unscaled: bool) -> torch.Tensor:
    """MORPH's loss: soft targets plus the cosine distance of the softened probabilities.

    The paper has T² times the soft targets' cross-entropy at T = 3; its code T = 2 without the factor (`unscaled`).
    Cross-entropy and divergence differ by the teacher's entropy, which has no gradient.

    Source: methods.md 3.5.
    """
    temperature = 2.0 if unscaled else 3.0
    soft = soft_target_loss(student, teacher, temperature=temperature)
    return (soft / temperature**2 if unscaled else soft) + cosine_loss(student, teacher, temperature=temperature)


def rename(settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, seed: int) -> dict[str, Any]:
    """Stage: the renamed variant of each function of half B and validation, in `renamed.json` (methods.md 3.2)."""
    parts = load_parts(inputs["data"])
    renamed = {part: renamed_functions(parts[part], parts["train_b"], seed=seed) for part in _RENAMED}
    write_json(folder / RENAMED_FILE, renamed)
    return {
        f"{part}_unchanged": sum(text == sample.func for text, sample in zip(texts, parts[part], strict=True))
        for part, texts in renamed.items()
    }


def score_renamed(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, system: str, seed: int
) -> dict[str, Any]:
    """Stage: the teacher's logits of half B's renamed functions, in `targets.npz` under the functions' own ids."""
    numerics.configure(settings.run.threads)
    samples = load_parts(inputs["data"])["train_b"]
    teacher = Classifier.from_pretrained(inputs["teacher"] / "model")
    logits = teacher.logits(read_json(inputs["renamed"] / RENAMED_FILE)["train_b"])
    save_scores(folder / TARGETS_FILE, scores_of(samples, logits))
    return {"scored": len(samples)}
