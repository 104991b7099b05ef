"""An outcome as text, JSON, SARIF 2.1.0, JUnit XML or GitLab's SAST report.

Every format tells the same findings: suppressed and known ones are marked, never dropped, and files that were not
scanned are listed. Names come from whoever wrote the code, so each format escapes them.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from moekd.errors import OutputError
from moekd.scan.findings import CAUTION, LIMITS, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from moekd.scan.findings import Finding, Outcome

JSON_SCHEMA = 1
_CWE_VERSION = "4.14"
_RULE = "moekd-vulnerable"
# The model gives a probability and no impact, so every finding has the same middle severity.
_SECURITY_SEVERITY = "5.0"
_LINE_SHOWN = 80  # characters of a line of code
_GITLAB_SCHEMA = "15.2.1"
_NAMESPACE = uuid.UUID("6f1b5a0e-6d0c-5c53-9d0b-6f0a3a6d2c11")  # of GitLab ids: any fixed one


def render(outcome: Outcome, name: str) -> str:
    """Return the outcome in the format called `name`, a key of FORMATS."""
    return FORMATS[name](outcome)


def write(outcome: Outcome, name: str, path: Path) -> None:
    """Write the outcome in a format to a file. Raises OutputError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(outcome, name), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {printable(str(path))}: {error.strerror}") from error


# ------------------------------------------------------------------------------------------------------ text


def _text(outcome: Outcome) -> str:
    lines: list[str] = []
    active = [one for one in outcome.findings if one.active]
    for one in active:
        group = f"  {kind_of(one)}" if one.cwe_group else ""
        lines.append(f"{_begins(one.path)}:{one.first_line}  {_function(one)}  {one.p:.3f}{group}{_marks(one)}")
        lines += [
            f"    line {share.line} carries {share.drop:.2f} of the margin: {_short(printable(share.text))}"
            for share in one.lines
        ]
    lines += [
        f"suppressed: {_place(one.path, one.first_line)}{_function(one)}  {one.p:.3f}  ({printable(one.suppressed)})"
        for one in outcome.findings
        if one.suppressed is not None
    ]
    lines += [f"not scanned: {printable(one.path)}: {one.reason}" for one in outcome.unread]
    lines += [f"note: {_place(one.path, one.line)}{one.text}" for one in outcome.notes]
    return "\n".join([*lines, _summary(outcome, len(active)), CAUTION]) + "\n"


def _begins(path: str) -> str:
    """A name as the beginning of a line, a colon after it; to CI services "::" and "##" there begin a command."""
    name = printable(path)
    return f"./{name}" if name.lstrip().startswith((":", "##")) else name


def _short(text: str) -> str:
    return text if len(text) <= _LINE_SHOWN else f"{text[:_LINE_SHOWN]}..."


def _place(path: str, line: int) -> str:
    return f"{printable(path)}:{line}: " if path else ""


def _summary(outcome: Outcome, active: int) -> str:
    counts = outcome.counts
    parts = [
        f"{_plural(active, 'finding')} in {_plural(counts.functions, 'function')} "
        f"of {_plural(counts.files, 'file')} ({_how(outcome)})"
    ]
    suppressed = sum(one.suppressed is not None for one in outcome.findings)
    known = sum(one.suppressed is None and one.in_baseline for one in outcome.findings)
    optional = (
        (suppressed, "suppressed"),
        (known, "in the baseline"),
        (len(outcome.unread), "not scanned"),
        (counts.partly_parsed, "parsed in part"),
        (counts.cut, "read in part"),
        (counts.ignored, "ignored"),
        (counts.other, "not C or C++"),
        (counts.links, "links not followed"),
        (counts.from_cache, "from the cache"),
    )
    parts += [f"{number} {what}" for number, what in optional if number]
    return ", ".join([*parts, f"{outcome.seconds:.1f} s"])


def _how(outcome: Outcome) -> str:
    if outcome.threshold is None:
        return f"the {outcome.top} to review first"
    return (
        f"threshold {outcome.threshold.p:.3f}: {outcome.threshold.false_alarm_rate:.2%} false alarms, "
        f"{outcome.threshold.alarms_per_kloc:.2g} alarms per 1,000 lines when it was measured"
    )


def _function(finding: Finding) -> str:
    return printable(finding.function) or "(unnamed)"


