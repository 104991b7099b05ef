"""The tables of what a scan costs, from a result file of benchmarks/scan.py."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from moekd.report.markdown import markdown_table, short_commit

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEAD = ["contestant", "seconds", "functions per second", "peak memory, MB"]


def render_scanning(result: Mapping[str, Any]) -> str:
    """Return a table for each tree as Markdown; every number in it is in `result`."""
    source = (
        f"*commit {short_commit(result['commit'])}; model {result['model']['model.onnx'][:12]}; "
        f"{result['cores']} cores; median of {result['rounds']} rounds*"
    )
    note = (
        "moekd starts with an empty cache unless it says cached. A pipeline is Hugging Face's with the same student on "
        "some of the tree's functions, its start and the search for functions not counted."
    )
    return "\n\n".join([source, note, *(_tree(one) for one in result["trees"])])


def _tree(one: Mapping[str, Any]) -> str:
    counts = one["counts"]
    rows = [
        [
            name,
            f"{statistics.median(cost['seconds']):.1f}",
            f"{cost['functions_per_second']:,.0f}",
            f"{cost['peak_bytes'] / 1e6:,.0f}",
        ]
        for name, cost in one["costs"].items()
    ]
    said = [
        f"**{one['tree']}**: {counts['functions']:,} functions of {counts['lines']:,} lines; "
        f"{one['lines_per_second_cold']:,} lines a second on one core."
    ]
    for cores in ("1 core", "2 cores"):  # like with like
        ratios = one["times_the_pipeline"].get(f"moekd, {cores} / pipeline, {cores}")
        if ratios:
            said.append(f"On {cores} {statistics.median(ratios):.1f} times the pipeline's functions per second.")
    if "limit_seconds_one_core" in one:
        limit = one["limit_seconds_one_core"]
        said.append(
            f"The student's float32 products alone take {limit['layers'] + limit['attention']:.1f} s on one core at "
            f"{limit['gflops_per_second']:.0f} GFLOP/s."
        )
    return f"{' '.join(said)}\n\n{markdown_table(_HEAD, rows)}"
