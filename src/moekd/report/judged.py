"""One finished step as it is judged, and what every number of it is made with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import evaluate
from moekd.scorer import aligned, load_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moekd.config import MoekdSettings
    from moekd.evaluate import Estimate, Measures
    from moekd.records import AttackResult, Sample

PREDICTIONS_FILE = "predictions.npz"
ATTACK_FILE = "results.jsonl"


@dataclass(frozen=True)
class Judged:
    """One finished step whose numbers go into the table."""

    label: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def system(self) -> str:
        """The system's name; a step that answers nothing itself, such as `experts`, is named by its stage."""
        variant = self.manifest["variant"]
        control = "-random-partition" if variant.get("partition") == "random" else ""
        return variant.get("system", self.manifest["stage"] + control)

    @property
    def student(self) -> str | None:
        return self.manifest["variant"].get("student")

    @property
    def seed(self) -> int | None:
        return self.manifest["variant"].get("seed")

    @property
    def about(self) -> dict[str, Any]:
        return {"system": self.system, "student": self.student, "seed": self.seed}

    @property
    def cost(self) -> dict[str, float]:
        return self.manifest["facts"].get("rows", {})

    @property
    def attacked(self) -> bool:
        return self.manifest["stage"] == "attack"

    def attacks(self) -> dict[str, list[AttackResult]]:
        """Results of each attack on this system, by the attack's name."""
        from moekd.attack import read_results

        found: dict[str, list[AttackResult]] = {}
        for one in read_results(self.folder / ATTACK_FILE):
            found.setdefault(one.attack, []).append(one)
        return found

    @property
    def answers(self) -> bool:
        return (self.folder / PREDICTIONS_FILE).exists()

    def logits(self, samples: Sequence[Sample]) -> np.ndarray:
        path = self.folder / PREDICTIONS_FILE
        return aligned(load_scores(path), samples, source=f"{self.label}, {PREDICTIONS_FILE}")


def estimate(settings: MoekdSettings, measures: Measures, n: int) -> dict[str, Estimate]:
    """Each measure of `n` samples with its interval, as the settings want it."""
    wanted = settings.evaluate
    return evaluate.estimate(measures, n, bootstrap=wanted.bootstrap, confidence=wanted.confidence)


def number(value: float) -> float | None:
    """None for NaN, which JSON has not."""
    return None if math.isnan(value) else value


def labels_of(samples: Sequence[Sample]) -> np.ndarray:
    """Class of each sample, int64, (n,)."""
    return np.array([s.label for s in samples])
