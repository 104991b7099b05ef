"""`results.json` and the tables made from it, for a small run with two seeds whose answers are known."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moekd.config import MoekdSettings
from moekd.errors import DataError
from moekd.files import read_json, write_json
from moekd.records import Sample
from moekd.report import render_markdown, render_results_doc, results
from moekd.report.markdown import short_commit
from moekd.scorer import save_scores, scores_of

GROUPS = ("CWE-664", "other", "unknown")
CWES = ("CWE-119", "CWE-476", None)
N = 60  # functions a part: even ones vulnerable, their groups in turn

PARTS = {
    part: [
        Sample(
            f"{part}:{i}",
            f"int {part}{i};",
            1 - i % 2,
            "toy",
            cwe=CWES[i // 2 % 3] if i % 2 == 0 else None,
            digest=f"{part}{i}",
        )
        for i in range(N)
    ]
    for part in ("train_a", "train_b", "valid", "test")
}
JUDGED = [*PARTS["valid"], *PARTS["test"]]


def settings(**changes: Any) -> MoekdSettings:
    tree = {
        "name": "toy",
        "data": {
            "split": "project",
            "sources": [
                {"kind": "parquet", "path": "$MOEKD_DATA/bigvul.parquet"},
                {"kind": "jsonl", "path": "/home/someone/private.jsonl"},
            ],
        },
        "run": {"seeds": [0, 1], "folder": "/home/someone/runs"},
        "encoder": {"name": "~/models/codebert"},
        "evaluate": {"bootstrap": 200},
    }
    return MoekdSettings.model_validate(tree | changes)


def write_step(
    root: Path, label: str, stage: str, logits: np.ndarray | None = None, *, facts: Any = None, **variant: Any
) -> Path:
    """A finished step as the engine leaves it, with answers to validation and test if there are any."""
    folder = root / label
    folder.mkdir()
    if logits is not None:
        save_scores(folder / "predictions.npz", scores_of(JUDGED[::-1], logits[::-1]))
    manifest = {
        "key": f"key of {label}",
        "stage": stage,
        "variant": variant,
        "inputs": {"partition": "key of partition"},
        "external": ["digest of the source"],
        "facts": facts or {},
        "commit": "c0ffee",
        "seconds": 1.5,
        "files": {"samples.parquet": {"sha256": "feedbeef" * 8, "bytes": 1}},
    }
    write_json(folder / "manifest.json", manifest)
    return folder


def answers(wrong: int) -> np.ndarray:
    """Logits that are right but for the first `wrong` functions of each part; equally sure of all."""
    margins = [(2.0 if s.label else -2.0) * (-1 if i % N < wrong else 1) for i, s in enumerate(JUDGED)]
    return np.stack([np.zeros(len(margins)), margins], axis=1)


def routes(wrong: int) -> np.ndarray:
    """The true group, but `unknown` for the first `wrong` functions; non-vulnerable ones go to `other`."""
    logits = np.zeros((len(JUDGED), len(GROUPS)))
    for row, sample in enumerate(JUDGED):
        true = CWES.index(sample.cwe) if sample.label else 1
        logits[row, 2 if row % N < wrong else true] = 3.0
    return logits


@pytest.fixture
def inputs(monkeypatch, tmp_path) -> dict[str, Path]:
    """Data, partition, a baseline, and for each of two seeds a teacher, a mixture, its parts and students."""
    monkeypatch.setattr("moekd.data.load_parts", lambda folder: PARTS)
    root = tmp_path / "steps"
    root.mkdir()
    group_of = {s.id: CWES.index(s.cwe) for part in PARTS.values() for s in part if s.label}
    made = {
        "data": write_step(root, "data", "data", facts={"read": 300, "kept": 240}),
        "partition": write_step(root, "partition", "partition", facts={"scheme": "cwe"}, scheme="cwe"),
        "tokens": write_step(root, "tokens", "baseline", answers(15), system="bag-of-tokens"),
    }
    write_json(made["partition"] / "partition.json", {"groups": GROUPS, "group_of": group_of, "scheme": "cwe"})
    for seed in (0, 1):

        def step(label, stage, logits=None, seed=seed, **rest):
            made[f"{label} {seed}"] = write_step(root, f"{label}-{seed}", stage, logits, seed=seed, **rest)

        small = {"rows": {"parameters": 740000, "file_bytes": 2960000, "latency_ms": 1.234}}
        step("teacher", "teacher", answers(12), system="teacher", facts={"rows": {"train_seconds": 100.0}})
        step("router", "router", routes(6), system="router", facts={"rows": {"train_seconds": 50.0}})
        step("experts", "experts", partition="cwe", facts={"rows": {"train_seconds": 150.0 + seed}})
        step("dealt", "experts", partition="random", facts={"rows": {"train_seconds": 900.0}})
        step("mixture", "mixture", answers(6 + seed), system="mixture", rule="top-k")
        for system, wrong in (("student-moe", 9 + 3 * seed), ("student-hard", 15)):
            step(system, "student", answers(wrong), system=system, student="tiny", facts=small)
    return made


@pytest.fixture
def found(inputs, tmp_path) -> dict[str, Any]:
    facts = results(settings(), inputs, tmp_path)
    stored = read_json(tmp_path / "results.json")
    assert facts == {"results": "results.json", "table": "results.md", "numbers": len(stored["rows"])}
    return stored


def the(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The one row that has these values."""
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


