"""Which lines carry a score: each line is left out in turn, and the margin's fall is its share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moekd.data.text import blank_comments, normalise
from moekd.scan.findings import LineShare

if TYPE_CHECKING:
    from moekd.scan.model import ScanModel

_LINES_SHOWN = 3
_LINES_TRIED = 400  # the model reads a few hundred tokens; a line beyond them carries nothing
_CHARACTERS_TRIED = 8_000  # for the same reason; a function may have megabytes


def carrying_lines(model: ScanModel, function: str, first_line: int) -> tuple[LineShare, ...]:
    """Return up to three lines without which the margin is lower, the largest fall first.

    Args:
        function: source of the function as it stands in the file.
        first_line: its number in the file.
    """
    rows = blank_comments(function[:_CHARACTERS_TRIED].replace("\r\n", "\n")).split("\n")
    whole = normalise("\n".join(rows))
    tried, variants = [], []
    for index in range(min(len(rows), _LINES_TRIED)):
        variant = normalise("\n".join(rows[:index] + rows[index + 1 :])) if rows[index].strip() else whole
        if variant != whole:
            tried.append(index)
            variants.append(variant)
    margins = model.margins([whole, *variants])
    shares = [
        LineShare(first_line + index, float(margins[0] - margin), rows[index].strip())
        for index, margin in zip(tried, margins[1:], strict=True)
    ]
    carrying = sorted((one for one in shares if one.drop > 0), key=lambda one: (-one.drop, one.line))
    return tuple(carrying[:_LINES_SHOWN])
