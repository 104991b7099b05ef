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
        [name, *(f"{one['precision_at_top'][str(share)]:.3f}" for share in result["tops"])]
        + [f"{one['recall_at_alarms'][str(alarms)]:.3f}" for alarms in result["alarms_per_kloc"]]
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
    return f"{source}\n\n{note}\n\n{markdown_table(head, rows)}"
