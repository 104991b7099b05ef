"""Identifiers of a function that a renaming may touch: local variables and parameters, by name.

Only names whose every occurrence is understood count: each must lie in the scope of a declaration that the parser
read without errors. A name that also is a type, a callee, a macro, part of a qualified name, or that occurs where the
parser lost its way, is left alone altogether. What no reader of one function can know stays: a macro defined elsewhere
may mention a variable by name or turn its argument into text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moekd.rewrite.code import decoded, words_of
from moekd.rewrite.names import KEYWORDS, LIBRARY

if TYPE_CHECKING:
    from tree_sitter import Node

    from moekd.rewrite.code import Code

_SCOPES = frozenset(
    {
        "function_definition",
        "compound_statement",
        "for_statement",
        "for_range_loop",
        "while_statement",
        "if_statement",
        "switch_statement",
        "lambda_expression",
        "catch_clause",
        "template_declaration",
        # What one branch of a condition declares is not certain to exist beyond it.
        "preproc_if",
        "preproc_ifdef",
        "preproc_elif",
        "preproc_elifdef",
        "preproc_else",
    }
)
_BY_FIELD = frozenset({"pointer_declarator", "array_declarator", "init_declarator", "function_declarator"})
_BY_CHILD = frozenset(
    {"reference_declarator", "parenthesized_declarator", "structured_binding_declarator", "attributed_declarator"}
)
_DECLARING = frozenset({"declaration", "parameter_declaration", "optional_parameter_declaration", "for_range_loop"})
_FUNCTION_LIKE = frozenset({"function_declarator", "abstract_function_declarator"})
_OPAQUE = frozenset(
    {
        "ERROR",
        "field_declaration_list",
        "preproc_arg",
        "preproc_params",
        "attribute_specifier",
        "attribute_declaration",
        "ms_declspec_modifier",
    }
)
_OTHER_NAMES = frozenset({"type_identifier", "namespace_identifier"})
_OTHER_ROLES = frozenset(
    {
        "qualified_identifier",
        "template_function",
        "concatenated_string",
        "macro_type_specifier",
        "destructor_name",
        "gnu_asm_goto_list",
    }
)
# Macros whose last argument names a field: container_of(ptr, type, field), TAILQ_FOREACH(x, head, field).
_FIELD_MACRO = re.compile(
    r"offset_?of|container_of|entry|for_?each|(?:S?LIST|S?TAILQ|RB|SIMPLEQ|CIRCLEQ)_", re.IGNORECASE
)
_SAFE_LOOP = re.compile(r"FOREACH\w*_SAFE")  # TAILQ_FOREACH_SAFE(x, head, field, next): a variable comes behind
# A macro with parameters that the text defines: its name, and its body with all lines.
_DEFINED = re.compile(rb"^[ \t]*#[ \t]*define[ \t]+(\w+)\([^)\n]*\)((?:\\\r?\n|[^\n])*)", re.MULTILINE)
# Words of C++ that read like a type where a function is taken for C: `delete p;` declares p then.
_STATEMENT_WORDS = frozenset({b"delete", b"throw", b"co_await", b"co_return", b"co_yield"})
_ASM_BLOCK = re.compile(rb"\b(?:__|_|)asm\s*\{[^}]*\}")  # as Microsoft's compilers read it; the grammars do not

#: The ancestors of a node: each with its field in its parent, and whether it opened a scope.
_Path = list[tuple["Node", str | None, bool]]


@dataclass(frozen=True)
class Identifier:
    """One name of local variables; several variables of one name are renamed together.

    Attributes:
        name: as written.
        spans: byte offsets of its occurrences, start and end, ascending.
    """

    name: str
    spans: tuple[tuple[int, int], ...]


@dataclass
class _Reader:
    """One pass over the tree in the order of the text."""

    code: Code
    scopes: list[set[str]] = field(default_factory=lambda: [set()])
    spans: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)


def identifiers(code: Code) -> tuple[Identifier, ...]:
    """Return the names that may be renamed, in the order of their first occurrence."""
    reader = _Reader(code)
    _walk(reader)
    for block in _ASM_BLOCK.findall(code.source):
        reader.excluded |= words_of(block)
    reader.excluded |= _labels_as_values(reader) | _made_text(reader)
    return tuple(
        Identifier(name, tuple(spans))
        for name, spans in reader.spans.items()
        if name not in reader.excluded and name not in KEYWORDS and name not in LIBRARY
    )


def _labels_as_values(reader: _Reader) -> set[str]:
    """Labels whose address may be taken: to the grammars, GNU's `&&name` is an `and` or the address of an address."""
    return {name for name in reader.labels if re.search(rb"&&\s*%s\b" % re.escape(name.encode()), reader.code.source)}


