"""Tables of what a scan costs and how it starts, from result files of benchmarks/scan.py and benchmarks/start.py."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from moekd.report.markdown import markdown_table, short_commit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OURS = "moekd"
_PIPELINE = "pipeline"
#: What is compared with what, like with like: the same cores.
_RATIOS = (
    ("moekd, 1 core", "pipeline, 1 core"),
    ("moekd, 1 core", "pipeline, 1 core, batches of 32"),
    ("moekd, 2 cores", "pipeline, 2 cores"),
)


def render_scanning(result: Mapping[str, Any]) -> str:
    """Return the tables of a scan's cost as Markdown; every number in them is in `result` or a quotient of two."""
    trees = result["trees"]
    source = (
        f"*commit {short_commit(result['commit'])}; model {result['model']['model.onnx'][:12]}; "
        f"{result['cores']} cores; {result['rounds']} rounds, in turns*"
    )
    lines = sum(tree["counts"]["lines"] for tree in trees)
    several = "tree" if len(trees) == 1 else "trees"
    note = (
        f"{len(trees)} {several}, {lines:,} lines of functions together. Medians over the rounds, in brackets least "
        "and most. moekd starts with an empty cache unless it says cached, and its times hold its start. A pipeline is "
        "Hugging Face's with the same student on some of the tree's functions; its start and the search for functions "
        "are not counted. Peak memory is of the largest process."
    )
    parts = [source, note, *(_tree(tree) for tree in trees)]
    parts += [table for table in (_ratios(trees), _limits(trees)) if table]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def render_start(result: Mapping[str, Any]) -> str:
    """Return the table of cold starts as Markdown; every number in it is in `result`."""
    file = result["file"]
    source = (
        f"*commit {short_commit(result['commit'])}; model {result['model']['digest'][:12]}; {result['cores']} cores; "
        f"Python {result['python']}; {result['runs']} runs*"
    )
    torch = "torch installed" if result["torch"] else "no torch installed"
    note = (
        f"A new process each time, no cache of scores, {torch}; the file has {file['functions']:,} functions "
        f"of {file['lines']:,} lines. Seconds until the process has ended, so the first finding came no later."
    )
    rows = [
        [
            f"`{command}`",
            _spread(one["seconds"], 2),
            _spread(one["processor_seconds"], 2),
            f"{one['peak_bytes'] / 1e6:,.0f}",
        ]
        for command, one in result["commands"].items()
    ]
    head = ["command", "seconds", "of processor time", "peak memory, MB"]
    return f"{source}\n\n{note}\n\n{markdown_table(head, rows)}"


def _tree(tree: Mapping[str, Any]) -> str:
    counts = tree["counts"]
    rows = []
    for name in sorted(tree["costs"], key=lambda name: (not name.startswith(_OURS), name)):
        cost = tree["costs"][name]
        whole_tree = not name.startswith(_PIPELINE)
        rows.append(
            [
                name,
                _spread(cost["seconds"], 1) if whole_tree else "–",
                f"{cost['functions_per_second']:,.0f}",
                f"{counts['lines'] / statistics.median(cost['seconds']):,.0f}" if whole_tree else "–",
                f"{cost['peak_bytes'] / 1e6:,.0f}",
            ]
        )
    head = ["contestant", "seconds", "functions per second", "lines per second", "peak memory, MB"]
    size = f"{counts['files']:,} files, {counts['functions']:,} functions, {counts['lines']:,} lines"
    said = f"**{tree['tree']}**: {size}."
    missing = [f"{name} is not installed" for name in tree.get("not_installed", ())]
    missing += [f"{name} failed: {why}" for name, why in tree.get("failed", {}).items()]
    return "\n\n".join([" ".join([said, *(f"{one}." for one in missing)]), markdown_table(head, rows)])


def _ratios(trees: Sequence[Mapping[str, Any]]) -> str | None:
    """Functions per second over the pipeline's, each round by itself."""
    rows = []
    for ours, other in _RATIOS:
        found = [tree["times_the_pipeline"].get(f"{ours} / {other}") for tree in trees]
        if any(found):
            rows.append([f"{ours} / {other}", *(_spread(one, 1) if one else "–" for one in found)])
    if not rows:
        return None
    head = ["functions per second, times the pipeline's", *(tree["tree"] for tree in trees)]
    return markdown_table(head, rows)


def _limits(trees: Sequence[Mapping[str, Any]]) -> str | None:
    rows = []
    for tree in trees:
        limit = tree.get("limit_seconds_one_core")
        if limit is None:
            continue
        least = limit["layers"] + limit["attention"]
        ours = statistics.median(tree["costs"]["moekd, 1 core"]["seconds"])
        rows.append(
            [
                tree["tree"],
                f"{limit['gflops_per_second']:.0f}",
                f"{limit['layers']:.1f}",
                f"{limit['attention']:.1f}",
                f"{ours:.1f}",
                f"{least / ours:.0%}",
            ]
        )
    if not rows:
        return None
    head = ["tree", "GFLOP/s measured", "layers, s", "attention, s", "moekd, 1 core, s", "share of the limit reached"]
    said = (
        "The limit is the time of the student's matrix products alone, for the tokens that it reads, in float32 at the "
        "rate that this machine reaches on one core. The share is that time over the whole scan's, with reading, "
        "parsing and tokenizing; int8 products with weights may beat the limit, attention is float32."
    )
    return f"{said}\n\n{markdown_table(head, rows)}"


def _spread(values: Sequence[float], digits: int) -> str:
    """Median, with the range of several."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"
