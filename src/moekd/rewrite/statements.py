"""Rewrites of statements and layout that keep a function's meaning. Each changes one place, drawn at random.

A rewrite takes parsed code and a generator and returns the new text, or None where it does not apply. They are plain
functions; `moekd.rewrite.apply` runs them and checks what they return.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from moekd.rewrite.code import decoded, is_literal, words_of
from moekd.rewrite.names import looks_like_macro

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from tree_sitter import Node

    from moekd.rewrite.code import Code

_T = TypeVar("_T")

#: A replacement of the bytes from start to end.
Edit = tuple[int, int, bytes]

_NOTES = (b"/* checked */", b"/* see above */", b"/* keep in order */", b"/* fall back to the default */")
_LOOPS = frozenset({"for_statement", "while_statement", "do_statement", "for_range_loop"})
_EFFECTS = frozenset({"call_expression", "assignment_expression", "update_expression", "ERROR", "lambda_expression"})
_MACRO_TYPES = frozenset({"macro_type_specifier", "parenthesized_declarator"})  # STACK_OF(x) *y; may be a product
_BODIES = frozenset({"struct_specifier", "union_specifier", "enum_specifier", "class_specifier"})
_SPACE_SHARE = 0.2  # of the gaps between tokens
DEAD = "if (0) {{ int {0} = 0; (void){0}; }}\n"


def comments_and_space(code: Code, rng: np.random.Generator) -> str | None:
    """Put comments, blanks and line breaks where white space is already; literals and directives stay as they are."""
    fixed = [
        (node.start_byte, node.end_byte) for node in code.nodes if is_literal(node) or node.type.startswith("preproc_")
    ]
    leaves = [leaf for leaf in code.leaves if leaf.end > leaf.start]
    gaps = [
        (before.end, after.start)
        for before, after in pairwise(leaves)
        if after.start > before.end
        and code.source[before.end : after.start].isspace()
        and not any(start < after.start and before.end < end + 1 for start, end in fixed)
    ]
    chosen = [gap for gap in gaps if rng.random() < _SPACE_SHARE] or gaps[:1]
    edits = [(start, end, code.source[start:end] + _drawn_gap(rng)) for start, end in chosen]
    return _edited(code, edits) if edits else None


def _drawn_gap(rng: np.random.Generator) -> bytes:
    kind = int(rng.integers(3))
    if kind == 0:
        return _NOTES[int(rng.integers(len(_NOTES)))] + b" "
    return b"\n" if kind == 1 else b"  "


def reorder_declarations(code: Code, rng: np.random.Generator) -> str | None:
    """Swap two declarations that stand one after the other and do not mention each other.

    Neither calls, assigns or counts anything, so no side effect changes its place. In C only: the constructors and
    destructors of C++ run in the order of the declarations.
    """
    if code.language != "c":
        return None
    pairs = [
        (first, second)
        for block in _of_type(code, "compound_statement")
        for first, second in pairwise(block.named_children)
        if _is_movable(code, first) and _is_movable(code, second) and _independent(code, first, second)
    ]
    if not pairs:
        return None
    first, second = _drawn(pairs, rng)
    return _edited(code, [(*_extent(first), code.slice(second)), (*_extent(second), code.slice(first))])


def _is_movable(code: Code, node: Node) -> bool:
    if node.type != "declaration" or node.has_error or b"volatile" in code.slice(node):
        return False
    return not any(
        inner.type in _EFFECTS | _MACRO_TYPES or inner.type.startswith("preproc_") or _has_body(inner)
        for inner in _inside(node)
    )


def _has_body(node: Node) -> bool:
    return node.type in _BODIES and node.child_by_field_name("body") is not None


def _independent(code: Code, first: Node, second: Node) -> bool:
    between = code.source[first.end_byte : second.start_byte]
    return between.isspace() and not (
        _declared_names(code, first) & words_of(code.slice(second))
        or _declared_names(code, second) & words_of(code.slice(first))
    )


def _declared_names(code: Code, declaration: Node) -> set[str]:
    names = set()
    for declarator in declaration.children_by_field_name("declarator"):
        target = declarator.child_by_field_name("declarator") if declarator.type == "init_declarator" else declarator
        names |= words_of(code.slice(target)) if target is not None else set()
    return names


def for_to_while(code: Code, rng: np.random.Generator) -> str | None:
    """Write a `for` as a `while` in a block of its own.

    Not one whose body continues it, which would skip the step, nor one behind a directive, such as a pragma for loops.
    """
    loops = [
        node
        for node in _of_type(code, "for_statement")
        if _is_plain(node) and not _continues(node) and not _is_behind_directive(node)
    ]
    if not loops:
        return None
    loop = _drawn(loops, rng)
    parts = {name: loop.child_by_field_name(name) for name in ("initializer", "condition", "update", "body")}
    body = parts["body"]
    assert body is not None
    first, condition, update = (
        code.slice(node) if (node := parts[name]) is not None else b""
        for name in ("initializer", "condition", "update")
    )
    if first and not first.endswith(b";"):
        first += b";"
    step = b" " + update + b";" if update else b""
    text = b"{ %s while (%s) {\n%s%s } }" % (first, condition or b"1", code.slice(body), step)
    return _edited(code, [(*_extent(loop), text)])


def _is_behind_directive(node: Node) -> bool:
    before = node.prev_named_sibling
    return before is not None and before.type.startswith("preproc_")


def _continues(loop: Node) -> bool:
    """Whether a `continue` in the body belongs to this loop."""
    body = loop.child_by_field_name("body")
    stack = [body] if body is not None else []
    while stack:
        node = stack.pop()
        if node.type == "continue_statement":
            return True
        if node.type not in _LOOPS:
            stack.extend(node.children)
    return False


def swap_branches(code: Code, rng: np.random.Generator) -> str | None:
    """Negate the condition of an `if` with an `else` and swap its branches."""
    choices = [
        node
        for node in _of_type(code, "if_statement")
        if _is_plain(node)
        and node.child_by_field_name("alternative") is not None
        and _plain_condition(node) is not None
        and not any(child.type == "constexpr" for child in node.children)
    ]
    if not choices:
        return None
    chosen = _drawn(choices, rng)
    condition = _plain_condition(chosen)
    then, otherwise = chosen.child_by_field_name("consequence"), chosen.child_by_field_name("alternative")
    assert condition is not None
    assert then is not None
    assert otherwise is not None
    other = next(child for child in otherwise.named_children if child.type != "comment")
    text = b"if (!(%s)) %s else %s" % (code.slice(condition), _block(code, other), _block(code, then))
    return _edited(code, [(*_extent(chosen), text)])


def _plain_condition(node: Node) -> Node | None:
    """The expression between an `if`'s parentheses; None for one that declares something."""
    outer = node.child_by_field_name("condition")
    inner = [child for child in outer.named_children if child.type != "comment"] if outer is not None else []
    return inner[0] if len(inner) == 1 and inner[0].type != "declaration" else None


