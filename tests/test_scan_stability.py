"""The share of renamings under which a verdict holds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moekd import cli
from moekd.rewrite import Template, fault_of_renaming
from moekd.scan.stability import _NAMES, stability

CODE = "int f(char *input, int limit)\n{\n  int total = 0;\n  total += limit + input[0];\n  return total;\n}\n"


class Judge:
    """Stands in for a model: a probability by rule, and the texts that it was asked for."""

    def __init__(self, rule) -> None:
        self.rule, self.texts, self.facts = rule, [], self

    def margins(self, texts):
        self.texts = list(texts)
        return np.array([self.rule(text) for text in texts])

    def p_vulnerable(self, margin):
        return margin


def test_a_verdict_that_reads_no_names_is_stable():
    assert stability(Judge(lambda text: 0.9), CODE, 0.5, renamings=8) == 1.0
    assert stability(Judge(lambda text: 0.4), CODE, 0.5, renamings=8) == 0.0


def test_the_share_by_hand():
    """A model that looks at the length of the text: the share is what counting its texts gives."""
    judge = Judge(lambda text: float(len(text) > 80))
    share = stability(judge, CODE, 0.5, renamings=20)
    assert share == np.mean([len(text) > 80 for text in judge.texts])
    assert 0 < share < 1


def test_every_text_is_a_checked_renaming():
    """The function and its callees keep their names, all variables get others, and no text comes twice."""
    judge = Judge(lambda text: 0.9)
    stability(judge, CODE, 0.5, renamings=20)
    assert len(set(judge.texts)) == len(judge.texts) > 15
    for text in judge.texts:
        assert text.startswith("int f(char *")
        assert {one.name for one in Template.of(text).identifiers}.isdisjoint({"input", "limit", "total"})


def test_one_function_has_one_answer():
    """Whatever the comments and the place; more renamings begin with the same ones."""
    first, again, more = (Judge(lambda text: 0.9) for _ in range(3))
    stability(first, CODE, 0.5, renamings=5)
    stability(again, "/* other */ " + CODE, 0.5, renamings=5)
    stability(more, CODE, 0.5, renamings=9)
    assert first.texts == again.texts == more.texts[:5]


@pytest.mark.parametrize("code", ["int f(void) { return g(); }", "", "}}}} int x"])
def test_nothing_to_rename(code):
    assert stability(Judge(lambda text: 0.9), code, 0.5, renamings=3) is None


def test_more_variables_than_names():
    names = [f"v{i}" for i in range(len(_NAMES) + 20)]
    code = f"void f(void) {{ int {', '.join(names)}; }}"
    judge = Judge(lambda text: 0.9)
    assert stability(judge, code, 0.5, renamings=2) == 1.0
    assert fault_of_renaming(Template.of(code), {"v0": "buf"}) is None


def test_in_every_report(exported, functions, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.c").write_text("\n".join(one.func for one in functions[:6]))
    scan = ["scan", "a.c", "--model", str(exported), "--top", "2", "-q", "--no-cache", "--workers", "1"]
    assert cli.main([*scan, "--format", "json"]) == 0
    assert all(one["stability"] is None for one in json.loads(capsys.readouterr().out)["findings"])
    scan += ["--stability", "4"]
    assert cli.main([*scan, "--format", "json"]) == 0
    shares = [one["stability"] for one in json.loads(capsys.readouterr().out)["findings"]]
    assert all(share in (0, 0.25, 0.5, 0.75, 1) for share in shares)
    assert cli.main([*scan, "--format", "text"]) == 0
    assert f"reported under {shares[0]:.0%} of renamings" in capsys.readouterr().out
    assert cli.main([*scan, "--format", "sarif"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"][0]["results"]
    assert [one["properties"]["stability"] for one in found] == shares
