"""The order of the pipeline on one screen: which steps a run consists of, and what each is given.

    data -> baselines (length, bag of tokens)
         -> encoder -> teacher
                    -> partition -> router, experts -> scores -> mixture -> students -> attacks -> results
                                                                                     -> group heads

Where the settings ask for a loss of features, a step between a teacher and its students reads its hidden states once.

`full` experts are an encoder each, with a router of their own; `shared` ones are heads on one encoder that is its own
router. Every control of the paper's question is a step like any other: the same function with other inputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moekd.config import ATTACK_READS, SUBSTITUTES_READ
from moekd.errors import SettingsError
from moekd.experts.training import FLAWED_TEACHERS
from moekd.steps import Step, folder_of, help_with, is_finished, run_steps
from moekd.students import published
from moekd.students.shapes import shape_named

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from moekd.config import MoekdSettings, PretrainSettings
    from moekd.students.search import Kind

BASELINES = ("length", "bag-of-tokens-half-a", "bag-of-tokens")

#: What each student learns from: the system whose targets it is given.
TARGETS = {
    "moe": "mixture",
    "single": "teacher",
    "hard": None,
    "ensemble": "ensemble",
    "random-partition": "mixture-random-partition",
    "pioneer": "teacher",
    "soda": "teacher",
}


def run(settings: MoekdSettings, only: Collection[str] = ()) -> Path:
    """Run the whole pipeline and return the folder of its results: results.json and results.md.

    Finished steps are reused, and a run that was stopped at any moment continues.

    Args:
        only: names of systems or stages. Then these alone, with what they need, are brought to their end, and the
            results are of whatever has finished, now or earlier.
    """
    *steps, results = plan(settings)
    always = [results.needs[name] for name in ("data", "partition") if name in results.needs]
    if "partition" in results.needs:
        _require_experts(settings, results.needs["partition"])
    if only:
        run_steps([*_chosen(steps, only), *always], settings)
        reported = {name: step for name, step in results.needs.items() if is_finished(step, settings)}
        results = replace(results, needs=reported)
    else:
        run_steps(steps, settings)
    return run_steps([results], settings)[results.label]


def _chosen(steps: Sequence[Step], only: Collection[str]) -> list[Step]:
    names = {step: {step.stage, str(step.variant.get("system", step.stage))} for step in steps}
    known = set().union(*names.values())
    for name in only:
        if name not in known:
            raise SettingsError(f"--only {name}: no such system or stage; this config has {', '.join(sorted(known))}")
    return [step for step in steps if names[step] & set(only)]


def pretrain(settings: PretrainSettings) -> Path:
    """Pre-train an encoder and return the folder that holds it as `model/`.

    Under `accelerate launch` the first process prepares the corpus and writes the results; the others help it train
    in the folder where it works, which they must be able to read.
    """
    from moekd import numerics

    rank, processes = numerics.rank_and_processes()
    step = pretrain_plan(settings)[-1]
    if rank == 0:
        run_steps(list(step.needs.values()), settings)
    numerics.wait_for_all()
    if rank == 0:
        if processes > 1:
            numerics.tell_all(not is_finished(step, settings))
        return run_steps([step], settings)[step.label]
    if numerics.tell_all(True):
        help_with(step, settings)
    return folder_of(step, settings)


def pretrain_plan(settings: PretrainSettings) -> list[Step]:
    """Return the steps of a pre-training run, each after what it needs."""
    corpus = Step(
        "corpus", "moekd.pretrain.corpus:collect", reads=("corpus",), external="moekd.pretrain.corpus:source_digests"
    )
    rows = Step(
        "rows",
        "moekd.pretrain.rows:pack",
        reads=("encoder.name", "encoder.revision", "encoder.vocabulary", "encoder.max_length", "pretrain.row_length"),
        needs={"corpus": corpus},
        external="moekd.classifier:encoder_digests",
    )
    encoder = Step(
        "pretrain",
        "moekd.pretrain.training:train",
        reads=("encoder", "pretrain"),
        needs={"rows": rows},
        variant={"seed": settings.run.seeds[0]},
    )
    return [corpus, rows, encoder]


def _require_experts(settings: MoekdSettings, partition: Step) -> None:
    """Refuse a k that the data's groups cannot serve before anything is trained."""
    from moekd.partition import load

    names = load(run_steps([partition], settings)[partition.label]).names
    if settings.mixture.k > len(names):
        raise SettingsError(
            f"mixture.k = {settings.mixture.k}, but these data have {len(names)} groups, so as many experts: "
            f"{', '.join(names)}. Set mixture.k to 1 ... {len(names)}, lower partition.min_samples, or pin "
            "more groups with partition.groups"
        )


