"""The one training loop: length-sorted token-budget batches, schedule, checkpoints.

Experts, router, teacher and students call it with their own loss and their own measure. A run that is killed at any
moment and started again in the same folder gives the same weights as an undisturbed one: the batches of an epoch are
a function of seed and epoch alone, and a checkpoint holds everything else.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import console, numerics
from moekd.classifier import model_inputs
from moekd.errors import DataError, OutputError, SettingsError
from moekd.files import read_json, write_json, writing
from moekd.tokens import Tokens, token_batches

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from moekd.config import Training


_DECAY_SHARE = 0.2  # of a trapezoid run


@dataclass(frozen=True)
class Task:
    """What a training run learns, and how its progress is judged.

    Attributes:
        name: shown with the progress.
        tokens: encoded texts; rows are numbered in their order.
        draw: epoch -> rows of that epoch, so that a task can sample anew each time.
        loss: outputs and the batch's rows -> scalar. Outputs are the logits (batch, classes) in fp32, or what `forward`
            returns.
        measure: the model in evaluation mode -> figure of merit on validation data, higher is better; None where
            there is nothing to judge by, and the last epoch is kept.
        forward: for other work than classifying texts: the model and the batch's rows -> outputs. Runs under autocast;
            torch's generator is seeded by step, so that what it draws is the same in a resumed run.
        latest_of_equals: of equally good epochs the last is kept, not the first.
        report: told the history after each epoch; for runs of hours, whose bar alone says too little.
        begin_step: told the share of the run that is over, in [0, 1), before each step; for losses that change with it.
    """

    name: str
    tokens: Tokens
    draw: Callable[[int], np.ndarray]
    loss: Callable[[Any, np.ndarray], torch.Tensor]
    measure: Callable[[Any], float] | None
    forward: Callable[[Any, np.ndarray], Any] | None = None
    latest_of_equals: bool = False
    report: Callable[[History], None] | None = None
    begin_step: Callable[[float], None] | None = None


@dataclass
class History:
    """What happened, epoch by epoch; part of every trained model's manifest."""

    losses: list[float] = field(default_factory=list)  # mean over the epoch's rows
    measures: list[float] = field(default_factory=list)
    best_epoch: int = -1  # the first of the best, or the last where the task says so
    tokens: int = 0  # real tokens trained on
    seconds: float = 0.0  # of training and validation, resumed parts included


