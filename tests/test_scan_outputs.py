"""Reports: the same findings in every format, valid by its schema, and hostile names harmless in each."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import OutputError
from moekd.scan.findings import CAUTION, LIMITS, Counts, Finding, LineShare, Note, Outcome, Unread, printable
from moekd.scan.model import Facts, Threshold
from moekd.scan.outputs import FORMATS, render, write

SARIF = json.loads((Path(__file__).parent / "cases" / "scan" / "sarif-subset.schema.json").read_text())
REPORT = json.loads(files("moekd.scan").joinpath("report.schema.json").read_text())
FACTS = Facts("tiny", "int8", 64, 1.0, 0.0, (), "0" * 32)
PRINT = "0123456789abcdef"
PLAIN = Finding(
    "src/a.c", "copy", 3, 9, 0.93, PRINT, lines=(LineShare(5, 1.25, "strcpy(b, s);"), LineShare(4, 0.5, "x" * 100))
)
GROUPED = replace(PLAIN, function="C::g", cwe_group="CWE-664", cut=True, whole=False, first_line=20, last_line=30)
SUPPRESSED = replace(PLAIN, function="old", suppressed="sizes are fixed")
KNOWN = replace(PLAIN, function="known", in_baseline=True)
OUTCOME = Outcome(
    FACTS,
    Threshold(0.8, 0.01, 0.4, 0.3),
    None,
    (PLAIN, GROUPED, SUPPRESSED, KNOWN),
    (Unread("src/b.c", "Permission denied"),),
    (Note("src/a.c", 7, "suppression without a reason has no effect"), Note("", 0, "the cache is not used")),
    Counts(files=2, functions=40, lines=500, ignored=3),
    fail_on=0.8,
    seconds=1.5,
)
HOSTILE = os.fsdecode(b"a\nb\x1b[31m\r\xff\"'<&>]]>%0A::error::../[x](y){0}\x00\xc2\x85.c") + "\u2028\ufffe\u202e"


def of(outcome: Outcome, name: str):
    text = render(outcome, name)
    return ElementTree.fromstring(text) if name == "junit" else text if name == "text" else json.loads(text)


def hostile_outcome(name: str) -> Outcome:
    finding = replace(PLAIN, path=name, function=name, suppressed=name)
    return replace(
        OUTCOME,
        findings=(finding, replace(finding, suppressed=None)),
        unread=(Unread(name, "x"),),
        notes=(Note(name, 1, "x"),),
    )


# --------------------------------------------------------------------------------------------------- content


def test_text():
    assert render(OUTCOME, "text").splitlines() == [
        "src/a.c:3  copy  0.930",
        "    line 5 carries 1.25 of the margin: strcpy(b, s);",
        f"    line 4 carries 0.50 of the margin: {'x' * 80}...",
        "src/a.c:20  C::g  0.930  CWE-664  (only its beginning was read, parsed in part)",
        "    line 5 carries 1.25 of the margin: strcpy(b, s);",
        f"    line 4 carries 0.50 of the margin: {'x' * 80}...",
        "suppressed: src/a.c:3: old  0.930  (sizes are fixed)",
        "not scanned: src/b.c: Permission denied",
        "note: src/a.c:7: suppression without a reason has no effect",
        "note: the cache is not used",
        "2 findings in 40 functions of 2 files (threshold 0.800: 1.00% false alarms, 0.4 alarms per 1,000 lines when "
        "it was measured), 1 suppressed, 1 in the baseline, 1 not scanned, 3 ignored, 1.5 s",
        CAUTION,
    ]


def test_json_by_its_schema():
    report = of(OUTCOME, "json")
    jsonschema.validate(report, REPORT)
    assert [one["function"] for one in report["findings"]] == ["copy", "C::g", "old", "known"]
    assert [one["suppressed"] for one in report["findings"]] == [None, None, "sizes are fixed", None]
    assert report["not_scanned"] == [{"path": "src/b.c", "reason": "Permission denied"}]
    jsonschema.validate(of(replace(OUTCOME, threshold=None, top=5, fail_on=None, findings=()), "json"), REPORT)


def test_sarif_by_the_schema():
    report = of(OUTCOME, "sarif")
    jsonschema.validate(report, SARIF, format_checker=jsonschema.FormatChecker())
    jsonschema.validate(of(replace(OUTCOME, findings=(), unread=(), notes=()), "sarif"), SARIF)


def test_the_schema_would_notice():
    """Severity as a number is what servers refuse."""
    report = of(OUTCOME, "sarif")
    report["runs"][0]["tool"]["driver"]["rules"][0]["properties"]["security-severity"] = 5.0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, SARIF)


def test_sarif_results():
    """CWE in tags and in relationships; suppressed and known ones are marked and not dropped; copies are told apart."""
    run = of(OUTCOME, "sarif")["runs"][0]
    rules, results = run["tool"]["driver"]["rules"], run["results"]
    assert [rules[one["ruleIndex"]]["id"] == one["ruleId"] for one in results] == [True] * 4
    grouped = rules[results[1]["ruleIndex"]]
    assert "external/cwe/cwe-664" in grouped["properties"]["tags"]
    assert grouped["relationships"][0]["target"]["id"] == run["taxonomies"][0]["taxa"][0]["id"] == "664"
    assert [len(one["suppressions"]) for one in results] == [0, 0, 1, 0]
    assert results[2]["suppressions"][0]["justification"] == "sizes are fixed"
    assert [one["baselineState"] for one in results] == ["new", "new", "new", "unchanged"]
    hashes = [one["partialFingerprints"]["primaryLocationLineHash"] for one in results]
    assert hashes == [f"{PRINT}:{number}" for number in (1, 2, 3, 4)]
    assert [one["physicalLocation"]["region"]["startLine"] for one in results[0]["relatedLocations"]] == [5, 4]
    assert run["invocations"][0]["executionSuccessful"] is False
    assert len(run["invocations"][0]["toolExecutionNotifications"]) == 3


def test_junit():
    """A finding fails, a suppressed or known one is skipped, a file that was not scanned is an error."""
    suite = of(OUTCOME, "junit")[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "2",
        "errors": "1",
        "skipped": "2",
    }
    assert len(suite.findall("testcase")) == 6
    assert [len(suite.findall(f"testcase/{kind}")) for kind in ("failure", "error", "skipped")] == [2, 1, 2]
    assert "suppressed: sizes are fixed" in suite.find("testcase/skipped").get("message")


def test_gitlab():
    report = of(OUTCOME, "gitlab")
    assert report["scan"]["type"] == "sast"
    found = report["vulnerabilities"]
    assert len({one["id"] for one in found}) == 4
    assert [bool(one.get("flags")) for one in found] == [False, False, True, True]
    assert all(one["identifiers"] and all(i["name"] and i["value"] for i in one["identifiers"]) for one in found)
    assert {"type": "cwe", "name": "CWE-664", "value": "664"}.items() <= found[1]["identifiers"][1].items()
    assert len({one["name"] for one in found}) == 1, "the name is of the kind of finding"
    assert [one["location"]["method"] for one in found] == ["copy", "C::g", "old", "known"]


def test_gitlab_ids_stay_where_a_function_moves():
    moved = replace(OUTCOME, findings=(replace(PLAIN, first_line=100, last_line=106, p=0.9),))
    assert of(moved, "gitlab")["vulnerabilities"][0]["id"] == of(OUTCOME, "gitlab")["vulnerabilities"][0]["id"]


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_score_cannot_do_is_said(name):
    assert (CAUTION if name == "text" else LIMITS) in render(OUTCOME, name)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_names_every_finding_that_is_active_and_every_unread_file(name):
    text = render(OUTCOME, name)
    assert all(word in text for word in ("copy", "C::g", "b.c", "Permission denied"))


# ------------------------------------------------------------------------------------------------ exit codes


@pytest.mark.parametrize(
    ("findings", "unread", "fail_on", "code"),
    [
        ((PLAIN,), (), 0.8, 1),
        ((PLAIN,), (), 0.95, 0),
        ((PLAIN,), (), None, 0),
        ((SUPPRESSED, KNOWN), (), 0.8, 0),
        ((), OUTCOME.unread, 0.8, 4),
        ((PLAIN,), OUTCOME.unread, 0.8, 1),
        ((), (), 0.8, 0),
    ],
)
def test_exit_codes(findings, unread, fail_on, code):
    """Suppressed and known findings fail nothing; a finding outweighs a file that was not scanned."""
    assert replace(OUTCOME, findings=findings, unread=unread, fail_on=fail_on).exit_code == code


# ---------------------------------------------------------------------------------------------- hostile names


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_names(name):
    """Valid Unicode, valid syntax, no control characters, and no line that the name could begin."""
    text = render(hostile_outcome(HOSTILE), name)
    text.encode("utf-8")
    assert not any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 for c in text)
    assert not any(line.startswith(("::error", "b\\x1b")) for line in text.splitlines())
    assert "\u202e" not in text
    of(hostile_outcome(HOSTILE), name)
    if name == "sarif":
        jsonschema.validate(json.loads(text), SARIF)
        uri = json.loads(text)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert uri.startswith("a%0Ab%1B%5B31m%0D%FF%22%27")
    if name == "json":
        jsonschema.validate(json.loads(text), REPORT)


@pytest.mark.parametrize("name", ["::error file=a.c::x", "##[group]x.c", " ::stop-commands::x", ":"])
def test_no_line_begins_as_a_command_of_a_ci_service(name):
    text = render(hostile_outcome(name), "text")
    assert not any(line.lstrip().startswith(("::", "##")) for line in text.splitlines())
    assert f"./{name}:3  " in text


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(alphabet=st.characters(exclude_categories=())).filter(lambda text: not _half(text)))
def test_any_name_in_any_format(name):
    for one in FORMATS:
        render(hostile_outcome(name), one).encode("utf-8")
        of(hostile_outcome(name), one)


def _half(text: str) -> bool:
    """Surrogates other than those that stand for a byte never come out of the file system."""
    return any(0xD800 <= ord(c) < 0xDC80 or 0xDCFF < ord(c) < 0xE000 for c in text)


def test_printable_by_hand():
    assert printable("a\tb\nc\x1b\x7f") == "a\\tb\\nc\\x1b\\x7f"
    assert printable(os.fsdecode(b"n\xe9")) == "n\\xe9"
    assert printable("é 中") == "é 中"


def test_a_report_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write(OUTCOME, "json", tmp_path / "file" / "x.json")