def plan(settings: MoekdSettings) -> list[Step]:
    """Return the steps of a run, each after what it needs; the last one writes the results."""
    data = data_step()
    encoder = _encoder(data)
    tokens = {shape: _student_tokens(data, shape) for shape in settings.student.shapes}
    reported = [_baseline(data, system) for system in BASELINES]
    heads: list[Step] = []
    for seed in settings.run.seeds:
        teachers = _teacher_side(settings, data, encoder, seed)
        reported += teachers.values()
        students = [
            _student(settings, data, tokens[shape], system, shape, seed, teachers)
            for shape in settings.student.shapes
            for system in settings.student.systems
        ]
        reported += students
        if settings.student.group_head:
            heads += [_group_head(step, teachers["router"]) for step in students]
        reported += _published(settings, data, encoder, teachers["teacher"], seed)
        reported += _attacks(settings, data, reported, seed)
    # Groups of the per-group measures: those of the CWE taxonomy or the clusters of the first seed's router.
    routers = [step for step in reported if step.variant.get("system") == "router"]
    needs = {"data": data} | ({"partition": routers[0].needs["partition"]} if routers else {})
    needs |= {f"partition of seed {step.variant['seed']}": step.needs["partition"] for step in routers}
    results = Step(
        "results",
        "moekd.report:results",
        reads=("name", "run", "data.split", "evaluate"),
        needs=needs | {step.label: step for step in reported},
        version=2,
    )
    return [data, encoder, *reported, *heads, results]


def data_step() -> Step:
    """Read, clean, balance and split: all that `moekd data describe` needs."""
    return Step("data", "moekd.data:prepare", reads=("data",), external="moekd.data.readers:source_digests")


def candidates(settings: MoekdSettings, search: Kind, budget_bytes: int) -> Path:
    """Train the candidates of an architecture search and return the file of their measures.

    They learn from the mixture of the first seed, which is trained first if it is not there yet.

    Raises:
        SettingsError: the config asks for none, or for fewer than a surrogate can be fitted to.
    """
    from moekd.students.surrogate import MIN_POINTS

    if settings.search.points < MIN_POINTS:
        raise SettingsError(
            f"search.points is {settings.search.points}, and a surrogate needs {MIN_POINTS} candidates at least: set "
            f"search.points to {MIN_POINTS} or more, or give the file of evaluated ones with --points"
        )
    data, seed = data_step(), settings.run.seeds[0]
    step = Step(
        "candidates",
        "moekd.distill.candidates:train_candidates",
        reads=("search", "distill.temperature", "student.training"),
        needs={"data": data, "targets": _teacher_side(settings, data, _encoder(data), seed)["mixture"]},
        variant={"search": search, "budget_bytes": budget_bytes, "seed": seed},
    )
    return run_steps([step], settings)[step.label] / "points.jsonl"


def _encoder(data: Step) -> Step:
    return Step(
        "encoder",
        "moekd.experts.encoder:tokenize",
        reads=("encoder",),
        needs={"data": data},
        external="moekd.classifier:encoder_digests",
    )


def _student_tokens(data: Step, shape: str) -> Step:
    return Step(
        "student-tokens",
        "moekd.students.tokenize:tokenize",
        needs={"data": data},
        variant={"student": shape},
        external="moekd.students.shapes:start_digests" if shape_named(shape).start else None,
    )


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
            reads=("encoder", "experts.training.bf16"),
            needs={"data": data, "encoder": encoder},
            variant={"seed": seed},
        )
    return Step("partition", "moekd.partition:assign", reads=("partition",), needs=needs, variant=variant)


def _teacher_side(settings: MoekdSettings, data: Step, encoder: Step, seed: int) -> dict[str, Step]:
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


def _attacks(settings: MoekdSettings, data: Step, reported: Sequence[Step], seed: int) -> list[Step]:
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


