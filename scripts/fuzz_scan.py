"""Throw made-up input at what reads other people's files: parser, suppressions, diffs, baselines, SARIF.

    python scripts/fuzz_scan.py 100000 --out docs/results/fuzz-scan.json

Anything but an answer or a SettingsError, or an input that takes longer than SLOW_SECONDS, is a failure: it is
printed in its smallest form and the exit code is 1. Inputs come in rounds, each of its own seed, and the file of counts
is written after each round; the same command continues a run that was stopped. A run of other code starts anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress as without
from datetime import timedelta
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from moekd.data.text import blank_comments, normalise
from moekd.errors import SettingsError
from moekd.scan import baseline, diff, suppress
from moekd.scan.findings import Finding, LineShare, Note, Outcome, Unread
from moekd.scan.model import Facts, Threshold
from moekd.scan.outputs import FORMATS, render
from moekd.scan.score import functions_of
from moekd.syntax import LanguageName

SLOW_SECONDS = 5
ROUND = 500  # inputs of one target

_PIECES = [
    *"{}()[]<>;,*&=\\\"'\n\r\t #/",
    *("int ", "f", "(void)", "{ return 1; }", "template <class T> ", "class A ", "namespace n ", "#if 1\n", "#else\n"),
    *("#endif\n", "#define M(x) x\n", "//", "/*", "*/", 'R"x(', ')x"', "operator", "= default", "if (x) ", "else "),
    *("// moekd: ignore[CWE-664] reason\n", "/* moekd: ignore", "moekd:", "ignore[", "]", "CWE-", "é", "\0", "\x85"),
]
_DIFF_PIECES = [
    *("--- a/x.c\n", "+++ b/x.c\n", "--- ", "+++ ", "@@ -1,2 +1,2 @@\n", "@@ -0,0 +1 @@\n", "@@ -999999999 +1,9 @@"),
    *(" a\n", "-a\n", "+a\n", "\\ No newline\n", "\n", '"a\\303\\n"', "/dev/null\n", "\t2020", "diff --git ", "\r\n"),
]


def _source(draw: Callable) -> bytes:
    pieces = draw(st.lists(st.sampled_from(_PIECES) | st.text(max_size=5), max_size=60))
    tail: bytes = draw(st.binary(max_size=8))
    return "".join(pieces).encode("utf-8", "surrogatepass") + tail


_sources = st.composite(_source)()
_names = st.binary(min_size=1, max_size=40).map(os.fsdecode) | st.text(max_size=40).filter(
    lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text)
)
_lines = st.builds(LineShare, line=st.integers(1, 10**9), drop=st.floats(0, 100), text=_names)
_findings = st.builds(
    Finding,
    path=_names,
    function=_names,
    first_line=st.integers(1, 10**9),
    last_line=st.integers(1, 10**9),
    p=st.floats(0, 1),
    fingerprint=st.just("0" * 16),
    cut=st.booleans(),
    whole=st.booleans(),
    cwe_group=st.none() | st.just("CWE-664"),
    p_group=st.none() | st.floats(0, 1),
    suppressed=st.none() | _names,
    in_baseline=st.booleans(),
    lines=st.lists(_lines, max_size=2).map(tuple),
    stability=st.none() | st.floats(0, 1),
)


def parser(source: bytes) -> None:
    languages: tuple[LanguageName, ...] = ("c", "cpp")
    for language in languages:
        spans, texts = functions_of(source, language)
        assert len(spans) == len(texts)
        assert all(0 <= span.start <= span.end <= len(source) for span in spans)
        assert all(one.end <= other.start for one, other in pairwise(spans))
        assert all(normalise(text) == text for text in texts)


def suppressions(source: bytes) -> None:
    text = source.decode("utf-8", "replace")
    found, _ = suppress.read(text)
    assert all(one.reason and one.ids for one in found)
    assert blank_comments(text).count("\n") == text.count("\n")
    suppress.assign(found, [(1, 3), (4, 4), (4, 9)])


def diffs(text: str) -> None:
    try:
        changes = diff.read_diff(text)
    except SettingsError:
        return
    assert all(low == high > 0 for lines in changes.values() for low, high in lines or ())


def baselines(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "baseline.json"
        path.write_bytes(content)
        with without(SettingsError):
            baseline.read(path)


def outputs(findings: list[Finding], name: str) -> None:
    facts = Facts("m", "int8", 64, 1.0, 0.0, (), "0" * 32)
    limit = Threshold(0.5, 0.1, 1.0, None)
    outcome = Outcome(facts, limit, None, tuple(findings), (Unread(name, "r"),), (Note(name, 1, "t"),))
    for one in FORMATS:
        text = render(outcome, one)
        text.encode("utf-8")
        assert not any(line.lstrip().startswith(("::", "##")) for line in text.splitlines())  # commands of CI services
        if one in ("json", "sarif", "gitlab"):
            json.loads(text)


TARGETS: dict[str, tuple[Callable, tuple[st.SearchStrategy, ...]]] = {
    "parser": (parser, (_sources,)),
    "suppressions": (suppressions, (_sources,)),
    "diffs": (diffs, (st.lists(st.sampled_from(_DIFF_PIECES) | st.text(max_size=6), max_size=30).map("".join),)),
    "baselines": (
        baselines,
        (
            st.binary(max_size=60)
            | st.recursive(
                st.none() | st.integers() | st.text(max_size=5) | st.just(1),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["schema", "findings", "fingerprint", "x"]), inner, max_size=3)
                ),
            ).map(lambda value: json.dumps(value).encode()),
        ),
    ),
    "outputs": (outputs, (st.lists(_findings, max_size=3), _names)),
}


def fuzz(name: str, examples: int, number: int = 0) -> int:
    """Run one target on `examples` inputs drawn by seed `number`; returns how many were run.

    Raises what the target raises.
    """
    target, strategies = TARGETS[name]
    ran = 0

    def checked(values: tuple) -> None:
        nonlocal ran
        ran += 1
        target(*values)

    run = settings(
        max_examples=examples,
        deadline=timedelta(seconds=SLOW_SECONDS),
        database=None,
        suppress_health_check=list(HealthCheck),
    )(seed(number)(given(st.tuples(*strategies))(checked)))
    run()
    return ran


def fuzz_all(total: int, out: Path | None) -> int:
    """Bring the targets to `total` inputs together, in turn; returns the exit code."""
    state = _continued(out)
    while sum(state["inputs"].values()) < total and not state["failures"]:
        state["rounds"] += 1
        for name in TARGETS:
            started = time.monotonic()
            try:
                state["inputs"][name] += fuzz(name, ROUND, state["rounds"])
            except Exception as error:
                notes = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
                state["failures"].append({"target": name, "round": state["rounds"], "error": "\n".join(notes)})
                print(f"{name}: " + "\n".join(notes), file=sys.stderr)
            state["seconds"][name] = round(state["seconds"][name] + time.monotonic() - started, 1)
        if out is not None:
            partial = out.with_name(out.name + ".tmp")
            partial.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            partial.replace(out)
    for name, count in state["inputs"].items():
        print(f"{name}: {count:,} inputs in {state['seconds'][name]:.0f} s")
    return 1 if state["failures"] else 0


def _continued(out: Path | None) -> dict[str, Any]:
    fresh: dict[str, Any] = {
        "what": _what(),
        "rounds": 0,
        "inputs": dict.fromkeys(TARGETS, 0),
        "seconds": dict.fromkeys(TARGETS, 0.0),
        "failures": [],
    }
    if out is not None and out.is_file():
        earlier = json.loads(out.read_text(encoding="utf-8"))
        if earlier["what"] == fresh["what"]:
            return dict(earlier)
    return fresh


def _what() -> dict[str, Any]:
    """What is under test: the digest of its sources and the versions of what it leans on."""
    package = Path(baseline.__file__).parent.parent
    sources = [Path(__file__), *sorted(package.glob("scan/*.py")), package / "syntax.py", package / "data" / "text.py"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    packages = ("hypothesis", "tree-sitter", "tree-sitter-c", "tree-sitter-cpp")
    return {
        "sources": digest,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "slow_seconds": SLOW_SECONDS,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("total", nargs="?", type=int, default=1000, help="inputs of all targets together")
    parser.add_argument("--out", type=Path, help="file of counts, continued where it exists")
    arguments = parser.parse_args()
    return fuzz_all(arguments.total, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