def kind_of(finding: Finding) -> str:
    """The CWE group with its probability, as in "CWE-664 (0.61)"; "" where the model does not tell."""
    p = "" if finding.p_group is None else f" ({finding.p_group:.2f})"
    return f"{finding.cwe_group}{p}" if finding.cwe_group else ""


def _marks(finding: Finding) -> str:
    optional = (
        (finding.cut, "only its beginning was read"),
        (not finding.whole, "parsed in part"),
        (finding.stability is not None, f"reported under {finding.stability or 0:.0%} of renamings"),
    )
    marks = [text for is_set, text in optional if is_set]
    return f"  ({', '.join(marks)})" if marks else ""


def _plural(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# ------------------------------------------------------------------------------------------------------ JSON


def _json(outcome: Outcome) -> str:
    """See report.schema.json."""
    facts, counts = outcome.model, outcome.counts
    return _dump(
        {
            "schema": JSON_SCHEMA,
            "tool": {"name": "moekd", "version": version("moekd")},
            "model": {"name": facts.name, "precision": facts.precision, "digest": facts.digest},
            "threshold": None
            if outcome.threshold is None
            else {name: getattr(outcome.threshold, name) for name in ("p", "false_alarm_rate", "alarms_per_kloc")},
            "top": outcome.top,
            "fail_on": outcome.fail_on,
            "exit_code": outcome.exit_code,
            "findings": [_json_finding(one) for one in outcome.findings],
            "not_scanned": [{"path": printable(one.path), "reason": one.reason} for one in outcome.unread],
            "notes": [{"path": printable(one.path), "line": one.line, "text": one.text} for one in outcome.notes],
            "counts": {name: getattr(counts, name) for name in counts.__dataclass_fields__},
            "seconds": round(outcome.seconds, 3),
            "limits": LIMITS,
        }
    )


def _json_finding(one: Finding) -> dict[str, Any]:
    return {
        "path": printable(one.path),
        "function": printable(one.function),
        "first_line": one.first_line,
        "last_line": one.last_line,
        "p": round(one.p, 6),
        "fingerprint": one.fingerprint,
        "cwe_group": one.cwe_group,
        "p_group": None if one.p_group is None else round(one.p_group, 6),
        "suppressed": None if one.suppressed is None else printable(one.suppressed),
        "in_baseline": one.in_baseline,
        "read_whole": not one.cut,
        "parsed_whole": one.whole,
        "stability": None if one.stability is None else round(one.stability, 6),
        "lines": [{"line": share.line, "drop": round(share.drop, 6)} for share in one.lines],
    }


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


# ----------------------------------------------------------------------------------------------------- SARIF


def _sarif(outcome: Outcome) -> str:
    groups = sorted({one.cwe_group for one in outcome.findings if one.cwe_group})
    rules = [_sarif_rule(group) for group in (None, *groups)]
    index = {rule["id"]: position for position, rule in enumerate(rules)}
    seen: Counter[str] = Counter()
    run = {
        "tool": {
            "driver": {
                "name": "moekd",
                "version": version("moekd"),
                "rules": rules,
                "supportedTaxonomies": [{"name": "CWE", "index": 0}],
            }
        },
        "taxonomies": [_sarif_taxonomy(groups)],
        "columnKind": "utf16CodeUnits",
        "invocations": [
            {
                "executionSuccessful": not outcome.unread,
                "exitCode": outcome.exit_code,
                "toolExecutionNotifications": _sarif_notifications(outcome),
            }
        ],
        "results": [_sarif_result(one, index, seen, outcome) for one in outcome.findings],
        "properties": {"model": outcome.model.name, "modelDigest": outcome.model.digest, "limits": LIMITS},
    }
    return _dump({"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]})


def _rule_id(group: str | None) -> str:
    return f"{_RULE}/{group}" if group else _RULE


def _sarif_rule(group: str | None) -> dict[str, Any]:
    kind = f", of the kind {group}" if group else ""
    tags = ["security", "machine-learning"] + ([f"external/cwe/{group.lower()}"] if group else [])
    rule: dict[str, Any] = {
        "id": _rule_id(group),
        "name": "LikelyVulnerableFunction",
        "shortDescription": {"text": f"Function that a learned model takes for vulnerable{kind}"},
        "fullDescription": {"text": LIMITS},
        "help": {"text": f"{LIMITS} To suppress: // moekd: ignore[{group or 'vulnerable'}] reason"},
        "defaultConfiguration": {"level": "warning"},
        "properties": {"tags": tags, "precision": "medium", "security-severity": _SECURITY_SEVERITY},
    }
    if group:
        target = {"id": group.removeprefix("CWE-"), "toolComponent": {"name": "CWE", "index": 0}}
        rule["relationships"] = [{"target": target, "kinds": ["superset"]}]
    return rule


def _sarif_taxonomy(groups: list[str]) -> dict[str, Any]:
    return {
        "name": "CWE",
        "version": _CWE_VERSION,
        "organization": "MITRE",
        "informationUri": "https://cwe.mitre.org/",
        "shortDescription": {"text": "Common Weakness Enumeration"},
        "taxa": [{"id": group.removeprefix("CWE-")} for group in groups],
    }


def _sarif_result(one: Finding, index: dict[str, int], seen: Counter[str], outcome: Outcome) -> dict[str, Any]:
    seen[one.fingerprint] += 1
    result: dict[str, Any] = {
        "ruleId": _rule_id(one.cwe_group),
        "ruleIndex": index[_rule_id(one.cwe_group)],
        "level": "warning",
        "message": {"text": _message(one, outcome)},
        "locations": [_sarif_location(one.path, one.first_line, one.last_line, one.function)],
        "partialFingerprints": {
            "moekdFunction/v1": one.fingerprint,
            # What GitHub follows an alert by; the number tells apart copies of one function.
            "primaryLocationLineHash": f"{one.fingerprint}:{seen[one.fingerprint]}",
        },
        "baselineState": "unchanged" if one.in_baseline else "new",
        "rank": round(100 * one.p, 4),
        "properties": {"p": round(one.p, 6), "readWhole": not one.cut, "parsedWhole": one.whole},
    }
    if one.p_group is not None:
        result["properties"]["pGroup"] = round(one.p_group, 6)
    if one.stability is not None:
        result["properties"]["stability"] = round(one.stability, 6)
    if one.lines:
        result["relatedLocations"] = [
            _sarif_location(one.path, share.line, share.line)
            | {"id": number, "message": {"text": f"carries {share.drop:.2f} of the margin"}}
            for number, share in enumerate(one.lines, start=1)
        ]
    if one.suppressed is not None:
        result["suppressions"] = [
            {"kind": "inSource", "status": "accepted", "justification": printable(one.suppressed)}
        ]
    else:
        result["suppressions"] = []
    return result


def _sarif_location(path: str, first: int, last: int, function: str = "") -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": _artifact(path),
            "region": {"startLine": first, "endLine": last},
        }
    }
    if function:
        location["logicalLocations"] = [{"fullyQualifiedName": printable(function), "kind": "function"}]
    return location


def _artifact(path: str) -> dict[str, str]:
    """Percent-encode the bytes of the name; a relative URI starts at the folder that was scanned from."""
    uri = quote(path.encode("utf-8", "surrogateescape"), safe="/")
    return {"uri": f"file://{uri}"} if path.startswith("/") else {"uri": uri, "uriBaseId": "%SRCROOT%"}


def _sarif_notifications(outcome: Outcome) -> list[dict[str, Any]]:
    unread = [
        {
            "level": "error",
            "message": {"text": f"not scanned: {one.reason}"},
            "locations": [{"physicalLocation": {"artifactLocation": _artifact(one.path)}}],
        }
        for one in outcome.unread
    ]
    notes = [
        {"level": "warning", "message": {"text": one.text}}
        | ({"locations": [_sarif_location(one.path, one.line, one.line)]} if one.path else {})
        for one in outcome.notes
    ]
    return [*unread, *notes]


def _message(one: Finding, outcome: Outcome) -> str:
    # "[" and "]" would begin a link and "{" a placeholder in a SARIF message.
    name = "".join(c if c not in "[]{}\\" else "?" for c in _function(one))
    limit = "" if outcome.threshold is None else f" (threshold {outcome.threshold.p:.3f})"
    kind = f", of the kind {kind_of(one)}" if one.cwe_group else ""
    return f"{name} is vulnerable with probability {one.p:.3f}{limit}{kind}{_marks(one)}"


# ----------------------------------------------------------------------------------------------------- JUnit


def _junit(outcome: Outcome) -> str:
    """A finding is a failed test; suppressed and known ones are skipped tests, unread files are errors."""
    from xml.etree import ElementTree as ET

    active = sum(one.active for one in outcome.findings)
    tests = len(outcome.findings) + len(outcome.unread) + 1
    facts = {
        "name": "moekd",
        "tests": str(tests),
        "failures": str(active),
        "errors": str(len(outcome.unread)),
        "skipped": str(len(outcome.findings) - active),
        "time": f"{outcome.seconds:.3f}",
    }
    suite = ET.Element("testsuite", facts)
    ET.SubElement(suite, "testcase", {"classname": "moekd", "name": "scan"})  # so that a clean scan is not empty
    for one in outcome.findings:
        path = _xml(one.path)
        name = f"{_xml(one.function) or '(unnamed)'}:{one.first_line}"
        case = ET.SubElement(suite, "testcase", {"classname": path, "name": name, "file": path})
        message = _xml(_message(one, outcome))
        if one.active:
            failure = ET.SubElement(case, "failure", {"message": message, "type": _rule_id(one.cwe_group)})
            failure.text = f"{path}:{one.first_line}-{one.last_line}\n" + "".join(
                f"line {share.line} carries {share.drop:.2f} of the margin\n" for share in one.lines
            )
        else:
            why = f"suppressed: {_xml(one.suppressed)}" if one.suppressed is not None else "in the baseline"
            ET.SubElement(case, "skipped", {"message": f"{message}; {why}"})
    for unread in outcome.unread:
        case = ET.SubElement(suite, "testcase", {"classname": _xml(unread.path), "name": "not scanned"})
        ET.SubElement(case, "error", {"message": _xml(unread.reason), "type": "not-scanned"})
    ET.SubElement(suite, "system-out").text = LIMITS
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """Control characters are gone after `printable`; XML 1.0 forbids two more characters."""
    return printable(text).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")


# ---------------------------------------------------------------------------------------------------- GitLab


def _gitlab(outcome: Outcome) -> str:
    """GitLab's SAST report. Suppressed and known findings carry the flag for likely false positives."""
    end = datetime.now(UTC)
    tool = {"id": "moekd", "name": "MoEKD", "version": version("moekd"), "vendor": {"name": "MoEKD"}}
    moment = end.strftime("%Y-%m-%dT%H:%M:%S")
    start = datetime.fromtimestamp(end.timestamp() - outcome.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    messages = [
        {"level": "warn", "value": f"not scanned: {printable(one.path)}: {one.reason}"} for one in outcome.unread
    ] + [{"level": "info", "value": f"{_place(one.path, one.line)}{one.text}"} for one in outcome.notes]
    scan = {
        "analyzer": tool,
        "scanner": tool,
        "type": "sast",
        "start_time": start,
        "end_time": moment,
        "status": "success",
        "messages": messages,
    }
    seen: Counter[tuple[str, str]] = Counter()
    return _dump(
        {
            "version": _GITLAB_SCHEMA,
            "scan": scan,
            "vulnerabilities": [_gitlab_finding(one, seen, outcome) for one in outcome.findings],
        }
    )


def _gitlab_finding(one: Finding, seen: Counter[tuple[str, str]], outcome: Outcome) -> dict[str, Any]:
    path = printable(one.path)
    seen[path, one.fingerprint] += 1
    identity = f"{path}\0{one.fingerprint}\0{seen[path, one.fingerprint]}"
    identifiers = [{"type": "moekd_rule", "name": _rule_id(one.cwe_group), "value": _rule_id(one.cwe_group)}]
    if one.cwe_group:
        number = one.cwe_group.removeprefix("CWE-")
        url = f"https://cwe.mitre.org/data/definitions/{number}.html"
        identifiers.append({"type": "cwe", "name": one.cwe_group, "value": number, "url": url})
    found: dict[str, Any] = {
        "id": str(uuid.uuid5(_NAMESPACE, identity)),
        "name": "Likely vulnerable function",  # of the kind of finding: its place tells which function
        "description": f"{_message(one, outcome)}. {LIMITS}",
        "severity": "Medium",
        "location": {"file": path, "start_line": one.first_line, "end_line": one.last_line, "method": _function(one)},
        "identifiers": identifiers,
    }
    if not one.active:
        why = f"suppressed: {printable(one.suppressed)}" if one.suppressed is not None else "in the baseline"
        found["flags"] = [{"type": "flagged-as-likely-false-positive", "origin": "moekd", "description": why}]
    return found


FORMATS: dict[str, Callable[[Outcome], str]] = {
    "text": _text,
    "json": _json,
    "sarif": _sarif,
    "junit": _junit,
    "gitlab": _gitlab,
}
