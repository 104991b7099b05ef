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


def _samples(*projects: str, labels: tuple[int, ...]) -> list[Sample]:
    return [
        Sample(id=f"s{index}", func=f"int f{index}(void);", label=label, dataset="hand", project=project)
        for index, (project, label) in enumerate(zip(projects, labels, strict=True))
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
    samples = _samples("p", "q", "p", "q", labels=(1, 1, 0, 0))
    groups = Groups(("CWE-664", "other", "unknown"), {"s0": 0, "s1": 1})
    answers = _answers([0] * 4, [[2.0, -9, 1, 0], [0.0, 0, 1, 0], [0.5, 0, 1, 0]], [0.5, 9, 1, 0], [1, 1, 0, 0])
    nothing = benchmark.Answers(*(array[:0] for array in answers))
    parts = {"train_a": samples[:1], "train_b": samples, "test": []}
    home, _, unknown = benchmark.specialists({"train_b": answers, "test": nothing}, parts, groups)
    assert home["learned"] == 1
    against = home["all"]
    assert (against["vulnerable"], against["safe"]) == (1, 2)
    assert against["own_expert"] == pytest.approx(1.0)
    assert against["teacher"] == pytest.approx(0.5)
    assert against["other_experts"] == pytest.approx({"mean": 0.375, "highest": 0.5})
    assert against["own_minus_teacher"]["value"] == pytest.approx(0.5)
    assert unknown == {"group": "unknown", "learned": 0, "all": None, "matched": None}


def test_an_expert_that_only_knows_its_project_gains_nothing_within_it():
    """It puts project p above q: against all safe functions it is better than chance, within p it is chance."""
    samples = _samples("p", "p", "q", "q", labels=(1, 0, 0, 0))
    groups = Groups(("CWE-664", "other"), {"s0": 0})
    answers = _answers([0] * 4, [[1.0, 1, -1, -1], [0.0] * 4], [0.0] * 4, [1, 0, 0, 0])
    nothing = benchmark.Answers(*(array[:0] for array in answers))
    parts = {"train_a": samples, "train_b": samples, "test": []}
    home, _ = benchmark.specialists({"train_b": answers, "test": nothing}, parts, groups)
    assert home["all"]["own_expert"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert home["matched"]["own_expert"] == pytest.approx(0.5)


def test_safe_functions_take_the_group_s_shares_of_the_projects():
    """Two of p and one of q are the group's; p has four safe functions, q one, r counts nothing, s has no partner."""
    projects = np.array(["p", "p", "q", "s", "p", "p", "p", "p", "q", "r"])
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    weights = benchmark.matched(labels, labels == 1, projects)
    assert weights.tolist() == [1, 1, 1, 0, 0.5, 0.5, 0.5, 0.5, 1, 0]


def test_the_tables_show_what_was_found(tmp_path):
    """A choice, its difference with both ends, a specialist's row and one of a group without functions."""
    answers = _answers([0, 1, 0, 1], [[3.0, 2, -2, -3], [1.0, 2, 0, -1]], [1.0, -1, 0.5, -2], [1, 1, 0, 0])
    groups = Groups(("CWE-664", "other"), {"s0": 0, "s1": 0})
    samples = _samples("p", "p", "p", "p", labels=(1, 1, 0, 0))
    parts = {"train_a": samples, "train_b": samples, "test": samples}
    result = {
        "benchmark": "mixture",
        "commit": "0123456789abcdef",
        "config": "by-hand",
        "seeds": [
            {
                "seed": 3,
                "made": {"data": {"key": "00112233", "commit": "0123456789abcdef"}},
                "fusions": benchmark.fusions(answers, answers, CONFIGURED),
                "specialists": benchmark.specialists({"train_b": answers, "test": answers}, parts, groups),
            }
        ],
    }
    write_json(tmp_path / "why.json", result)
    text = render_results_doc([tmp_path / "why.json"])
    assert "## Why the mixture does not win: why" in text
    assert "*steps: data 00112233*" in text, "what was judged can be found again"
    assert "| mixture, configured         | 2" in text
    assert "| CWE-664 | 2       | same projects | 4 " in text
    assert "| other   | 0       | all           | 0          | – " in text
