"""Tables of why a mixture does or does not beat its single teacher, from a result file of benchmarks/mixture.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moekd.report.markdown import markdown_table, short_commit

if TYPE_CHECKING:
    from collections.abc import Mapping

_JUDGED = ("configured", "best on validation")


def render_mixing(result: Mapping[str, Any]) -> str:
    """Return the tables as Markdown; every number in them is in `result`."""
    sections = [f"*commit {short_commit(result['commit'])}; config {result['config']}*"]
    for one in result["seeds"]:
        made = "; ".join(f"{name} {step['key']}" for name, step in one["made"].items())
        sections.append(f"### Ways to fuse, seed {one['seed']}\n\n*steps: {made}*\n\n{_fusions(one['fusions'])}")
        sections.append(f"### Experts at home, seed {one['seed']}\n\n{_specialists(one['specialists'])}")
    return "\n\n".join(section.rstrip("\n") for section in sections) + "\n"


def _fusions(found: Mapping[str, Any]) -> str:
    spread = found["valid_auroc"]
    note = (
        f"{found['choices']} ways to fuse the same answers were tried on validation: AUROC {spread['lowest']:.3f} to "
        f"{spread['highest']:.3f}, median {spread['median']:.3f}. The best of many is better by chance alone; the test "
        "part judges it once. Intervals are 95% bootstrap over functions."
    )
    head = ["teacher", "k", "weights", "fusion", "calibrated", "router temperature"]
    head += ["valid AUROC", "test AUROC", "test accuracy", "AUROC − single", "accuracy − single"]
    single = found["teacher"]
    rows = [
        ["single", *["–"] * 5, f"{single['valid_auroc']:.3f}", *_both(single["test"], ".3f"), "–", "–"],
        *(_judged(name, found[name]) for name in _JUDGED),
    ]
    return f"{note}\n\n{markdown_table(head, rows)}"


def _judged(name: str, one: Mapping[str, Any]) -> list[str]:
    choice = one["choice"]
    return [
        f"mixture, {name}",
        str(choice["k"]),
        choice["weights"],
        choice["fusion"],
        "yes" if choice["calibrated"] else "no",
        f"{choice['router_temperature']:g}",
        f"{one['valid_auroc']:.3f}",
        *_both(one["test"], ".3f"),
        *_both(one["minus_teacher"], "+.3f"),
    ]


def _both(measures: Mapping[str, Mapping[str, float]], shape: str) -> list[str]:
    return [_interval(measures[name], shape) for name in ("auroc", "accuracy")]


def _interval(one: Mapping[str, float], shape: str) -> str:
    return f"{one['value']:{shape}} ({one['low']:{shape}} to {one['high']:{shape}})"


def _specialists(rows: list[Mapping[str, Any]]) -> str:
    note = (
        "AUROC on functions that no teacher learned from (half B and test): the group's vulnerable ones against all "
        "that are not vulnerable, and against those of the same projects, in the group's shares of the projects. Who "
        "only knows a group's projects is better against all, and no better within projects. `learned` counts the "
        "group's functions in half A. Intervals are 95% bootstrap over functions."
    )
    head = ["group", "learned", "against", "vulnerable", "single teacher", "own expert", "other experts, mean"]
    head += ["highest", "own expert − single teacher"]
    cells = [
        [row["group"], f"{row['learned']:,}", against, *_at_home(row[kind])]
        for row in rows
        for kind, against in (("all", "all"), ("matched", "same projects"))
    ]
    return f"{note}\n\n{markdown_table(head, cells)}"


def _at_home(one: Mapping[str, Any] | None) -> list[str]:
    if one is None:  # no such functions
        return ["0", *["–"] * 5]
    return [
        f"{one['vulnerable']:,}",
        f"{one['teacher']:.3f}",
        f"{one['own_expert']:.3f}",
        f"{one['other_experts']['mean']:.3f}",
        f"{one['other_experts']['highest']:.3f}",
        _interval(one["own_minus_teacher"], "+.3f"),
    ]
