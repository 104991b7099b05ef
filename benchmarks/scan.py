"""What a scan costs: our scanner beside other scanners and beside the Hugging Face pipeline, on the same trees.

Every round runs each contestant once, in an order that turns with the round, so that a busy machine slows all; ratios
are taken round by round. Ours runs on one and on two cores with an empty cache, and again with the one it has filled.
Other scanners run with their default C rules where they are installed; semgrep gets its rules from `--semgrep-rules`,
the folder c/ of its public collection, where no registry can be reached. The pipeline runs the same student on
functions of the tree: one by one as it does by default, on one thread and on as many as it takes by itself, and in
batches of 32 as its documentation advises; its start is not counted, nor is finding the functions, which ours does too.
The limit is the time of the student's matrix products for the real tokens, without padding, at the rate of float32
that NumPy reaches on one core. Those of layers have weights, which int8 makes smaller and faster; those of attention
are of float32 in every model.

    OMP_NUM_THREADS=1 python benchmarks/scan.py TREE... --model model --student runs/student/KEY/model --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from moekd.scan.model import FACTS_FILE
from moekd.steps import commit

OTHERS = {
    "flawfinder": ["flawfinder", "--quiet", "--dataonly"],
    "cppcheck": ["cppcheck", "--quiet", "--enable=warning"],
    "semgrep": ["semgrep", "scan", "--quiet", "--metrics=off", "--disable-version-check"],
}

#: Seconds after which another scanner is stopped and has no cost: cppcheck goes through many variants of a file.
LIMIT = 120
#: Exit codes of ours and of flawfinder's (a file that is not UTF-8) where all but some files were read.
SKIPPED_A_FILE = (4, 15)


class TooLongError(Exception):
    """A scanner was stopped."""


@dataclass(frozen=True)
class Cost:
    """Of one run: wall time, and the largest resident set of one of its processes."""

    seconds: float
    peak_bytes: int


def main() -> None:
    arguments = parse()
    facts = json.loads((arguments.model / FACTS_FILE).read_text(encoding="utf-8"))
    result: dict[str, Any] = {"benchmark": "scan", "commit": commit(), "cores": os.cpu_count()}
    result |= {"model": {name: one["sha256"] for name, one in facts["files"].items()}}
    result |= {"rounds": arguments.rounds, "trees": []}
    text = ""
    for tree in arguments.trees:
        result["trees"].append(of_tree(tree, arguments))
        text = json.dumps(result, indent=2)
        if arguments.out:  # after each tree: a run takes the better part of an hour
            arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="folder of the exported model")
    parser.add_argument("--student", type=Path, help="folder of the same student as saved, for pipeline and limit")
    parser.add_argument("--semgrep-rules", default="p/c", help="a pack of its registry, or a folder of rules")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--functions", type=int, default=200, help="of the tree that the pipeline is given")
    parser.add_argument("--out", type=Path, help="file for the result")
    return parser.parse_args()


def of_tree(tree: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all contestants on one tree; a first scan, not counted, says how much there is to do."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        ours(tree, arguments, Path(folder) / "first", workers=os.cpu_count() or 1, report=report)
        counts = json.loads(report.read_text(encoding="utf-8"))["counts"]
        texts = functions_of_tree(tree)
        sample = texts[:: max(1, len(texts) // arguments.functions)]  # from all over the tree
        contestants = contestants_on(tree, arguments, Path(folder), sample)
        costs: dict[str, list[Cost]] = {name: [] for name in contestants}
        stopped: list[str] = []
        for number in range(arguments.rounds):
            shutil.rmtree(Path(folder) / "cache", ignore_errors=True)
            names = list(contestants)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                if name in stopped:
                    continue
                try:
                    costs[name].append(contestants[name]())
                except TooLongError:
                    stopped.append(name)
                    continue
                print(f"{tree.name}, round {number + 1}: {name} {costs[name][-1].seconds:.2f} s", file=sys.stderr)
    found: dict[str, Any] = {"tree": tree.name, "counts": counts}
    found["costs"] = {name: summary(each) for name, each in costs.items() if name not in stopped}
    for name, each in found["costs"].items():
        functions = len(sample) if name.startswith("pipeline") else counts["functions"]
        each["functions_per_second"] = round(functions / statistics.median(each["seconds"]), 1)
    found["times_the_pipeline"] = {
        f"{one} / {other}": [round(ratio, 2) for ratio in ratios]
        for one in costs
        for other in costs
        if other.startswith("pipeline") and one.startswith("moekd")
        for ratios in [_ratios(costs[one], counts["functions"], costs[other], len(sample))]
    }
    found["lines_per_second_cold"] = round(
        counts["lines"] / statistics.median(found["costs"]["moekd, 1 core"]["seconds"])
    )
    if arguments.student:
        found["limit_seconds_one_core"] = limits(texts, arguments)
    found["not_installed"] = [name for name in OTHERS if name not in contestants]
    found["failed"] = dict.fromkeys(stopped, f"it was stopped after {LIMIT} s")
    return found


def _ratios(one: list[Cost], functions: int, other: list[Cost], others_functions: int) -> list[float]:
    """Functions per second of one over those of the other, round by round."""
    return [(functions / a.seconds) / (others_functions / b.seconds) for a, b in zip(one, other, strict=True)]


def contestants_on(
    tree: Path, arguments: argparse.Namespace, folder: Path, sample: list[str]
) -> dict[str, Callable[[], Cost]]:
    cores = os.cpu_count() or 1

    def cold(workers: int) -> Cost:
        with tempfile.TemporaryDirectory() as empty:
            return ours(tree, arguments, Path(empty), workers=workers)

    def cached() -> Cost:
        ours(tree, arguments, folder / "cache", workers=cores)  # fills it; the second run is what counts
        return ours(tree, arguments, folder / "cache", workers=1)

    found: dict[str, Callable[[], Cost]] = {"moekd, 1 core": lambda: cold(1), "moekd, cached": cached}
    if cores > 1:
        found["moekd, 2 cores"] = lambda: cold(2)
    for name, command in OTHERS.items():
        if shutil.which(command[0]):
            rules = [f"--config={arguments.semgrep_rules}"] if name == "semgrep" else []
            found[name] = lambda command=[*command, *rules]: run([*command, str(tree)], LIMIT)  # type: ignore[misc]
    if arguments.student:
        found["pipeline, 1 core"] = lambda: pipeline(arguments.student, sample, batch=1, threads=1)
        found["pipeline, 1 core, batches of 32"] = lambda: pipeline(arguments.student, sample, batch=32, threads=1)
        if cores > 1:
            found["pipeline, 2 cores"] = lambda: pipeline(arguments.student, sample, batch=1, threads=2)
    return found


def ours(tree: Path, arguments: argparse.Namespace, cache: Path, *, workers: int, report: Path | None = None) -> Cost:
    command = [sys.executable, "-m", "moekd", "scan", str(tree), "--model", str(arguments.model), "--top", "10"]
    out = [] if report is None else [f"--out=json={report}"]
    return run([*command, "--cache", str(cache), "--workers", str(workers), "--quiet", *out])


# A process starts with the peak of the one that started it, so that a small one must stand between.
_LAUNCHER = """
import resource, subprocess, sys, threading
started = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
timer = threading.Timer(float(sys.argv[1]), started.kill)
timer.start()
started.wait()
timer.cancel()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(started.returncode if started.returncode >= 0 else 128 - started.returncode)
"""
_KILLED = 128 + 9


def run(command: list[str], limit: float = 24 * 3600) -> Cost:
    """Run a program to its end; one that fails has no cost.

    Raises:
        TooLongError: it took longer than `limit` seconds.
    """
    started = time.perf_counter()
    launcher = [sys.executable, "-c", _LAUNCHER, str(limit)]
    ended = subprocess.run([*launcher, *command], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if ended.returncode == _KILLED and seconds >= limit:
        raise TooLongError
    if ended.returncode not in (0, *SKIPPED_A_FILE):
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return Cost(seconds, int(ended.stdout) * 1024)


def functions_of_tree(tree: Path) -> list[str]:
    from moekd.scan.discover import Discovery
    from moekd.scan.score import functions_of
    from moekd.syntax import language_of

    texts: list[str] = []
    for path in Discovery([tree], root=tree).files():
        source = path.read_bytes()
        language = language_of(path, source)
        if language is not None and b"\0" not in source[:8000]:
            texts += functions_of(source, language)[1]
    return texts


def pipeline(student: Path, texts: list[str], *, batch: int, threads: int) -> Cost:
    """The plain way, in a process of its own: transformers' pipeline, as its documentation shows it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return Cost(*pool.submit(_pipeline_cost, student, texts, batch, threads).result())


