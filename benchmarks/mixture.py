"""Why a mixture does or does not beat its single teacher, from the scores of a finished run.

    python benchmarks/mixture.py configs/bigvul.toml --set mixture.table=complete --out docs/results/bigvul-mixture.json

Two questions, neither of which trains anything. Would another fusion have done better? Every number of experts, rule of
weights, rule of fusion, calibration and temperature of the router is tried on the complete score table; validation
chooses, the test part judges the choice once. Are the experts experts? On functions that no teacher has learned from
(half B and test) each expert and the single teacher tell the vulnerable functions of its own group from all that are
not vulnerable. Where the experts are no better at home, no router can make a mixture of them better.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moekd import partition, stages
from moekd.config import MoekdSettings
from moekd.data import load_parts
from moekd.errors import SettingsError
from moekd.evaluate import Measures, detection, difference, estimate
from moekd.experts.corpus import ANSWERED
from moekd.files import write_json
from moekd.mixture import Table, calibration_temperatures, fuse, load_table
from moekd.mixture.fusion import Fusion, Weights
from moekd.records import Part, Sample
from moekd.scorer import aligned, load_scores
from moekd.settings_loading import load_settings
from moekd.steps import Step, commit, folder_of, is_finished, read_manifest

UNSEEN: tuple[Part, ...] = ("train_b", "test")  # by every teacher; validation chose their epochs
NUMBERS = (1, 2, 3, 5)  # of selected experts, and all of them
WEIGHTS: tuple[Weights, ...] = ("renormalised", "softmax-of-probabilities")
FUSIONS: tuple[Fusion, ...] = ("logits", "probabilities", "maximum")
ROUTER_TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
SHOWN = ("accuracy", "auroc")


class Choice(NamedTuple):
    """One way to fuse; `router_temperature` divides the router's logits."""

    k: int
    weights: Weights
    fusion: Fusion
    calibrated: bool
    router_temperature: float


class Answers(NamedTuple):
    """Of one part: router (n, K), experts (n, K, 2), single teacher (n, 2), labels (n,)."""

    router: np.ndarray
    experts: np.ndarray
    teacher: np.ndarray
    labels: np.ndarray


def main() -> None:
    arguments = parse()
    settings = load_settings(arguments.config, arguments.set)
    if settings.mixture.table != "complete":
        raise SettingsError("every expert's answer is needed: add --set mixture.table=complete, here and in the run")
    steps = {(step.variant.get("system"), step.variant.get("seed")): step for step in stages.plan(settings)}
    result: dict[str, Any] = {"benchmark": "mixture", "commit": commit(), "config": settings.name, "seeds": []}
    for seed in settings.run.seeds:
        mixture, teacher = steps["mixture", seed], steps["teacher", seed]
        needed = [*mixture.needs.values(), teacher]
        require_finished(needed, settings)
        folders = {name: folder_of(step, settings) for name, step in mixture.needs.items()}
        folders["teacher"] = folder_of(teacher, settings)
        manifests = {name: read_manifest(folder) for name, folder in folders.items()}
        parts = load_parts(folders["data"])
        groups = partition.load(folders["partition"])
        table = load_table(folders["scores"])
        answers = {part: answers_of(parts[part], table, folders["teacher"]) for part in ANSWERED}
        wanted = settings.mixture
        configured = Choice(wanted.k, wanted.weights, wanted.fusion, wanted.calibration == "temperature", 1.0)
        result["seeds"].append(
            {
                "seed": seed,
                "made": {name: {"key": made["key"], "commit": made["commit"]} for name, made in manifests.items()},
                "fusions": fusions(answers["valid"], answers["test"], configured),
                "specialists": specialists(answers, parts, groups),
            }
        )
        write_json(arguments.out, result)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `moekd run`")
    parser.add_argument("--out", type=Path, required=True, help="file for the result")
    return parser.parse_args()


def require_finished(needed: Sequence[Step], settings: MoekdSettings) -> None:
    for step in needed:
        if not is_finished(step, settings):
            raise SettingsError(f"{step.label} has not been run: `moekd run` with the same config and settings first")


def answers_of(samples: Sequence[Sample], table: Table, teacher: Path) -> Answers:
    half_b = load_scores(teacher / "targets.npz")
    known = half_b if samples[0].id in set(half_b.ids) else load_scores(teacher / "predictions.npz")
    router, experts = table.rows(samples)
    labels = np.array([sample.label for sample in samples])
    return Answers(router, experts, aligned(known, samples, source=str(teacher)), labels)


