"""From the values of a record, as a reader of `formats` yields them, to a sample."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from moekd.data.tally import Unusable
from moekd.data.text import digest, normalise
from moekd.records import PAIR_MARK, Sample

if TYPE_CHECKING:
    from collections import Counter

    from moekd.data.tally import Function, Tally
    from moekd.records import TaskKind

_CWE = re.compile(r"CWE-0*(\d+)", re.IGNORECASE)
_CVE_YEAR = re.compile(r"CVE-(\d{4})-", re.IGNORECASE)
_DATE = re.compile(r"\d{4}(?:-\d{2}-\d{2})?(?!\d)")


def sample_of(values: Function, dataset: str, row: int, tally: Tally, task: TaskKind) -> Sample | Unusable:
    """The sample of one function of the record `row`, or why there is none; its class and remarks go into `tally`."""
    if isinstance(values, Unusable):
        return values
    label = _class_of(values.get("label"), tally) if task == "multi-class" else binary_label(values.get("label"))
    if label is None:
        wanted = "no label" if task == "multi-class" else "label is neither 0 nor 1"
        return Unusable(wanted, f"got {shown(values.get('label'))}")
    texts = []
    for name in ("func", "other_func") if task == "pair" else ("func",):
        func = values.get(name)
        func = "" if _absent(func) else func
        if not isinstance(func, str):
            return Unusable(f"{name} is not text", f"got {shown(func)}")
        if not _encodes(func):
            return Unusable("invalid UTF-8")
        texts.append(normalise(func.replace(PAIR_MARK, " ") if task == "pair" else func))
    project, cve, kind = (_text(values.get(name)) for name in ("project", "cve", "kind"))
    row_id = _text(values.get("row_id")) or str(row)
    pair = _text(values.get("pair_id"))
    return Sample(
        id=f"{dataset}:{row_id}" + (":fixed" if kind == "fixed" else ""),
        func=PAIR_MARK.join(texts),
        label=label,
        dataset=dataset,
        kind=kind,
        cwe=_cwe(values.get("cwe"), tally.notes),
        cve=cve,
        project=project,
        family=_text(values.get("family")) or project,
        commit=_text(values.get("commit_id")),
        date=_date(values.get("date"), cve),
        pair=pair and f"{dataset}:{pair}",
        digest=digest("".join(sorted(map(digest, texts)))) if task == "pair" else digest(texts[0]),
    )


def _class_of(value: Any, tally: Tally) -> int | None:
    """The number of a class's name, which may be a number itself; None for no name."""
    name = _text(value)
    return None if name is None else tally.classes.setdefault(name, len(tally.classes))


def binary_label(value: Any) -> int | None:
    """0 or 1, also where they are text; None for anything else."""
    if isinstance(value, str):
        return {"0": 0, "1": 1}.get(value.strip())
    return int(value) if value in (0, 1) else None


def _cwe(value: Any, notes: Counter[str]) -> str | None:
    """First listed CWE as "CWE-119"; None, with a note, for a text without a number ("NVD-CWE-noinfo")."""
    if isinstance(value, list):
        value = value[0] if value else None
    listed = _text(value)
    if listed is None:
        return None
    found = _CWE.search(listed)
    if found or listed.isdecimal():
        return sys.intern(f"CWE-{found[1] if found else int(listed)}")
    notes[f"no CWE number in {shown(listed)}"] += 1
    return None


def _date(value: Any, cve: str | None) -> str | None:
    """The ISO date that the value starts with, else the CVE's year."""
    found = _DATE.match(_text(value) or "") or _CVE_YEAR.match(cve or "")
    return found[found.lastindex or 0] if found else None


def _text(value: Any) -> str | None:
    """A short value as text, or None if unknown; what is no UTF-8 is replaced, as nothing is learned from it."""
    if _absent(value):
        return None
    if isinstance(value, float) and value.is_integer():  # a column of numbers with gaps
        value = int(value)
    return sys.intern(str(value).strip().encode("utf-8", "replace").decode()) or None


def _absent(value: Any) -> bool:
    return value is None or value == "" or value != value  # NaN is pandas' mark for absent


def _encodes(text: str) -> bool:
    """Bytes that were no UTF-8 are lone surrogates in the decoded text, which no encoder takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """A value as an error message shows it: ASCII, and cut where it is long."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
