"""All numbers of a run in one file, `results.json`.

It holds `schema`, `provenance`, `rows`, `comparisons`, `over_seeds` and, where models were attacked, `over_settings`,
`validity` and `transfer` (report/attacks.py). A row is one number:
data, split, seed, system, student, part, metric, value, low, high, n; what does not apply is null. `part` is

    valid, test                      all functions of that part (router: vulnerable ones whose group is known)
    test/CWE-664                     vulnerable functions of that group (metric `recall`); of other tasks than binary
                                     detection, samples of that class
    test/known-cwe                   router: vulnerable functions with a CWE
    test/vulnerable, test/not_vulnerable   router: share of functions whose first choice is a group
    attack/mhm                       one attack on test functions: asr (by B), asr_with_identifiers (by A), ...
    cost                             seconds, bytes, parameters, latency; no interval
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import console, evaluate, partition
from moekd.errors import DataError
from moekd.files import write_bytes, write_json
from moekd.report.attacks import over_settings, transferred, validity
from moekd.report.tables import ROUTER, render_markdown
from moekd.scorer import aligned, load_scores
from moekd.steps import commit, package_versions, read_manifest
from moekd.students.published import METHODS, system_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from moekd.config import MoekdSettings
    from moekd.evaluate import Estimate, Measures
    from moekd.partition import Groups
    from moekd.records import AttackResult, Part, Sample

SCHEMA = 1
RESULTS_FILE = "results.json"
TABLE_FILE = "results.md"
PREDICTIONS_FILE = "predictions.npz"
ATTACK_FILE = "results.jsonl"
JUDGED: tuple[Part, ...] = ("valid", "test")

#: Pairs judged on the same samples; a difference is the first minus the second. Each asks one question.
COMPARISONS = (
    ("student-moe", "student-single"),  # does the mixture teach better than one teacher?
    ("student-moe", "student-hard"),  # ... than the labels?
    ("student-moe", "student-ensemble"),  # ... or is it the ensemble?
    ("student-moe", "student-random-partition"),  # ... or any partition?
    ("student-moe", "student-pioneer"),  # ... or than other ways to learn from one teacher?
    ("student-moe", "student-soda"),
    ("student-moe", "bag-of-tokens"),  # does the student beat word counts from the same functions?
    ("mixture", "teacher"),
    ("mixture", "ensemble"),
    ("mixture", "mixture-random-partition"),
    ("teacher", "teacher-random-weights"),  # what is pre-training worth?
    ("teacher", "bag-of-tokens-half-a"),  # same functions seen
    ("teacher", "bag-of-tokens"),
)
#: The same of tasks that have no mixture.
COMPARISONS_WITHOUT_MIXTURE = (
    ("student-single", "student-hard"),  # does a teacher teach better than the labels?
    ("student-single", "bag-of-tokens"),
    ("student-hard", "bag-of-tokens"),
    ("teacher", "teacher-random-weights"),
    ("teacher", "bag-of-tokens-half-a"),
    ("teacher", "bag-of-tokens"),
)
#: The same of published methods: does the mixture's student beat them at their size, and what was each defect worth?
PUBLISHED_COMPARISONS = tuple(
    pair
    for method, parts in METHODS.items()
    for pair in (
        *(("student-moe", system_named(method, way)) for way in ("fixed", "reference")),
        *((system_named(method, "fixed"), system_named(method, way)) for way in ("reference", *sorted(parts.defects))),
    )
)
COMPARED = ("accuracy", "f1", "macro_f1", "mcc", "auroc", "ece")  # those that the task has


# --------------------------------------------------------------------------------------------------- stage


@dataclass(frozen=True)
class _Judged:
    """One finished step whose numbers go into the table."""

    label: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def system(self) -> str:
        """The system's name; a step that answers nothing itself, such as `experts`, is named by its stage."""
        variant = self.manifest["variant"]
        control = "-random-partition" if variant.get("partition") == "random" else ""
        return variant.get("system", self.manifest["stage"] + control)

    @property
    def student(self) -> str | None:
        return self.manifest["variant"].get("student")

    @property
    def seed(self) -> int | None:
        return self.manifest["variant"].get("seed")

    @property
    def about(self) -> dict[str, Any]:
        return {"system": self.system, "student": self.student, "seed": self.seed}

    @property
    def cost(self) -> dict[str, float]:
        return self.manifest["facts"].get("rows", {})

    @property
    def attacked(self) -> bool:
        return self.manifest["stage"] == "attack"

    def attacks(self) -> dict[str, list[AttackResult]]:
        """Results of each attack on this system, by the attack's name."""
        from moekd.attack import read_results

        found: dict[str, list[AttackResult]] = {}
        for one in read_results(self.folder / ATTACK_FILE):
            found.setdefault(one.attack, []).append(one)
        return found

    @property
    def answers(self) -> bool:
        return (self.folder / PREDICTIONS_FILE).exists()

    def logits(self, samples: Sequence[Sample]) -> np.ndarray:
        path = self.folder / PREDICTIONS_FILE
        return aligned(load_scores(path), samples, source=f"{self.label}, {PREDICTIONS_FILE}")