def _block(code: Code, statement: Node) -> bytes:
    text = code.slice(statement)
    return text if statement.type == "compound_statement" else b"{ %s }" % text


def increment(code: Code, rng: np.random.Generator) -> str | None:
    """Write `i++` as `i += 1` (and `--` as `-= 1`) where its value is not used.

    In C only: a C++ class may have `++` without `+=`.
    """
    if code.language != "c":
        return None
    choices = [node for node in _of_type(code, "update_expression") if not node.has_error and _is_unused(node)]
    if not choices:
        return None
    chosen = _drawn(choices, rng)
    argument, operator = chosen.child_by_field_name("argument"), chosen.child_by_field_name("operator")
    assert argument is not None
    assert operator is not None
    text = code.slice(argument) + (b" += 1" if code.slice(operator) == b"++" else b" -= 1")
    return _edited(code, [(*_extent(chosen), text)])


def _is_unused(node: Node) -> bool:
    parent = node.parent
    while parent is not None and parent.type == "comma_expression":
        if parent.named_children[-1] == node and parent.parent is not None:
            node, parent = parent, parent.parent  # the last of a list has the list's value
        else:
            return True
    if parent is None or parent.type == "expression_statement":
        return parent is not None and not _ends_statement_expression(parent)
    return parent.type == "for_statement" and parent.child_by_field_name("update") == node


def _ends_statement_expression(statement: Node) -> bool:
    """GNU C: the last statement of `({ ... })` is its value."""
    block = statement.parent
    outer = block.parent if block is not None else None
    return outer is not None and outer.type == "parenthesized_expression"


def parentheses(code: Code, rng: np.random.Generator) -> str | None:
    """Put redundant parentheses around an operand or an assigned value."""
    choices = [node for node in code.nodes if _may_have_parentheses(code, node)]
    if not choices:
        return None
    chosen = _drawn(choices, rng)
    return _edited(code, [(*_extent(chosen), b"(%s)" % code.slice(chosen))])


def _may_have_parentheses(code: Code, node: Node) -> bool:
    """Operands that certainly are values: a name in capitals may be a macro for anything.

    A name that is an operand stays bare, because a parser that knows no types may take `(a) - b` for a cast.
    """
    parent = node.parent
    if parent is None or node.has_error or parent.has_error:
        return False
    if node.type == "identifier" and looks_like_macro(decoded(code.slice(node))):
        return False
    if node.type not in ("identifier", "number_literal", "binary_expression") or _in_directive(node):
        return False
    if parent.type == "binary_expression":
        return node.type != "identifier" and node in (
            parent.child_by_field_name("left"),
            parent.child_by_field_name("right"),
        )
    return parent.type == "assignment_expression" and parent.child_by_field_name("right") == node


