"""The group of a CWE: pillars and categories that MoEKD has experts for. The table of ids is ours, from CWE 4.14."""

from __future__ import annotations

from functools import cache
from typing import Any

OTHER = "other"  # weaknesses outside the five pillars and three categories, and groups too small for an expert
UNKNOWN = "unknown"  # vulnerable functions without a CWE


@cache
def _table() -> dict[str, Any]:
    import json
    from importlib.resources import files

    return json.loads(files("moekd").joinpath("cwe_groups.json").read_text(encoding="utf-8"))


def cwe_version() -> str:
    """Version of the CWE list that the table of groups was made from."""
    return _table()["cwe_version"]


@cache
def group_by_cwe() -> dict[str, str]:
    """Return the group of each CWE of the table, as "CWE-119": "CWE-664"."""
    return {f"CWE-{number}": row["group"] for row in _table()["rows"] for number in row["ids"]}


def group_of_cwe(cwe: str | None) -> str:
    """Return the group of a CWE such as "CWE-119" before the size rule.

    None is `unknown`; the categories 399, 264 and 189 are groups of their own; the pillars 664, 707, 284, 682
    and 691 take their descendants; everything else, ids that the table does not list included, is `other`.
    """
    if cwe is None:
        return UNKNOWN
    return group_by_cwe().get(cwe, OTHER)
