"""The whole pipeline: which steps a run has, and small runs of all of them, also killed and damaged ones."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import settings

from moekd import stages
from moekd.attack.victims import load_victim, p_vulnerable
from moekd.classifier import Classifier, build
from moekd.config import MoekdSettings
from moekd.data import load_parts
from moekd.distill import lessons, student
from moekd.distill.objective import Objective
from moekd.errors import SettingsError
from moekd.files import read_json
from moekd.mixture import Mixture, load_table
from moekd.records import LABELS, PARTS, Scores
from moekd.scorer import aligned, load_scores, save_scores
from moekd.stages.students import TARGETS
from moekd.steps import Step, key_of, read_manifest, run_steps
from moekd.tokens import Tokens

#: The systems that issue and documents name, and `results.json` must have.
SYSTEMS = {
    "length",
    "bag-of-tokens",
    "router",
    "teacher",
    "mixture",
    "student-moe",
    "student-single",
    "student-hard",
    "student-ensemble",
    "student-random-partition",
}


# -------------------------------------------------------------------------------------------------- plan


def steps_of(settings: MoekdSettings) -> dict[str, Step]:
    """All steps of a plan, those that are only needed included, by label; equal labels must mean equal work."""
    found: dict[str, Step] = {}

    def content(step: Step):
        needs = {name: content(needed) for name, needed in step.needs.items()}
        return replace(step, needs={}), needs

    def visit(step: Step) -> None:
        for needed in step.needs.values():
            visit(needed)
        assert repr(content(found.setdefault(step.label, step))) == repr(content(step)), step.label

    for step in stages.plan(settings):
        visit(step)
    return found


COMMON = {
    "data",
    "encoder",
    "baseline[length]",
    "baseline[bag-of-tokens-half-a]",
    "baseline[bag-of-tokens]",
    "partition[cwe]",
    "partition[random, seed 0]",
    "teacher[teacher, seed 0]",
    "scores[cwe, seed 0]",
    "scores[random, seed 0]",
    "mixture[mixture, top-k, seed 0]",
    "mixture[ensemble, ensemble, seed 0]",
    "mixture[mixture-random-partition, top-k, seed 0]",
    "student-tokens[compact-3mb]",
    *(f"student[student-{system}, compact-3mb, seed 0]" for system in settings().student.systems),
    "results",
}
FULL = {
    "router[router, seed 0]",
    "experts[cwe, seed 0]",
    "experts[random, seed 0]",
    "saved-mixture[seed 0]",
}
SHARED = {"shared-encoder[router, seed 0]", "expert-heads[cwe, seed 0]", "expert-heads[random, seed 0]"}


def test_plan_of_full_experts():
    assert set(steps_of(settings())) == COMMON | FULL


def test_plan_of_shared_experts():
    """One encoder is router and experts' encoder at once."""
    steps = steps_of(settings(experts={"mode": "shared"}))
    assert set(steps) == COMMON | SHARED
    assert steps["scores[random, seed 0]"].needs["shared"].label == "shared-encoder[router, seed 0]"


def test_plan_of_clusters():
    """k-means groups need the encoder's embeddings, and like the encoder's weights they differ by seed."""
    steps = steps_of(settings(partition={"scheme": "kmeans", "clusters": 4}))
    named = {label.replace("[cwe, seed 0]", "[kmeans, seed 0]") for label in COMMON | FULL}
    assert set(steps) == (named | {"embeddings[seed 0]", "partition[kmeans, seed 0]"}) - {"partition[cwe]"}
    assert steps["partition[kmeans, seed 0]"].needs["embeddings"].label == "embeddings[seed 0]"
    assert steps["router[router, seed 0]"].needs["partition"].label == "partition[kmeans, seed 0]"


def test_embeddings_in_another_precision_are_other_embeddings():
    """They are computed in the experts' precision, so it is part of their key; so is the k-means partition's."""
    clusters = {"scheme": "kmeans", "clusters": 4}
    keys = []
    for bf16 in (True, False):
        chosen = settings(partition=clusters, experts={"training": {"bf16": bf16}})
        keys.append({label: key_of(step, chosen) for label, step in steps_of(chosen).items()})
    for label in ("embeddings[seed 0]", "partition[kmeans, seed 0]"):
        assert keys[0][label] != keys[1][label]


