"""The rows of `results.json`, step by step; a row is one number.

It holds data, split, seed, system, student, part, metric, value, low, high, n; what does not apply is null. `part` is

    valid, test                      all functions of that part (router: vulnerable ones whose group is known)
    test/CWE-664                     vulnerable functions of that group (metric `recall`); of other tasks than binary
                                     detection, samples of that class
    test/known-cwe                   router: vulnerable functions with a CWE
    test/among-known                 router: the same, choosing among the groups that are known ones
    test/vulnerable, test/not_vulnerable   router: share of functions whose first choice is a group
    attack/mhm                       one attack on test functions: asr (by B), asr_with_identifiers (by A), ...
    cost                             seconds, bytes, parameters, latency; no interval
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import evaluate
from moekd.data.cwe import UNKNOWN
from moekd.errors import DataError
from moekd.report.judged import estimate, labels_of, number
from moekd.report.tables import ROUTER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from moekd.config import MoekdSettings
    from moekd.evaluate import Measures
    from moekd.partition import Groups
    from moekd.records import Part, Sample
    from moekd.report.judged import Judged


def row_maker(settings: MoekdSettings, step: Judged) -> Callable[..., dict[str, Any]]:
    """What makes the rows of one step."""

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
    found = estimate(settings, measures, n)
    return [
        row(part, metric, one.value, number(one.low), number(one.high), one.n)
        for metric, one in found.items()
        if not math.isnan(one.value)
    ]


def _group_indices(samples: Sequence[Sample], groups: Groups) -> np.ndarray:
    """Group of each vulnerable function, int64, (n,); -1 for those without one and for all others."""
    return np.array([groups.of.get(s.id, -1) if s.label == 1 else -1 for s in samples])


def detector_rows(
    settings: MoekdSettings,
    row: Callable[..., dict[str, Any]],
    step: Judged,
    parts: Mapping[Part, Sequence[Sample]],
    groups: Groups,
) -> list[dict[str, Any]]:
    """Rows of a model that tells vulnerable from not; recall also by group."""
    rows = []
    for part, samples in parts.items():
        logits = step.logits(samples)
        rows += _measured(settings, row, part, evaluate.detection(logits, labels_of(samples)), len(samples))
        called, members = evaluate.decisions(logits), _group_indices(samples, groups)
        for index, name in enumerate(groups.names):
            hits = called[members == index]
            if hits.size:
                rows += _measured(settings, row, f"{part}/{name}", evaluate.share("recall", hits), hits.size)
    return rows


def classifier_rows(
    settings: MoekdSettings,
    row: Callable[..., dict[str, Any]],
    step: Judged,
    parts: Mapping[Part, Sequence[Sample]],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Rows of a model of another task than binary detection; recall by class instead of by group."""
    rows = []
    for part, samples in parts.items():
        logits, labels = step.logits(samples), labels_of(samples)
        measures = evaluate.MEASURES[settings.data.task](logits, labels)
        rows += _measured(settings, row, part, measures, len(samples))
        right = logits.argmax(axis=1) == labels
        for label, name in enumerate(classes):
            hits = right[labels == label]
            rows += _measured(settings, row, f"{part}/{name}", evaluate.share("recall", hits), hits.size)
    return rows


def router_rows(
    settings: MoekdSettings,
    row: Callable[..., dict[str, Any]],
    step: Judged,
    parts: Mapping[Part, Sequence[Sample]],
    groups: Groups,
) -> list[dict[str, Any]]:
    """Rows of a router: how often it is right, and where it sends functions."""
    rows = []
    for part, samples in parts.items():
        logits, true = step.logits(samples), _group_indices(samples, groups)
        if logits.shape[1] != len(groups.names):
            raise DataError(
                f"{step.label} answers with {logits.shape[1]} groups, but the partition has "
                f"{len(groups.names)}; train the router again"
            )
        with_cwe = np.array([s.cwe is not None for s in samples])
        known = (true >= 0) & with_cwe
        judged = [(part, logits, true >= 0), (f"{part}/known-cwe", logits, known)]
        if groups.names[-1] == UNKNOWN:  # it is the last one wherever it occurs
            judged.append((f"{part}/among-known", logits[:, :-1], known))
        for name, answers, chosen in judged:
            if chosen.any():
                measures = evaluate.routing(answers[chosen], true[chosen])
                rows += _measured(settings, row, name, measures, int(chosen.sum()))
                largest = np.bincount(true[chosen]).max() / chosen.sum()
                rows.append(row(name, "largest_group_share", float(largest), n=int(chosen.sum())))
        first, labels = logits.argmax(axis=1), labels_of(samples)
        for label, kind in ((0, "not_vulnerable"), (1, "vulnerable")):
            taken = first[labels == label]
            for index, name in enumerate(groups.names if taken.size else ()):
                measures = evaluate.share(f"routed_to:{name}", taken == index)
                rows += _measured(settings, row, f"{part}/{kind}", measures, taken.size)
    return rows


def attack_rows(settings: MoekdSettings, row: Callable[..., dict[str, Any]], step: Judged) -> list[dict[str, Any]]:
    """Rows of the attacks on one model."""
    from moekd.attack import robustness

    wanted = settings.evaluate
    return [
        row(f"attack/{name}", metric, one.value, number(one.low), number(one.high), one.n)
        for name, results in step.attacks().items()
        for metric, one in robustness(results, bootstrap=wanted.bootstrap, confidence=wanted.confidence).items()
        if not math.isnan(one.value)
    ]


def teacher_side_cost(settings: MoekdSettings, steps: Sequence[Judged]) -> list[dict[str, Any]]:
    """Training seconds of all experts and the router together, also as a multiple of the single teacher's."""
    seconds = {(s.system, s.seed): s.cost["train_seconds"] for s in steps if "train_seconds" in s.cost}
    rows = []
    for step in (one for one in steps if not one.attacked):  # an attack on the mixture goes by its name, too
        experts = seconds.get(("experts", step.seed), seconds.get(("expert-heads", step.seed)))
        router, teacher = seconds.get((ROUTER, step.seed)), seconds.get(("teacher", step.seed))
        if step.system == "mixture" and experts is not None and router is not None and teacher:
            row = row_maker(settings, step)
            rows.append(row("cost", "train_seconds", experts + router))
            rows.append(row("cost", "train_seconds_over_teacher", (experts + router) / teacher))
    return rows
