"""Ways to distil side by side: results that may be compared, and the tables, from invented numbers by hand."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from moekd.errors import DataError
from moekd.files import read_json, write_json
from moekd.report import render_results_doc

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("ways_benchmark", ROOT / "benchmarks" / "ways.py")
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)

SHAPE = "bigru-0.75m"
#: (system, seed) -> accuracy on validation and on test; AUROC is 0.1 more.
Students = dict[tuple[str, int], tuple[float, float]]


def result(logits: str, features: str | None, students: Students) -> dict[str, Any]:
    """What of a `results.json` counts here, of students of one shape."""
    name = f"toy-{features or logits}"
    rows = [
        {"data": name, "split": "random", "seed": seed, "system": system, "student": SHAPE}
        | {"part": part, "metric": metric, "value": accuracy + more, "low": None, "high": None, "n": 100}
        for (system, seed), accuracies in students.items()
        for part, accuracy in zip(("valid", "test"), accuracies, strict=True)
        for metric, more in (("accuracy", 0.0), ("auroc", 0.1))
    ]
    other = {"system": "teacher", "student": None, "seed": 0, "part": "test", "metric": "accuracy", "value": 0.9}
    of_group = {"system": "student-moe", "student": SHAPE, "seed": 0, "part": "test/CWE-664", "metric": "recall"}
    distill = {"temperature": 10.0, "logits": {"kind": logits}, "features": features and {"kind": features}}
    settings = {"name": name, "run": {"seeds": sorted({seed for _, seed in students})}, "distill": distill}
    settings |= {"student": {"systems": [name], "training": {"epochs": 2}}, "evaluate": {"confidence": 0.95}}
    steps = {"teacher[teacher, seed 0]": {"key": "aa", "commit": "c0ffee", "seconds": 1.0}}
    steps |= {
        f"student[{system}, {SHAPE}, seed {seed}]": {"key": system if system == "student-hard" else f"{system}{name}"}
        for system, seed in students
    }
    data = {"key": "00", "source_digests": ["11"], "file_digests": {"samples.parquet": "feedbeef" * 8}}
    made = {"commit": f"{name}-0123456789", "machine": {"cores": 2}, "settings": settings, "steps": steps}
    made |= {"data": data | {"judged": {"valid": 100, "test": 100}}}
    return {"schema": 1, "provenance": made, "rows": [*rows, other, of_group | {"value": 0.5}]}


KL: Students = {
    ("student-single", 0): (0.50, 0.60),
    ("student-single", 1): (0.52, 0.62),
    ("student-single", 2): (0.54, 0.64),
    ("student-moe", 0): (0.55, 0.65),
    ("student-hard", 0): (0.58, 0.57),
}
DIST: Students = {
    ("student-single", 0): (0.51, 0.63),  # by 0.03, 0.01 and 0.05 above kl on test
    ("student-single", 1): (0.53, 0.63),
    ("student-single", 2): (0.55, 0.69),
    ("student-moe", 0): (0.56, 0.66),
    ("student-moe", 1): (0.90, 0.70),
}
PATIENT: Students = {("student-single", 0): (0.49, 0.70), ("student-single", 2): (0.56, 0.66)}
FILES = {"kl": ("kl", None, KL), "patient": ("kl", "patient", PATIENT), "dist": ("dist", None, DIST)}


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    for name, content in FILES.items():
        write_json(tmp_path / f"{name}.json", result(*content))
    return [tmp_path / f"{name}.json" for name in FILES]


@pytest.fixture
def text(paths, tmp_path) -> str:
    write_json(tmp_path / "toy.json", benchmark.together([benchmark.read(path) for path in paths]))
    return render_results_doc([tmp_path / "toy.json"])


def cells(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_row_is_one_number_of_one_student(paths):
    """Teachers, and recalls of groups, are not ways; what has not finished is not there."""
    found = benchmark.together([benchmark.read(path) for path in paths])
    assert len(found["students"]) == 4 * (len(KL) + len(DIST) + len(PATIENT))
    assert found["students"][0] == {
        "way": "kl",
        "family": "logits",
        "teacher": "single",
        "student": SHAPE,
        "seed": 0,
        "part": "valid",
        "metric": "accuracy",
        "value": 0.50,
    }
    kinds = {(row["way"], row["family"], row["teacher"]) for row in found["students"]}
    assert kinds == {
        ("labels", "labels", "none"),
        *(("kl", "logits", teacher) for teacher in ("single", "mixture")),
        *(("dist", "logits", teacher) for teacher in ("single", "mixture")),
        ("patient", "features", "single"),
    }
    made = found["provenance"]
    assert made["seeds"] == [0, 1, 2]
    assert made["settings"] == {"student.training.epochs": 2, "evaluate.confidence": 0.95}
    assert [(one["way"], one["commit"]) for one in made["ways"]][1] == ("patient", "toy-patient-0123456789")


def test_features_beside_another_loss_of_logits_have_its_name(tmp_path):
    write_json(tmp_path / "both.json", result("dist", "patient", PATIENT))
    assert benchmark.read(tmp_path / "both.json").way == "dist and patient"


def test_students_of_labels_that_two_runs_share_are_kept_once(paths):
    write_json(paths[1], result("kl", "patient", PATIENT | {("student-hard", 0): (0.58, 0.57)}))
    found = benchmark.together([benchmark.read(path) for path in paths])
    assert len([row for row in found["students"] if row["way"] == "labels"]) == 4


def test_a_results_file_as_runs_write_it_can_be_read():
    """Three systems of three seeds, nine measures on each of two parts."""
    found = benchmark.together([benchmark.read(ROOT / "docs" / "results" / "bigvul-seeds.json")])
    assert len(found["students"]) == 3 * 3 * 2 * 9
    assert found["provenance"]["settings"]["student.training.epochs"] == 2


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("data", "file_digests", "samples.parquet"), "0", "data file_digests is .*'0'.*kl.json it is .*feedbeef"),
        (("settings", "student", "training", "epochs"), 3, "student.training.epochs is 3, and in .*kl.json it is 2"),
        (("steps", "teacher[teacher, seed 0]", "key"), "bb", r"key of teacher\[teacher, seed 0\] is 'bb', .* 'aa'"),
        (("settings", "distill", "logits", "kind"), "kl", "way is 'kl', as in .*kl.json"),
    ],
)
def test_what_cannot_be_compared_is_refused(paths, place, value, message):
    changed = copy.deepcopy(read_json(paths[2]))
    where = changed["provenance"]
    for name in place[:-1]:
        where = where[name]
    where[place[-1]] = value
    write_json(paths[2], changed)
    with pytest.raises(DataError, match=f"dist.json: .*{message}"):
        benchmark.together([benchmark.read(path) for path in paths])


@pytest.mark.parametrize("content", [None, [], {"schema": 1, "rows": []}])
def test_a_file_that_is_no_result_is_refused(tmp_path, content):
    if content is not None:
        write_json(tmp_path / "other.json", content)
    with pytest.raises(DataError, match=r"other.json: not a results.json"):
        benchmark.read(tmp_path / "other.json")


def test_the_table_by_hand(text):
    """Three pairs: mean 0.03, deviation 0.02, so 0.03 -+ 4.303 · 0.02 / sqrt(3) = 0.050; of fewer no interval."""
    assert "## Ways to distil: toy" in text
    assert f"### {SHAPE}" in text
    assert "seeds 0, 1, 2; data feedbeeffeed*" in text
    assert cells(text, "kl") == ["logits", "0.620 (3)", "0.720 (3)", "–", "–", "0.650 (1)", "0.750 (1)", "–", "–"]
    gain = "+0.030 (-0.020 to +0.080)"
    assert cells(text, "dist")[:5] == ["logits", "0.650 (3)", "0.750 (3)", gain, gain]
    assert cells(text, "dist")[5:] == ["0.680 (2)", "0.780 (2)", *["+0.010, n = 1"] * 2], "seed 1 has no partner"
    assert cells(text, "patient") == ["features", "0.680 (2)", "0.780 (2)", *["+0.060"] * 2, *["–"] * 4]
    assert cells(text, "labels alone")[1:4] == ["0.570 (1)", "0.670 (1)", "-0.030"], "minus 0.60, the same seed's"
    assert cells(text, "labels alone")[5:8] == ["0.570 (1)", "0.670 (1)", "-0.080"]
    assert text.index("| kl ") < text.index("| dist ") < text.index("| patient "), "losses of logits stand together"


def test_validation_chooses_on_the_seeds_that_all_have(text):
    """From single on seeds 0 and 2: dist (0.51 + 0.55) / 2 above patient (0.49 + 0.56) / 2, though not on test."""
    (line,) = [line for line in text.splitlines() if line.startswith("- From the single teacher")]
    assert "among 3 ways (seeds 0, 2): `dist`, 0.530; on test accuracy 0.660, AUROC 0.760." in line
    assert line.endswith("Best of features: `patient`, 0.525; on test accuracy 0.680, AUROC 0.780.")
    (line,) = [line for line in text.splitlines() if line.startswith("- From the mixture")]
    assert line.endswith("among 2 ways (seeds 0): `dist`, 0.560; on test accuracy 0.660, AUROC 0.760.")


def test_ways_without_a_common_seed_are_not_ranked(paths, tmp_path):
    write_json(paths[1], result("kl", "patient", {("student-single", 7): (0.9, 0.9)}))
    write_json(tmp_path / "toy.json", benchmark.together([benchmark.read(path) for path in paths]))
    text = render_results_doc([tmp_path / "toy.json"])
    assert "- From the single teacher: no seed has all of kl, dist, patient, so none is chosen." in text
    assert cells(text, "patient")[3] == "–", "no seed of kl to take it from"