def test_clusters_from_end_to_end(tmp_path):
    """The random control has as many groups as there are clusters, so that the same router serves it."""
    chosen = settings(
        tmp_path / "runs",
        partition={"scheme": "kmeans", "clusters": 3},
        student={"shapes": ["compact-3mb"], "systems": ["random-partition"], "training": {"epochs": 1}},
    )
    rows = read_json(stages.run(chosen) / "results.json")["rows"]
    assert {"mixture", "mixture-random-partition", "student-random-partition"} <= set(accuracies(rows))


@pytest.mark.parametrize("mode", ["full", "shared"])
def test_states_are_read_once_a_teacher_and_only_where_asked(mode):
    """A step between teacher and students; of a mixture from its experts; none for hard labels or without the loss."""
    chosen = settings(
        experts={"mode": mode},
        distill={"features": {"kind": "patient"}},
        student={"systems": ["moe", "single", "hard"]},
    )
    steps = steps_of(chosen)
    of_mixture = "mixture" if mode == "full" else "shared-encoder"
    names = (of_mixture, "teacher")
    assert {label for label in steps if label.startswith("features")} == {f"features[{n}, seed 0]" for n in names}
    mixture, single = (steps[f"features[{name}, seed 0]"].needs for name in names)
    assert single["model"].label == "teacher[teacher, seed 0]"
    if mode == "shared":
        assert mixture["model"].label == "shared-encoder[router, seed 0]"
    else:
        assert mixture["experts"].label == "experts[cwe, seed 0]"
    assert "features" not in steps["student[student-hard, compact-3mb, seed 0]"].needs
    assert steps["student[student-moe, compact-3mb, seed 0]"].needs["features"].variant["system"] == of_mixture
    plain = settings(experts={"mode": mode}, student={"systems": ["moe", "single", "hard"]})
    assert not [label for label in steps_of(plain) if label.startswith("features")]
    hard = "student[student-hard, compact-3mb, seed 0]"
    assert key_of(steps[hard], chosen) == key_of(steps_of(plain)[hard], plain)


def test_only_pioneer_needs_variants():
    steps = steps_of(settings(student={"systems": ["pioneer", "soda"]}))
    assert steps["student[student-pioneer, compact-3mb, seed 0]"].needs["variants"].label == "variants[seed 0]"
    assert steps["variants[seed 0]"].needs["teacher"].label == "teacher[teacher, seed 0]"
    assert "variants" not in steps["student[student-soda, compact-3mb, seed 0]"].needs


def test_controls_nobody_learns_from_are_left_out():
    steps = steps_of(settings(student={"systems": ["moe", "hard"]}))
    assert not [label for label in steps if "random" in label or "ensemble" in label or "single" in label]
    assert "teacher[teacher, seed 0]" in steps  # a row of every table, whoever learns from it


def test_two_seeds_share_what_no_seed_changes():
    steps = steps_of(settings(run={"seeds": [0, 1]}))
    one = set(steps_of(settings()))
    assert set(steps) == one | {label.replace("seed 0", "seed 1") for label in one}
    assert steps["router[router, seed 1]"].needs["partition"].label == "partition[cwe]"
    assert steps["scores[random, seed 1]"].needs["partition"].label == "partition[random, seed 1]"


@pytest.mark.parametrize(("system", "target"), TARGETS.items())
def test_what_a_student_learns_from(system, target):
    """Only targets and loss differ between the students, never data, tokens or settings of the training."""
    steps = steps_of(settings(student={"systems": [system]}))
    step = steps[f"student[student-{system}, compact-3mb, seed 0]"]
    assert step.needs["tokens"].label == "student-tokens[compact-3mb]"
    assert step.needs["data"].label == "data"
    if target is None:
        assert "targets" not in step.needs
        assert step.reads == ("student.training",)
    else:
        assert step.needs["targets"].variant["system"] == target
        assert step.reads == ("student.training", "distill")


# ----------------------------------------------------------------------------------------------- one run


def rows_of(folder: Path) -> list[dict]:
    return read_json(folder / "results.json")["rows"]


def timeless(rows: list[dict]) -> list[dict]:
    """The rows that two runs must have in common to the last digit."""
    return [row for row in rows if not row["metric"].endswith(("seconds", "_ms", "seconds_over_teacher"))]


def accuracies(rows: list[dict]) -> dict[str, float]:
    return {row["system"]: row["value"] for row in rows if (row["part"], row["metric"]) == ("test", "accuracy")}


