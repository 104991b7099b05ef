"""`shared` experts: one encoder fine-tuned once, a light head for each group on its cached features.

The encoder learns "is it vulnerable?" and "which group would it be?" together: its head has 2 + K outputs, the last K
of which are the router. Each expert is then a small network on the encoder's features, so ten experts cost one
fine-tuning and one encoder pass a sample (methods.md 5.8, 12.5).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics
from moekd.classifier import model_inputs, predict
from moekd.experts.corpus import ANSWERED, Corpus, save_logits
from moekd.experts.losses import class_factors, focal_loss
from moekd.experts.training import group_counts, new_model, save_model
from moekd.files import read_arrays, write_arrays
from moekd.partition import load as load_groups
from moekd.records import LABELS, PARTS
from moekd.tokens import token_batches
from moekd.training import Task, fit, forget_checkpoints

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from moekd.config import Experts, MoekdSettings
    from moekd.tokens import Tokens

HEAD_WIDTH = 32  # hidden units of an expert's head
_BATCH = 256  # functions a step of the heads' training


def train_shared(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, system: str, seed: int
) -> dict[str, Any]:
    """Stage: fine-tune the shared encoder with both questions, then read every part once.

    Writes `model/`, `<part>-features.npz` for the heads, and the router's logits like a router of its own would.
    """
    import torch

    numerics.configure(settings.run.threads)
    corpus = Corpus.load(inputs)
    groups = load_groups(inputs["partition"])
    training = settings.experts.training
    labels, valid = corpus.labels("train_a"), corpus.labels("valid")
    target = corpus.groups("train_a", groups.of)
    factors = torch.tensor(class_factors(groups.names, group_counts(groups.names, target)))

    def loss(logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Cross-entropy of the label; the router's focal loss where a group is known."""
        device = logits.device
        answer = torch.nn.functional.cross_entropy(logits[:, :2], torch.from_numpy(labels[rows]).to(device))
        known = torch.from_numpy(np.flatnonzero(target[rows] >= 0)).to(device)
        if len(known) == 0:
            return answer
        group = torch.from_numpy(target[rows]).to(device)[known]
        routed = focal_loss(
            logits[known, 2:],
            group,
            alpha=factors.to(device) * len(groups.names),
            gamma=settings.router.gamma,
        )
        return answer + routed

    shared_seed = numerics.seed_of(seed, "shared")
    model = new_model(settings, corpus, training, (*LABELS, *groups.names), shared_seed)
    task = Task(
        name="shared encoder",
        tokens=corpus.tokens["train_a"],
        draw=lambda epoch: np.arange(len(labels)),
        loss=loss,
        measure=lambda model: float(
            (
                predict(model, corpus.tokens["valid"], pad_id=corpus.pad_id, bf16=training.bf16)[:, :2].argmax(1)
                == valid
            ).mean()
        ),
    )
    history = fit(model, task, training, pad_id=corpus.pad_id, seed=shared_seed, folder=folder)
    save_model(model, corpus, folder / "model", settings)
    router = {}
    for part in PARTS:
        values, logits = features(model, corpus.tokens[part], pad_id=corpus.pad_id, bf16=training.bf16)
        # The logits belong to the features: what an n-gram table says (wide.py) is in them only.
        write_arrays(folder / f"{part}-features.npz", {"values": np.concatenate([values, logits], axis=1)})
        router[part] = logits[:, 2:]
    save_logits({part: router[part] for part in ANSWERED}, corpus, folder)
    forget_checkpoints(folder)
    return {"rows": {"train_seconds": history.seconds}, "history": vars(history)}


