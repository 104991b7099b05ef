"""How well detectors rank functions as they occur: ours, a bag of tokens, flawfinder and cppcheck, on the same ones.

    python benchmarks/detection.py $MOEKD_DATA/bigvul.parquet --run-data runs/data/KEY --model model \\
        --bag-of-tokens runs/baseline/KEY --limit 20000 --out docs/results/detection.json

Functions of the file at their natural ratio that the detectors cannot know: of projects that no training or validation
function of the run comes from. A run whose split shares projects can be judged on functions that it has not seen only
(`--disjoint functions`); other functions are then drawn so that the file's ratio of vulnerable ones is kept.
Other scanners see each function as a file of its own, with their default rules: flawfinder's score is its highest risk
level, cppcheck's its worst severity, the number of such messages deciding between equals.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from moekd.data import load_parts, read_samples
from moekd.data.text import count_lines
from moekd.evaluate import precision_at_top, recall_at_alarms
from moekd.files import sha256_text, write_json
from moekd.records import Sample
from moekd.steps import commit

TOPS = (0.01, 0.05, 0.1)  # shares of the functions that are looked at
ALARMS_PER_KLOC = (1.0, 5.0)
RESAMPLES = 1000
_LEARNED = ("train_a", "train_b", "valid")
_SEVERITIES = {"error": 3, "warning": 2, "style": 0, "performance": 0, "portability": 0, "information": 0}
_MESSAGES = 1e-3  # of a level: what one more message of the highest level counts


def main() -> None:
    arguments = parse()
    samples = chosen(arguments)
    detectors = detectors_of(arguments)
    labels = np.array([sample.label for sample in samples])
    lines = np.array([count_lines(sample.func) for sample in samples])
    result: dict[str, Any] = {
        "benchmark": "detection",
        "commit": commit(),
        "seed": arguments.seed,
        "tops": list(TOPS),
        "alarms_per_kloc": list(ALARMS_PER_KLOC),
        "functions": {
            "data": arguments.functions.name,
            "digest": sha256_text(" ".join(sorted(sample.digest for sample in samples))),
            "count": len(samples),
            "vulnerable": int(labels.sum()),
            "lines": int(lines.sum()),
            "disjoint": arguments.disjoint,
        },
        "model": model_facts(arguments.model),
        "detectors": {},
    }
    for name, detect in detectors.items():
        scores = detect(samples)
        result["detectors"][name] = {
            **measures(scores, labels, lines),
            "intervals": intervals(scores, labels, lines, arguments.seed),
            "distinct_scores": len(np.unique(scores)),
        }
        print(name, result["detectors"][name], file=sys.stderr)
        write_json(arguments.out, result)


def measures(scores: np.ndarray, labels: np.ndarray, lines: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        "precision_at_top": {str(share): precision_at_top(scores, labels, share) for share in TOPS},
        "recall_at_alarms": {
            str(alarms): recall_at_alarms(scores, labels, lines, alarms) for alarms in ALARMS_PER_KLOC
        },
    }


def intervals(
    scores: np.ndarray, labels: np.ndarray, lines: np.ndarray, seed: int
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return for each measure its 95 % bootstrap percentile interval over the functions."""
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(labels), size=len(labels)) for _ in range(RESAMPLES))
    drawn = [measures(scores[rows], labels[rows], lines[rows]) for rows in draws if labels[rows].any()]

    def interval(kind: str, key: str) -> tuple[float, float]:
        low, high = np.percentile([one[kind][key] for one in drawn], (2.5, 97.5))
        return float(low), float(high)

    return {kind: {key: interval(kind, key) for key in each} for kind, each in drawn[0].items()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("functions", type=Path, help="labelled functions at the ratio in which they occur")
    parser.add_argument("--run-data", type=Path, required=True, help="folder of the data stage that the model saw")
    parser.add_argument("--model", type=Path, required=True, help="folder of the exported model")
    parser.add_argument("--bag-of-tokens", type=Path, help="folder of the run's baseline step of that name")
    parser.add_argument("--disjoint", choices=("projects", "functions"), default="projects")
    parser.add_argument("--limit", type=int, help="judge so many functions, drawn by seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="file for the result")
    return parser.parse_args()


def chosen(arguments: argparse.Namespace) -> list[Sample]:
    """Return the functions to judge; a SystemExit says what is wrong where none is vulnerable."""
    everything = read_samples(arguments.functions, include_fixed=False).samples
    parts = load_parts(arguments.run_data)
    learned = [sample for part in _LEARNED for sample in parts[part]]  # type: ignore[index]
    digests = {sample.digest for sample in learned}
    unseen = [sample for sample in everything if sample.digest not in digests]
    rng = Random(arguments.seed)
    if arguments.disjoint == "projects":
        families = {sample.family or sample.project for sample in learned}
        unseen = [sample for sample in unseen if (sample.family or sample.project) not in families]
    else:
        unseen = at_ratio(unseen, sum(sample.label for sample in everything) / len(everything), rng)
    if arguments.limit and len(unseen) > arguments.limit:
        unseen = rng.sample(unseen, arguments.limit)
    if not any(sample.label for sample in unseen):
        raise SystemExit("no vulnerable function is left: the run shares these projects; try --disjoint functions")
    return unseen


def at_ratio(samples: Sequence[Sample], share: float, rng: Random) -> list[Sample]:
    """Keep the vulnerable functions and draw so many others that `share` of all is vulnerable."""
    vulnerable = [sample for sample in samples if sample.label == 1]
    others = [sample for sample in samples if sample.label == 0]
    return vulnerable + rng.sample(others, min(len(others), round(len(vulnerable) * (1 - share) / share)))


def detectors_of(arguments: argparse.Namespace) -> dict[str, Callable[[Sequence[Sample]], np.ndarray]]:
    found: dict[str, Callable[[Sequence[Sample]], np.ndarray]] = {"moekd": lambda some: ours(arguments.model, some)}
    if arguments.bag_of_tokens:
        found["bag of tokens"] = lambda some: bag_of_tokens(arguments, some)
    if shutil.which("flawfinder"):
        found["flawfinder"] = flawfinder
    if shutil.which("cppcheck"):
        found["cppcheck"] = cppcheck
    return found


def ours(model: Path, samples: Sequence[Sample]) -> np.ndarray:
    from moekd.scan.model import ScanModel

    logits = ScanModel.load(model).logits([sample.func for sample in samples]).astype(np.float64)
    return logits[:, 1] - logits[:, 0]


def bag_of_tokens(arguments: argparse.Namespace, samples: Sequence[Sample]) -> np.ndarray:
    """The run's own: the penalty that its baseline step chose, fitted on what that step learned from."""
    from moekd.data.leaks import TRAINING_PARTS, BagOfTokens

    manifest = json.loads((arguments.bag_of_tokens / "manifest.json").read_bytes())
    parts = load_parts(arguments.run_data)
    learned = [sample for part in TRAINING_PARTS[manifest["variant"]["system"]] for sample in parts[part]]
    model = BagOfTokens.fit(learned, manifest["facts"]["inverse_penalty"])
    return model.logits([sample.func for sample in samples])[:, 1].astype(np.float64)


def flawfinder(samples: Sequence[Sample]) -> np.ndarray:
    def levels(folder: Path) -> list[tuple[int, float]]:
        text = _output(["flawfinder", "--quiet", "--dataonly", "--minlevel=0", "--csv", str(folder)])
        return flawfinder_levels(text, folder)

    return _scores(samples, levels)


def flawfinder_levels(text: str, folder: Path) -> list[tuple[int, float]]:
    """Return number and level of each hit in flawfinder's CSV; its complaints about odd code stand between the rows."""
    lines = [line for line in text.splitlines() if line.startswith(("File,", str(folder)))]
    return [(_number(row["File"]), float(row["Level"])) for row in csv.DictReader(lines)]


def cppcheck(samples: Sequence[Sample]) -> np.ndarray:
    def severities(folder: Path) -> list[tuple[int, float]]:
        text = _output(["cppcheck", "--quiet", "--enable=warning", "--template={file}\t{severity}", str(folder)])
        rows = (line.split("\t") for line in text.splitlines() if line.startswith(str(folder)) and "\t" in line)
        return [(_number(name), float(_SEVERITIES.get(severity, 0))) for name, severity in rows]

    return _scores(samples, severities)


def _scores(samples: Sequence[Sample], scan: Callable[[Path], list[tuple[int, float]]]) -> np.ndarray:
    """Each function's highest level, and by how many messages of that level it was reached."""
    with tempfile.TemporaryDirectory() as folder:
        for number, sample in enumerate(samples):
            ending = "cpp" if "::" in sample.func else "c"
            (Path(folder) / f"{number}.{ending}").write_text(sample.func + "\n", encoding="utf-8")
        levels: dict[int, list[float]] = defaultdict(list)
        for number, level in scan(Path(folder)):
            levels[number].append(level)
    scores = np.zeros(len(samples))
    for number, each in levels.items():
        top, count = max(Counter(each).items())
        scores[number] = top + _MESSAGES * min(count, 999)
    return scores


def _number(path: str) -> int:
    return int(Path(path).stem)


def _output(command: list[str]) -> str:
    """What the program says on either channel; scanners that find something end with other codes than 0."""
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return ended.stdout + ended.stderr


def model_facts(folder: Path) -> dict[str, Any]:
    facts = json.loads((folder / "model.json").read_bytes())
    digests = {name: one["sha256"] for name, one in facts["files"].items()}
    return {"name": facts["name"], "precision": facts["precision"], "digests": digests}


if __name__ == "__main__":
    main()