def folders_of(settings: MoekdSettings) -> dict[str, Path]:
    """The folders of a finished run by label."""
    return run_steps(stages.plan(settings), settings)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A finished run of `full` experts: its settings and its last folder."""
    chosen = settings(tmp_path_factory.mktemp("full") / "runs")
    return chosen, stages.run(chosen)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    chosen = settings(tmp_path_factory.mktemp("shared") / "runs", experts={"mode": "shared"})
    return chosen, stages.run(chosen)


@pytest.mark.parametrize("mode", ["full", "shared"])
def test_results_have_every_system(mode, request):
    _, folder = request.getfixturevalue(mode)
    found = accuracies(rows_of(folder))
    assert found.keys() >= SYSTEMS
    assert all(0 <= value <= 1 for value in found.values())
    assert (folder / "results.md").exists()


@pytest.mark.parametrize("mode", ["full", "shared"])
def test_nothing_half_done_is_left(mode, request):
    """No `.part`, no checkpoint, no temporary file; a model's folder holds what ships and nothing else."""
    chosen, _ = request.getfixturevalue(mode)
    root = Path(chosen.run.folder)
    names = {path.name for path in root.rglob("*")}
    assert not [name for name in names if name.endswith((".part", ".tmp")) or name.startswith((".tmp", "checkpoint"))]
    assert "best.safetensors" not in names
    for model in root.rglob("model.safetensors"):
        held = {path.name for path in model.parent.iterdir()} - {"history.json"}
        assert held == set(student.SHIPPED), model.parent


@pytest.mark.parametrize(("mode", "passes"), [("full", "1 + K"), ("shared", 1)])
def test_encoder_passes(mode, passes, request):
    chosen, folder = request.getfixturevalue(mode)
    groups = len(read_json(folders_of(chosen)["partition[cwe]"] / "partition.json")["groups"])
    assert groups > 3
    measured = [row["value"] for row in rows_of(folder) if row["metric"] == "encoder_passes_per_sample"]
    assert set(measured) == {1 + groups if passes == "1 + K" else passes}


def test_selected_table_needs_one_pass_and_k(full):
    """Only the asked experts' answers are in the table, equal to those of the complete one."""
    chosen = settings(
        full[0].run.folder,
        mixture={"table": "selected", "k": 2},
        student={"systems": ["moe"], "shapes": ["compact-3mb"], "training": {"epochs": 1}},
    )
    rows = rows_of(stages.run(chosen))
    assert [row["value"] for row in rows if row["metric"] == "encoder_passes_per_sample"] == [3.0]
    complete, selected = (load_table(folders_of(run)["scores[cwe, seed 0]"]) for run in (full[0], chosen))
    assert complete.ids == selected.ids
    asked = ~np.isnan(selected.experts)
    assert (asked.all(axis=2).sum(axis=1) == 2).all()
    np.testing.assert_allclose(selected.experts[asked], complete.experts[asked], atol=0.02)  # bf16, other batches


def test_a_linear_router_spares_a_pass(tmp_path):
    """The table is of the k selected experts alone; the saved mixture answers as it did, under attack as well."""
    chosen = settings(
        tmp_path / "runs",
        encoder={"ngram_buckets": 1024},
        router={"model": "n-grams", "training": {"epochs": 2}},
        mixture={"table": "selected", "k": 2},
        student={"systems": ["moe"]},
    )
    rows = rows_of(stages.run(chosen, ["mixture", "saved-mixture", "router"]))
    assert [row["value"] for row in rows if row["metric"] == "encoder_passes_per_sample"] == [2.0]
    assert [row for row in rows if row["system"] == "router" and row["metric"] == "accuracy"]
    assert_saved_mixture_answers_as_its_table(chosen)
    saved = folders_of(chosen)["saved-mixture[seed 0]"] / "model"
    texts = [sample.func for sample in load_parts(folders_of(chosen)["data"])["test"]][:8]
    p = p_vulnerable(Mixture.from_pretrained(saved).logits(texts))
    np.testing.assert_allclose(load_victim(str(saved))(texts), p, atol=1e-5)


