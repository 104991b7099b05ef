"""The table of every expert's and the router's answers, and the stage that fuses it into one teacher.

Experts and router score each sample once; k, weights, fusion and calibration then cost nothing to change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moekd.errors import DataError
from moekd.files import read_arrays, write_arrays
from moekd.mixture.fusion import (
    calibration_temperatures,
    fuse,
    log_softmax,
    plain_ensemble,
    require_shapes,
    selected_weights,
    top_k,
)
from moekd.scorer import rows_of, save_scores, scores_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from moekd.config import MoekdSettings
    from moekd.records import Sample, Scores

TABLE_FILE = "table.npz"
TARGETS_FILE = "targets.npz"
PREDICTIONS_FILE = "predictions.npz"


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
        require_shapes(self.router, self.experts)
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
