"""The order of the pipeline on one screen: which steps a run consists of, and what each is given.

    data -> baselines (length, bag of tokens)
         -> encoder -> teacher
                    -> partition -> router, experts -> scores -> mixture -> students -> results

`full` experts are an encoder each, with a router of their own; `shared` ones are heads on one encoder that is its own
router. Every control of the paper's question is a step like any other: the same function with other inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moekd.steps import Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moekd.config import MoekdSettings

BASELINES = ("length", "bag-of-tokens-half-a", "bag-of-tokens")

#: What each student learns from: the system whose targets it is given.
TARGETS = {
    "moe": "mixture",
    "single": "teacher",
    "hard": None,
    "ensemble": "ensemble",
    "random-partition": "mixture-random-partition",
}


def plan(settings: MoekdSettings) -> list[Step]:
    """Return the steps of a run, each after what it needs; the last one writes the results."""
    data = data_step()
    encoder = Step("encoder", "moekd.experts.encoder:tokenize", reads=("encoder",), needs={"data": data})
    judged = [_baseline(data, system) for system in BASELINES]
    students = []
    partitions = {}
    tokens = {
        shape: Step(
            "student-tokens",
            "moekd.students.tokenize:tokenize",
            needs={"data": data},
            variant={"student": shape},
        )
        for shape in settings.student.shapes
    }
    for seed in settings.run.seeds:
        partitions[seed] = _partition(settings, data, encoder, settings.partition.scheme, seed)
        systems = _teacher_side(settings, data, encoder, partitions[seed], seed)
        judged += systems.values()
        students += [
            _student(data, tokens[shape], system, shape, seed, systems)
            for shape in settings.student.shapes
            for system in settings.student.systems
        ]
    first = partitions[settings.run.seeds[0]]
    judged += students
    results = Step(
        "results",
        "moekd.report:results",
        reads=("name", "run", "data.split", "evaluate"),
        needs={"data": data, "partition": first} | {step.label: step for step in judged},
    )
    return [data, encoder, *judged, results]


def data_step() -> Step:
    """Read, clean, balance and split: all that `moekd data describe` needs."""
    return Step("data", "moekd.data:prepare", reads=("data",), external="moekd.data.readers:source_digests")


def _baseline(data: Step, system: str) -> Step:
    return Step("baseline", "moekd.data.leaks:baseline", needs={"data": data}, variant={"system": system})


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
            reads=("encoder",),
            needs={"data": data, "encoder": encoder},
            variant={"seed": seed},
        )
    return Step("partition", "moekd.partition:assign", reads=("partition",), needs=needs, variant=variant)


def _teacher_side(
    settings: MoekdSettings, data: Step, encoder: Step, partition: Step, seed: int
) -> dict[str, Step]:
    """Single teacher, router, mixture, and the controls that the wanted students need, by system."""
    corpus = {"data": data, "encoder": encoder}
    teacher = Step(
        "teacher",
        "moekd.experts.training:train_teacher",
        reads=("encoder", "teacher"),
        needs=corpus,
        variant={"system": "teacher", "seed": seed},
    )
    router = _router(settings, corpus, partition, teacher, seed)
    scores = _scores(settings, corpus, partition, router, teacher, seed, "cwe")
    systems = {
        "teacher": teacher,
        "router": router,
        "mixture": _mixture(data, partition, scores, seed, "mixture", "top-k"),
    }
    if "ensemble" in settings.student.systems:
        systems["ensemble"] = _mixture(data, partition, scores, seed, "ensemble", "ensemble")
    if "random-partition" in settings.student.systems:
        dealt = _partition(settings, data, encoder, "random", seed)
        scores = _scores(settings, corpus, dealt, router, teacher, seed, "random")
        name = "mixture-random-partition"
        systems[name] = _mixture(data, dealt, scores, seed, name, "top-k")
    return systems


def _router(
    settings: MoekdSettings, corpus: Mapping[str, Step], partition: Step, teacher: Step, seed: int
) -> Step:
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
        )
    if settings.router.start == "teacher":
        needs["teacher"] = teacher
    return Step(
        "router",
        "moekd.experts.training:train_router",
        reads=("encoder", "router"),
        needs=needs,
        variant=variant,
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
        )
        asked = {"experts": experts, "router": router}
    selected = settings.mixture.table == "selected"
    return Step(
        "scores",
        "moekd.score_experts:score_experts",
        reads=("encoder", "experts", "mixture.table", *(("mixture.k",) if selected else ())),
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


def _student(
    data: Step, tokens: Step, system: str, shape: str, seed: int, teachers: Mapping[str, Step]
) -> Step:
    needs = {"data": data, "tokens": tokens}
    target = TARGETS[system]
    if target is not None:
        needs["targets"] = teachers[target]
    return Step(
        "student",
        "moekd.distill.student:train_student",
        reads=("student.training", *(("distill",) if target else ())),
        needs=needs,
        variant={"system": f"student-{system}", "student": shape, "seed": seed},
    )
