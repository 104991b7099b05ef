"""Why a mixture does or does not beat its single teacher, from the scores of a finished run.

    python benchmarks/mixture.py configs/bigvul.toml --set mixture.table=complete --out docs/results/bigvul-mixture.json

Two questions, neither of which trains anything. Would another fusion have done better? Every number of experts, rule of
weights, rule of fusion, calibration and temperature of the router is tried on the complete score table; validation
chooses, the test part judges the choice once. Are the experts experts? On functions that no teacher has learned from
(half B and test) each expert and the single teacher tell the vulnerable functions of its own group from all that are
not vulnerable, and from those of the same projects. Where the experts are no better within their projects, choosing
among them is no way to find more vulnerabilities.
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

    def valid_auroc(logits: np.ndarray) -> float:
        return auroc_of(detection(logits, valid.labels), len(valid.labels))

    tried = {choice: valid_auroc(fused(choice, valid, temperatures)) for choice in choices(valid.experts.shape[1])}
    best = max(tried, key=lambda choice: tried[choice])
    teacher = detection(test.teacher, test.labels)
    judged = {}
    for name, choice in (("configured", configured), ("best on validation", best)):
        measures = detection(fused(choice, test, temperatures), test.labels)
        judged[name] = {
            "choice": choice._asdict(),
            "valid_auroc": valid_auroc(fused(choice, valid, temperatures)),
            "test": shown(measures, len(test.labels)),
            "minus_teacher": shown(difference(measures, teacher), len(test.labels)),
        }
    values = sorted(tried.values())
    return {
        "choices": len(tried),
        "valid_auroc": {"lowest": values[0], "median": float(np.median(values)), "highest": values[-1]},
        "teacher": {"valid_auroc": valid_auroc(valid.teacher), "test": shown(teacher, len(test.labels))},
        **judged,
    }


def auroc_of(measures: Measures, n: int) -> float:
    return float(measures(np.ones((1, n)))["auroc"][0])


def shown(measures: Measures, n: int) -> dict[str, dict[str, float]]:
    found = estimate(measures, n)
    return {name: {"value": found[name].value, "low": found[name].low, "high": found[name].high} for name in SHOWN}


# ------------------------------------------------------------------------------------------------- specialists


def specialists(
    answers: Mapping[Part, Answers], parts: Mapping[Part, list[Sample]], groups: partition.Groups
) -> list[dict[str, Any]]:
    """For each group: its expert, the single teacher and the other experts at home, AUROC on unseen functions.

    At home means the group's vulnerable functions against all that are not vulnerable, `all`, and against those of the
    same projects, `matched`, in the group's shares of the projects. Groups differ in their projects, so an expert may
    learn to tell its projects from the others, which helps against `all` and finds no vulnerability.
    """
    samples = [sample for part in UNSEEN for sample in parts[part]]
    experts = np.concatenate([answers[part].experts for part in UNSEEN])  # (n, K, 2)
    teacher = np.concatenate([answers[part].teacher for part in UNSEEN])  # (n, 2)
    labels = np.concatenate([answers[part].labels for part in UNSEEN])  # (n,)
    of = np.array([groups.of.get(sample.id, -1) for sample in samples])
    projects = np.array([sample.project or "" for sample in samples])
    learned = groups.sizes(parts["train_a"])
    rows = []
    for index, name in enumerate(groups.names):
        own = of == index
        row: dict[str, Any] = {"group": name, "learned": learned[name]}
        for kind, weights in (("all", (own | (labels == 0)) * 1.0), ("matched", matched(labels, own, projects))):
            row[kind] = at_home(weights, index, experts, teacher, labels) if weights.any() and own.any() else None
        rows.append(row)
    return rows


def matched(labels: np.ndarray, own: np.ndarray, projects: np.ndarray) -> np.ndarray:
    """Weights, (n,), that give the safe functions the shares of the projects that the group's own functions have.

    A function of the group in a project without safe ones has no partner and counts nothing.
    """
    weights = np.zeros(len(labels))
    for project in np.unique(projects[own]):
        ours, safe = own & (projects == project), (labels == 0) & (projects == project)
        if safe.any():
            weights[ours] = 1.0
            weights[safe] = ours.sum() / safe.sum()
    return weights


def at_home(
    weights: np.ndarray, index: int, experts: np.ndarray, teacher: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """AUROC of all models where `weights`, (n,), are not zero, each function counting by its weight."""
    rows = np.flatnonzero(weights)

    def judged(logits: np.ndarray) -> Measures:
        measures = detection(logits[rows], labels[rows])
        return lambda drawn: measures(drawn * weights[rows])

    single, *each = (judged(logits) for logits in (teacher, *np.moveaxis(experts, 1, 0)))
    own = each.pop(index)
    others = [auroc_of(measures, len(rows)) for measures in each]
    return {
        "vulnerable": int(labels[rows].sum()),
        "safe": int((labels[rows] == 0).sum()),
        "teacher": auroc_of(single, len(rows)),
        "own_expert": auroc_of(own, len(rows)),
        "other_experts": {"mean": float(np.mean(others)), "highest": max(others)},
        "own_minus_teacher": shown(difference(own, single), len(rows))["auroc"],
    }


if __name__ == "__main__":
    main()
