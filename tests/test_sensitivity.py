"""How far one name moves a model: moves by hand, renames that change one variable, differences and their tables."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from moekd.errors import SettingsError
from moekd.files import write_json
from moekd.records import AttackResult, Sample
from moekd.report import render_results_doc
from moekd.rewrite.renaming import Template
from moekd.settings_loading import load_settings

_spec = importlib.util.spec_from_file_location(
    "sensitivity", Path(__file__).parent.parent / "benchmarks" / "sensitivity.py"
)
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)

FUNCTION = Sample(id="a", func="int f(int count) { int sum = count; return sum + count; }", label=1, dataset="hand")
NAMES = ("value", "total", "size", "int", "f")


def _p(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def test_moves_of_one_function_by_hand():
    """From log-odds 2 to 1, 3 and -1: margin 2, moves 1, 1 and 3, the greatest fall 3, which flips the answer."""
    answers = dict(zip("oabc", (2.0, 1.0, 3.0, -1.0), strict=True))
    sample = Sample(id="s", func="o", label=1, dataset="hand")

    def found(log_odds: dict[str, float], variants: str) -> tuple[float, ...]:
        return benchmark.moves(lambda texts: np.array([_p(log_odds[text]) for text in texts]), sample, list(variants))

    assert found(answers, "abc") == pytest.approx((2, 5 / 3, 3, 1))
    assert found(answers, "a") == pytest.approx((2, 1, 1, 0)), "a fall within the margin flips nothing"
    assert found(answers, "b") == pytest.approx((2, 1, 0, 0)), "a model that becomes surer does not fall"
    mirrored = {text: -value for text, value in answers.items()}
    assert found(mirrored, "abc") == pytest.approx((2, 5 / 3, 3, 1)), "of a model that answers 'not vulnerable' as well"


def test_a_variant_renames_one_variable_to_a_free_name():
    """Keywords and names in use are never drawn into a variant; equal seeds give equal variants, others do not."""
    variants = benchmark.renames(FUNCTION, NAMES, seed=0)
    allowed = {
        Template.of(FUNCTION.func).render({old: new}) for old in ("count", "sum") for new in ("value", "total", "size")
    }
    assert set(variants) <= allowed
    assert len(variants) == len(set(variants)) >= 4
    assert benchmark.renames(FUNCTION, NAMES, seed=0) == variants
    assert benchmark.renames(FUNCTION, NAMES, seed=1) != variants


def test_a_function_without_variables_has_no_variants():
    assert benchmark.renames(Sample(id="b", func="void f(void) { g(); }", label=0, dataset="hand"), NAMES, 0) == []


def test_seeds_are_averaged_within_a_function_and_pairs_compared():
    """MoE has falls 1 and 3 in two seeds, mean 2, hard labels 5: the difference is -3 and its interval is a point."""

    def rows(fall: float) -> np.ndarray:
        return np.tile([10.0, 1.0, fall, 0.0], (4, 1))

    found = benchmark.summary(
        {
            ("student-moe", "s"): {0: rows(1), 1: rows(3)},
            ("student-hard", "s"): {0: rows(5)},
            ("teacher", None): {0: rows(2)},
        }
    )
    first = found["models"][0]
    assert (first["system"], first["student"], first["seeds"]) == ("student-moe", "s", 2)
    assert first["measures"]["fall"]["value"] == pytest.approx(2)
    assert first["measures"]["fall_per_margin"]["value"] == pytest.approx(0.2)
    (pair,) = found["pairs"]
    assert (pair["first"], pair["second"]) == ("student-moe", "student-hard")
    assert pair["measures"]["fall"] == pytest.approx({"value": -3, "low": -3, "high": -3})


def _attacked(name: str, outcome: str, p: float) -> AttackResult:
    return AttackResult(name, "mhm", outcome, "", 1, p, p, 1, 1, {}, None, (), {}, None, 0)


def test_only_what_both_models_have_right_is_compared():
    """`b` is wrong for one model in seed 0, right for both in seed 1; of three shared results MoE loses 1, hard 2."""

    def of(*outcomes: str) -> dict[str, AttackResult]:
        return {name: _attacked(name, outcome, 0.75) for name, outcome in zip("ab", outcomes, strict=True)}

    moe = {
        ("mhm", 0): of("fooled", "fooled"),
        ("mhm", 1): of("withstood", "withstood"),
        ("mhm", 2): of("fooled", "fooled"),
    }
    hard = {("mhm", 0): of("fooled", "already wrong"), ("mhm", 1): of("withstood", "fooled")}
    (row,) = benchmark.shared({("student-moe", "s"): moe, ("student-hard", "s"): hard})
    assert (row["attack"], row["seeds"], row["n"]) == ("mhm", 2, 3)
    assert row["measures"]["fooled_first"]["value"] == pytest.approx(1 / 3)
    assert row["measures"]["fooled_second"]["value"] == pytest.approx(2 / 3)
    assert row["measures"]["difference"]["value"] == pytest.approx(-1 / 3)
    assert row["measures"]["margin_first"]["value"] == pytest.approx(math.log(3))


def test_a_run_without_attacks_or_models_is_refused(tmp_path):
    """The message says what to add, or what to run first."""
    config = tmp_path / "run.toml"
    config.write_text(f'name = "x"\n[run]\nfolder = "{tmp_path}/runs"\n[[data.sources]]\nkind = "embedded"\n')
    with pytest.raises(SettingsError, match=r"attack\.attacks"):
        benchmark.finished_victims(load_settings(config, []))
    with pytest.raises(SettingsError, match="moekd run"):
        benchmark.finished_victims(load_settings(config, ['attack.attacks=["mhm"]']))


def test_the_tables_show_models_and_differences(tmp_path):
    """A row of a model, a difference with both ends, and what it was measured on."""
    rows = np.tile([2.0, 0.25, 0.5, 0.0], (4, 1))
    result = {
        "benchmark": "sensitivity",
        "commit": "0123456789abcdef",
        "config": "by-hand",
        "data": "d1",
        "steps": {"teacher": "k1"},
        "functions": 4,
        "without_identifiers": 1,
        "renames": 40,
        **benchmark.summary({("mixture", None): {0: rows}, ("teacher", None): {0: rows * 2}}),
        "shared": benchmark.shared(
            {
                ("mixture", None): {("mhm", 0): {"a": _attacked("a", "fooled", 0.75)}},
                ("teacher", None): {("mhm", 0): {"a": _attacked("a", "withstood", 0.9)}},
            }
        ),
    }
    write_json(tmp_path / "by-hand.json", result)
    text = render_results_doc([tmp_path / "by-hand.json"])
    assert "How far one name moves a model: by-hand" in text
    assert "4 functions with 40 renames" in text
    assert "0.250 (0.250 to 0.250)" in text
    assert "mixture − teacher" in text
    assert "-0.250 (-0.250 to -0.250)" in text
    assert "mixture, teacher" in text
    assert "+1.000 (+1.000 to +1.000)" in text
