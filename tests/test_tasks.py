"""Tasks beyond binary detection through the whole pipeline: several classes, and pairs of functions."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

from moekd import stages
from moekd.classifier import Classifier
from moekd.config import MoekdSettings
from moekd.data import load_classes, load_parts
from moekd.data.embedded import generate
from moekd.distill.targets import teacher_logits
from moekd.errors import DataError
from moekd.files import read_json
from moekd.records import PAIR_MARK, PARTS
from moekd.scorer import aligned, load_scores
from moekd.steps import run_steps, status


def settings_of(folder: Path, **data: object) -> MoekdSettings:
    training = {"epochs": 1, "learning_rate": 1e-3}
    return MoekdSettings.model_validate(
        {
            "name": "micro",
            "data": {"balance": False, **data},
            "encoder": {"vocabulary": 400, "max_length": 64, "layers": 1, "hidden": 32, "heads": 2, "intermediate": 32},
            "teacher": {"training": training},
            "student": {"shapes": ["compact-3mb"], "systems": ["single", "hard"], "training": training},
            "evaluate": {"bootstrap": 100},
            "run": {"folder": str(folder), "threads": 1},
        }
    )


def groups_of_cwes(folder: Path) -> MoekdSettings:
    """The ten groups of the embedded functions, in equal shares."""
    source = {"kind": "embedded", "count": 400}
    data = {"task": "multi-class", "classes": "cwe-group", "class_min_samples": 10, "sources": [source]}
    return settings_of(folder / "runs", **data)


def clones(folder: Path) -> MoekdSettings:
    """Pairs of 60 embedded functions; "clones" are of the same CWE."""
    functions, rng = generate(60, 0), Random(0)
    records = []
    for _ in range(900):
        one, other = rng.sample(functions, 2)
        records.append({"func": one.func, "other_func": other.func, "label": int(one.cwe == other.cwe)})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return settings_of(folder / "runs", task="pair", sources=[{"kind": "jsonl", "path": str(path)}])


@pytest.fixture(scope="module", params=[groups_of_cwes, clones], ids=["multi-class", "pair"])
def finished(request, tmp_path_factory) -> tuple[MoekdSettings, Path]:
    """Settings of a finished run and the folder of its results."""
    settings = request.param(tmp_path_factory.mktemp("tasks"))
    return settings, stages.run(settings)


def folders_of(settings: MoekdSettings) -> dict[str, Path]:
    return run_steps(stages.plan(settings), settings)


def test_the_plan_has_what_has_a_meaning(finished):
    """No partition, router, expert or mixture, neither made nor needed; every table has the two trivial classifiers."""
    settings, _ = finished
    assert set(folders_of(settings)) == {
        "data",
        "encoder",
        "baseline[length]",
        "baseline[bag-of-tokens-half-a]",
        "baseline[bag-of-tokens]",
        "teacher[teacher, seed 0]",
        "student-tokens[compact-3mb]",
        "student[student-single, compact-3mb, seed 0]",
        "student[student-hard, compact-3mb, seed 0]",
        "results",
    }
    assert {one.state for one in status(stages.plan(settings), settings)} == {"fresh"}


def test_every_system_is_measured(finished):
    settings, folder = finished
    rows = read_json(folder / "results.json")["rows"]
    tested = {row["system"] for row in rows if (row["part"], row["metric"]) == ("test", "macro_f1")}
    assert tested == {"length", "bag-of-tokens-half-a", "bag-of-tokens", "teacher", "student-single", "student-hard"}
    classes = load_classes(settings, folders_of(settings)["data"])
    recalls = {row["part"] for row in rows if row["metric"] == "recall" and row["system"] == "student-single"}
    assert {f"test/{name}" for name in classes} <= recalls


def test_models_name_the_classes_and_answer_as_they_were_measured(finished):
    """A saved model knows its classes by name and gives the logits of `predictions.npz` again, from texts alone."""
    settings, _ = finished
    folders = folders_of(settings)
    classes = load_classes(settings, folders["data"])
    samples = load_parts(folders["data"])["test"][:8]
    for label in ("teacher[teacher, seed 0]", "student[student-single, compact-3mb, seed 0]"):
        model = Classifier.from_pretrained(folders[label] / "model")
        assert tuple(model.model.config.id2label.values()) == classes
        stored = aligned(load_scores(folders[label] / "predictions.npz"), samples)
        assert model.logits([sample.func for sample in samples]) == pytest.approx(stored, abs=1e-4)


def test_the_students_targets_are_of_the_same_classes(finished):
    """As many logits as classes; a student of other classes is refused."""
    settings, _ = finished
    folders = folders_of(settings)
    samples = load_parts(folders["data"])["train_b"]
    classes = load_classes(settings, folders["data"])
    targets = teacher_logits(folders["teacher[teacher, seed 0]"], samples, classes)
    assert targets.shape == (len(samples), len(classes))
    with pytest.raises(DataError, match=f"tells {len(classes)} classes apart, its student {len(classes) + 1}"):
        teacher_logits(folders["teacher[teacher, seed 0]"], samples, (*classes, "another"))


def test_no_tokenizer_learns_the_mark_of_pairs(finished):
    """Both functions are in the model's tokens, the mark between them is not."""
    settings, _ = finished
    folders = folders_of(settings)
    model = Classifier.from_pretrained(folders["teacher[teacher, seed 0]"] / "model")
    texts = [sample.func for part in PARTS for sample in load_parts(folders["data"])[part]]
    tokens = model.encode(texts)
    ends = [int((tokens.take(np.array([row])).flat == model.tokenizer.sep_token_id).sum()) for row in range(len(texts))]
    assert ends == [1 + text.count(PAIR_MARK) for text in texts]
    assert PAIR_MARK not in model.tokenizer.decode(tokens.flat)
    assert "\ufffd" not in model.tokenizer.decode(tokens.flat)
