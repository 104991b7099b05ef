"""Steps that attack the models of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moekd.config import ATTACK_READS, SUBSTITUTES_READ
from moekd.steps import Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moekd.config import MoekdSettings


def attack_steps(settings: MoekdSettings, data: Step, reported: Sequence[Step], seed: int) -> list[Step]:
    """A step for each attack on each wanted system of this seed that is a model; none unless asked for."""
    wanted = settings.attack
    substitutes = Step(
        "substitutes",
        "moekd.attack.stage:propose",
        reads=tuple(f"attack.{name}" for name in ("samples", "seed", *SUBSTITUTES_READ)),
        needs={"data": data},
        external="moekd.classifier:masked_lm_digests",
    )
    attacks = []
    for step in reported:
        kind = _attacked_kind(step)
        if kind in wanted.systems and step.variant.get("seed", settings.run.seeds[0]) == seed:
            variant = {"system": "mixture", **step.variant} if step.stage == "saved-mixture" else step.variant
            attacks += [
                Step(
                    "attack",
                    "moekd.attack.stage:attack_system",
                    reads=tuple(f"attack.{setting}" for setting in ATTACK_READS[name]),
                    needs={"data": data, "victim": step} | ({"substitutes": substitutes} if name == "alert" else {}),
                    variant={"attack": name, **variant},
                )
                for name in wanted.attacks
            ]
    return attacks + _transfer(data, attacks, seed)


def _transfer(data: Step, attacks: Sequence[Step], seed: int) -> list[Step]:
    """What fooled one model, scored by the others; nothing with fewer than two."""
    if len({step.needs["victim"] for step in attacks}) < 2:
        return []
    needs = {"data": data} | {step.label: step for step in attacks}
    needs |= {f"victim of {step.label}": step.needs["victim"] for step in attacks}
    reads = ("attack.bf16", "evaluate.confidence")
    return [Step("transfer", "moekd.attack.stage:transfer_systems", reads=reads, needs=needs, variant={"seed": seed})]


def _attacked_kind(step: Step) -> str | None:
    """What `attack.systems` calls the model of a step; None for steps that make none."""
    if step.stage == "baseline" and step.variant["system"] == "bag-of-tokens":
        return "bag-of-tokens"
    return {"teacher": "teacher", "saved-mixture": "mixture", "student": "students"}.get(step.stage)