def test_only_some_systems(tmp_path):
    """--only brings one system to its end; the table shows it and whatever else has finished, and nothing more."""
    chosen = settings(tmp_path / "runs")
    nothing = stages.run(chosen, ["data"])
    assert rows_of(nothing) == []
    assert "Nothing measured yet" in (nothing / "results.md").read_text()
    assert {row["system"] for row in rows_of(stages.run(chosen, ["length"]))} == {"length"}
    assert {row["system"] for row in rows_of(stages.run(chosen, ["teacher"]))} == {"length", "teacher"}
    with pytest.raises(SettingsError, match=r"--only teachers: no such system or stage; this config has .*teacher"):
        stages.run(chosen, ["teachers"])


def test_an_unknown_system_costs_no_work(tmp_path):
    with pytest.raises(SettingsError, match="--only nonsense: no such system or stage"):
        stages.run(settings(tmp_path / "runs"), ["nonsense"])
    assert not (tmp_path / "runs" / "data").exists()


def test_what_pre_training_is_worth(tmp_path, make_model, tokenizer):
    """The control has the named encoder's shape and tokenizer but other weights, and is compared with the teacher."""
    Classifier(make_model(3), tokenizer, 64).save_pretrained(tmp_path / "encoder")
    chosen = settings(tmp_path / "runs", encoder={"name": str(tmp_path / "encoder")}, teacher={"random_control": True})
    folder = stages.run(chosen, ["teacher", "teacher-random-weights"])
    assert {row["system"] for row in rows_of(folder)} == {"teacher", "teacher-random-weights"}
    first = read_json(folder / "results.json")["comparisons"][0]
    assert (first["first"], first["second"]) == ("teacher", "teacher-random-weights")
    pretrained, control = (
        build(chosen.encoder, tokenizer, seed=0, dropout=0.0, random_weights=random).roberta.state_dict()
        for random in (False, True)
    )
    wanted = make_model(3).roberta.state_dict()
    assert all(torch.equal(pretrained[name], wanted[name]) for name in wanted)
    name = "encoder.layer.0.output.dense.weight"
    assert control[name].shape == wanted[name].shape
    assert not torch.equal(control[name], wanted[name])


def test_more_experts_than_groups_are_refused_before_training(tmp_path):
    chosen = settings(tmp_path / "runs", mixture={"k": 40})
    with pytest.raises(SettingsError, match=r"mixture\.k = 40, but these data have \d+ groups"):
        stages.run(chosen)
    assert {path.name for path in (tmp_path / "runs").iterdir()} <= {"data", "partition", ".digests"}


def test_saved_mixture_answers_as_its_table_did(full):
    """Who loads the run's mixture gets the teacher that the students learned from, within bf16's rounding."""
    assert_saved_mixture_answers_as_its_table(full[0])


def assert_saved_mixture_answers_as_its_table(chosen):
    folders = folders_of(chosen)
    mixture = Mixture.from_pretrained(folders["saved-mixture[seed 0]"] / "model")
    parts = load_parts(folders["data"])
    wanted = aligned(load_scores(folders["mixture[mixture, top-k, seed 0]"] / "predictions.npz"), parts["test"])
    answers = mixture.logits([sample.func for sample in parts["test"]])
    assert np.abs(answers - wanted).max() < 0.02


def test_parts_do_not_meet(full):
    """Every table answers for the functions it should: half B, validation and test, nobody from half A."""
    folders = folders_of(full[0])
    parts = load_parts(folders["data"])
    ids = {part: {sample.id for sample in parts[part]} for part in PARTS}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values()))
    for label, folder in folders.items():
        if (folder / "predictions.npz").exists():
            assert set(load_scores(folder / "predictions.npz").ids) == ids["valid"] | ids["test"], label
        if (folder / "targets.npz").exists():
            assert set(load_scores(folder / "targets.npz").ids) == ids["train_b"], label


def test_targets_are_found_by_id(full, tmp_path):
    """The rows of `targets.npz` in another order: each function of half B has the same loss as before."""
    folders = folders_of(full[0])
    samples = load_parts(folders["data"])["train_b"]
    scores = load_scores(folders["mixture[mixture, top-k, seed 0]"] / "targets.npz")
    assert len(np.unique(scores.logits, axis=0)) > len(samples) / 2  # a mix-up would show
    order = np.random.default_rng(0).permutation(len(scores.ids))
    moved = Scores(*(tuple(column[i] for i in order) for column in (scores.ids, scores.digests)), scores.logits[order])
    save_scores(tmp_path / "targets.npz", moved)
    logits = torch.zeros(1, 2)
    losses = []
    for folder in (folders["mixture[mixture, top-k, seed 0]"], tmp_path):
        taught = lessons.plain({"targets": folder}, samples, Tokens.of([]), LABELS, full[0].distill, 1)
        loss = Objective(full[0].distill, taught.labels, taught.teacher)
        losses.append([float(loss(logits, np.array([row]))) for row in range(len(samples))])
    assert losses[0] == losses[1]


