"""The table of detection at the natural ratio, from a result file of benchmarks/detection.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moekd.report.markdown import markdown_table, short_commit

if TYPE_CHECKING:
    from collections.abc import Mapping


def render_detection(result: Mapping[str, Any]) -> str:
    """Return the detectors' table as Markdown; every number in it is in `result`."""
    about = result["functions"]
    tops = [f"precision at top {share:.0%}" for share in result["tops"]]
    limits = [f"recall at {alarms:g} false alarms per 1,000 lines" for alarms in result["alarms_per_kloc"]]
    head = ["detector", *tops, *limits]
    rows = [
        [name, *(_cell(one, "precision_at_top", share) for share in result["tops"])]
        + [_cell(one, "recall_at_alarms", alarms) for alarms in result["alarms_per_kloc"]]
        for name, one in result["detectors"].items()
    ]
    source = (
        f"*commit {short_commit(result['commit'])}; data {about['data']} {about['digest'][:12]}; seed {result['seed']}*"
    )
    share = about["vulnerable"] / about["count"]
    note = (
        f"{about['count']:,} functions of {about['lines']:,} lines, {about['vulnerable']:,} vulnerable: guessing "
        f"reaches {share:.2%} at any top. Disjoint from what was learned by {about['disjoint']}. "
        "Ties count as broken at random; a threshold never cuts through one."
    )
    if any("intervals" in one for one in result["detectors"].values()):
        note += " In brackets 95% bootstrap intervals over the functions."
    return f"{source}\n\n{note}\n\n{markdown_table(head, rows)}"


def _cell(detector: Mapping[str, Any], kind: str, key: float) -> str:
    value = f"{detector[kind][str(key)]:.3f}"
    if "intervals" not in detector:
        return value
    low, high = detector["intervals"][kind][str(key)]
    return f"{value} ({low:.3f} to {high:.3f})"
