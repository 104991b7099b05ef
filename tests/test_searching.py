"""Figures of architecture searches: the tables by hand, and which students are set side by side."""

from __future__ import annotations

import importlib.util
import shutil
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from micro import settings

from moekd.data import load_parts
from moekd.data.embedded import generate
from moekd.files import write_json
from moekd.report import render_results_doc
from moekd.report.searching import cost_ratios, render_searching, verdict
from moekd.scorer import save_scores, scores_of
from moekd.stages import data_step
from moekd.steps import run_steps
from moekd.students.cost import cost_of
from moekd.students.latency import PUBLISHED, Latency, work
from moekd.students.pareto import Point
from moekd.students.search import Searched
from moekd.students.space import Configuration

_spec = importlib.util.spec_from_file_location(
    "search_benchmark", Path(__file__).parent.parent / "benchmarks" / "search.py"
)
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)

SHAPE = {"layers": 2, "hidden": 32, "heads": 4, "intermediate": 64, "vocabulary": 1000, "max_length": 256}
COST = {"parameters": 123_456, "fp32_bytes": 510_000, "int8_bytes": 160_000, "matrix_flops": 12_000_000}


def spread(low: float, median: float, high: float) -> dict[str, float]:
    return {"lowest": low, "median": median, "highest": high, "mean": median}


