"""Rewrites of C and C++ functions that keep their meaning, each with the check that proves its output.

    Template.of(text)                       a function, and the local variables that may be renamed
    template.render({"len": "n_bytes"})     the function with new names
    fault_of_renaming(template, renaming)   why a renaming must not be used, or None
    apply("for_to_while", text, rng)        another rewrite; None where it does not apply

Attacks search over rewrites; metamorphic tests expect something of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moekd.errors import RewriteError
from moekd.rewrite import statements
from moekd.rewrite.code import Code
from moekd.rewrite.identifiers import Identifier, identifiers
from moekd.rewrite.names import is_legal
from moekd.rewrite.renaming import Renaming, Template, fault_of_renaming

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "REWRITES",
    "Code",
    "Identifier",
    "Renaming",
    "Rewrite",
    "Template",
    "apply",
    "fault_of_renaming",
    "identifiers",
    "is_legal",
]


@dataclass(frozen=True)
class Rewrite:
    """One kind of rewrite.

    Attributes:
        change: parsed code and a generator -> new text, or None where it does not apply.
        keeps: parsed code before and after -> whether what the rewrite promises to keep was kept.
    """

    change: Callable[[Code, np.random.Generator], str | None]
    keeps: Callable[[Code, Code], bool]


#: By name; renaming is apart, because an attack chooses its names.
REWRITES = {
    "comments_and_space": Rewrite(statements.comments_and_space, statements.same_tokens),
    "reorder_declarations": Rewrite(statements.reorder_declarations, statements.same_declarations),
    "for_to_while": Rewrite(statements.for_to_while, statements.same_loops),
    "swap_branches": Rewrite(statements.swap_branches, statements.same_branches),
    "increment": Rewrite(statements.increment, statements.same_steps),
    "parentheses": Rewrite(statements.parentheses, statements.same_without_parentheses),
    "dead_code": Rewrite(statements.dead_code, statements.same_without_dead_code),
}


def apply(name: str, text: str, rng: np.random.Generator) -> str | None:
    """Rewrite a function once, at a place drawn by `rng`; None where the rewrite does not apply.

    Where the parser does not understand all of the input, one changed character may move its errors: an output that
    fails the check then means "does not apply".

    Raises:
        RewriteError: the output does not parse, or what the rewrite keeps was not kept. A defect of ours; the message
            holds the difference.
        KeyError: there is no rewrite of that name.
    """
    rewrite = REWRITES[name]
    before = Code.of(text)
    changed = rewrite.change(before, rng)
    if changed is None:
        return None
    after = Code.of(changed, before.language)
    if after.error_bytes > before.error_bytes or not rewrite.keeps(before, after):
        if before.root.has_error:
            return None
        lines = difflib.unified_diff(text.splitlines(), changed.splitlines(), "before", "after", lineterm="")
        raise RewriteError(f"the rewrite {name} broke its promise:\n" + "\n".join(lines))
    return changed
