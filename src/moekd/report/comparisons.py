"""Differences between systems that were judged on the same samples, and means over seeds."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from moekd import evaluate
from moekd.report.judged import estimate, labels_of, number
from moekd.students.published import METHODS, system_named

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from moekd.config import MoekdSettings
    from moekd.records import AttackResult, Sample
    from moekd.report.judged import Judged

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


def comparisons_of(settings: MoekdSettings, steps: Sequence[Judged], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Each pair of COMPARISONS that the run has, seed by seed and student by student, on the test part."""
    answering = [step for step in steps if step.answers]
    rows = []
    detectors = (*COMPARISONS, *PUBLISHED_COMPARISONS)
    for first_name, second_name in detectors if settings.data.task == "binary" else COMPARISONS_WITHOUT_MIXTURE:
        for first in (step for step in answering if step.system == first_name):
            for second in (step for step in answering if step.system == second_name):
                if same_run(first, second):
                    rows += _compared(settings, first, second, samples)
    return rows


def attack_comparisons(settings: MoekdSettings, steps: Sequence[Judged]) -> list[dict[str, Any]]:
    """Each pair of COMPARISONS that was attacked, attack by attack: ASR by B, and how much the first reduces it."""
    attacked = [(step, step.attacks()) for step in steps if step.attacked]
    rows = []
    for first_name, second_name in (*COMPARISONS, *PUBLISHED_COMPARISONS):
        for first, of_first in attacked:
            for second, of_second in attacked:
                if (first.system, second.system) == (first_name, second_name) and same_run(first, second):
                    for name in of_first.keys() & of_second.keys():
                        rows += _attack_compared(settings, first, second, name, (of_first[name], of_second[name]))
    return sorted(rows, key=lambda row: row["part"])  # stable: pairs stay in their order


def _attack_compared(
    settings: MoekdSettings,
    first: Judged,
    second: Judged,
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
            "low": number(one.low),
            "high": number(one.high),
            "n": one.n,
            # Right under attack means not fooled; McNemar's test is about the difference of the two rates.
            "p": found.p if metric == "asr" else None,
            "only_first_right": found.only_second_fooled if metric == "asr" else None,
            "only_second_right": found.only_first_fooled if metric == "asr" else None,
        }
        for metric, one in (("asr", found.difference), ("asr_reduction", found.reduction))
        if not math.isnan(one.value)
    ]


def same_run(first: Judged, second: Judged) -> bool:
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
    settings: MoekdSettings, first: Judged, second: Judged, samples: Sequence[Sample]
) -> list[dict[str, Any]]:
    labels = labels_of(samples)
    answers = [step.logits(samples) for step in (first, second)]
    right = [logits.argmax(axis=1) == labels for logits in answers]  # a tie is the first class
    first_only, second_only, p = evaluate.mcnemar(*right)
    measures = evaluate.MEASURES[settings.data.task]
    differences = evaluate.difference(*(measures(logits, labels) for logits in answers))
    found = estimate(settings, differences, len(samples))
    return [
        {
            "first": first.system,
            "second": second.system,
            "student": first.student,
            "seed": first.seed,
            "part": "test",
            "metric": metric,
            "difference": found[metric].value,
            "low": number(found[metric].low),
            "high": number(found[metric].high),
            "n": found[metric].n,
            # McNemar's test is about decisions, so it belongs to accuracy alone.
            "p": p if metric == "accuracy" else None,
            "only_first_right": first_only if metric == "accuracy" else None,
            "only_second_right": second_only if metric == "accuracy" else None,
        }
        for metric in COMPARED
        if metric in found and not math.isnan(found[metric].value)
    ]


def over_seeds(
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
