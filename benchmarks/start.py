"""How long a user waits: `moekd --help` and `moekd scan FILE`, each in a new process, with an empty cache of scores.

The environment should be the user's, a fresh one with the wheel and without torch; this program itself needs none of
it and may run with any Python that finds moekd. Runs of the commands take turns, so that a busy machine slows both;
processor time says what an idle one would take. The first run of each, which brings its files into the system's cache,
is not counted.

    python -m venv /tmp/user && /tmp/user/bin/pip install dist/moekd-*.whl
    python benchmarks/start.py src/one.c --moekd /tmp/user/bin/moekd --out start.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple


def main() -> None:
    arguments = parse()
    scan = ["scan", str(arguments.file), "--no-cache", "--top", "1"]
    commands = {"moekd --help": ["--help"], f"moekd scan {arguments.file.name}": scan}
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for number in range(arguments.runs + 1):
        for name, options in commands.items():
            cost = run([str(arguments.moekd), *options])
            if number:  # the first brings the files into the system's cache
                costs[name].append(cost)
    report = json.loads(subprocess.check_output([str(arguments.moekd), *scan, "--format", "json"]))
    result: dict[str, Any] = {
        "benchmark": "start",
        "commit": commit(),
        "cores": os.cpu_count(),
        **environment(arguments.moekd),
        "model": report["model"],
        "runs": arguments.runs,
        "file": {"name": arguments.file.name} | {name: report["counts"][name] for name in ("functions", "lines")},
        "commands": {
            name: {
                "seconds": [round(one.seconds, 3) for one in each],
                "processor_seconds": [round(one.processor_seconds, 3) for one in each],
                "peak_bytes": max(one.peak_bytes for one in each),
            }
            for name, each in costs.items()
        },
    }
    text = json.dumps(result, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="source of C or C++ to scan")
    parser.add_argument("--moekd", type=Path, default=Path(sys.executable).parent / "moekd", help="the program")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", type=Path, help="file for the result")
    return parser.parse_args()


class Cost(NamedTuple):
    """Of one run; `seconds` are of the clock."""

    seconds: float
    processor_seconds: float
    peak_bytes: int


def run(command: list[str]) -> Cost:
    """Run a command to its end. A process starts with the peak of the one that started it; this one's is small."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def environment(program: Path) -> dict[str, Any]:
    """Which Python runs the program, and whether torch lies beside it."""
    asked = "import importlib.util as u, json, platform as p; "
    asked += "print(json.dumps({'python': p.python_version(), 'torch': u.find_spec('torch') is not None}))"
    found: dict[str, Any] = json.loads(subprocess.check_output([str(program.parent / "python"), "-c", asked]))
    return found


def commit() -> str | None:
    from moekd.steps import commit as of_the_package  # imports more than the measured processes may inherit

    return of_the_package()


if __name__ == "__main__":
    main()
