"""A second answer of a finished student: which CWE group its teachers' router would send a function to.

The student is frozen, so its verdicts stay what they were. A linear layer on its pooled state learns the router's
probabilities on half B; the state is read once. The problem is convex: there is one best head for a penalty, and no
seed. The penalty is chosen on validation functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics
from moekd.classifier import Classifier, model_inputs
from moekd.data import load_parts
from moekd.errors import SettingsError
from moekd.files import read_arrays, write_arrays
from moekd.mixture.fusion import log_softmax
from moekd.partition import load as load_groups
from moekd.records import PARTS
from moekd.scorer import aligned, load_scores
from moekd.tokens import Tokens, token_batches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from moekd.config import MoekdSettings
    from moekd.records import Sample

HEAD_FILE = "group-head.npz"
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the squared weights, on standardised states
_ITERATIONS = 200


@dataclass(frozen=True)
class GroupHead:
    """Pooled state -> logits of the groups.

    Attributes:
        names: of the groups, K.
        weight, bias: float32, (K, width) and (K,).
    """

    names: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray

    def logits(self, states: np.ndarray) -> np.ndarray:
        """(functions, width) -> (functions, K)."""
        return states @ self.weight.T + self.bias

    def without(self, name: str) -> GroupHead:
        """The head that answers given that the group is not `name`: softmax over the others renormalises by itself."""
        kept = [index for index, other in enumerate(self.names) if other != name]
        return GroupHead(tuple(self.names[index] for index in kept), self.weight[kept], self.bias[kept])

    def save(self, folder: Path) -> None:
        arrays = {"names": np.array(self.names), "weight": self.weight, "bias": self.bias}
        write_arrays(folder / HEAD_FILE, arrays)

    @staticmethod
    def load(folder: Path) -> GroupHead:
        arrays = read_arrays(folder / HEAD_FILE)
        return GroupHead(tuple(arrays["names"].tolist()), arrays["weight"], arrays["bias"])


def train_group_head(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, system: str, student: str, seed: int
) -> dict[str, Any]:
    """Stage: distil the router into a linear head on a finished student, and measure how well that went.

    Args:
        inputs: `data`, `tokens` (the shape's), `student`, `partition`, and `router`: a folder with the router's logits
            of half B (`targets.npz`), validation and test (`predictions.npz`).
    Returns:
        For each part: nats of divergence from the router, those of always answering the router's mean, share of
        functions with the router's first group, and the share of vulnerable functions whose own group comes first,
        for head and router.
    """
    numerics.configure(settings.run.threads)
    parts = load_parts(inputs["data"])
    groups = load_groups(inputs["partition"])
    classifier = Classifier.from_pretrained(inputs["student"] / "model")
    states, targets = {}, {}
    for part in PARTS[1:]:
        tokens = Tokens.load(inputs["tokens"] / f"{part}.npz")
        states[part] = pooled_states(classifier.model, tokens, pad_id=classifier.tokenizer.pad_token_id)
        answers = load_scores(inputs["router"] / ("targets.npz" if part == "train_b" else "predictions.npz"))
        targets[part] = np.exp(log_softmax(aligned(answers, parts[part])))
    heads = {
        penalty: fit_head(states["train_b"], targets["train_b"], groups.names, penalty=penalty)
        for penalty in _PENALTIES
    }
    losses = {penalty: divergence(targets["valid"], head.logits(states["valid"])) for penalty, head in heads.items()}
    penalty = min(losses, key=lambda one: losses[one])
    head = heads[penalty]
    head.save(folder)
    mean = np.log(targets["train_b"].mean(axis=0, keepdims=True))
    measures = {
        part: _measures(parts[part], groups.of, targets[part], head.logits(states[part]), mean) for part in PARTS[1:]
    }
    return {"groups": list(groups.names), "penalty": penalty, "measures": measures}


def fit_head(states: np.ndarray, targets: np.ndarray, names: Sequence[str], *, penalty: float) -> GroupHead:
    """Return the linear head with the least mean KL(targets ‖ softmax(head)) + penalty * squared weights.

    Args:
        states: float32, (n, width). Standardised inside; the head that is returned takes them as they are.
        targets: probabilities, (n, K).
        penalty: on the weights of standardised states; > 0 makes the optimum unique up to a constant in the bias.
    """
    import torch

    mean, scale = states.mean(axis=0), states.std(axis=0) + 1e-6
    inputs = torch.from_numpy(((states - mean) / scale).astype(np.float64))
    wanted = torch.from_numpy(targets.astype(np.float64))
    weight = torch.zeros(targets.shape[1], states.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(targets.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        log_q = torch.log_softmax(inputs @ weight.T + bias, dim=-1)
        loss = -(wanted * log_q).sum(-1).mean() + penalty * weight.square().sum()  # the targets' entropy is constant
        loss.backward()
        return loss

    optimizer.step(closure)
    plain = weight.detach().numpy() / scale
    shifted = bias.detach().numpy() - plain @ mean
    return GroupHead(tuple(names), plain.astype(np.float32), shifted.astype(np.float32))


def pooled_layer(model: Any) -> Any:
    """Return the layer whose input is the student's pooled state: the first of its classification head.

    Raises:
        SettingsError: the architecture has no such head.
    """
    for path in ("head.dense", "classifier.dense"):  # ModernBERT; RoBERTa
        outer, inner = path.split(".")
        layer = getattr(getattr(model, outer, None), inner, None)
        if layer is not None:
            return layer
    raise SettingsError(f"a {type(model).__name__} has no pooled state that a group head could read")


def pooled_states(model: Any, tokens: Tokens, *, pad_id: int) -> np.ndarray:
    """Read all texts once; return what the classification head reads of each, float32, (texts, width)."""
    import torch

    layer = pooled_layer(model)
    model.to(numerics.device()).eval()
    states = np.zeros((len(tokens), layer.in_features), dtype=np.float32)
    read: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    try:
        with torch.inference_mode():
            for rows in token_batches(tokens.lengths, budget=4096, limit=128):
                model(**model_inputs(tokens, rows, pad_id))
                states[rows] = read.pop().float().cpu().numpy()
    finally:
        hook.remove()
    return states


def divergence(targets: np.ndarray, logits: np.ndarray) -> float:
    """Mean KL(targets ‖ softmax(logits)) in nats; targets (n, K), logits (n, K) or (1, K)."""
    log_p = np.log(np.maximum(targets, 1e-12))
    return float((targets * (log_p - log_softmax(logits))).sum(axis=-1).mean())


def _measures(
    samples: Sequence[Sample], group_of: Mapping[str, int], targets: np.ndarray, logits: np.ndarray, mean: np.ndarray
) -> dict[str, float | int | None]:
    group = np.array([group_of.get(sample.id, -1) for sample in samples])
    known = group >= 0

    def right(answers: np.ndarray) -> float | None:
        return float((answers.argmax(-1) == group)[known].mean()) if known.any() else None

    return {
        "functions": len(samples),
        "nats": divergence(targets, logits),
        "nats_of_mean": divergence(targets, mean),
        "router_agreement": float((logits.argmax(-1) == targets.argmax(-1)).mean()),
        "vulnerable_with_group": int(known.sum()),
        "group_accuracy": right(logits),
        "group_accuracy_of_router": right(targets),
    }
