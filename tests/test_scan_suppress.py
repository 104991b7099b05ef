"""Suppression comments and the baseline."""

from __future__ import annotations

import json

import pytest

from moekd.errors import SettingsError
from moekd.scan import baseline
from moekd.scan.findings import Finding
from moekd.scan.suppress import assign, read


def reasons(text: str, *spans: tuple[int, int]) -> list[list[str]]:
    """Reasons that suppress each of the functions."""
    about = assign(read(text)[0], spans)
    return [[one.reason for one, indices in about.items() if i in indices] for i in range(len(spans))]


def test_inside_a_function_anywhere():
    text = "int f()\n{\n  x(); // moekd: ignore[CWE-664] sizes are fixed\n}\n"
    assert reasons(text, (1, 4)) == [["sizes are fixed"]]


@pytest.mark.parametrize(
    "above",
    [
        "// moekd: ignore[vulnerable] reviewed",
        "/* moekd: ignore[vulnerable] reviewed */",
        "/*\n * Copies.\n * moekd: ignore[CWE-1, CWE-664] reviewed\n */",
        "// moekd: ignore[CWE-664] reviewed\n// more words\n/** and more */",
    ],
)
def test_in_the_comments_right_above(above):
    """Every comment style; other comments may stand between, an empty line may not."""
    lines = above.count("\n") + 1
    assert reasons(f"int e;\n{above}\nint f() {{}}\n", (lines + 2, lines + 2)) == [["reviewed"]]
    assert reasons(f"int e;\n{above}\n\nint f() {{}}\n", (lines + 3, lines + 3)) == [[]]


def test_behind_one_function_it_does_not_suppress_the_next():
    text = "int f() {\n} // moekd: ignore[CWE-664] f only\nint g() {\n}\n"
    assert reasons(text, (1, 2), (3, 4)) == [["f only"], []]


def test_two_functions_on_one_line():
    text = "int f() {} int g() {} // moekd: ignore[CWE-664] both\n"
    assert reasons(text, (1, 1), (1, 1)) == [["both"], ["both"]]


def test_prose_and_strings_suppress_nothing():
    """Only a comment that begins with the mark counts: mentioning it silences nothing."""
    text = 'int f() {\n// see moekd: ignore[CWE-664] in the manual\nputs("// moekd: ignore[CWE-664] no");\n}\n'
    assert read(text) == ([], [])


@pytest.mark.parametrize(
    ("comment", "complaint"),
    [
        ("moekd: ignore[CWE-664]", "without a reason"),
        ("moekd: ignore[CWE-664]   ", "without a reason"),
        ("moekd: ignore because", "not understood"),
        ("moekd: ignore[CWE-664 reason", "not understood"),
        ("moekd:", "not understood"),
        ("moekd: ignore[] reason", "suppression of ''"),
        ("moekd: ignore[CWE-x] reason", "suppression of 'CWE-x'"),
        ("moekd: ignore[664] reason", "suppression of '664'"),
    ],
)
def test_malformed_ones_have_no_effect_and_are_told(comment, complaint):
    found, wrong = read(f"int a;\nint f() {{ // {comment}\n}}\n")
    assert found == []
    assert [line for line, _ in wrong] == [2]
    assert complaint in wrong[0][1]
    assert "write `// moekd: ignore[CWE-664] reason`" in wrong[0][1]


def test_which_kinds_of_weakness_it_holds_for():
    """A model that does not tell the kind cannot contradict the comment."""
    one = read("// moekd: ignore[CWE-664] r")[0][0]
    every = read("// moekd: ignore[vulnerable] r")[0][0]
    assert [one.holds_for(kind) for kind in ("CWE-664", "CWE-707", None)] == [True, False, True]
    assert every.holds_for("CWE-707")


# -------------------------------------------------------------------------------------------------- baseline


def finding(fingerprint: str, path: str = "a.c", **fields) -> Finding:
    return Finding(path, "f", 1, 2, 0.5, fingerprint, **fields)


def test_baseline_is_readable_and_stable(tmp_path):
    """One finding a line by place, in whatever order they came, so that reviews show what changed."""
    findings = [finding("b" * 16, "b.c"), finding("a" * 16), finding("c" * 16, suppressed="has a comment")]
    text = baseline.render(findings)
    assert text == baseline.render(findings[::-1])
    assert json.loads(text)["findings"] == [
        {"fingerprint": "a" * 16, "path": "a.c", "function": "f", "p": 0.5},
        {"fingerprint": "b" * 16, "path": "b.c", "function": "f", "p": 0.5},
    ]
    assert sum("fingerprint" in line for line in text.splitlines()) == 2
    (tmp_path / "b.json").write_text(text)
    assert baseline.read(tmp_path / "b.json") == {"a" * 16, "b" * 16}


def test_an_empty_baseline(tmp_path):
    (tmp_path / "b.json").write_text(baseline.render([]))
    assert baseline.read(tmp_path / "b.json") == frozenset()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1, "findings": [3]}', "[" * 100_000, "\x00"])
def test_what_is_no_baseline_is_refused(tmp_path, content):
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(SettingsError, match=r"is no baseline file; make one with `moekd baseline PATH`"):
        baseline.read(tmp_path / "b.json")


def test_missing_and_newer_baselines(tmp_path):
    with pytest.raises(SettingsError, match="cannot read the baseline"):
        baseline.read(tmp_path / "none.json")
    (tmp_path / "b.json").write_text('{"schema": 2, "findings": []}')
    with pytest.raises(SettingsError, match="has schema 2; this version of moekd reads 1"):
        baseline.read(tmp_path / "b.json")