# ---------------------------------------------------------------------------------------------------- rows


def test_a_row_is_one_tidy_number(found):
    """Exactly the keys of the schema; each number once; every system of the run is there."""
    keys = ["data", "split", "seed", "system", "student", "part", "metric", "value", "low", "high", "n"]
    assert found["schema"] == 1
    assert all(list(row) == keys for row in found["rows"])
    identities = [tuple(row[key] for key in keys[:7]) for row in found["rows"]]
    assert len(set(identities)) == len(identities)
    assert {row["system"] for row in found["rows"] if row["part"] == "test"} == {
        "bag-of-tokens", "teacher", "router", "mixture", "student-moe", "student-hard",
    }  # fmt: skip


def test_rows_of_a_detector(found):
    """9 of 60 wrong, 5 of them vulnerable: accuracy 51/60, recall 25/30, in a bootstrap interval."""
    row = the(found["rows"], system="student-moe", seed=0, part="test", metric="accuracy")
    assert (row["data"], row["split"], row["student"]) == ("toy", "project", "tiny")
    assert row["value"] == pytest.approx(51 / 60)
    assert row["low"] < row["value"] < row["high"]
    assert row["n"] == 60
    recall = the(found["rows"], system="student-moe", seed=0, part="valid", metric="recall")
    assert recall["value"] == pytest.approx(25 / 30)


def test_rows_by_group(found):
    """Of the 5 vulnerable functions called wrong, two are of the first group of 10, two of the second."""
    by_group = [
        the(found["rows"], system="student-moe", seed=0, part=f"test/{name}", metric="recall") for name in GROUPS
    ]
    assert [row["value"] for row in by_group] == pytest.approx([0.8, 0.8, 0.9])
    assert [row["n"] for row in by_group] == [10, 10, 10]


def test_rows_of_the_router(found):
    """The first 3 vulnerable functions are sent to `unknown`: right for the third only. 28 of 30, 18 of 20.

    Without that choice the two others go to the first group, which is right for one of them.
    """
    rows = [row for row in found["rows"] if row["system"] == "router" and row["seed"] == 0]
    accuracy = the(rows, part="test", metric="accuracy")
    assert (accuracy["value"], accuracy["n"]) == (pytest.approx(28 / 30), 30)
    known = the(rows, part="test/known-cwe", metric="accuracy")
    assert (known["value"], known["n"]) == (pytest.approx(18 / 20), 20)
    among = the(rows, part="test/among-known", metric="accuracy")
    assert (among["value"], among["n"]) == (pytest.approx(19 / 20), 20)
    assert the(rows, part="test", metric="largest_group_share")["value"] == pytest.approx(1 / 3)
    benign = [the(rows, part="test/not_vulnerable", metric=f"routed_to:{name}")["value"] for name in GROUPS]
    assert benign == pytest.approx([0, 27 / 30, 3 / 30])
    assert not [row for row in rows if row["metric"] == "auroc"]