def _made_text(reader: _Reader) -> set[str]:
    """Names that a macro of the text itself may turn into text (`#x`) or join (`x##_len`), and what joining may give.

    All calls of the text's macros count, as one may call another; each is read up to the end of its statement.
    """
    source = reader.code.source
    macros = dict(_DEFINED.findall(source))
    bodies = b" ".join(macros.values())
    if b"#" not in bodies:
        return set()
    calls = re.findall(rb"\b(?:%s)\s*\([^;]*" % b"|".join(macros), _DEFINED.sub(b"", source))
    words = words_of(b" ".join(calls))
    if b"##" in bodies:
        parts = tuple(decoded(part) for part in re.findall(rb"\w+", b" ".join([bodies, *calls])))
        words |= {name for name in reader.spans if name.startswith(parts) and name.endswith(parts)}
    return words


def _walk(reader: _Reader) -> None:
    """Visit all nodes with the scopes that are open at each; leaves are handled by `_name`."""
    cursor = reader.code.tree.walk()
    path: list[
        tuple[Node, str | None, bool]
    ] = []  # ancestors: node, its field in its parent, whether it opened a scope
    while True:
        node = cursor.node
        assert node is not None
        if _is_opaque(node) or _is_condition(node, cursor.field_name, path):
            reader.excluded |= words_of(reader.code.slice(node))
            descended = False
        else:
            _name(reader, node, cursor.field_name, path)
            field_name = cursor.field_name
            descended = node.child_count > 0 and cursor.goto_first_child()
            if descended:
                opens = node.type in _SCOPES or _is_prototype(node, path)
                if opens:
                    reader.scopes.append(set())
                path.append((node, field_name, opens))
        while not descended and not cursor.goto_next_sibling():
            if not path:
                return
            cursor.goto_parent()
            if path.pop()[2]:
                reader.scopes.pop()


def _is_opaque(node: Node) -> bool:
    """Whether what the node's names mean is not for us to tell; GNU's `goto *place` reads like a label and an error."""
    return node.type in _OPAQUE or (node.type == "goto_statement" and node.has_error)


def _is_condition(node: Node, field_name: str | None, path: _Path) -> bool:
    """Whether the node is the condition or the name of a preprocessor directive."""
    return bool(path) and path[-1][0].type.startswith("preproc_") and field_name in ("condition", "name")


def _is_prototype(node: Node, path: _Path) -> bool:
    """Whether a parameter list declares nothing that a body could read: one of a function's type only."""
    if node.type != "parameter_list":
        return False
    for parent, _, _ in reversed(path):
        if parent.type not in _BY_FIELD | _BY_CHILD | _FUNCTION_LIKE:
            return parent.type not in ("function_definition", "lambda_expression", "catch_clause")
    return True


def _name(reader: _Reader, node: Node, field_name: str | None, path: _Path) -> None:
    if node.type in _OTHER_NAMES:
        reader.excluded.add(decoded(reader.code.slice(node)))
    elif node.type == "statement_identifier":
        reader.labels.add(decoded(reader.code.slice(node)))
    elif node.type == "identifier" and not node.is_missing:  # one that the parser added has no text
        name = decoded(reader.code.slice(node))
        declared = _declared(node, field_name, path)
        if declared == "variable" and len(reader.scopes) > 1:  # not at the top of the file
            reader.scopes[-1].add(name)
        elif declared is not None or not _is_variable_in_scope(reader, node, field_name, path):
            reader.excluded.add(name)
        reader.spans.setdefault(name, []).append((node.start_byte, node.end_byte))


