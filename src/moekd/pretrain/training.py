"""The pre-training run: rows in rounds, held-out measures after each, the encoder saved as a Hugging Face folder."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import console, numerics
from moekd.errors import SettingsError
from moekd.files import writing
from moekd.pretrain.architectures import masked_token_logits, token_states
from moekd.pretrain.baselines import NGrams
from moekd.pretrain.objectives import (
    LANGUAGE_MODEL,
    OBJECTIVES,
    Masking,
    Objective,
    ReplacedTokens,
    as_ids,
)
from moekd.pretrain.rows import load_rows, require_a_batch, rows_a_batch
from moekd.tokens import SPECIALS, Tokens
from moekd.training import History, Task, fit, forget_checkpoints

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch

    from moekd.config import PretrainSettings

_MEASURED_ROWS, _JUDGED_ROWS = 256, 2048  # held-out rows after each round, and at the end
_BASELINE_TOKENS = 30_000_000  # that the n-gram models count; more change their accuracy in the third digit only


def train(settings: PretrainSettings, inputs: Mapping[str, Path], folder: Path, *, seed: int) -> dict[str, Any]:
    """Stage: `model/`, the encoder in half precision, with `language-model/` inside where that is another model.

    Facts hold the loss curve and the accuracy on masked held-out tokens beside n-gram models. In another process than
    the first nothing is written.

    Raises:
        SettingsError: the batch cannot be shared by the processes, or the loss is no longer finite.
        DataError: the rows do not fill one batch.
    """
    import torch
    from transformers import PreTrainedTokenizerFast

    numerics.configure(settings.run.threads)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(inputs["rows"]))
    rows, held_out = load_rows(inputs["rows"], "train"), load_rows(inputs["rows"], "held_out")
    require_a_batch(rows, "train", settings)
    torch.manual_seed(numerics.seed_of(seed, "pretrain"))
    objective = OBJECTIVES[settings.pretrain.objective](settings, tokenizer)
    model = objective.build()
    rounds, rows_a_round = _rounds(settings)
    tokens = Tokens(rows.reshape(-1), np.arange(len(rows) + 1) * rows.shape[1])
    task = Task(
        name=f"pre-training, {settings.pretrain.objective}",
        tokens=tokens,
        draw=lambda index: rows_of_round(len(rows), rows_a_round, index, seed),
        loss=lambda outputs, batch: objective.loss(outputs),
        measure=lambda model: -_held_out_loss(objective, model, held_out[:_MEASURED_ROWS], settings),
        forward=lambda model, batch: objective.forward(model, as_ids(rows[batch])),
        report=_tell,
    )
    training = settings.pretrain.training.model_copy(
        update={"epochs": rounds, "batch_limit": settings.pretrain.training.token_budget}
    )
    history = fit(model, task, training, pad_id=tokenizer.pad_token_id, seed=seed, folder=folder)
    if numerics.rank_and_processes()[0]:
        return {}
    language_model = objective.language_model_of(model)
    judged = held_out[:_JUDGED_ROWS]
    facts = {
        "history": vars(history),
        "tokens_per_second": history.tokens / history.seconds,
        "held_out": _masked_accuracy(language_model, judged, settings, tokenizer, rows)
        | _detection(objective, model, judged, settings),
    }
    _save(objective.encoder_of(model), tokenizer, folder / "model")
    if language_model is not objective.encoder_of(model):
        _save(language_model, tokenizer, folder / "model" / LANGUAGE_MODEL)
    forget_checkpoints(folder)
    return facts


def _tell(history: History) -> None:
    console.say(
        f"{history.tokens / 1e6:.1f} million tokens, {history.tokens / history.seconds:,.0f} a second: loss "
        f"{history.losses[-1]:.3f}, held out {-history.measures[-1]:.3f}"
    )


def rows_of_round(rows: int, rows_a_round: int, index: int, seed: int) -> np.ndarray:
    """Row numbers of a round: passes over all rows, each in an order of its own, cut into rounds of equal size."""
    wanted = np.arange(index * rows_a_round, (index + 1) * rows_a_round)
    passes = wanted // rows
    orders = {int(one): numerics.generator(seed, "pass", int(one)).permutation(rows) for one in np.unique(passes)}
    return np.array([orders[int(one)][place] for one, place in zip(passes, wanted % rows, strict=True)])


def _rounds(settings: PretrainSettings) -> tuple[int, int]:
    """Number of rounds, and rows of each: a whole number of batches."""
    pretrain = settings.pretrain
    batch = rows_a_batch(settings)
    processes = numerics.rank_and_processes()[1]
    if batch % processes:
        raise SettingsError(
            f"a batch of {batch} rows cannot be shared by {processes} processes; "
            f"set pretrain.training.token_budget to a multiple of {processes * pretrain.row_length}"
        )
    batches = max(1, pretrain.round_tokens // (batch * pretrain.row_length))
    rows_a_round = batches * batch
    return max(1, math.ceil(pretrain.tokens / (rows_a_round * pretrain.row_length))), rows_a_round


def _batches(rows: np.ndarray, settings: PretrainSettings) -> Iterator[torch.Tensor]:
    size = rows_a_batch(settings)
    for start in range(0, len(rows), size):
        yield as_ids(rows[start : start + size])


def _held_out_loss(objective: Objective, model: Any, rows: np.ndarray, settings: PretrainSettings) -> float:
    """Mean loss on rows that are masked the same way each time."""
    import torch

    losses = []
    with torch.random.fork_rng(), torch.inference_mode(), numerics.autocast(settings.pretrain.training.bf16):
        torch.manual_seed(0)
        for ids in _batches(rows, settings):
            losses.append(float(objective.loss(objective.forward(model, ids))))
    return float(np.mean(losses))


def _masked_accuracy(
    model: Any, rows: np.ndarray, settings: PretrainSettings, tokenizer: Any, train_rows: np.ndarray
) -> dict[str, float]:
    """Share of masked tokens guessed right, by the model and by n-gram models on the same tokens; its loss in nats."""
    import torch

    rng_free = Masking(settings.pretrain.mask_share, None, None)  # single tokens, whatever was trained
    counted = train_rows[: max(1, _BASELINE_TOKENS // train_rows.shape[1])]
    baselines = {name: NGrams.count(counted, offsets) for name, offsets in NGrams.CONTEXTS.items()}
    right: dict[str, int] = dict.fromkeys(["model", *baselines], 0)
    total, nats = 0, 0.0
    mask = SPECIALS.index("<mask>")
    with torch.random.fork_rng(), torch.inference_mode(), numerics.autocast(settings.pretrain.training.bf16):
        torch.manual_seed(1)
        for ids in _batches(rows, settings):
            chosen = rng_free.draw(ids)
            hidden = torch.where(chosen, torch.full_like(ids, mask), ids)
            inputs = token_states(model, hidden, torch.zeros(len(ids), dtype=torch.int64))
            logits = masked_token_logits(model, inputs, chosen).float()
            wanted = ids[chosen]
            nats += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            right["model"] += int((logits.argmax(-1) == wanted).sum())
            total += len(wanted)
            for name, baseline in baselines.items():
                guesses = baseline.guess(ids.cpu().numpy())[chosen.cpu().numpy()]
                right[name] += int((guesses == wanted.cpu().numpy()).sum())
    accuracy = {f"masked_accuracy_{name}": count / total for name, count in right.items()}
    return {"masked_tokens": total, "masked_loss_nats": nats / total, **accuracy}


def _detection(objective: Objective, model: Any, rows: np.ndarray, settings: PretrainSettings) -> dict[str, float]:
    """AUROC of telling replaced tokens from original ones; nothing for another objective."""
    import torch
    from sklearn.metrics import roc_auc_score

    if not isinstance(objective, ReplacedTokens):
        return {}
    scores, truth = [], []
    with torch.random.fork_rng(), torch.inference_mode(), numerics.autocast(settings.pretrain.training.bf16):
        torch.manual_seed(1)
        for ids in _batches(rows, settings):
            _, _, detected, replaced = objective.forward(model, ids)
            scores.append(detected.cpu().numpy())
            truth.append(replaced.cpu().numpy())
    return {"detection_auroc": float(roc_auc_score(np.concatenate(truth), np.concatenate(scores)))}


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    with writing(folder):
        model.half().save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