def _pipeline_cost(student: Path, texts: list[str], batch: int, threads: int) -> tuple[float, int]:
    import resource

    import torch
    from transformers import pipeline as make

    import moekd.bigru
    import moekd.wide  # noqa: F401 - both tell transformers of architectures of ours

    torch.set_num_threads(threads)
    classify = make("text-classification", model=str(student), truncation=True, batch_size=batch)
    classify(texts[:2])
    started = time.perf_counter()
    classify(texts)
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limits(texts: list[str], arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of the matrix products of all functions' real tokens at this machine's measured rate, one core."""
    from tokenizers import Tokenizer

    config = json.loads((arguments.student / "config.json").read_text(encoding="utf-8"))
    facts = json.loads((arguments.model / "model.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    tokenizer.enable_truncation(facts["max_tokens"])
    tokens = np.array([len(one.ids) for one in tokenizer.encode_batch(texts)], dtype=np.float64)
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    matrices = 3 if "modernbert" in config["model_type"] else 2  # of a feed-forward layer; one more is a gate
    rate = peak_flops()
    return {
        "layers": layers * 2 * tokens.sum() * (4 * hidden**2 + matrices * hidden * inner) / rate,  # 2 a multiply-add
        "attention": layers * 4 * (tokens**2).sum() * hidden / rate,
        "gflops_per_second": rate / 1e9,
    }


def peak_flops() -> float:
    """Best of several float32 products of 1024 x 1024 matrices; set OMP_NUM_THREADS=1 for one core."""
    a, b = (np.random.default_rng(seed).random((1024, 1024), dtype=np.float32) for seed in (0, 1))
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * 1024**3 / min(seconds)


def summary(costs: list[Cost]) -> dict[str, Any]:
    return {"seconds": [round(one.seconds, 3) for one in costs], "peak_bytes": max(one.peak_bytes for one in costs)}


if __name__ == "__main__":
    main()
