"""Fusion of the experts' outputs into one teacher (MoEKD, arXiv:2603.13213, section 3.2).

Experts and router score each sample once, into a table on disk; everything here works on that table or on any
list of scorers, without a model library. Letters in shapes: n samples, K experts, k of them selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from moekd.errors import DataError, SettingsError
from moekd.files import read_arrays, read_json, sha256_file, sha256_text, write_arrays, write_json
from moekd.scorer import rows_of, save_scores, scores_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moekd.config import MoekdSettings
    from moekd.records import Sample, Scorer, Scores

Weights = Literal["renormalised", "softmax-of-probabilities"]
Fusion = Literal["logits", "probabilities", "maximum"]

TABLE_FILE = "table.npz"
TARGETS_FILE = "targets.npz"
PREDICTIONS_FILE = "predictions.npz"

_CONFIG = "moe.json"
_ROUTER = "router"

#: Bounds of a calibration temperature. A sharper or flatter expert than this has too few rows to tell.
_TEMPERATURES = (0.05, 20.0)


# ------------------------------------------------------------------------------------------ pure functions


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log of the softmax over the last axis, float64, without overflow."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def top_k(router_logits: np.ndarray, k: int) -> np.ndarray:
    """Return the k most probable experts of each sample, most probable first, int64, (n, k).

    Args:
        router_logits: (n, K). The softmax keeps their order, so probabilities select the same; but very small
            ones round to equal values, so everything here selects by logits. Equal logits: lower index first.
    Raises:
        SettingsError: k is larger than the number of experts.
    """
    experts = router_logits.shape[1]
    if not 1 <= k <= experts:
        raise SettingsError(f"mixture.k is {k}, but there are {experts} experts; set it to 1 ... {experts}")
    return np.argsort(-router_logits, axis=1, kind="stable")[:, :k]


def selected_weights(router_probabilities: np.ndarray, selected: np.ndarray, *, rule: Weights) -> np.ndarray:
    """Return the weight of each selected expert, (n, k), non-negative, each row adding up to 1.

    Args:
        router_probabilities: (n, K).
        selected: experts, (n, k), as `top_k` returns them.
        rule: `renormalised` divides by the sum over the selected (MoEKD); `softmax-of-probabilities` takes
            the softmax of the probabilities themselves, which flattens them: 0.9 and 0.05 become 0.70 and
            0.30 (what MoEVD's published scripts do, arXiv:2501.16454).
    """
    chosen = np.take_along_axis(router_probabilities, selected, axis=1)  # (n, k)
    if rule == "softmax-of-probabilities":
        return np.exp(log_softmax(chosen))
    return chosen / chosen.sum(axis=1, keepdims=True)


def fuse(
    router_logits: np.ndarray, expert_logits: np.ndarray, *, k: int, weights: Weights, fusion: Fusion
) -> np.ndarray:
    """Return the mixture's logits, float64, (n, 2).

    Args:
        router_logits: (n, K).
        expert_logits: (n, K, 2); NaN where an expert was not asked. Calibrated ones are divided by their
            temperature before.
        k: experts selected for a sample.
        weights: see `selected_weights`.
        fusion: `logits` is the weighted mean of logits (MoEKD, equation 3); `probabilities` the log of the
            weighted mean of class probabilities; `maximum` the logits of the selected expert that is surest
            of "vulnerable", whatever its weight: one expert's alarm is the mixture's. Of equally sure ones
            the router's first choice counts.
    Raises:
        SettingsError: k is larger than the number of experts.
        DataError: a selected expert was not asked about its sample.
    """
    _require_shapes(router_logits, expert_logits)
    probabilities = np.exp(log_softmax(router_logits))
    selected = top_k(router_logits, k)
    share = selected_weights(probabilities, selected, rule=weights)[:, :, None]  # (n, k, 1)
    chosen = np.take_along_axis(expert_logits, selected[:, :, None], axis=1).astype(np.float64)  # (n, k, 2)
    _require_answers(chosen, f"the {k} experts that the router selects")
    if fusion == "maximum":
        surest = (chosen[:, :, 1] - chosen[:, :, 0]).argmax(axis=1)
        return np.take_along_axis(chosen, surest[:, None, None], axis=1)[:, 0]
    if fusion == "probabilities":
        log_p = log_softmax(chosen)
        peak = log_p.max(axis=1, keepdims=True)  # taken out so that no probability underflows to log 0
        return np.log((share * np.exp(log_p - peak)).sum(axis=1)) + peak[:, 0]
    return (share * chosen).sum(axis=1)


def plain_ensemble(expert_logits: np.ndarray) -> np.ndarray:
    """Return the mean of all experts' logits, float64, (n, 2): the control without a router.

    Raises DataError if an expert was not asked about a sample.
    """
    _require_answers(expert_logits, "all experts, whose mean is the plain ensemble")
    return expert_logits.mean(axis=1, dtype=np.float64)


def calibration_temperatures(expert_logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the temperature of each expert that makes its answers fit the labels best, (K,).

    One positive number divides an expert's logits; it minimises the mean negative log-likelihood on the rows
    that the expert was asked about and never changes the expert's decisions. An expert with no rows, or with
    rows of one class, keeps 1.0.

    Args:
        expert_logits: (n, K, 2) of validation samples; rows with NaN are left out, expert by expert.
        labels: 0 or 1, (n,).
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    return np.array([_temperature(expert_logits[:, e], labels) for e in range(expert_logits.shape[1])])


def _temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    from scipy.optimize import minimize_scalar

    asked = ~np.isnan(logits).any(axis=1)
    known, wanted = logits[asked], labels[asked]
    if len(np.unique(wanted)) < 2:
        return 1.0

    def loss_nats(log_temperature: float) -> float:
        return -log_softmax(known / np.exp(log_temperature))[np.arange(len(wanted)), wanted].mean()

    # The loss is convex in 1/T, so it has one valley in log T as well.
    bounds = tuple(np.log(_TEMPERATURES))
    return float(np.exp(minimize_scalar(loss_nats, bounds=bounds, method="bounded").x))


def _require_shapes(router_logits: np.ndarray, expert_logits: np.ndarray) -> None:
    if router_logits.ndim != 2 or expert_logits.shape != (*router_logits.shape, 2):
        raise ValueError(
            f"router logits must be (n, K) and expert logits (n, K, 2), got {router_logits.shape} and "
            f"{expert_logits.shape}"
        )


def _require_answers(logits: np.ndarray, who: str) -> None:
    unanswered = int(np.isnan(logits).any(axis=(1, 2)).sum())
    if unanswered:
        raise DataError(
            f"{unanswered} of {len(logits)} samples lack an answer of {who}: the table holds only the "
            'experts that were selected when it was made. Set mixture.table = "complete" to ask all of them'
        )


# --------------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Table:
    """Every score of the teacher side, one row a sample, aligned by id and content digest.

    Attributes:
        ids, digests, parts: of the samples, n each; `parts` are names of records.PARTS.
        router: logits over groups, float32, (n, K).
        experts: logits of each expert, float32, (n, K, 2); NaN where it was not asked.
    """

    ids: tuple[str, ...]
    digests: tuple[str, ...]
    parts: tuple[str, ...]
    router: np.ndarray
    experts: np.ndarray

    def __post_init__(self) -> None:
        _require_shapes(self.router, self.experts)
        lengths = {len(self.ids), len(self.digests), len(self.parts), len(self.router)}
        if len(lengths) != 1 or len(set(self.ids)) != len(self.ids):
            raise DataError(
                f"{TABLE_FILE} is misaligned: {len(self.ids)} ids ({len(set(self.ids))} distinct), "
                f"{len(self.digests)} digests, {len(self.parts)} parts, {len(self.router)} rows of scores; "
                "score the data set again"
            )

    def rows(self, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
        """Return router logits (m, K) and expert logits (m, K, 2) of `samples`, in their order.

        Raises DataError if a sample is missing or its text is not the one that was scored.
        """
        rows = rows_of(self.ids, self.digests, samples, source=TABLE_FILE)
        return self.router[rows], self.experts[rows]


def save_table(folder: Path, table: Table) -> None:
    write_arrays(
        folder / TABLE_FILE,
        {
            "ids": np.array(table.ids),
            "digests": np.array(table.digests),
            "part": np.array(table.parts),
            "router": table.router.astype(np.float32),
            "experts": table.experts.astype(np.float32),
        },
    )


def load_table(folder: Path) -> Table:
    """Read what `save_table` wrote. Raises DataError if its columns do not belong together."""
    stored = read_arrays(folder / TABLE_FILE)
    ids, digests, parts = (tuple(stored[name].tolist()) for name in ("ids", "digests", "part"))
    return Table(ids, digests, parts, stored["router"], stored["experts"])


# --------------------------------------------------------------------------------------------------- stage


def fuse_table(
    settings: MoekdSettings,
    inputs: Mapping[str, Path],
    folder: Path,
    *,
    rule: Literal["top-k", "ensemble"],
    **_: Any,
) -> dict[str, Any]:
    """Turn the score table into one teacher's answers.

    Writes `targets.npz`, the Scores of half B that students learn from, and `predictions.npz`, those of
    validation and test.

    Args:
        inputs: `data`, `scores` (folder of the table) and `partition`.
        rule: `top-k` is the mixture as set in `settings.mixture`; `ensemble` is the mean of all experts.
    Returns:
        Accuracy on validation, temperatures, and for `top-k` the share of weight on the first expert and how
        many functions of half B the router sends first to each group.
    Raises:
        SettingsError: k is larger than the number of experts.
        DataError: the table misses a sample or a needed answer, or was made for other groups.
    """
    from moekd import partition
    from moekd.data import load_parts

    parts = load_parts(inputs["data"])
    table = load_table(inputs["scores"])
    groups = partition.load(inputs["partition"]).names
    if len(groups) != table.router.shape[1]:
        raise DataError(
            f"{TABLE_FILE} holds scores of {table.router.shape[1]} experts, but the partition has "
            f"{len(groups)} groups; score the data set again"
        )
    temperatures = _temperatures(settings, rule, *table.rows(parts["valid"]), _labels(parts["valid"]))

    def answers(samples: Sequence[Sample]) -> Scores:
        router, experts = table.rows(samples)
        calibrated = experts / temperatures[:, None]
        if rule == "ensemble":
            return scores_of(samples, plain_ensemble(calibrated))
        wanted = settings.mixture
        fused = fuse(router, calibrated, k=wanted.k, weights=wanted.weights, fusion=wanted.fusion)
        return scores_of(samples, fused)

    save_scores(folder / TARGETS_FILE, answers(parts["train_b"]))
    save_scores(folder / PREDICTIONS_FILE, answers((*parts["valid"], *parts["test"])))
    facts = {
        "valid_accuracy": _accuracy(answers(parts["valid"]).logits, _labels(parts["valid"])),
        "temperatures": dict(zip(groups, temperatures.tolist(), strict=True)),
    }
    return facts if rule == "ensemble" else facts | _routing(settings, table, parts["train_b"], groups)


def _temperatures(
    settings: MoekdSettings, rule: str, router: np.ndarray, experts: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    if settings.mixture.calibration == "none":
        return np.ones(experts.shape[1])
    if rule == "ensemble":
        return calibration_temperatures(experts, labels)
    # Each expert is fitted on the samples the router would send it, the only ones whose answer counts;
    # so a table of selected experts and a complete one give the same temperatures.
    used = np.zeros(router.shape, dtype=bool)
    np.put_along_axis(used, top_k(router, settings.mixture.k), True, axis=1)
    return calibration_temperatures(np.where(used[:, :, None], experts, np.nan), labels)


def _routing(settings: MoekdSettings, table: Table, samples: Sequence[Sample], groups: Sequence[str]) -> dict[str, Any]:
    router, _ = table.rows(samples)
    probabilities = np.exp(log_softmax(router))
    selected = top_k(router, settings.mixture.k)
    weights = selected_weights(probabilities, selected, rule=settings.mixture.weights)
    labels = _labels(samples)

    def first_choices(label: int) -> dict[str, int]:
        counts = np.bincount(selected[labels == label, 0], minlength=len(groups))
        return dict(zip(groups, counts.tolist(), strict=True))

    return {
        "first_expert_mean_weight": float(weights[:, 0].mean()),
        "half_b_first_choice_benign": first_choices(0),
        "half_b_first_choice_vulnerable": first_choices(1),
    }


def _labels(samples: Sequence[Sample]) -> np.ndarray:
    return np.array([s.label for s in samples])


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(((logits[:, 1] > logits[:, 0]) == (labels == 1)).mean())


# ------------------------------------------------------------------------------------- the mixture as a model


@runtime_checkable
class SavedScorer(Protocol):
    """A scorer that can write itself into a folder, as `moekd.classifier.Classifier` does."""

    def logits(self, texts: Sequence[str]) -> np.ndarray: ...

    def save_pretrained(self, folder: str | Path) -> None: ...


class Mixture:
    """Router and experts as one model: texts in, fused logits out; 1 + k encoder passes a text.

    Attributes:
        router: logits over groups, (texts, K).
        experts: one scorer of two classes for each group.
        groups: their names, in the order of the router's classes; also the names of the experts' folders.
        k, weights, fusion: see `fuse`.
        temperatures: calibration, one positive number an expert; 1.0 leaves its logits as they are.
    """

    def __init__(
        self,
        router: Scorer,
        experts: Sequence[Scorer],
        *,
        groups: Sequence[str],
        k: int,
        weights: Weights = "renormalised",
        fusion: Fusion = "logits",
        temperatures: Sequence[float] | None = None,
    ) -> None:
        self.router = router
        self.experts = tuple(experts)
        self.groups = tuple(groups)
        self.k = k
        self.weights: Weights = weights
        self.fusion: Fusion = fusion
        self.temperatures = tuple(temperatures or (1.0,) * len(self.groups))
        if not len(self.experts) == len(self.groups) == len(self.temperatures):
            raise ValueError(
                f"{len(self.experts)} experts, {len(self.groups)} groups and {len(self.temperatures)} "
                "temperatures: there must be one of each for every group"
            )

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 logits, (texts, 2), in the order of the texts; only the selected experts are asked.

        Raises SettingsError if k is larger than the number of experts.
        """
        router = self.router.logits(texts)
        selected = top_k(router, self.k)
        answers = np.full((*router.shape, 2), np.nan)
        for index, expert in enumerate(self.experts):
            rows = np.flatnonzero((selected == index).any(axis=1)).tolist()
            if rows:
                answers[rows, index] = expert.logits([texts[row] for row in rows]) / self.temperatures[index]
        fused = fuse(router, answers, k=self.k, weights=self.weights, fusion=self.fusion)
        return fused.astype(np.float32)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `moe.json`, `router/` and one sub-folder an expert; `moe.json` comes last.

        Raises ValueError if a group's name cannot be a folder or a scorer cannot save itself.
        """
        folder = Path(folder)
        scorers = dict(zip((_ROUTER, *self.groups), (self.router, *self.experts), strict=True))
        for name in self.groups:
            if name == _ROUTER or Path(name).name != name:
                raise ValueError(f"the group name {name!r} cannot be the name of an expert's folder")
        for name, scorer in scorers.items():
            if not isinstance(scorer, SavedScorer):
                raise ValueError(f"{name!r} is a {type(scorer).__name__}, which has no save_pretrained")
            scorer.save_pretrained(folder / name)
        write_json(
            folder / _CONFIG,
            {
                "groups": list(self.groups),
                "k": self.k,
                "weights": self.weights,
                "fusion": self.fusion,
                "temperatures": list(self.temperatures),
                "digests": {name: _digest_of(folder / name) for name in scorers},
            },
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Mixture:
        """Load what `save_pretrained` wrote.

        Raises DataError if `moe.json` is missing or a sub-folder is not the one that was saved.
        """
        from moekd.classifier import Classifier

        folder = Path(folder)
        if not (folder / _CONFIG).is_file():
            raise DataError(f"{folder} is no saved mixture: it has no {_CONFIG}")
        stored = read_json(folder / _CONFIG)
        for name, digest in stored.pop("digests").items():
            if _digest_of(folder / name) != digest:
                raise DataError(
                    f"{folder / name} is not what was saved with this mixture: its files differ from the "
                    f"digest in {_CONFIG}; copy the whole folder again or save the mixture again"
                )
        router, *experts = (Classifier.from_pretrained(folder / name) for name in (_ROUTER, *stored["groups"]))
        return cls(router, experts, **stored)


def _digest_of(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256_text("\n".join(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}" for path in files))
