"""Tables of how far one new name moves each model, from a result file of benchmarks/sensitivity.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moekd.report.markdown import markdown_table, short_commit

if TYPE_CHECKING:
    from collections.abc import Mapping

_MEASURES = {  # name in the file -> head
    "margin": "margin",
    "move": "mean move",
    "fall": "greatest fall",
    "fall_per_margin": "fall / margin",
    "flipped": "answer flips",
}

_SHARED = (
    "Attacks on the functions that both models of a pair classify correctly in the same seed: the share of them on "
    "which each is fooled, the difference, and each model's mean log-odds of the label before the attack."
)


def render_sensitivity(result: Mapping[str, Any]) -> str:
    """Return the tables as Markdown; every number in them is in `result`."""
    note = (
        f"{result['functions']:,} functions with {result['renames']:,} renames of one local variable each, drawn at "
        f"random and the same for every model ({result['without_identifiers']:,} functions have nothing to rename). "
        "Log-odds in nats: how far the answer is from the decision, how far one name moves it either way, and how far "
        "the worst of a function's renames takes it towards the other answer; the share of functions whose answer that "
        "one flips. Means over seeds within each function; intervals are 95% bootstrap over functions."
    )
    head = ["system", "student", "seeds", *_MEASURES.values()]
    rows = [
        [one["system"], one["student"] or "", str(one["seeds"]), *_cells(one["measures"], ".3f")]
        for one in result["models"]
    ]
    made = "; ".join(f"{name} {key}" for name, key in result["steps"].items())
    where = f"commit {short_commit(result['commit'])}; config {result['config']}; data {result['data']}; steps: {made}"
    sections = [f"{note}\n*{where}*", markdown_table(head, rows)]
    if result["pairs"]:
        compared = [
            [f"{one['first']} − {one['second']}", one["student"] or "", *_cells(one["measures"], "+.3f")]
            for one in result["pairs"]
        ]
        sections.append(markdown_table(["difference", "student", *_MEASURES.values()], compared))
    if result["shared"]:
        sections.append(f"{_SHARED}\n\n{_shared_table(result['shared'])}")
    return "\n\n".join(section.rstrip("\n") for section in sections) + "\n"


def _cells(measures: Mapping[str, Mapping[str, float]], shape: str) -> list[str]:
    return [_interval(measures[name], shape) for name in _MEASURES]


def _interval(one: Mapping[str, float], shape: str) -> str:
    return f"{one['value']:{shape}} ({one['low']:{shape}} to {one['high']:{shape}})"


def _shared_table(rows: list[Mapping[str, Any]]) -> str:
    head = [
        "pair",
        "student",
        "attack",
        "seeds",
        "functions of all seeds",
        "first fooled",
        "second fooled",
        "first − second",
    ]
    head += ["first's margin", "second's margin"]
    shapes = {"fooled_first": ".3f", "fooled_second": ".3f", "difference": "+.3f"}
    shapes |= {"margin_first": ".2f", "margin_second": ".2f"}
    cells = [
        [
            f"{one['first']}, {one['second']}",
            one["student"] or "",
            one["attack"],
            str(one["seeds"]),
            f"{one['n']:,}",
            *(_interval(one["measures"][name], shape) for name, shape in shapes.items()),
        ]
        for one in rows
    ]
    return markdown_table(head, cells)
