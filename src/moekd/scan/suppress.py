"""Suppression comments: `// moekd: ignore[CWE-664] reason`, in a function or in the comments right above it.

Anywhere in the function, so that a formatter may move the comment; a reason is required, so that a reader learns why.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moekd.data.text import comments

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MARK = "moekd:"  # begins each such comment
ANY = "vulnerable"  # in the brackets: whatever the weakness

_FORM = re.compile(r"ignore\[([^\]]*)\]\s*(.*)")
_ID = re.compile(rf"CWE-[1-9][0-9]{{0,4}}|{ANY}")
_HINT = "write `// moekd: ignore[CWE-664] reason`"


@dataclass(frozen=True, slots=True)
class Suppression:
    """One well-formed suppression comment.

    Attributes:
        line: where it stands.
        covers: lines of the comments that it stands in, first and last; a function that begins right after the last
            one is meant, if none holds `line`.
        ids: "CWE-<number>" or "vulnerable".
        reason: never empty.
    """

    line: int
    covers: tuple[int, int]
    ids: frozenset[str]
    reason: str

    def holds_for(self, cwe_group: str | None) -> bool:
        """Whether it suppresses a finding of that kind; a model that does not tell the kind cannot contradict it."""
        return cwe_group is None or ANY in self.ids or cwe_group in self.ids


def read(text: str) -> tuple[list[Suppression], list[tuple[int, str]]]:
    """Return the suppressions of a file, and line and complaint for each comment that looks like one and is none."""
    found: list[Suppression] = []
    wrong: list[tuple[int, str]] = []
    for block in _blocks(text):
        covers = (block[0][0], block[-1][0])
        for line, content in block:
            if not content.startswith(MARK):
                continue
            parsed = _parse(content.removeprefix(MARK).strip())
            if isinstance(parsed, str):
                wrong.append((line, parsed))
            else:
                found.append(Suppression(line, covers, *parsed))
    return found, wrong


def assign(suppressions: Iterable[Suppression], spans: Sequence[tuple[int, int]]) -> dict[Suppression, list[int]]:
    """Return for each suppression the functions it is about, as indices into `spans`, (first line, last line)."""
    starts = [first for first, _ in spans]
    about: dict[Suppression, list[int]] = {}
    for one in suppressions:
        inside = _holding(one.line, spans, starts)
        above = [index for index, (first, _) in enumerate(spans) if first == one.covers[1] + 1] if not inside else []
        about[one] = inside or above
    return about


def _holding(line: int, spans: Sequence[tuple[int, int]], starts: Sequence[int]) -> list[int]:
    """Functions follow each other, but several may share a line."""
    held = []
    index = bisect_right(starts, line) - 1
    while index >= 0 and spans[index][1] >= line:
        held.append(index)
        index -= 1
    return held[::-1]


def _parse(content: str) -> tuple[frozenset[str], str] | str:
    match = _FORM.fullmatch(content)
    if match is None:
        return f"suppression not understood; {_HINT}"
    ids = frozenset(part.strip() for part in match[1].split(","))
    unknown = sorted(one for one in ids if not _ID.fullmatch(one))
    if unknown:
        return f"suppression of {', '.join(map(repr, unknown))}: ids are CWE-<number> or {ANY}; {_HINT}"
    if not match[2].strip():
        return f"suppression without a reason has no effect; {_HINT}"
    return ids, match[2].strip()


def _blocks(text: str) -> Iterator[list[tuple[int, str]]]:
    """Yield runs of comment lines that follow each other: line number and content without comment marks."""
    block: list[tuple[int, str]] = []
    line, offset = 1, 0
    for start, comment in comments(text):
        line += text.count("\n", offset, start)
        offset = start
        rows = [(line + index, _content(row)) for index, row in enumerate(comment.split("\n"))]
        if block and rows[0][0] > block[-1][0] + 1:
            yield block
            block = []
        block += rows
    if block:
        yield block


def _content(row: str) -> str:
    """Strip `//`, `/*`, `*` and `*/`."""
    return row.strip().removesuffix("*/").lstrip("/*!< \t").strip()