def results(settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Judge every system of a run; write `results.json` and, from it, `results.md`.

    Args:
        inputs: `data`, of detectors `partition` (for recall by group), and by any name the steps to judge: those
            with `predictions.npz` are measured, and the `rows` among any step's facts become rows of part `cost`.
            Further partition steps are allowed where routers were trained on others than `partition`.
    Returns:
        Names of the two files and the number of rows.
    Raises:
        DataError: predictions miss a sample of validation or test, or hold NaN.
    """
    from moekd.data import load_classes, load_parts

    parts = {part: samples for part, samples in load_parts(inputs["data"]).items() if part in JUDGED}
    manifests = {label: read_manifest(path) for label, path in inputs.items()}
    partitions = {
        manifest["key"]: partition.load(inputs[label])
        for label, manifest in manifests.items()
        if manifest["stage"] == "partition"
    }
    steps = [
        _Judged(label, inputs[label], manifest)
        for label, manifest in manifests.items()
        if manifest["stage"] not in ("data", "partition")
    ]
    groups = partitions[manifests["partition"]["key"]] if "partition" in manifests else None
    classes = load_classes(settings, inputs["data"])
    rows: list[dict[str, Any]] = []
    with console.bar(len(steps), "measures of each system") as advance:
        for step in steps:
            row = _row_maker(settings, step)
            if step.answers and step.system == ROUTER:
                rows += _router_rows(settings, row, step, parts, partitions[step.manifest["inputs"]["partition"]])
            elif step.answers and groups:
                rows += _detector_rows(settings, row, step, parts, groups)
            elif step.answers:
                rows += _classifier_rows(settings, row, step, parts, classes)
            elif step.attacked:
                rows += _attack_rows(settings, row, step)
            rows += [row("cost", metric, value) for metric, value in step.cost.items()]
            advance(1)
    rows += _teacher_side_cost(settings, steps)
    comparisons = _comparisons(settings, steps, parts["test"]) + _attack_comparisons(settings, steps)
    found = {
        "schema": SCHEMA,
        "provenance": _provenance(settings, manifests, parts),
        "rows": rows,
        "comparisons": comparisons,
        "over_seeds": {
            "rows": _over_seeds(settings, rows, ("system", "student", "part", "metric"), "value"),
            "comparisons": _over_seeds(
                settings, comparisons, ("first", "second", "student", "part", "metric"), "difference"
            ),
        },
    }
    if any(step.attacked for step in steps):
        found |= {
            "over_settings": over_settings(rows, COMPARISONS),
            "validity": [row for step in steps if step.attacked for row in validity(step.about, step.attacks())],
            "transfer": transferred([step.folder for step in steps if step.manifest["stage"] == "transfer"]),
        }
    write_json(folder / RESULTS_FILE, found)
    write_bytes(folder / TABLE_FILE, render_markdown(found).encode())
    return {"results": RESULTS_FILE, "table": TABLE_FILE, "numbers": len(rows)}


# ---------------------------------------------------------------------------------------------------- rows


def _row_maker(settings: MoekdSettings, step: _Judged) -> Callable[..., dict[str, Any]]:
    def row(
        part: str,
        metric: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
    ) -> dict[str, Any]:
        return {
            "data": settings.name,
            "split": settings.data.split,
            "seed": step.seed,
            "system": step.system,
            "student": step.student,
            "part": part,
            "metric": metric,
            "value": value,
            "low": low,
            "high": high,
            "n": n,
        }

    return row


def _measured(
    settings: MoekdSettings, row: Callable[..., dict[str, Any]], part: str, measures: Measures, n: int
) -> list[dict[str, Any]]:
    """One row a measure; measures that are undefined on these samples are left out."""
    found = _estimate(settings, measures, n)
    return [
        row(part, metric, one.value, _number(one.low), _number(one.high), one.n)
        for metric, one in found.items()
        if not math.isnan(one.value)
    ]


def _estimate(settings: MoekdSettings, measures: Measures, n: int) -> dict[str, Estimate]:
    wanted = settings.evaluate
    return evaluate.estimate(measures, n, bootstrap=wanted.bootstrap, confidence=wanted.confidence)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _labels(samples: Sequence[Sample]) -> np.ndarray:
    return np.array([s.label for s in samples])


def _group_indices(samples: Sequence[Sample], groups: Groups) -> np.ndarray:
    """Group of each vulnerable function, int64, (n,); -1 for those without one and for all others."""
    return np.array([groups.of.get(s.id, -1) if s.label == 1 else -1 for s in samples])


def _detector_rows(
    settings: MoekdSettings,
    row: Callable[..., dict[str, Any]],
    step: _Judged,
    parts: Mapping[Part, Sequence[Sample]],
    groups: Groups,
) -> list[dict[str, Any]]:
    rows = []
    for part, samples in parts.items():
        logits = step.logits(samples)
        rows += _measured(settings, row, part, evaluate.detection(logits, _labels(samples)), len(samples))
        called, members = evaluate.decisions(logits), _group_indices(samples, groups)
        for index, name in enumerate(groups.names):
            hits = called[members == index]
            if hits.size:
                rows += _measured(settings, row, f"{part}/{name}", evaluate.share("recall", hits), hits.size)
    return rows


def _classifier_rows(
    settings: MoekdSettings,
    row: Callable[..., dict[str, Any]],
    step: _Judged,
    parts: Mapping[Part, Sequence[Sample]],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Rows of a model of another task than binary detection; recall by class instead of by group."""
    rows = []
    for part, samples in parts.items():
        logits, labels = step.logits(samples), _labels(samples)
        measures = evaluate.MEASURES[settings.data.task](logits, labels)
        rows += _measured(settings, row, part, measures, len(samples))
        right = logits.argmax(axis=1) == labels
        for label, name in enumerate(classes):
            hits = right[labels == label]
            rows += _measured(settings, row, f"{part}/{name}", evaluate.share("recall", hits), hits.size)
    return rows


def _router_rows(
    settings: MoekdSettings,
    row: Callable[..., dict[str, Any]],
    step: _Judged,
    parts: Mapping[Part, Sequence[Sample]],
    groups: Groups,
) -> list[dict[str, Any]]:
    rows = []
    for part, samples in parts.items():
        logits, true = step.logits(samples), _group_indices(samples, groups)
        if logits.shape[1] != len(groups.names):
            raise DataError(
                f"{step.label} answers with {logits.shape[1]} groups, but the partition has "
                f"{len(groups.names)}; train the router again"
            )
        with_cwe = np.array([s.cwe is not None for s in samples])
        for name, chosen in ((part, true >= 0), (f"{part}/known-cwe", (true >= 0) & with_cwe)):
            if chosen.any():
                measures = evaluate.routing(logits[chosen], true[chosen])
                rows += _measured(settings, row, name, measures, int(chosen.sum()))
                largest = np.bincount(true[chosen]).max() / chosen.sum()
                rows.append(row(name, "largest_group_share", float(largest), n=int(chosen.sum())))
        first, labels = logits.argmax(axis=1), _labels(samples)
        for label, kind in ((0, "not_vulnerable"), (1, "vulnerable")):
            taken = first[labels == label]
            for index, name in enumerate(groups.names if taken.size else ()):
                measures = evaluate.share(f"routed_to:{name}", taken == index)
                rows += _measured(settings, row, f"{part}/{kind}", measures, taken.size)
    return rows


def _attack_rows(settings: MoekdSettings, row: Callable[..., dict[str, Any]], step: _Judged) -> list[dict[str, Any]]:
    from moekd.attack import robustness

    wanted = settings.evaluate
    return [
        row(f"attack/{name}", metric, one.value, _number(one.low), _number(one.high), one.n)
        for name, results in step.attacks().items()
        for metric, one in robustness(results, bootstrap=wanted.bootstrap, confidence=wanted.confidence).items()
        if not math.isnan(one.value)
    ]


def _teacher_side_cost(settings: MoekdSettings, steps: Sequence[_Judged]) -> list[dict[str, Any]]:
    """Training seconds of all experts and the router together, also as a multiple of the single teacher's."""
    seconds = {(s.system, s.seed): s.cost["train_seconds"] for s in steps if "train_seconds" in s.cost}
    rows = []
    for step in steps:
        experts = seconds.get(("experts", step.seed), seconds.get(("expert-heads", step.seed)))
        router, teacher = seconds.get((ROUTER, step.seed)), seconds.get(("teacher", step.seed))
        if step.system == "mixture" and experts is not None and router is not None and teacher:
            row = _row_maker(settings, step)
            rows.append(row("cost", "train_seconds", experts + router))
            rows.append(row("cost", "train_seconds_over_teacher", (experts + router) / teacher))
    return rows


# ----------------------------------------------------------------------------------------------- comparisons


def _comparisons(settings: MoekdSettings, steps: Sequence[_Judged], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Each pair of COMPARISONS that the run has, seed by seed and student by student, on the test part."""
    answering = [step for step in steps if step.answers]
    rows = []
    detectors = (*COMPARISONS, *PUBLISHED_COMPARISONS)
    for first_name, second_name in detectors if settings.data.task == "binary" else COMPARISONS_WITHOUT_MIXTURE:
        for first in (step for step in answering if step.system == first_name):
            for second in (step for step in answering if step.system == second_name):
                if _same_run(first, second):
                    rows += _compared(settings, first, second, samples)
    return rows


def _attack_comparisons(settings: MoekdSettings, steps: Sequence[_Judged]) -> list[dict[str, Any]]:
    """Each pair of COMPARISONS that was attacked, attack by attack: ASR by B, and how much the first reduces it."""
    attacked = [(step, step.attacks()) for step in steps if step.attacked]
    rows = []
    for first_name, second_name in (*COMPARISONS, *PUBLISHED_COMPARISONS):
        for first, of_first in attacked:
            for second, of_second in attacked:
                if (first.system, second.system) == (first_name, second_name) and _same_run(first, second):
                    for name in of_first.keys() & of_second.keys():
                        rows += _attack_compared(settings, first, second, name, (of_first[name], of_second[name]))
    return sorted(rows, key=lambda row: row["part"])  # stable: pairs stay in their order


def _attack_compared(
    settings: MoekdSettings,
    first: _Judged,
    second: _Judged,
    name: str,
    results: tuple[Sequence[AttackResult], Sequence[AttackResult]],
) -> list[dict[str, Any]]:
    from moekd.attack import compare

    wanted = settings.evaluate
    found = compare(*results, bootstrap=wanted.bootstrap, confidence=wanted.confidence)
    return [
        {
            "first": first.system,
            "second": second.system,
            "student": first.student,
            "seed": first.seed,
            "part": f"attack/{name}",
            "metric": metric,
            "difference": one.value,
            "low": _number(one.low),
            "high": _number(one.high),
            "n": one.n,
            # Right under attack means not fooled; McNemar's test is about the difference of the two rates.
            "p": found.p if metric == "asr" else None,
            "only_first_right": found.only_second_fooled if metric == "asr" else None,
            "only_second_right": found.only_first_fooled if metric == "asr" else None,
        }
        for metric, one in (("asr", found.difference), ("asr_reduction", found.reduction))
        if not math.isnan(one.value)
    ]


def _same_run(first: _Judged, second: _Judged) -> bool:
    """Same seed and same student, where both have one: a baseline without a seed meets every seed.

    A published method brings a student of its own and meets every one of its size.
    """
    if second.seed is not None and second.seed != first.seed:
        return False
    if second.student is None or second.student == first.student:
        return True
    published = second.system.partition("-")[0] in METHODS
    return published and _budget(second.student) == _budget(first.student)


def _budget(student: str | None) -> str | None:
    """The size in a student's name, such as 1.6mb."""
    found = re.search(r"(?<=-)[0-9.]+mb(?=-|$)", student or "")
    return found and found[0]


def _compared(
    settings: MoekdSettings, first: _Judged, second: _Judged, samples: Sequence[Sample]
) -> list[dict[str, Any]]:
    labels = _labels(samples)
    answers = [step.logits(samples) for step in (first, second)]
    right = [logits.argmax(axis=1) == labels for logits in answers]  # a tie is the first class
    first_only, second_only, p = evaluate.mcnemar(*right)
    measures = evaluate.MEASURES[settings.data.task]
    differences = evaluate.difference(*(measures(logits, labels) for logits in answers))
    found = _estimate(settings, differences, len(samples))
    return [
        {
            "first": first.system,
            "second": second.system,
            "student": first.student,
            "seed": first.seed,
            "part": "test",
            "metric": metric,
            "difference": found[metric].value,
            "low": _number(found[metric].low),
            "high": _number(found[metric].high),
            "n": found[metric].n,
            # McNemar's test is about decisions, so it belongs to accuracy alone.
            "p": p if metric == "accuracy" else None,
            "only_first_right": first_only if metric == "accuracy" else None,
            "only_second_right": second_only if metric == "accuracy" else None,
        }
        for metric in COMPARED
        if metric in found and not math.isnan(found[metric].value)
    ]


def _over_seeds(
    settings: MoekdSettings, entries: Iterable[Mapping[str, Any]], keys: Sequence[str], value: str
) -> list[dict[str, Any]]:
    """Mean and t interval of each number that exists for two or more training seeds."""
    by_key = defaultdict(list)
    for entry in entries:
        if entry["seed"] is not None:
            by_key[tuple(entry[key] for key in keys)].append(entry[value])
    rows = []
    for key, values in by_key.items():
        if len(values) >= 2:
            mean = evaluate.over_seeds(values, confidence=settings.evaluate.confidence)
            numbers = {value: mean.value, "low": mean.low, "high": mean.high, "seeds": mean.n}
            rows.append(dict(zip(keys, key, strict=True)) | numbers)
    return rows


# ------------------------------------------------------------------------------------------------ provenance


def _provenance(
    settings: MoekdSettings,
    manifests: Mapping[str, Mapping[str, Any]],
    parts: Mapping[Part, Sequence[Sample]],
) -> dict[str, Any]:
    data = manifests["data"]
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": settings.run.threads,
        },
        "seeds": list(settings.run.seeds),
        "settings": _without_places(settings.model_dump(mode="json", exclude={"run": {"folder"}})),
        "data": {
            "key": data["key"],
            "source_digests": data["external"],
            "file_digests": {name: file["sha256"] for name, file in data["files"].items()},
            "facts": data["facts"],
            "judged": {part: len(samples) for part, samples in parts.items()},
        },
        "partition": manifests["partition"]["facts"] if "partition" in manifests else None,
        "steps": {
            label: {name: manifest[name] for name in ("key", "commit", "seconds")}
            for label, manifest in manifests.items()
        },
    }


def _without_places(value: Any) -> Any:
    """Keep only the last part of absolute paths: where a file lay is about a machine, not about a result."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~")):
        return Path(value).name
    return value
