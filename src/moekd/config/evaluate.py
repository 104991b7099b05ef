"""How models are judged: `[evaluate]`, `[attack]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from moekd.config.base import Settings


class Evaluate(Settings):
    """Measures and their uncertainty."""

    bootstrap: int = Field(1000, ge=100)  # resamples for intervals and paired tests
    confidence: float = Field(0.95, gt=0, lt=1)


AttackName = Literal["alert", "mhm", "wir-random"]
AttackedSystem = Literal["bag-of-tokens", "teacher", "mixture", "students"]


class Attack(Settings):
    """Attacks by renaming local variables (methods.md 7.2 to 7.4)."""

    attacks: tuple[AttackName, ...] = ()  # none: nothing is attacked
    systems: tuple[AttackedSystem, ...] = Field(("bag-of-tokens", "teacher", "mixture", "students"), min_length=1)
    samples: int = Field(200, ge=1)  # test functions, drawn by seed; the same ones for every model
    seed: int = 0  # of the functions and of every attack
    budget: int = Field(2000, ge=0)  # most distinct texts that a model is asked for in one attack, original included
    candidates: int = Field(30, ge=1)  # names tried for an identifier at a time
    vocabulary: int = Field(5000, ge=1)  # mhm, wir-random: most frequent names of the training functions to draw from
    iterations: int = Field(100, ge=1)  # mhm; at 30 candidates each, the default budget ends it after 66
    mhm_rule: Literal["metropolis", "hill-climbing"] = "metropolis"  # the latter as in the references' runs
    masked_lm: str = "moekd-mini"  # alert: masked language model that proposes names; ours, a folder or a hub name
    masked_lm_revision: str | None = None  # alert: pinned revision of a hub model
    ranks: int = Field(60, ge=1)  # alert: predictions considered at each token
    occurrences: int = Field(3, ge=1)  # alert: places of an identifier where predictions are made
    context: int = Field(8, ge=1)  # alert: tokens around a place that are computed anew for each prediction
    genetic: bool = True  # alert: the second stage
    generations: int = Field(5, ge=1)  # alert, genetic: for each member of the population, 10 in all at least
    children: int = Field(64, ge=1)  # alert, genetic: of a generation
    crossover: float = Field(0.7, ge=0, le=1)  # alert, genetic: probability; else mutation
    minimal: bool = False  # look for the fewest renames of each success; their queries come on top of the budget
    bf16: bool = False  # score in bfloat16 where it is fast; figures are quoted from fp32

    def of(self, attack: AttackName) -> Attack:
        """Return the settings of one attack alone; those that it does not read have their defaults."""
        return Attack(attacks=(attack,), **{name: getattr(self, name) for name in ATTACK_READS[attack]})


_EVERY_ATTACK_READS = ("samples", "seed", "budget", "candidates", "minimal", "bf16")

#: Settings that change the results of an attack; its candidate names from elsewhere apart.
ATTACK_READS: dict[AttackName, tuple[str, ...]] = {
    "alert": (*_EVERY_ATTACK_READS, "genetic", "generations", "children", "crossover"),
    "mhm": (*_EVERY_ATTACK_READS, "vocabulary", "iterations", "mhm_rule"),
    "wir-random": (*_EVERY_ATTACK_READS, "vocabulary"),
}

#: Settings that change ALERT's candidate names.
SUBSTITUTES_READ = ("masked_lm", "masked_lm_revision", "candidates", "ranks", "occurrences", "context")