def _declared(node: Node, field_name: str | None, path: _Path) -> str | None:
    """Say what an identifier declares here: a "variable", something "other", or nothing (None)."""
    wrappers: list[Node] = []
    for parent, parent_field, _ in reversed(path):
        if parent.type in _DECLARING:
            if field_name != "declarator":
                return None
            if not _is_clean(parent, wrappers) or _is_extern(parent) or not _is_variable(wrappers):
                return "other"
            return None if _is_statement(parent) else "variable"
        if parent.type == "parameter_list" and not wrappers:
            return "variable"  # names only, as before C89
        if parent.type not in _BY_CHILD and not (parent.type in _BY_FIELD and field_name == "declarator"):
            return None
        wrappers.append(parent)
        field_name = parent_field
    return None


def _is_statement(declaration: Node) -> bool:
    """Whether what was taken for a type begins a statement.

    That is a macro or an `else`, which end their line as no type does, or a word of C++ in what was read as C.
    """
    kind = declaration.child_by_field_name("type")
    target = declaration.child_by_field_name("declarator")
    return (
        declaration.type == "declaration"
        and kind is not None
        and kind.type == "type_identifier"
        and target is not None
        and (kind.end_point[0] != target.start_point[0] or kind.text in _STATEMENT_WORDS)
    )


def _is_variable(wrappers: list[Node]) -> bool:
    """Not a function, and not `NAME(x)` of a macro that reads like a declaration of x in parentheses."""
    return not wrappers or wrappers[0].type not in ("function_declarator", "parenthesized_declarator")


def _is_clean(declaration: Node, wrappers: list[Node]) -> bool:
    """Whether type and declarator were understood; the initial value may hold what was not.

    An error right behind a parameter may hold its name, where the grammar took a macro for it: `__user` of
    `void __user *, buf`. Words in capitals alone are a macro behind the name: `int n TSRMLS_DC`.
    """
    behind = declaration.next_sibling if declaration.type != "declaration" else None
    if behind is not None and behind.type == "ERROR":
        words = words_of(behind.text or b"")
        if not words or any(word != word.upper() for word in words):
            return False
    kind = declaration.child_by_field_name("type")
    inner = [wrapper for wrapper in wrappers if wrapper.type != "init_declarator"]
    outer = [declaration, *(wrapper for wrapper in wrappers if wrapper.type == "init_declarator")]
    return not (
        (kind is not None and kind.has_error)
        or any(wrapper.has_error for wrapper in inner)
        or any(child.type == "ERROR" for parent in outer for child in parent.children)
    )


def _is_extern(declaration: Node) -> bool:
    return any(child.type == "storage_class_specifier" and child.text == b"extern" for child in declaration.children)


def _is_variable_in_scope(reader: _Reader, node: Node, field_name: str | None, path: _Path) -> bool:
    """Whether a name that declares nothing here is certain to mean a local variable."""
    name = decoded(reader.code.slice(node))
    return any(name in scope for scope in reader.scopes) and not _has_other_role(reader.code, node, field_name, path)


def _has_other_role(code: Code, node: Node, field_name: str | None, path: _Path) -> bool:
    """Whether an occurrence in scope must not be taken for the variable all the same."""
    parent = path[-1][0]
    if parent.type == "call_expression" and field_name == "function":
        return True
    if parent.type in _OTHER_ROLES or (parent.type.startswith("gnu_asm_") and field_name == "symbol"):
        return True
    if parent.type == "lambda_capture_initializer" and field_name == "left":
        return True
    if parent.type == "argument_list" and len(path) > 1 and path[-2][0].type == "call_expression":
        callee = path[-2][0].child_by_field_name("function")
        called = decoded(code.slice(callee)) if callee is not None else ""
        fields = parent.named_children[-2 if _SAFE_LOOP.search(called) else -1 :]
        is_there = len(parent.named_children) > 1 and any(one.end_byte == node.end_byte for one in fields)
        return is_there and bool(_FIELD_MACRO.search(called))
    return False