# ------------------------------------------------------------------------------------------------- fusions


def choices(experts: int) -> Iterator[Choice]:
    numbers = sorted({k for k in (*NUMBERS, experts) if k <= experts})
    for parts in itertools.product(numbers, WEIGHTS, FUSIONS, (False, True), ROUTER_TEMPERATURES):
        yield Choice(*parts)


def fused(choice: Choice, answers: Answers, temperatures: np.ndarray) -> np.ndarray:
    """Logits, (n, 2), of one way to fuse. `temperatures`, (K,), are the experts' own, from validation."""
    experts = answers.experts / (temperatures[:, None] if choice.calibrated else 1.0)
    router = answers.router / choice.router_temperature
    return fuse(router, experts, k=choice.k, weights=choice.weights, fusion=choice.fusion)


def fusions(valid: Answers, test: Answers, configured: Choice) -> dict[str, Any]:
    """Try every choice on validation, by AUROC; judge the best and the configured one on the test part.

    The whole spread on validation is told, since the best of many is better than the others by chance alone.
    """
    temperatures = calibration_temperatures(valid.experts, valid.labels)
    tried = {choice: auroc_of(fused(choice, valid, temperatures), valid) for choice in choices(valid.experts.shape[1])}
    best = max(tried, key=lambda choice: tried[choice])
    teacher = detection(test.teacher, test.labels)
    judged = {}
    for name, choice in (("configured", configured), ("best on validation", best)):
        measures = detection(fused(choice, test, temperatures), test.labels)
        judged[name] = {
            "choice": choice._asdict(),
            "valid_auroc": auroc_of(fused(choice, valid, temperatures), valid),
            "test": shown(measures, len(test.labels)),
            "minus_teacher": shown(difference(measures, teacher), len(test.labels)),
        }
    values = sorted(tried.values())
    return {
        "choices": len(tried),
        "valid_auroc": {"lowest": values[0], "median": float(np.median(values)), "highest": values[-1]},
        "teacher": {"valid_auroc": auroc_of(valid.teacher, valid), "test": shown(teacher, len(test.labels))},
        **judged,
    }


def auroc_of(logits: np.ndarray, answers: Answers) -> float:
    return auroc_at(logits, answers.labels, np.arange(len(logits)))


def shown(measures: Measures, n: int) -> dict[str, dict[str, float]]:
    found = estimate(measures, n)
    return {name: {"value": found[name].value, "low": found[name].low, "high": found[name].high} for name in SHOWN}


# ------------------------------------------------------------------------------------------------- specialists


def specialists(
    answers: Mapping[Part, Answers], parts: Mapping[Part, list[Sample]], groups: partition.Groups
) -> list[dict[str, Any]]:
    """For each group: its expert, the single teacher and the other experts at home, AUROC on unseen functions.

    At home means the group's vulnerable functions against all that are not vulnerable.
    """
    samples = [sample for part in UNSEEN for sample in parts[part]]
    experts = np.concatenate([answers[part].experts for part in UNSEEN])  # (n, K, 2)
    teacher = np.concatenate([answers[part].teacher for part in UNSEEN])  # (n, 2)
    labels = np.concatenate([answers[part].labels for part in UNSEEN])  # (n,)
    of = np.array([groups.of.get(sample.id, -1) for sample in samples])
    learned = groups.sizes(parts["train_a"])
    rows = []
    for index, name in enumerate(groups.names):
        home = np.flatnonzero((labels == 0) | (of == index))
        row: dict[str, Any] = {"group": name, "learned": learned[name], "judged": int((of == index).sum())}
        if row["judged"]:
            own, single = (detection(logits[home], labels[home]) for logits in (experts[:, index], teacher))
            others = [auroc_at(experts[:, k], labels, home) for k in range(len(groups.names)) if k != index]
            row |= {
                "teacher": auroc_at(teacher, labels, home),
                "own_expert": auroc_at(experts[:, index], labels, home),
                "other_experts": {"mean": float(np.mean(others)), "highest": max(others)},
                "own_minus_teacher": shown(difference(own, single), len(home))["auroc"],
            }
        rows.append(row)
    return rows


def auroc_at(logits: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> float:
    return float(detection(logits[rows], labels[rows])(np.ones((1, len(rows))))["auroc"][0])


if __name__ == "__main__":
    main()
