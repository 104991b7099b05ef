"""Why a mixture does or does not win: the sweep of fusions and the specialists, by hand, and their tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from moekd.files import write_json
from moekd.partition import Groups
from moekd.records import Sample
from moekd.report import render_results_doc

_spec = importlib.util.spec_from_file_location(
    "mixture_benchmark", Path(__file__).parent.parent / "benchmarks" / "mixture.py"
)
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)

CONFIGURED = benchmark.Choice(2, "renormalised", "logits", False, 1.0)


def _logits(margins: list[float]) -> np.ndarray:
    return np.stack([np.zeros(len(margins)), np.array(margins)], axis=1)


def _answers(router: list[int], experts: list[list[float]], teacher: list[float], labels: list[int]):
    """Answers where the router is sure of expert `router[i]` and expert k's margins are `experts[k]`."""
    sure = 50.0 * np.eye(len(experts))[router]
    return benchmark.Answers(
        sure, np.stack([_logits(one) for one in experts], axis=1), _logits(teacher), np.array(labels)
    )


def _samples(*labels: int) -> list[Sample]:
    return [
        Sample(id=f"s{index}", func=f"int f{index}(void);", label=label, dataset="hand")
        for index, label in enumerate(labels)
    ]


def test_validation_chooses_and_test_judges():
    """Of two experts the router always prefers the wrong one; only with the other's weight can the order be right."""
    good, bad = [3.0, 2.0, -2.0, -3.0], [-0.3, -0.2, 0.2, 0.3]
    answers = _answers([1, 1, 1, 1], [good, bad], [1.0, -1.0, 0.5, -2.0], [1, 1, 0, 0])
    found = benchmark.fusions(answers, answers, CONFIGURED)
    assert found["teacher"]["valid_auroc"] == pytest.approx(0.75), "of four pairs one is the wrong way round"
    assert found["configured"]["valid_auroc"] == pytest.approx(0.0)
    assert found["best on validation"]["valid_auroc"] == found["valid_auroc"]["highest"] == pytest.approx(1.0)
    assert found["best on validation"]["choice"]["k"] == 2
    assert found["best on validation"]["minus_teacher"]["auroc"]["value"] == pytest.approx(0.25)


def test_choices_never_ask_for_more_experts_than_there_are():
    assert {choice.k for choice in benchmark.choices(3)} == {1, 2, 3}
    assert {choice.k for choice in benchmark.choices(10)} == {1, 2, 3, 5, 10}


def test_an_expert_is_judged_on_its_own_group_and_all_that_is_not_vulnerable():
    """Expert 0 ranks its one function first, the teacher behind one of two safe ones; group 1 does not count."""
    samples = _samples(1, 1, 0, 0)
    groups = Groups(("CWE-664", "other", "unknown"), {"s0": 0, "s1": 1})
    answers = _answers([0] * 4, [[2.0, -9, 1, 0], [0.0, 0, 1, 0], [0.5, 0, 1, 0]], [0.5, 9, 1, 0], [1, 1, 0, 0])
    parts = {"train_a": samples[:1], "train_b": samples, "test": []}
    nothing = benchmark.Answers(*(array[:0] for array in answers))
    rows = benchmark.specialists({"train_b": answers, "test": nothing}, parts, groups)
    home, _, unknown = rows
    assert (home["learned"], home["judged"]) == (1, 1)
    assert home["own_expert"] == pytest.approx(1.0)
    assert home["teacher"] == pytest.approx(0.5)
    assert home["other_experts"] == pytest.approx({"mean": 0.375, "highest": 0.5})
    assert home["own_minus_teacher"]["value"] == pytest.approx(0.5)
    assert unknown == {"group": "unknown", "learned": 0, "judged": 0}


def test_the_tables_show_what_was_found(tmp_path):
    """A choice, its difference with both ends, a specialist's row and one of a group without functions."""
    answers = _answers([0, 1, 0, 1], [[3.0, 2, -2, -3], [1.0, 2, 0, -1]], [1.0, -1, 0.5, -2], [1, 1, 0, 0])
    groups = Groups(("CWE-664", "other"), {"s0": 0, "s1": 0})
    samples = _samples(1, 1, 0, 0)
    parts = {"train_a": samples, "train_b": samples, "test": samples}
    result = {
        "benchmark": "mixture",
        "commit": "0123456789abcdef",
        "config": "by-hand",
        "seeds": [
            {
                "seed": 3,
                "fusions": benchmark.fusions(answers, answers, CONFIGURED),
                "specialists": benchmark.specialists({"train_b": answers, "test": answers}, parts, groups),
            }
        ],
    }
    write_json(tmp_path / "why.json", result)
    text = render_results_doc([tmp_path / "why.json"])
    assert "## Why the mixture does not win: why" in text
    assert "| mixture, configured         | 2" in text
    assert "CWE-664 | 2       | 4" in text
    assert "other   | 0       | 0" in text