def features(model: Any, tokens: Tokens, *, pad_id: int, bf16: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read all texts once: the last layer's first token beside its mean over real tokens, and the head's logits.

    Returns:
        features, float32, (texts, 2 hidden), and logits, float32, (texts, classes).
    """
    import torch

    model.to(numerics.device()).eval()
    hidden = model.config.hidden_size
    values = np.zeros((len(tokens), 2 * hidden), dtype=np.float32)
    logits = np.zeros((len(tokens), model.config.num_labels), dtype=np.float32)
    with torch.inference_mode(), numerics.autocast(bf16):
        for rows in token_batches(tokens.lengths, budget=4096, limit=128):
            batch = model_inputs(tokens, rows, pad_id)
            answer = model(**batch, output_hidden_states=True)
            states = answer.hidden_states[-1].float()  # (rows, longest, hidden)
            mask = (batch["input_ids"] != pad_id)[..., None]
            mean = (states * mask).sum(1) / mask.sum(1)
            values[rows] = torch.cat((states[:, 0], mean), dim=-1).cpu().numpy()
            logits[rows] = answer.logits.float().cpu().numpy()
    return values, logits


def embed(settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, seed: int) -> dict[str, Any]:
    """Stage: mean-pooled states of the encoder as it is before fine-tuning, for the k-means partition."""
    numerics.configure(settings.run.threads)
    corpus = Corpus.load(inputs)
    training = settings.experts.training
    model = new_model(settings, corpus, training, LABELS, numerics.seed_of(seed, "embed"))
    samples = [sample for part in PARTS for sample in corpus.samples[part]]
    values = [features(model, corpus.tokens[part], pad_id=corpus.pad_id, bf16=training.bf16)[0] for part in PARTS]
    write_arrays(
        folder / "embeddings.npz",
        {
            "ids": np.array([sample.id for sample in samples]),
            "digests": np.array([sample.digest for sample in samples]),
            "values": np.concatenate(values)[:, model.config.hidden_size :],
        },
    )
    return {"samples": len(samples), "width": int(model.config.hidden_size)}


def train_heads(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, partition: str, seed: int
) -> dict[str, Any]:
    """Stage: one light head a group on the shared encoder's cached features, all trained at once."""
    import torch

    numerics.configure(settings.run.threads)
    started = time.monotonic()
    corpus = Corpus.load(inputs)
    groups = load_groups(inputs["partition"])
    count = len(groups.names)
    read = {part: load_features(inputs["shared"], part) for part in ("train_a", "valid")}
    mean, scale = read["train_a"].mean(0), read["train_a"].std(0) + 1e-6
    inputs_a, inputs_valid = (torch.from_numpy((read[part] - mean) / scale) for part in ("train_a", "valid"))
    target, weight = _targets(settings.experts, corpus, groups.of, count, "train_a")
    valid_target, valid_weight = _targets(settings.experts, corpus, groups.of, count, "valid")
    heads = _new_heads(count, inputs_a.shape[1], numerics.seed_of(seed, "heads", partition))
    optimizer = torch.optim.AdamW(heads.values(), lr=settings.experts.head_learning_rate, weight_decay=0.01)
    best = {name: tensor.detach().clone() for name, tensor in heads.items()}
    best_f1 = torch.full((count,), -1.0)
    unjudged = valid_target.sum(0) == 0  # no function of the group in validation: the last epoch is kept
    for epoch in range(settings.experts.head_epochs):
        order = numerics.generator(seed, "heads", partition, epoch).permutation(len(inputs_a))
        for rows in np.array_split(order, max(1, len(order) // _BATCH)):
            batch = torch.from_numpy(rows)
            logits = head_logits(heads, inputs_a[batch])
            nats = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), target[batch].flatten(), reduction="none"
            ).view(len(rows), count)
            ((nats * weight[batch]).sum() / len(rows)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.inference_mode():
            f1 = _weighted_f1(head_logits(heads, inputs_valid).argmax(-1), valid_target, valid_weight)
            for index in torch.nonzero((f1 > best_f1) | unjudged).flatten().tolist():
                best_f1[index] = f1[index]
                for name, tensor in heads.items():
                    best[name][index] = tensor.detach()[index]
    stored = {name: tensor.numpy() for name, tensor in best.items()}
    write_arrays(folder / "heads.npz", {**stored, "mean": mean, "scale": scale})
    return {
        "rows": {"train_seconds": time.monotonic() - started},
        "valid_f1": dict(zip(groups.names, best_f1.tolist(), strict=True)),
    }


def load_features(shared: Path, part: str) -> np.ndarray:
    return read_arrays(shared / f"{part}-features.npz")["values"]


def score_heads(folder: Path, values: np.ndarray) -> np.ndarray:
    """Logits of all experts from features, float32, (texts, experts, 2)."""
    import torch

    stored = read_arrays(folder / "heads.npz")
    scaled = torch.from_numpy((values - stored.pop("mean")) / stored.pop("scale"))
    with torch.inference_mode():
        return head_logits({name: torch.from_numpy(array) for name, array in stored.items()}, scaled).numpy()


def head_logits(heads: Mapping[str, torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """(texts, features) -> (texts, experts, 2); parameters lead with the experts' dimension."""
    import torch

    hidden = torch.einsum("nf,kfw->nkw", values, heads["in_weight"]) + heads["in_bias"]
    return torch.einsum("nkw,kwc->nkc", torch.relu(hidden), heads["out_weight"]) + heads["out_bias"]


def _new_heads(count: int, width: int, seed: int) -> dict[str, torch.Tensor]:
    import torch

    rng = torch.Generator().manual_seed(seed)
    sizes = {
        "in_weight": (count, width, HEAD_WIDTH),
        "in_bias": (count, HEAD_WIDTH),
        "out_weight": (count, HEAD_WIDTH, 2),
        "out_bias": (count, 2),
    }
    heads = {}
    for name, size in sizes.items():
        deviation = 0.0 if name.endswith("bias") else size[1] ** -0.5
        heads[name] = (torch.randn(size, generator=rng) * deviation).requires_grad_()
    return heads


def _targets(
    experts: Experts, corpus: Corpus, group_of: Mapping[str, int], count: int, part: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each expert's target and weight of each sample, (samples, experts).

    Weights give an expert's positives and negatives the same sum, which is 1:1 sampling without the sampling.
    """
    import torch

    groups = corpus.groups(part, group_of)
    target = (groups[:, None] == np.arange(count)).astype(np.int64)
    negative = target == 0 if experts.negatives == "all" else (corpus.labels(part) == 0)[:, None] & (target == 0)
    per_positive = 0.5 * len(target) / np.maximum(1, target.sum(0))
    per_negative = 0.5 * len(target) / np.maximum(1, negative.sum(0))
    weight = target * per_positive + negative * per_negative
    return torch.from_numpy(target), torch.from_numpy(weight.astype(np.float32))


def _weighted_f1(answer: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """F1 of each expert at balanced weights, (experts,)."""
    hits = (weight * answer * target).sum(0)
    return 2 * hits / ((weight * answer).sum(0) + (weight * target).sum(0)).clamp(min=1e-9)
