"""Detection at the natural ratio: the measures by hand, the table, and the choice of functions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from random import Random

import numpy as np
import pytest

from moekd.errors import DataError
from moekd.evaluate import precision_at_top, recall_at_alarms
from moekd.files import write_json
from moekd.records import Sample
from moekd.report import render_results_doc

_spec = importlib.util.spec_from_file_location(
    "detection", Path(__file__).parent.parent / "benchmarks" / "detection.py"
)
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)


def test_precision_at_the_top_by_hand():
    """Of ten functions the top 30 % are three: scores 9, 8, 7 with labels 1, 0, 1."""
    labels = np.array([0, 1, 0, 0, 0, 0, 1, 1, 0, 1])
    assert precision_at_top(np.arange(10.0), labels, 0.3) == pytest.approx(2 / 3)
    assert precision_at_top(np.arange(10.0), labels, 0.001) == 1.0, "one function at least is looked at"


def test_ties_count_as_broken_at_random():
    """One clear function, then two places for four equal ones of which one is vulnerable: (1 + 2 / 4) / 3."""
    scores = np.array([5.0, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    labels = np.array([1, 1, 0, 0, 0, 1, 0, 0, 0, 0])
    assert precision_at_top(scores, labels, 0.3) == pytest.approx((1 + 2 * 0.25) / 3)
    assert precision_at_top(np.zeros(10), labels, 0.5) == pytest.approx(0.3), "no information: the share of all"


def test_recall_at_alarms_by_hand():
    """2,000 lines: at 1 alarm per 1,000 two of the safe functions may be reported, 0.9 and 0.7, so 0.6 is found."""
    scores = np.array([0.95, 0.6, 0.1, 0.9, 0.7, 0.5, 0.2])
    labels = np.array([1, 1, 1, 0, 0, 0, 0])
    lines = np.array([200, 200, 200, 200, 200, 500, 500])
    assert recall_at_alarms(scores, labels, lines, 1) == pytest.approx(2 / 3)
    assert recall_at_alarms(scores, labels, lines, 0) == pytest.approx(1 / 3)
    assert recall_at_alarms(scores, labels, lines, 2) == 1.0, "all safe functions are allowed"


def test_a_threshold_never_cuts_through_equals():
    """All score alike: reporting one means reporting all, which is too many alarms."""
    labels = np.array([1, 0, 0, 0])
    assert recall_at_alarms(np.ones(4), labels, np.full(4, 500), 1) == 0.0


def test_recall_without_a_vulnerable_function_is_refused():
    with pytest.raises(DataError, match="needs a vulnerable function"):
        recall_at_alarms(np.ones(2), np.zeros(2), np.ones(2), 1)


def test_the_ratio_of_the_file_is_kept():
    """2 vulnerable at 1 in 10 want 18 others; where there are fewer, all are taken."""
    samples = [Sample(f"s:{i}", f"int f{i};", int(i < 2), "s") for i in range(100)]
    kept = benchmark.at_ratio(samples, 0.1, Random(0))
    assert (len(kept), sum(one.label for one in kept)) == (20, 2)
    assert len(benchmark.at_ratio(samples, 0.001, Random(0))) == 100


def test_scores_of_other_scanners_by_hand():
    """The highest level decides; messages of that level decide between equals; silence is zero."""
    samples = [Sample(f"s:{i}", "int f;", 0, "s") for i in range(4)]
    scores = benchmark._scores(samples, lambda _: [(0, 4.0), (0, 1.0), (1, 4.0), (1, 4.0), (2, 5.0)])
    assert scores[2] > scores[1] > scores[0] > scores[3] == 0


def test_complaints_of_flawfinder_are_no_hits(tmp_path):
    """Between its rows flawfinder says in plain text what it could not read."""
    text = f"""Error: File ended while in string.
File,Line,Column,Level,Category
{tmp_path}/3.c,1,2,4,buffer
Error: File ended while in string.
{tmp_path}/12.cpp,9,1,0,"a, b"
"""
    assert benchmark.flawfinder_levels(text, tmp_path) == [(3, 4.0), (12, 0.0)]


def test_the_report_shows_a_detection_result(tmp_path):
    row = {
        "precision_at_top": {"0.01": 0.5, "0.05": 0.25, "0.1": 0.125},
        "recall_at_alarms": {"1.0": 0.25, "5.0": 0.75},
        "distinct_scores": 9,
    }
    functions = {"data": "d", "digest": "e" * 64, "count": 200, "vulnerable": 10, "lines": 900, "disjoint": "projects"}
    result = {
        "benchmark": "detection",
        "commit": "c" * 40,
        "seed": 0,
        "tops": [0.01, 0.05, 0.1],
        "alarms_per_kloc": [1.0, 5.0],
        "functions": functions,
        "detectors": {"moekd": row},
    }
    write_json(tmp_path / "found.json", result)
    text = render_results_doc([tmp_path / "found.json"])
    assert "## Detection at the natural ratio: found" in text
    assert "| moekd | 0.500 | 0.250 | 0.125 | 0.250 | 0.750 |" in " ".join(text.split())
    assert "guessing reaches 5.00% at any top" in text
    row["intervals"] = {"precision_at_top": {key: [0.1, 0.9] for key in ("0.01", "0.05", "0.1")}}
    row["intervals"]["recall_at_alarms"] = {key: [0.2, 0.8] for key in ("1.0", "5.0")}
    write_json(tmp_path / "found.json", result)
    text = render_results_doc([tmp_path / "found.json"])
    assert "| moekd | 0.500 (0.100 to 0.900) | 0.250 (0.100 to 0.900) |" in " ".join(text.split())
    assert "bootstrap intervals over the functions" in text


def test_intervals_of_detection():
    """400 functions in a random order of scores, 40 vulnerable: about 0.1 +- 1.96 * sqrt(0.1 * 0.9 / 40) in the top
    tenth; what is perfect stays perfect in every resample."""
    labels = np.tile([1] + [0] * 9, 40)
    lines = np.full(400, 10)
    rng = np.random.default_rng(0)
    low, high = benchmark.intervals(rng.random(400), labels, lines, 0)["precision_at_top"]["0.1"]
    assert 0.1 < high - low < 0.3
    found = benchmark.intervals(labels + rng.random(400) / 2, labels, lines, 0)
    assert found["precision_at_top"]["0.01"] == (1.0, 1.0)
    assert found["recall_at_alarms"]["5.0"] == (1.0, 1.0)