def test_rows_of_cost(found):
    """Facts of steps become rows; experts and router together are the mixture's, the control's are its own."""
    costs = [row for row in found["rows"] if row["part"] == "cost"]
    assert the(costs, system="student-moe", seed=0, metric="file_bytes")["value"] == 2960000
    assert the(costs, system="experts", seed=1, metric="train_seconds")["value"] == 151.0
    assert the(costs, system="experts-random-partition", seed=0, metric="train_seconds")["value"] == 900.0
    assert the(costs, system="mixture", seed=1, metric="train_seconds")["value"] == 201.0
    assert the(costs, system="mixture", seed=1, metric="train_seconds_over_teacher")["value"] == 2.01
    assert all(row["low"] is row["high"] is row["n"] is None for row in costs)


def test_an_attacked_mixture_has_its_costs_once(inputs, tmp_path):
    """The step that attacks the mixture goes by its name; with one seed a second row would make a mean over seeds."""
    only = {name: path for name, path in inputs.items() if not name.endswith(" 1")}
    attack = write_step(tmp_path / "steps", "attack-0", "attack", system="mixture", seed=0)
    (attack / "results.jsonl").write_text("{}\n")
    results(settings(run={"seeds": [0]}), {**only, "attack 0": attack}, tmp_path)
    stored = read_json(tmp_path / "results.json")
    assert the(stored["rows"], system="mixture", metric="train_seconds")["value"] == 200.0
    assert stored["over_seeds"]["rows"] == []