def _published(settings: MoekdSettings, data: Step, encoder: Step, teacher: Step, seed: int) -> list[Step]:
    """The students of published methods in the wanted ways and sizes, and the flawed teachers that some learn from."""
    wanted = settings.published
    renamed = Step("renamed", "moekd.distill.published:rename", needs={"data": data}, variant={"seed": seed})
    teachers = {frozenset[str](): teacher} | {
        flaws: Step(
            "flawed-teacher",
            "moekd.experts.training:train_flawed_teacher",
            reads=("encoder", "teacher.training"),
            needs={"data": data, "encoder": encoder},
            variant={"system": system, "seed": seed},
        )
        for system, flaws in FLAWED_TEACHERS.items()
    }
    used: dict[str, Step] = {}
    students = []
    for method in wanted.systems:
        for size in wanted.sizes:
            student = published.student_named(method, size, settings)
            tokens = _published_tokens(data, student, renamed)
            for way in published.ways_of(method, wanted.ways):
                system = published.system_named(method, way)
                one = teachers[frozenset(published.parts_of(system)[1] & published.TEACHER_DEFECTS)]
                needs = {"data": data, "tokens": tokens, "targets": one}
                if one is not teacher:
                    used[one.label] = one
                if published.METHODS[method].renamed:
                    needs["renamed-targets"] = Step(
                        "renamed-targets",
                        "moekd.distill.published:score_renamed",
                        needs={"data": data, "renamed": renamed, "teacher": one},
                        variant=one.variant,
                    )
                students.append(
                    Step(
                        "student",
                        "moekd.distill.published:train_published",
                        reads=("published.epochs", "student.training.bf16"),
                        needs=needs,
                        variant={"system": system, "student": student, "seed": seed},
                    )
                )
    return [*used.values(), *students]


def _published_tokens(data: Step, student: str, renamed: Step) -> Step:
    return Step(
        "published-tokens",
        "moekd.students.published:tokenize_published",
        needs={"data": data} | ({"renamed": renamed} if published.method_of(student).renamed else {}),
        variant={"student": student},
        external="moekd.students.published:searched_digests" if student.endswith(published.SEARCHED) else None,
    )


def _student(
    settings: MoekdSettings,
    data: Step,
    tokens: Step,
    system: str,
    shape: str,
    seed: int,
    teachers: Mapping[str, Step],
) -> Step:
    needs = {"data": data, "tokens": tokens}
    target = TARGETS[system]
    if target is not None:
        needs["targets"] = teachers[target]
        if settings.distill.features:
            needs["features"] = _features(settings, target, seed, teachers)
    if system == "pioneer":
        needs["variants"] = Step(
            "variants",
            "moekd.distill.variants:score_variants",
            needs={"data": data, "teacher": teachers["teacher"]},
            variant={"seed": seed},
        )
    return Step(
        "student",
        "moekd.distill.student:train_student",
        reads=("student.training", *(("distill",) if target else ())),
        needs=needs,
        variant={"system": f"student-{system}", "student": shape, "seed": seed},
    )


def _features(settings: MoekdSettings, target: str, seed: int, teachers: Mapping[str, Step]) -> Step:
    """The hidden states of one teacher: of the single one, of a mixture's experts, or of the shared encoder."""
    teacher = teachers[target]
    needs = dict(teachers["teacher"].needs)
    reads: tuple[str, ...] = ("encoder.max_length",)
    if target == "teacher":
        needs["model"] = teacher
    elif settings.experts.mode == "shared":
        needs["model"] = teachers["router"]
        target = "shared-encoder"  # the same for every mixture
    else:
        scores = teacher.needs["scores"]
        needs |= {name: scores.needs[name] for name in ("partition", "experts")}
        needs |= {"scores": scores, "mixture": teacher}
        reads += ("mixture", "experts.training.bf16")
    return Step(
        "features",
        "moekd.distill.features:collect",
        reads=reads,
        needs=needs,
        variant={"system": target, "seed": seed},
    )


def _group_head(student: Step, router: Step) -> Step:
    """The student's second answer: the CWE group, learned from the router of the same seed."""
    needs = {name: student.needs[name] for name in ("data", "tokens")}
    return Step(
        "group-head",
        "moekd.distill.group_head:train_group_head",
        needs={**needs, "student": student, "router": router, "partition": router.needs["partition"]},
        variant=student.variant,
    )
