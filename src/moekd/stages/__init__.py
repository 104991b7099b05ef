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

from moekd.errors import SettingsError
from moekd.stages.attacks import attack_steps
from moekd.stages.students import candidates_step, group_head_step, published_steps, student_step, student_tokens_step
from moekd.stages.teachers import teacher_steps
from moekd.steps import Step, folder_of, help_with, is_finished, run_steps

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from moekd.config import MoekdSettings, PretrainSettings
    from moekd.students.search import Kind

BASELINES = ("length", "bag-of-tokens-half-a", "bag-of-tokens")


def run(settings: MoekdSettings, only: Collection[str] = ()) -> Path:
    """Run the whole pipeline and return the folder of its results: results.json and results.md.

    Finished steps are reused, and a run that was stopped at any moment continues.

    Args:
        only: names of systems or stages. Then these alone, with what they need, are brought to their end, and the
            results are of whatever has finished, now or earlier.
    """
    *steps, results = plan(settings)
    always = [results.needs[name] for name in ("data", "partition") if name in results.needs]
    chosen = _chosen(steps, only)
    if "partition" in results.needs:
        _require_experts(settings, results.needs["partition"])
    if only:
        run_steps([*chosen, *always], settings)
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
    if processes == 1:
        return run_steps([step], settings)[step.label]
    if rank == 0:
        run_steps(list(step.needs.values()), settings)
    numerics.wait_for_all()
    if rank == 0:
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
    tokens = {shape: student_tokens_step(data, shape) for shape in settings.student.shapes}
    reported = [_baseline(data, system) for system in BASELINES]
    heads: list[Step] = []
    for seed in settings.run.seeds:
        teachers = teacher_steps(settings, data, encoder, seed)
        reported += teachers.values()
        students = [
            student_step(settings, data, tokens[shape], system, shape, seed, teachers)
            for shape in settings.student.shapes
            for system in settings.student.systems
        ]
        reported += students
        if settings.student.group_head:
            heads += [group_head_step(step, teachers["router"]) for step in students]
        reported += published_steps(settings, data, encoder, teachers["teacher"], seed)
        reported += attack_steps(settings, data, reported, seed)
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

    Ours learn from the mixture of the first seed, those of a published method from its single teacher, which are
    trained first if they are not there yet.

    Raises:
        SettingsError: the config asks for none, or for fewer than a surrogate can be fitted to, or nothing fits the
            budget.
    """
    from moekd.distill.candidates import to_train
    from moekd.students.surrogate import MIN_POINTS

    if settings.search.points < MIN_POINTS:
        raise SettingsError(
            f"search.points is {settings.search.points}, and a surrogate needs {MIN_POINTS} candidates at least: set "
            f"search.points to {MIN_POINTS} or more, or give the file of evaluated ones with --points"
        )
    data, seed = data_step(), settings.run.seeds[0]
    to_train(search, settings.search.points, budget_bytes, seed)  # refuses a budget before a teacher is trained
    teachers = teacher_steps(settings, data, _encoder(data), seed)
    step = candidates_step(settings, data, search, budget_bytes, seed, teachers)
    return run_steps([step], settings)[step.label] / "points.jsonl"


def _encoder(data: Step) -> Step:
    return Step(
        "encoder",
        "moekd.experts.encoder:tokenize",
        reads=("encoder",),
        needs={"data": data},
        external="moekd.classifier:encoder_digests",
    )


def _baseline(data: Step, system: str) -> Step:
    return Step("baseline", "moekd.data.leaks:baseline", needs={"data": data}, variant={"system": system})
