"""The names that MHM and WIR-Random draw from: the most frequent ones of functions that are not attacked."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from moekd.data.text import tokens
from moekd.rewrite import is_legal

if TYPE_CHECKING:
    from collections.abc import Iterable


def frequent_names(texts: Iterable[str], size: int) -> tuple[str, ...]:
    """Return the most frequent identifiers of the texts that a C variable may be called, at most `size`.

    Most frequent first, equal ones in alphabetical order. The references count the tokens of the file that they attack
    (methods.md 7.6); give functions of the training part instead.
    """
    counts = Counter(word for text in texts for word in tokens(text))
    legal = ((name, count) for name, count in counts.items() if is_legal(name, "c") and is_legal(name, "cpp"))
    return tuple(name for name, _ in sorted(legal, key=lambda item: (-item[1], item[0]))[:size])