def _in_directive(node: Node) -> bool:
    """Whether the node belongs to the condition of a directive, not to code between directives."""
    inner, outer = node, node.parent
    while outer is not None:
        if outer.type.startswith("preproc_"):
            return inner in (outer.child_by_field_name("condition"), outer.child_by_field_name("name"))
        inner, outer = outer, outer.parent
    return False


def dead_code(code: Code, rng: np.random.Generator) -> str | None:
    """Put a block behind a condition that is constantly false before a statement; it has a variable of its own."""
    places = [
        child
        for block in _of_type(code, "compound_statement")
        if not block.has_error and block.parent is not None and block.parent.type != "switch_statement"
        for child in block.named_children
        if child.type.endswith("_statement")
    ]
    if not places:
        return None
    place = _drawn(places, rng)
    name = next(name for n in range(len(code.words) + 1) if (name := f"unused{n}") not in code.words)
    return _edited(code, [(place.start_byte, place.start_byte, DEAD.format(name).encode())])


def _of_type(code: Code, kind: str) -> list[Node]:
    return [node for node in code.nodes if node.type == kind]


def _inside(node: Node) -> Iterable[Node]:
    stack = [node]
    while stack:
        inner = stack.pop()
        yield inner
        stack.extend(inner.children)


def _is_plain(node: Node) -> bool:
    """Whether it was understood and holds no directive, which needs its own lines."""
    return not node.has_error and not any(inner.type.startswith("preproc_") for inner in _inside(node))


def _extent(node: Node) -> tuple[int, int]:
    return node.start_byte, node.end_byte


def _drawn(choices: Sequence[_T], rng: np.random.Generator) -> _T:
    return choices[int(rng.integers(len(choices)))]


def _edited(code: Code, edits: Sequence[Edit]) -> str:
    parts, end = [], 0
    for start, stop, new in sorted(edits):
        parts += [code.source[end:start], new]
        end = stop
    return decoded(b"".join([*parts, code.source[end:]]))


# ------------------------------------------------------------------------------------------------- what is kept


def same_tokens(before: Code, after: Code) -> bool:
    """Whether both have the same tokens in the same order, comments left out."""
    return list(before.leaf_texts()) == list(after.leaf_texts())


def same_declarations(before: Code, after: Code) -> bool:
    """Whether both have the same tokens in any order, and the same declarations."""
    return sorted(before.leaf_texts()) == sorted(after.leaf_texts()) and _declarations(before) == _declarations(after)


def _declarations(code: Code) -> list[bytes]:
    return sorted(code.slice(node) for node in _of_type(code, "declaration"))


def same_loops(before: Code, after: Code) -> bool:
    """Whether names, operators and literals are the same, one `for` became a `while`, and no `continue` moved."""
    loose = {b"for", b"while", b"{", b"}", b"(", b")", b";"}
    gained = list(_without(after, loose))
    kept = sorted(_without(before, loose))
    ones = [b"1"] if len(gained) > len(kept) else []  # the condition that was left out
    return (
        sorted(gained) == sorted([*kept, *ones])
        and len(_of_type(after, "for_statement")) == len(_of_type(before, "for_statement")) - 1
        and len(_of_type(after, "while_statement")) == len(_of_type(before, "while_statement")) + 1
    )


def same_branches(before: Code, after: Code) -> bool:
    """Whether tokens are the same but for one negation, its parentheses and the braces of the branches."""
    loose = {b"{", b"}", b"(", b")"}
    return sorted(_without(after, loose)) == sorted([*_without(before, loose), b"!"]) and len(
        _of_type(after, "if_statement")
    ) == len(_of_type(before, "if_statement"))


def same_steps(before: Code, after: Code) -> bool:
    """Whether tokens are the same but for one `++` or `--` that became `+=` or `-=` and a 1."""
    loose = {b"++", b"--", b"+=", b"-=", b"1"}
    counts = [sum(text in (b"++", b"--") for text in code.leaf_texts()) for code in (before, after)]
    return list(_without(before, loose)) == list(_without(after, loose)) and counts[1] == counts[0] - 1


def same_without_parentheses(before: Code, after: Code) -> bool:
    """Whether tokens are the same but for one pair of parentheses."""
    loose = {b"(", b")"}
    pairs = [sum(text == b"(" for text in code.leaf_texts()) for code in (before, after)]
    return list(_without(before, loose)) == list(_without(after, loose)) and pairs[1] == pairs[0] + 1


def same_without_dead_code(before: Code, after: Code) -> bool:
    """Whether one statement `if (0) { ... }` goes beyond the original, which is left when it is cut out."""
    for node in _of_type(after, "if_statement"):
        condition = node.child_by_field_name("condition")
        if condition is not None and after.slice(condition) == b"(0)":
            rest = after.source[: node.start_byte] + after.source[node.end_byte + 1 :]
            if rest == before.source:
                return True
    return False


def _without(code: Code, loose: set[bytes]) -> Iterable[bytes]:
    return (text for text in code.leaf_texts() if text not in loose)