def test_undefined_numbers_are_left_out(inputs, tmp_path, monkeypatch):
    """A test part without vulnerable functions has no AUROC: no row, and no NaN that breaks JSON readers."""
    parts = PARTS | {"test": [s for s in PARTS["test"] if s.label == 0]}
    monkeypatch.setattr("moekd.data.load_parts", lambda folder: parts)
    results(settings(), inputs, tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    metrics = {row["metric"] for row in stored["rows"] if row["system"] == "teacher" and row["part"] == "test"}
    assert metrics == {"accuracy", "precision", "mcc", "ece", "brier", "nll_nats"}
    assert {one["metric"] for one in stored["comparisons"]} == {"accuracy", "mcc", "ece"}


# ----------------------------------------------------------------------------------- comparisons and seeds


def test_comparisons_pair_seed_by_seed(found):
    """Same seed and student; a baseline without a seed meets each seed; absent systems are no pair."""
    pairs = [
        (one["first"], one["second"], one["student"], one["seed"])
        for one in found["comparisons"]
        if one["metric"] == "accuracy"
    ]
    assert pairs == [
        ("student-moe", "student-hard", "tiny", 0),
        ("student-moe", "student-hard", "tiny", 1),
        ("student-moe", "bag-of-tokens", "tiny", 0),
        ("student-moe", "bag-of-tokens", "tiny", 1),
        ("mixture", "teacher", None, 0),
        ("mixture", "teacher", None, 1),
        ("teacher", "bag-of-tokens", None, 0),
        ("teacher", "bag-of-tokens", None, 1),
    ]


def test_a_comparison_by_hand(found):
    """Teacher 12 wrong, mixture 6 of the same 12: 6 functions only the mixture has right. p = 2 / 2^6."""
    one = the(found["comparisons"], first="mixture", seed=0, metric="accuracy")
    assert one["difference"] == pytest.approx(0.1)
    assert 0 < one["low"] < 0.1 < one["high"]
    assert (one["only_first_right"], one["only_second_right"], one["p"]) == (6, 0, 2 / 64)
    assert the(found["comparisons"], first="mixture", seed=0, metric="auroc")["p"] is None


def test_means_over_seeds(found):
    """Accuracies 51/60 and 48/60: mean 0.825; t(0.975, 1) = 12.706 times half their distance of 0.05."""
    mean = the(found["over_seeds"]["rows"], system="student-moe", part="test", metric="accuracy")
    assert (mean["value"], mean["seeds"]) == (pytest.approx(0.825), 2)
    assert mean["high"] - 0.825 == pytest.approx(12.706 * 0.025, abs=1e-4)
    difference = the(found["over_seeds"]["comparisons"], first="mixture", metric="accuracy")
    assert difference["difference"] == pytest.approx((6 / 60 + 5 / 60) / 2)
    assert not [row for row in found["over_seeds"]["rows"] if row["system"] == "bag-of-tokens"]


# ------------------------------------------------------------------------------------------------ provenance


def test_provenance_names_everything_and_no_place(found, tmp_path):
    """Settings, seeds, digests, versions and keys are there; the folders of this machine are not."""
    made = found["provenance"]
    assert made["seeds"] == [0, 1]
    assert made["data"]["source_digests"] == ["digest of the source"]
    assert made["data"]["file_digests"] == {"samples.parquet": "feedbeef" * 8}
    assert made["steps"]["teacher 0"] == {"key": "key of teacher-0", "commit": "c0ffee", "seconds": 1.5}
    assert "numpy" in made["packages"]
    paths = [source["path"] for source in made["settings"]["data"]["sources"]]
    assert paths == ["$MOEKD_DATA/bigvul.parquet", "private.jsonl"]
    assert made["settings"]["encoder"]["name"] == "codebert"
    text = json.dumps(found)
    assert str(tmp_path) not in text
    assert "/home" not in text


def test_an_accelerator_that_any_step_used_is_named(found, inputs, tmp_path):
    """Costs of a step on a GPU are no costs of the processor: the table says what was there."""
    assert found["provenance"]["machine"]["accelerators"] == []
    path = inputs["teacher 0"] / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"accelerator": "GPU X"}))
    results(settings(), inputs, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["provenance"]["machine"]["accelerators"] == ["GPU X"]
    assert "threads, GPU X." in (tmp_path / "results.md").read_text()


# -------------------------------------------------------------------------------------------------- failures


def test_stale_predictions_are_refused(inputs, tmp_path):
    """Predictions of other functions must not be judged, and nothing half-written is left."""
    other = [Sample(s.id, s.func, s.label, "toy", digest="changed") for s in JUDGED]
    save_scores(inputs["teacher 0"] / "predictions.npz", scores_of(other, answers(0)))
    with pytest.raises(DataError, match=r"teacher 0, predictions.npz: the text of 60 samples"):
        results(settings(), inputs, tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_a_router_of_other_groups_is_refused(inputs, tmp_path):
    """Two router classes, three groups."""
    save_scores(inputs["router 1"] / "predictions.npz", scores_of(JUDGED, routes(0)[:, :2]))
    with pytest.raises(DataError, match=r"router 1 answers with 2 groups, but the partition has 3"):
        results(settings(), inputs, tmp_path)


# ---------------------------------------------------------------------------------------------------- tables


def cells(text: str, first: str) -> list[list[str]]:
    """Table lines that begin with this cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [line for line in split if line[0] == first]


def test_tables_show_means_over_seeds(found, tmp_path):
    """The main table, recall, comparison and cost of one student, as a reader sees them."""
    text = (tmp_path / "results.md").read_text()
    assert text == render_markdown(found)
    main, recall, cost = cells(text, "student-moe")
    mean = the(found["over_seeds"]["rows"], system="student-moe", part="test", metric="accuracy")
    assert main[:3] == ["student-moe", "tiny", f"0.825 ({mean['low']:.3f} to {mean['high']:.3f})"]
    assert main[-2:] == ["740,000", "2.96 MB"]
    assert recall[2:] == ["0.800", "0.800", "0.850"]  # of seeds 0 and 1: .8 .8, .8 .8, .9 .8
    assert "1.23" in cost
    assert "p (McNemar)" in text
    assert cells(text, "student-moe − student-hard")[0][-1] == "–"  # p belongs to one seed


def test_tables_of_one_seed_show_bootstrap_intervals(inputs, tmp_path):
    """The interval and p come from the one seed's rows."""
    one_seed = {label: path for label, path in inputs.items() if not label.endswith(" 1")}
    results(settings(run={"seeds": [0]}), one_seed, tmp_path)
    found, text = read_json(tmp_path / "results.json"), (tmp_path / "results.md").read_text()
    row = the(found["rows"], system="teacher", part="test", metric="accuracy")
    assert cells(text, "teacher")[0][2] == f"0.800 ({row['low']:.3f} to {row['high']:.3f})"
    assert cells(text, "mixture − teacher")[0][-1] == "0.031"
    assert found["over_seeds"] == {"rows": [], "comparisons": []}
    assert "bootstrap interval" in text


def test_tables_come_from_the_file_alone(found):
    """Change a number in the dictionary and the table changes with it; rendering changes nothing itself."""
    before = copy.deepcopy(found)
    changed = copy.deepcopy(found)
    the(changed["over_seeds"]["rows"], system="teacher", part="test", metric="mcc")["value"] = 0.12345
    assert "0.123" not in render_markdown(found)
    assert "0.123" in render_markdown(changed)
    assert found == before


def test_a_model_with_one_answer_for_all_is_named(found):
    """Of two models with an MCC of 0 only the one that calls everything, or nothing, vulnerable is named."""
    changed = copy.deepcopy(found)
    assert "One answer" not in render_markdown(found)
    for system, recall in (("teacher", 1.0), ("mixture", 0.5)):
        for metric, value in (("mcc", 0.0), ("recall", recall)):
            the(changed["rows"], system=system, part="test", metric=metric, seed=1)["value"] = value
    assert "the accuracy is a constant's: teacher (seed 1).**" in render_markdown(changed)


def test_document_of_several_runs_names_its_sources(found, tmp_path):
    """One section a run, in order; commit, seeds and data beside each table; says that it is generated."""
    second = copy.deepcopy(found)
    for row in second["rows"]:
        row["data"] = "elsewhere"
    second["provenance"]["commit"] = "0123456789abcdef0123456789abcdef01234567-dirty"
    write_json(tmp_path / "second.json", second)
    text = render_results_doc([tmp_path / "results.json", tmp_path / "second.json"])
    headings = re.findall(r"^(#+ .*)$", text, flags=re.MULTILINE)
    assert headings[0] == "# Results"
    assert headings[1] == "## toy, split project"
    assert headings[2] == "### Systems on the test part"
    assert "## elsewhere, split project" in headings
    assert "do not edit" in text.split("##")[0]
    sections = text.split("\n### ")[1:]
    assert len(sections) == 10
    assert all("seeds 0, 1; data feedbeeffeed*" in section for section in sections)
    assert all("commit 0123456789ab (changed)" in section for section in sections[5:])


def test_a_run_without_mixture_has_no_empty_tables(inputs, tmp_path):
    """Only a baseline: no router, comparison or cost section, and no error."""
    only = {label: inputs[label] for label in ("data", "partition", "tokens")}
    results(settings(), only, tmp_path)
    headings = re.findall(r"^## (.*)$", (tmp_path / "results.md").read_text(), flags=re.MULTILINE)
    assert headings == ["Systems on the test part", "Recall by group"]


@pytest.fixture
def three_classes(monkeypatch, tmp_path) -> dict[str, Path]:
    """60 functions a part of classes a, b and c in turn: a teacher wrong on 6, a student on 12, called `a` instead."""
    parts = {
        part: [Sample(f"{part}:{i}", "f", i % 3, "toy", digest=f"{part}{i}") for i in range(N)]
        for part in ("train_a", "train_b", "valid", "test")
    }
    monkeypatch.setattr("moekd.data.load_parts", lambda folder: parts)
    monkeypatch.setitem(globals(), "JUDGED", [*parts["valid"], *parts["test"]])
    root = tmp_path / "steps"
    root.mkdir()

    def logits(wrong: int) -> np.ndarray:
        truth = np.array([sample.label for sample in JUDGED])
        called = np.where(np.arange(len(truth)) % N < wrong, 0, truth)
        return 2.0 * np.eye(3)[called]

    made = {"data": write_step(root, "data", "data", facts={"classes": ["a", "b", "c"]})}
    write_json(made["data"] / "report.json", {"classes": ["a", "b", "c"]})
    made["single"] = write_step(root, "single", "student", logits(6), system="student-single", student="tiny", seed=0)
    made["hard"] = write_step(root, "hard", "student", logits(12), system="student-hard", student="tiny", seed=0)
    return made


def task_settings(task: str) -> MoekdSettings:
    source = {"kind": "jsonl", "path": "rows.jsonl"}
    return settings(
        data={"task": task, "sources": [source], "balance": False},
        student={"systems": ["single", "hard"]},
        run={"seeds": [0]},
    )


def test_rows_and_tables_of_several_classes(three_classes, tmp_path):
    """6 of 60 called `a`, of which two are: 4 wrong. Recall of b and c 18/20, of a 1; F1 40/44 and 36/38 twice."""
    results(task_settings("multi-class"), three_classes, tmp_path)
    found = read_json(tmp_path / "results.json")
    single = {"system": "student-single", "part": "test"}
    assert the(found["rows"], metric="accuracy", **single)["value"] == pytest.approx(56 / 60)
    assert the(found["rows"], metric="macro_f1", **single)["value"] == pytest.approx((40 / 44 + 2 * 36 / 38) / 3)
    recalls = [the(found["rows"], system="student-single", part=f"test/{name}", metric="recall") for name in "abc"]
    assert [row["value"] for row in recalls] == pytest.approx([1, 0.9, 0.9])
    assert [row["n"] for row in recalls] == [20, 20, 20]
    assert not [row for row in found["rows"] if row["metric"] in ("f1", "auroc", "mcc")]
    compared = the(found["comparisons"], first="student-single", metric="macro_f1")
    assert (compared["second"], compared["difference"] > 0) == ("student-hard", True)
    text = (tmp_path / "results.md").read_text()
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings == ["Systems on the test part", "Recall by class", "Paired comparisons"]
    main, recall, *_ = cells(text, "student-single")
    assert (main[2].split()[0], main[3]) == ("0.933", "0.935")
    assert recall[2:] == ["1.000", "0.900", "0.900"]


def test_rows_and_tables_of_pairs(inputs, tmp_path):
    """The measures of a detector, macro-F1, and recall of clones and of others; the text says pairs."""
    made = {label: inputs[label] for label in ("data", "tokens")}
    write_json(made["data"] / "report.json", {"classes": ["not_clone", "clone"]})
    results(task_settings("pair"), made, tmp_path)
    rows = [row for row in read_json(tmp_path / "results.json")["rows"] if row["part"] == "test"]
    assert {"accuracy", "f1", "macro_f1", "auroc"} <= {row["metric"] for row in rows}
    text = (tmp_path / "results.md").read_text()
    assert "60 pairs." in text
    assert "not_clone (30) | clone (30)" in text


def test_the_published_tables_are_made_from_the_published_files():
    """docs/results.md says nothing that docs/results/*.json does not: `make results` was not forgotten."""
    docs = Path(__file__).parent.parent / "docs"
    names = (docs / "results" / "published.txt").read_text(encoding="utf-8").split()
    made = render_results_doc([docs / "results" / f"{name}.json" for name in names])
    assert made == (docs / "results.md").read_text(encoding="utf-8")


def test_a_commit_with_changed_files_is_told():
    assert short_commit("0123456789abcdef") == "0123456789ab"
    assert short_commit("0123456789abcdef-dirty") == "0123456789ab (changed)"
    assert short_commit(None) == "unknown"


def test_pretraining_runs_have_a_section(tmp_path):
    """A manifest of a `pretrain` step becomes one row, with its commit; what it did not measure is a dash."""
    held_out = {"masked_loss_nats": 2.5, "masked_accuracy_model": 0.512}
    held_out |= {f"masked_accuracy_{name}": 0.25 for name in ("unigram", "trigram", "both_neighbours")}
    manifest = {
        "stage": "pretrain",
        "commit": "0123456789abcdef",
        "settings": {"encoder.layers": 4, "encoder.hidden": 256, "pretrain.objective": "masked-tokens"},
        "facts": {"history": {"tokens": 20_480_000}, "tokens_per_second": 8123.4, "held_out": held_out},
    }
    (tmp_path / "mini.json").write_text(json.dumps(manifest))
    row = render_results_doc([tmp_path / "mini.json"]).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["mini", "roberta, 4 x 256", "masked-tokens", "20.5 M", "8,123"]
    assert cells[5:] == ["2.500", "0.512", "0.250", "0.250", "0.250", "–", "0123456789ab"]


def test_the_cost_of_a_scan_has_a_section(tmp_path):
    """By hand: the median of 9, 1, 2 s is 2, so 2,000 lines are 1,000 a second; 0.5 s of products in 2 s are 25 %."""
    cost = {"seconds": [9.0, 1.0, 2.0], "peak_bytes": 123_000_000, "functions_per_second": 50.0}
    costs = {"flawfinder": cost, "moekd, 1 core": cost, "pipeline, 1 core": cost}
    tree = {"tree": "sox", "counts": {"files": 7, "functions": 100, "lines": 2000}, "costs": costs}
    tree |= {"times_the_pipeline": {"moekd, 1 core / pipeline, 1 core": [4.0, 2.0, 3.0]}}
    tree |= {"limit_seconds_one_core": {"layers": 0.25, "attention": 0.25, "gflops_per_second": 97.0}}
    tree |= {"not_installed": ["semgrep"], "failed": {"cppcheck": "no such option"}}
    other = tree | {"tree": "gmp", "times_the_pipeline": {}, "failed": {}}
    result = {"benchmark": "scan", "commit": "c" * 40, "model": {"model.onnx": "d" * 64}, "cores": 2, "rounds": 3}
    write_json(tmp_path / "quick.json", result | {"trees": [tree, other]})
    text = render_results_doc([tmp_path / "quick.json"])
    assert "## Cost of a scan: quick" in text
    assert "2 trees, 4,000 lines" in text
    assert "semgrep is not installed. cppcheck failed: no such option." in text
    assert cells(text, "moekd, 1 core")[0][1:] == ["2.0 (1.0 to 9.0)", "50", "1,000", "123"]
    assert cells(text, "pipeline, 1 core")[0][1:] == ["–", "50", "–", "123"]
    assert text.index("| moekd, 1 core") < text.index("| flawfinder"), "ours stands first"
    assert cells(text, "moekd, 1 core / pipeline, 1 core") == [
        ["moekd, 1 core / pipeline, 1 core", "3.0 (2.0 to 4.0)", "–"]
    ]
    assert cells(text, "sox") == [["sox", "97", "0.2", "0.2", "2.0", "25%"]]


def test_cold_starts_have_a_section(tmp_path):
    costs = {"moekd --help": {"seconds": [0.3, 0.2, 0.4], "processor_seconds": [0.25], "peak_bytes": 31_000_000}}
    result = {"benchmark": "start", "commit": None, "cores": 2, "python": "3.11.7", "torch": False, "runs": 3}
    result |= {"model": {"digest": "e" * 32}, "file": {"name": "a.c", "functions": 9, "lines": 1234}}
    write_json(tmp_path / "start.json", result | {"commands": costs})
    text = render_results_doc([tmp_path / "start.json"])
    assert "## Cold start: start" in text
    assert "no torch installed; the file has 9 functions of 1,234 lines" in text
    assert cells(text, "`moekd --help`") == [["`moekd --help`", "0.30 (0.20 to 0.40)", "0.25", "31"]]