def test_students_read_the_same_tokens(full):
    """Same data, same batches, same budget: what they learn from is the only difference."""
    histories = [
        read_manifest(folder)["facts"]["history"]
        for label, folder in folders_of(full[0]).items()
        if label.startswith("student[")
    ]
    assert len(histories) == 5
    assert len({history["tokens"] for history in histories}) == 1


# --------------------------------------------------------------------------------------------- once more


def program(work: str, *arguments: object) -> list[str]:
    """A process of its own that imports this file and calls `work` with the arguments as text."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    code = f"import sys; sys.path[:0] = {path.split(os.pathsep)!r}; {work}"
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_second_run_is_quick_and_needs_no_model_library(full):
    """Under 5 s, the start of Python included, although all digests are checked."""
    chosen, folder = full
    work = (
        "from moekd.config import MoekdSettings; from moekd import stages;"
        "print(stages.run(MoekdSettings.model_validate_json(sys.argv[1])));"
        "print(*{'torch', 'transformers', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    started = time.monotonic()
    done = subprocess.run(program(work, chosen.model_dump_json()), capture_output=True, text=True)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder), ""]
    assert "started" not in done.stderr
    assert seconds < 5


def test_a_second_seed_and_another_place_give_other_and_equal_numbers(shared, tmp_path):
    """The folder is no part of any result; a run of two seeds holds the rows of the first seed unchanged."""
    chosen = settings(
        tmp_path / "elsewhere", experts={"mode": "shared"}, run={"seeds": [0, 1]}, student={"systems": ["moe"]}
    )
    rows = rows_of(stages.run(chosen))
    systems = {row["system"] for row in rows}
    first = [row for row in rows if row["seed"] != 1]
    assert timeless(first) == [row for row in timeless(rows_of(shared[1])) if row["system"] in systems]
    assert accuracies([row for row in rows if row["seed"] == 1]).keys() == {
        "router",
        "teacher",
        "mixture",
        "student-moe",
    }


# ------------------------------------------------------------------------------------------------- kills


def test_killed_at_random_moments(shared, tmp_path):
    """SIGKILL again and again until a run comes through: the rows are those of the undisturbed run."""
    killed_until_done(shared, tmp_path, systems=("moe",))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "shared"])
def test_killed_at_random_moments_all_systems(mode, request, tmp_path):
    killed_until_done(request.getfixturevalue(mode), tmp_path, systems=settings().student.systems)


def killed_until_done(undisturbed, tmp_path: Path, *, systems: tuple[str, ...]) -> None:
    chosen, folder = undisturbed
    tree = chosen.model_dump()
    tree["run"]["folder"] = str(tmp_path / "runs")
    tree["student"]["systems"] = systems
    tree = MoekdSettings.model_validate(tree).model_dump_json()
    done = subprocess.run(program("import test_stages; test_stages.torment()", tree), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result, kills = json.loads(done.stdout.splitlines()[-1])
    assert kills >= 3
    rows = timeless(rows_of(Path(result)))
    systems = {row["system"] for row in rows}
    assert "student-moe" in systems
    assert rows == [row for row in timeless(rows_of(folder)) if row["system"] in systems]


def torment() -> None:
    """Run by a process of its own, which imports everything once and forks the runs that are killed."""
    import sklearn.linear_model  # noqa: F401
    import torch._dynamo  # noqa: F401  (optimisers import it when they are made)
    import transformers.models.roberta.modeling_roberta  # noqa: F401

    chosen = MoekdSettings.model_validate_json(sys.argv[1])
    rng = random.Random(0)
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            try:
                stages.run(chosen)
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        time.sleep(rng.uniform(0.2, 0.8) * 1.2**kills)  # longer and longer, so that it ends on any machine
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), code
        if code == 0:
            break
        kills += 1
    sys.stdout.write(json.dumps([str(stages.run(chosen)), kills]) + "\n")
