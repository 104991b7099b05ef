"""Steps of the teacher side: single teacher, router, experts, their scores, the mixture and its controls."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moekd.steps import Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moekd.config import MoekdSettings


def teacher_steps(settings: MoekdSettings, data: Step, encoder: Step, seed: int) -> dict[str, Step]:
    """Single teacher, router, mixture with its experts, and the controls that the wanted students need, by name."""
    corpus = {"data": data, "encoder": encoder}
    partition = _partition(settings, data, encoder, settings.partition.scheme, seed)
    teacher = Step(
        "teacher",
        "moekd.experts.training:train_teacher",
        reads=("encoder", "teacher.training"),
        needs=corpus,
        variant={"system": "teacher", "seed": seed},
    )
    control = replace(teacher, variant={"system": "teacher-random-weights", "seed": seed})
    controls = {"teacher from random weights": control} if settings.teacher.random_control else {}
    if settings.data.task != "binary":  # no groups of vulnerabilities, so no experts
        return {"teacher": teacher, **controls}
    router = _router(settings, corpus, partition, teacher, seed)
    scores = _scores(settings, corpus, partition, router, teacher, seed, settings.partition.scheme)
    systems = {
        "teacher": teacher,
        "router": router,
        "experts": scores.needs["experts"],
        "scores": scores,
        "mixture": _mixture(data, partition, scores, seed, "mixture", "top-k"),
    }
    systems |= controls
    if settings.experts.mode == "full":
        asked = {name: systems[name] for name in ("router", "experts", "mixture")}
        systems["saved mixture"] = Step(
            "saved-mixture",
            "moekd.mixture.model:save_mixture",
            reads=("mixture",),
            needs={"partition": partition, **asked},
            variant={"seed": seed},
        )
    if "ensemble" in settings.student.systems:
        systems["ensemble"] = _mixture(data, partition, scores, seed, "ensemble", "ensemble")
    if "random-partition" in settings.student.systems:
        dealt = _partition(settings, data, encoder, "random", seed)
        if settings.partition.scheme == "kmeans":  # as many groups, and as large, as the router knows
            dealt = replace(dealt, needs={**dealt.needs, "like": partition})
        scores = _scores(settings, corpus, dealt, router, teacher, seed, "random")
        name = "mixture-random-partition"
        systems[name] = _mixture(data, dealt, scores, seed, name, "top-k")
    return systems


def _router(settings: MoekdSettings, corpus: Mapping[str, Step], partition: Step, teacher: Step, seed: int) -> Step:
    """The router; in `shared` mode it comes with the shared encoder."""
    needs = {**corpus, "partition": partition}
    variant: dict[str, str | int] = {"system": "router", "seed": seed}
    if settings.experts.mode == "shared":
        return Step(
            "shared-encoder",
            "moekd.experts.shared:train_shared",
            reads=("encoder", "experts.training", "router.gamma"),
            needs=needs,
            variant=variant,
            version=3,
        )
    if settings.router.start == "teacher":
        needs["teacher"] = teacher
    return Step(
        "router",
        "moekd.experts.training:train_router",
        reads=("encoder", "router"),
        needs=needs,
        variant=variant,
        version=2,
    )


def _scores(
    settings: MoekdSettings,
    corpus: Mapping[str, Step],
    partition: Step,
    router: Step,
    teacher: Step,
    seed: int,
    name: str,
) -> Step:
    """The experts of one partition, and their answers to half B, validation and test."""
    needs = {**corpus, "partition": partition}
    variant: dict[str, str | int] = {"partition": name, "seed": seed}
    if settings.experts.mode == "shared":
        experts = Step(
            "expert-heads",
            "moekd.experts.shared:train_heads",
            reads=("encoder", "experts"),
            needs={**needs, "shared": router},
            variant=variant,
        )
        asked = {"experts": experts, "shared": router}
    else:
        start = {"teacher": teacher} if settings.experts.start == "teacher" else {}
        experts = Step(
            "experts",
            "moekd.experts.training:train_experts",
            reads=("encoder", "experts"),
            needs={**needs, **start},
            variant=variant,
            version=2,
        )
        asked = {"experts": experts, "router": router}
    selected = settings.mixture.table == "selected"
    return Step(
        "scores",
        "moekd.mixture.score:score_experts",
        reads=("encoder", "experts", "router.model", "mixture.table", *(("mixture.k",) if selected else ())),
        needs={**needs, **asked},
        variant=variant,
    )


def _mixture(data: Step, partition: Step, scores: Step, seed: int, system: str, rule: str) -> Step:
    return Step(
        "mixture",
        "moekd.mixture:fuse_table",
        reads=("mixture",),
        needs={"data": data, "partition": partition, "scores": scores},
        variant={"system": system, "rule": rule, "seed": seed},
    )


def _partition(settings: MoekdSettings, data: Step, encoder: Step, scheme: str, seed: int) -> Step:
    """CWE groups are the same for every seed; random and k-means ones are not."""
    needs = {"data": data}
    variant: dict[str, str | int] = {"scheme": scheme}
    if scheme != "cwe":
        variant["seed"] = seed
    if scheme == "kmeans":
        needs["embeddings"] = Step(
            "embeddings",
            "moekd.experts.shared:embed",
            reads=("encoder", "experts.training.bf16"),
            needs={"data": data, "encoder": encoder},
            variant={"seed": seed},
        )
    return Step("partition", "moekd.partition:assign", reads=("partition",), needs=needs, variant=variant)