def student(parameters: int, size: int, *times: float) -> dict:
    return {
        "configuration": SHAPE,
        "parameters": parameters,
        "bytes": {"float32": size, "int8": size // 2},
        "tokens_median": 90.0,
        "matrix_flops": 12_000_000,
        "milliseconds": {"float32": list(times), "int8": list(times)},
    }


def searched(measures: str) -> dict:
    return {
        "measures": measures,
        "candidates": 14,
        "seeds": 10,
        "evaluations": 5000,
        "seconds": spread(1, 2.25, 3),
        "front": spread(30, 41, 50),
        "hypervolume": spread(0.4, 0.45, 0.5),
        "surrogates": {"accuracy": {"error": 0.0125, "constant_error": 0.02}},
        "distinct_picks": 3,
        "picked": {"configuration": SHAPE, "values": {"error": 0.25}, "cost": COST},
    }


@pytest.fixture
def result() -> dict:
    row = {
        "budget_bytes": 1_600_000,
        "exact_fitness": 1.45219,
        "exact_seconds": 0.91,
        "exact_evaluations": 10_944_000,
        "architecture": SHAPE,
        "cost": COST,
        "genetic_seeds": 60,
        "genetic_at_the_optimum": 3,
        "genetic_fitness": spread(1, 1.25, 1.4),
        "genetic_seconds": 0.4,
        "genetic_evaluations": 5050,
    }
    about = {"commit": "c" * 40, "seconds": 1500.0, "settings": {"search.epochs": 5}}
    return {
        "benchmark": "search",
        "commits": {"compressor": "0123456789abcdef", "avatar": "0123456789abcdef"},
        "cores": 2,
        "compressor": [row],
        "avatar": searched("invented"),
        "morph": searched("invented"),
        "moekd": searched("trained") | {"candidates_from": about, "candidates_accuracy": spread(0.5, 0.625, 0.75)},
        "age-moea": {"seeds": 10, "hypervolume": spread(0.4, 0.47, 0.5), "skipped": "no numba"},
        "beside": {"avatar-3mb": "ours, 1"},
        "costs": {
            "data": {"key": "d" * 16, "tokenizers": 3200, "timed": 3, "rounds": 3},
            "rank_correlation_with_flops": {"float32": 0.5, "int8": 0.25},
            "students": {
                "avatar-3mb": student(1000, 4000, 2.0, 4.0, 10.0),
                "ours, 1": student(500, 3000, 1.0, 3.0, 2.0),
            },
        },
        "trained": {"avatar-3mb": {"accuracy": 0.75}, "ours, 1": {"accuracy": 0.8125}},
    }


def lines(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def test_the_report_shows_the_searches(result, tmp_path):
    write_json(tmp_path / "found.json", result)
    text = lines(render_results_doc([tmp_path / "found.json"]))
    assert "## Architecture search: found" in text
    assert "*commit 0123456789ab; 2 cores, one thread*" in text
    assert "| 1.6 MB | 1.4522 | 0.91 | 10,944,000 | 3 of 60 | 1.2500 | 0.40 | 5,050 |" in text
    assert (
        "| AVATAR | 14, invented | accuracy 0.013 (0.020) | 5,000 | 2.2 | 0.450 (0.400 to 0.500) | 41 | 3 of 10 |"
        in text
    )
    candidates = "5 epochs each, 25 minutes for all of them, accuracy 0.625 (0.500 to 0.750), commit cccccccccccc."
    assert f"Candidates of ours: {candidates}" in text
    assert "mean hypervolume 0.470; pymoo's own was not run (no numba)." in text


def test_milliseconds_stand_beside_the_surrogates(result):
    """Of the search that has them for an objective; the note on the students beside says how ours were chosen."""
    result["moekd"]["latency"] = {"error": 0.33, "constant_error": 5.146}
    text = lines(render_searching(result))
    assert "| ours | 14, trained | accuracy 0.013 (0.020); milliseconds 0.330 (5.146) |" in text
    assert "that cost no more by count and by guessed milliseconds the one" in text


def test_accuracy_is_guessed_only_from_what_was_trained(result):
    """Of invented measures the guess says nothing about students; Compressor's search makes none."""
    text = lines(render_searching(result))
    shape = "| 2 | 32 | 4 | 64 | 1,000 | 256 | 123,456 | 0.51 MB | 0.16 MB | 12 |"
    assert f"| ours {shape} 0.750 |" in text
    for title in ("Compressor", "AVATAR", "MORPH"):
        assert f"| {title} {shape} – |" in text


def test_ours_beside_a_published_student(result):
    """Parameters 500 / 1000, bytes 3000 / 4000; times 1/2, 3/4 and 1/5, whose median is 1/2; accuracy +1/16."""
    text = lines(render_searching(result))
    assert "| avatar-3mb | ours, 1 | 0.50 | 0.75 | 0.75 | 0.50 | 0.50 | +0.062 | dominates or equals |" in text
    assert "| avatar-3mb | 2 x 32 | 1,000 | 0.00 MB | 0.00 MB | 90 | 12 | 4.00 | 4.00 | 0.750 |" in text


def test_parts_of_two_commits_are_told_apart(result):
    result["commits"] |= {"costs": "f" * 40 + "-dirty"}
    assert "*commit 0123456789ab: compressor, avatar; commit ffffffffffff (changed): costs; 2 c" in render_searching(
        result
    )


def test_costs_of_a_front_of_invented_measures_claim_no_accuracy(result):
    said = "says nothing about accuracy"
    assert said not in render_searching(result)
    result["moekd"]["measures"] = "invented"
    assert said in render_searching(result)


def test_without_students_there_are_no_tables_of_them(result):
    for name in ("costs", "beside", "trained"):
        del result[name]
    assert "Students, measured" not in render_searching(result)


def test_a_ratio_is_of_the_same_function():
    """Medians of 3 and 4 ms would give 0.75; function by function it is 1/2, 3/4, 1/5."""
    ours, published = student(1, 2, 1.0, 3.0, 2.0), student(1, 2, 2.0, 4.0, 10.0)
    assert cost_ratios(ours, published) == pytest.approx([1, 1, 1, 0.5, 0.5])


def test_verdicts():
    assert verdict([1, 0.5, 0.5, 1, 1], 0.0) == "dominates or equals"
    assert verdict([1, 0.5, 0.5, 1, 1], -0.01) == "cheaper, less accurate"
    assert verdict([1, 0.5, 0.5, 1, 1], None) == "no dearer"
    assert verdict([0.5, 0.5, 0.5, 0.5, 1.01], 0.3) == "dearer"


def searched_ours(front: list[Point], picked: Point) -> Searched:
    """A search of ours whose guess is a millisecond for a million tokens of a layer of width 1."""
    prices = {kind: float(kind == "state") for kind in work(PUBLISHED, 400)}
    latency = Latency({}, prices, 30, (256, 512), 0.25, 5.0, 0.05, published_ms=20.0, seconds=1.0)
    return Searched(front, picked, {}, latency, {}, 0.5, 1.0)


def test_no_student_dearer_by_any_count_is_set_beside():
    """The better guess has more parameters than the limit, or takes longer; the cheaper of the others loses by its
    guess."""
    small, middle, large = (
        Configuration(vocabulary=1000, layers=layers, hidden=32, heads=4, intermediate=64, max_length=256)
        for layers in (1, 2, 3)
    )
    errors = {small: 0.4, middle: 0.3, large: 0.1}
    front = [Point(one, {"error": error, "milliseconds": float(one.layers)}) for one, error in errors.items()]
    found = searched_ours(front, front[2])
    assert benchmark.no_dearer(found, cost_of(middle.shape(), length=256), 9.0) == middle
    assert benchmark.no_dearer(found, cost_of(small.shape(), length=256), 9.0) == small
    assert benchmark.no_dearer(found, cost_of(large.shape(), length=256), 2.0) == middle, "large takes 3 ms"


def test_work_is_counted_at_the_longest_text():
    """Compressor's students read 400 tokens, AVATAR's 351 and ours as many as they have places; and so is time: for
    compressor-2mb 12 layers x 400 tokens x 80 wide."""
    found = searched_ours([], Point(Configuration(**SHAPE), {}))
    students, _ = benchmark.to_compare(found)
    lengths = {"compressor-2mb": 400, "avatar-2mb": 351, "ours, picked": 256}
    for name, length in lengths.items():
        expected = cost_of(students[name].shape(), length=length).matrix_flops
        assert benchmark.counted(name, students[name]).matrix_flops == expected
    guess = benchmark.guessed_ms(
        searched_ours([], Point(Configuration(**SHAPE), {})), "compressor-2mb", students["compressor-2mb"]
    )
    assert guess == pytest.approx(12 * 400 * 80 / 1e6)


def test_published_students_without_a_cheaper_one_have_none_beside():
    """Of a front of one large student none costs as little as any published one."""
    large = Configuration(vocabulary=16_000, layers=8, hidden=384, heads=4, intermediate=1536, max_length=512)
    point = Point(large, {"error": 0.1, "milliseconds": 0.0})
    students, beside = benchmark.to_compare(searched_ours([point], point))
    assert beside == {}
    assert len(students) == 10
    assert students["ours, picked"] == large


@pytest.mark.parametrize(("name", "kind"), [("ours, 1", "bpe"), ("morph-3mb", "wordpiece")])
def test_a_built_student_has_the_parameters_that_were_counted(name, kind):
    """Ours with our tokenizer, a published one with its method's; both cut a long function where the model ends."""
    texts = [sample.func for sample in generate(30, 0)]
    one = Configuration(
        vocabulary=300, layers=1, hidden=16, heads=2, intermediate=32, max_length=256, tokenizer=kind, activation="relu"
    )
    built = benchmark.build(name, one, texts)
    assert built.facts["parameters"] == replace(one, vocabulary=built.facts["vocabulary"]).parameters()
    assert built.facts["bytes"]["int8"] < built.facts["bytes"]["float32"]
    assert [built.answer(precision, texts[0] * 20) for precision in ("float32", "int8")] == [256, 256]


def test_students_are_trained_as_the_candidates_were(tmp_path, monkeypatch):
    """From the data and the mixture that the candidates' manifest names; equal architectures train alike, whatever
    their methods' dropout and rate; a second call trains nothing."""
    chosen = settings(tmp_path, data={"sources": [{"kind": "embedded", "count": 60}]}, search={"epochs": 1})
    data = run_steps([data_step()], chosen)["data"]
    samples = load_parts(data)["train_b"]
    scores = scores_of(samples, np.array([[-s.label, s.label] for s in samples]))
    (tmp_path / "mixture" / "m").mkdir(parents=True)
    save_scores(tmp_path / "mixture" / "m" / "targets.npz", scores)
    candidates = tmp_path / "candidates" / "c"
    inputs = {"data": data.name, "targets": "m"}
    write_json(candidates / "manifest.json", {"key": "c", "inputs": inputs, "variant": {"seed": 0}, "settings": {}})
    monkeypatch.setattr(benchmark, "load_settings", lambda config, overrides: chosen)
    arguments = types.SimpleNamespace(
        points={"moekd": candidates / "points.jsonl"}, config="c.toml", overrides=[], trained=tmp_path / "trained.jsonl"
    )
    one = Configuration(vocabulary=300, layers=1, hidden=16, heads=2, intermediate=32, max_length=32)
    other = replace(one, hidden_dropout=0.5, learning_rate=5e-5, tokenizer="wordpiece", batch_size=16)
    students = {"ours, picked": one, "compressor-3mb": other, "avatar-3mb": one, "morph-3mb": one, "ours, 1": one}
    found = benchmark.trained_alike(students, {"avatar-3mb": "ours, 1"}, arguments)
    assert set(found) == set(students)
    assert len({one["accuracy"] for one in found.values()}) == 1
    assert len((tmp_path / "trained.jsonl").read_text().splitlines()) == 2, "the ledger's head and one training"
    shutil.rmtree(tmp_path / "mixture")
    assert benchmark.trained_alike(students, {"avatar-3mb": "ours, 1"}, arguments) == found