@dataclass
class _Position:
    """Where in the run a checkpoint stands."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    rows_done: int = 0


def learning_rate_factor(progress: float, *, warmup: float, schedule: str) -> float:
    """Share of the peak learning rate at `progress` of the run, both in [0, 1].

    Linear warm-up over the first `warmup`, then to zero in a straight line, along a half cosine, or ("trapezoid") in a
    straight line over the last fifth of the run only: Hägele et al. 2024, arXiv:2405.18392, section 3.
    """
    if progress < warmup:
        return progress / warmup
    if schedule == "trapezoid":
        return min(1.0, (1 - progress) / _DECAY_SHARE)
    rest = (progress - warmup) / (1 - warmup)
    return 1 - rest if schedule == "linear" else 0.5 * (1 + float(np.cos(np.pi * rest)))


def fit(model: Any, task: Task, settings: Training, *, pad_id: int, seed: int, folder: Path) -> History:
    """Train `model` in place and leave it with the weights of its best epoch.

    Under `accelerate launch` each process takes its share of every batch and gradients are averaged; the first one
    alone writes checkpoints, and ends with the best weights.

    Args:
        seed: of the batches and of dropout.
        folder: holds `checkpoint/` and `best.safetensors` until the run is done; resumed from when present.
    Raises:
        SettingsError: the loss is no longer finite.
        OutputError: a checkpoint cannot be written.
    """
    import torch
    from safetensors.torch import load_file

    rank, processes = numerics.rank_and_processes()
    model.to(numerics.device())
    optimizer = make_optimizer(model, settings)
    position, history = _restore(model, optimizer, folder)
    best_file = folder / "best.safetensors"
    checkpointed = started = time.monotonic()
    earlier = history.seconds
    with console.bar(settings.epochs, task.name) as advance:
        advance(position.epoch)
        while position.epoch < settings.epochs:
            batches = _batches_of(task, position.epoch, settings, seed)
            model.train()
            while position.batch < len(batches):
                rows = batches[position.batch]
                progress = (position.epoch + position.batch / len(batches)) / settings.epochs
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * learning_rate_factor(
                        max(progress, 0.5 / (len(batches) * settings.epochs)),  # the first step is a step, too
                        warmup=settings.warmup,
                        schedule=settings.schedule,
                    )
                if task.begin_step is not None:
                    task.begin_step(progress)
                step = (position.epoch, position.batch) + ((rank,) if rank else ())
                torch.manual_seed(numerics.seed_of(seed, "dropout", *step))
                loss = _step(model, task, optimizer, rows[rank::processes], settings, pad_id)
                position.loss_sum += loss * len(rows)
                position.rows_done += len(rows)
                history.tokens += int(task.tokens.lengths[rows].sum())
                position.batch += 1
                if rank == 0 and time.monotonic() - checkpointed > settings.checkpoint_seconds:
                    history.seconds = earlier + time.monotonic() - started
                    _checkpoint(model, optimizer, position, history, folder)
                    checkpointed = time.monotonic()
            model.eval()
            history.losses.append(position.loss_sum / position.rows_done)
            if task.measure is not None:
                history.measures.append(float(task.measure(model)))
            if _is_best(history, task.latest_of_equals):
                history.best_epoch = position.epoch
                if rank == 0:
                    _save_weights(model.state_dict(), best_file)
            history.seconds = earlier + time.monotonic() - started
            if task.report is not None and rank == 0:
                task.report(history)
            position = _Position(epoch=position.epoch + 1)
            numerics.release_memory()
            advance(1)
    if rank == 0:
        model.load_state_dict(load_file(best_file, device=str(numerics.device())))
    model.eval()
    history.seconds = earlier + time.monotonic() - started
    return history


def forget_checkpoints(folder: Path) -> None:
    """Remove what only a resumed run needs, once the model itself is saved."""
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    (folder / "best.safetensors").unlink(missing_ok=True)


def _is_best(history: History, latest_of_equals: bool) -> bool:
    """Whether the epoch just ended beats all before it; without a measure the latest always does."""
    if not history.measures or history.best_epoch < 0:
        return True
    latest, best = history.measures[-1], history.measures[history.best_epoch]
    return latest > best or (latest_of_equals and latest == best)


def freeze_biases(model: Any) -> None:
    """Leave biases and norms at their start: the references do not hand them to the optimiser (methods.md 1.10 d)."""
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.requires_grad_(False)


def make_optimizer(model: Any, settings: Training) -> torch.optim.AdamW:
    """AdamW over every parameter; biases and norms without weight decay, n-gram tables at a rate of their own.

    The references leave biases and norms out of the optimiser altogether (methods.md 1.10 d); they are trained here.
    """
    import torch

    from moekd.wide import NGramTable

    tables = [module.weight for module in model.modules() if isinstance(module, NGramTable)]
    in_tables = set(map(id, tables))
    others = [p for p in model.parameters() if id(p) not in in_tables]
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "peak": rate, "weight_decay": decay},
        {"params": [p for p in others if p.ndim < 2], "peak": rate, "weight_decay": 0.0},
    ]
    if tables:
        groups.append({"params": tables, "peak": settings.ngram_learning_rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=settings.learning_rate, eps=1e-8, fused=True)


def _batches_of(task: Task, epoch: int, settings: Training, seed: int) -> list[np.ndarray]:
    rows = task.draw(epoch)
    rng = numerics.generator(seed, "batches", epoch)
    cut = token_batches(task.tokens.lengths[rows], budget=settings.token_budget, limit=settings.batch_limit, rng=rng)
    return [rows[batch] for batch in cut]


def _step(
    model: Any, task: Task, optimizer: torch.optim.AdamW, rows: np.ndarray, settings: Training, pad_id: int
) -> float:
    import torch

    with numerics.autocast(settings.bf16):
        if task.forward is not None:
            outputs = task.forward(model, rows)
        else:
            outputs = model(**model_inputs(task.tokens, rows, pad_id)).logits.float()
    loss = task.loss(outputs, rows)
    value = numerics.mean_over_processes(loss.detach().reshape(1)).item()
    if not np.isfinite(value):
        raise SettingsError(
            f"{task.name}: the loss became {value}; lower its learning_rate, which is {settings.learning_rate:g}"
        )
    loss.backward()
    numerics.average_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value


def _save_weights(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, partial)
        except SafetensorError as error:  # the library's word for whatever the disk refuses
            raise OutputError(f"cannot write {path}: {error}") from error
        partial.replace(path)


def _checkpoint(model: Any, optimizer: torch.optim.AdamW, position: _Position, history: History, folder: Path) -> None:
    """Write a checkpoint beside the last one, then swap them: one whole checkpoint exists at any moment."""
    fresh, current, old = (folder / name for name in ("checkpoint.new", "checkpoint", "checkpoint.old"))
    shutil.rmtree(fresh, ignore_errors=True)
    _save_weights(model.state_dict(), fresh / "model.safetensors")
    _save_weights(_optimizer_tensors(model, optimizer), fresh / "optimizer.safetensors")
    write_json(fresh / "state.json", {"position": asdict(position), "history": asdict(history)})
    with writing(current):
        if current.exists():
            current.replace(old)
        fresh.replace(current)
        shutil.rmtree(old, ignore_errors=True)


def _optimizer_tensors(model: Any, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    return {
        f"{name}|{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _restore(model: Any, optimizer: torch.optim.AdamW, folder: Path) -> tuple[_Position, History]:
    """Continue from the last whole checkpoint, or start afresh."""
    from safetensors.torch import load_file

    current, old = folder / "checkpoint", folder / "checkpoint.old"
    if not current.exists() and old.exists():  # killed between the two renames
        old.replace(current)
    if not current.exists():
        return _Position(), History()
    state = read_json(current / "state.json")
    device = str(numerics.device())
    try:
        model.load_state_dict(load_file(current / "model.safetensors", device=device))
    except RuntimeError as error:
        raise DataError(
            f"the checkpoint {current} is of another model: {str(error).splitlines()[1].strip()} "
            f"Remove {folder} to start anew"
        ) from error
    parameters = dict(model.named_parameters())
    # A CPU tensor stays where it is: AdamW keeps its step counters there.
    for name, tensor in load_file(current / "optimizer.safetensors", device=device).items():
        parameter, key = name.rsplit("|", 1)
        optimizer.state[parameters[parameter]][key] = tensor
    return _Position(**state["position"]), History(**state["history"])
