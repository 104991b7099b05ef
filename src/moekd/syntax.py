"""C and C++ source parsed by tree-sitter: trees, and the functions of a file.

Everything is in bytes: spans of a tree are byte offsets, and text that is not ASCII would shift them otherwise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tree_sitter import Node, Parser, Tree

LanguageName = Literal["c", "cpp"]

SUFFIXES: dict[str, LanguageName] = {
    ".c": "c",
    ".h": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".cxx": "cpp",
    ".c++": "cpp",
    ".hh": "cpp",
    ".hpp": "cpp",
    ".hxx": "cpp",
    ".h++": "cpp",
    ".inl": "cpp",
    ".ipp": "cpp",
    ".tcc": "cpp",
}


_CHUNK_BYTES = 65536  # handed to the parser at a time


@dataclass(frozen=True)
class FunctionSpan:
    """One function definition of a file, from its return type (or template head) to its closing brace.

    Attributes:
        name: as written at the definition, `Class::method` included; "" where the parser found none.
        start, end: byte offsets, end exclusive.
        first_line, last_line: numbers from 1, both inclusive.
        whole: whether the parser understood all of it.
    """

    name: str
    start: int
    end: int
    first_line: int
    last_line: int
    whole: bool


def language_of(path: PurePath, source: bytes) -> LanguageName | None:
    """Return the language of a file by its suffix, of a `.h` file by its content; None for other files."""
    language = SUFFIXES.get(path.suffix.lower())
    if path.suffix == ".C":
        return "cpp"
    if path.suffix.lower() == ".h" and _looks_like_cpp(source):
        return "cpp"
    return language


def _looks_like_cpp(source: bytes) -> bool:
    head = source[:65536]
    return any(mark in head for mark in (b"class ", b"namespace ", b"template <", b"template<", b"public:", b"std::"))


def parse(source: bytes, language: LanguageName, *, seconds: float | None = None) -> Tree:
    """Parse a file or a single function: what is not understood becomes ERROR and MISSING nodes.

    Args:
        seconds: limit of the time, for sources from anywhere: a megabyte of `a<a<a<` in C++ takes 20 s. Nodes of a
            tree parsed under a limit do not know their text.
    Raises:
        TimeoutError: the limit was reached.
    """
    parser = _parser(language)
    if seconds is None:
        return parser.parse(source)
    end = time.monotonic() + seconds
    try:
        tree = parser.parse(
            lambda offset, _point: source[offset : offset + _CHUNK_BYTES],
            progress_callback=lambda _offset, _error: time.monotonic() > end,
        )
    except ValueError:  # the binding's word for a parse that was stopped
        parser.reset()
        raise TimeoutError(f"not parsed within {seconds:g} s") from None
    return tree


def functions(
    source: bytes, language: LanguageName, *, seconds: float | None = None, unfinished: bool = False
) -> list[FunctionSpan]:
    """Return the outermost function definitions with a body, in the order of the file. For `seconds` see `parse`.

    Time is linear in the nodes outside functions, also where an error leaves one node with a million children; a
    tree-sitter query is quadratic there.

    Args:
        unfinished: also return functions whose body has no end yet, as in an editor, up to the next function.
    """
    cursor = parse(source, language, seconds=seconds).walk()
    found: list[FunctionSpan] = []
    parents: list[Node] = []
    while True:
        node = cursor.node
        assert node is not None
        is_function = node.type == "function_definition" and node.child_by_field_name("body") is not None
        if is_function:
            found.append(_span(node, parents[-1] if parents else node, source))
        elif unfinished and node.type == "ERROR":
            found += _unfinished(node, source)
        if not is_function and cursor.goto_first_child():
            parents.append(node)
            continue
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                return _apart(found, source) if unfinished else found
            parents.pop()


def _unfinished(error: Node, source: bytes) -> list[FunctionSpan]:
    """Functions that an error node begins: a type, the declarator of a function, and an opening brace."""
    found = []
    children = error.children
    for index in range(len(children) - 1):
        if children[index + 1].type != "{" or not _declares_function(children[index]):
            continue
        first = index
        while first and children[first - 1].type.endswith(("_specifier", "_type", "_identifier", "_qualifier")):
            first -= 1
        head = children[first]
        name = _name(error, source, declarator=children[index])
        last_line = error.end_point[0] + 1
        found.append(FunctionSpan(name, head.start_byte, error.end_byte, head.start_point[0] + 1, last_line, False))
    return found


def _declares_function(node: Node) -> bool:
    inner: Node | None = node
    while inner is not None and inner.type in ("pointer_declarator", "reference_declarator"):
        inner = _inner(inner)
    return inner is not None and inner.type == "function_declarator"


def _apart(spans: list[FunctionSpan], source: bytes) -> list[FunctionSpan]:
    """Put spans in order and end each where the next one begins."""
    spans = sorted(spans, key=lambda span: span.start)
    ended = []
    for span, start in zip(spans, [*(span.start for span in spans[1:]), len(source)], strict=False):
        if start < span.end:
            end = span.start + len(source[span.start : start].rstrip())
            last_line = span.first_line + source.count(b"\n", span.start, end)
            span = replace(span, end=end, last_line=last_line)
        ended.append(span)
    return ended


def _span(node: Node, parent: Node, source: bytes) -> FunctionSpan:
    outer = parent if parent.type == "template_declaration" else node
    return FunctionSpan(
        name=_name(node, source),
        start=outer.start_byte,
        end=outer.end_byte,
        first_line=outer.start_point[0] + 1,
        last_line=outer.end_point[0] + 1,
        whole=not node.has_error,
    )


def _name(node: Node, source: bytes, declarator: Node | None = None) -> str:
    declarator = declarator or node.child_by_field_name("declarator")
    while declarator is not None and (inner := _inner(declarator)) is not None:
        declarator = inner
    if declarator is None:
        return ""
    return source[declarator.start_byte : declarator.end_byte].decode("utf-8", "replace")


def _inner(declarator: Node) -> Node | None:
    """What a declarator wraps; the C++ grammar names no field in a reference's."""
    if declarator.type == "reference_declarator":
        return declarator.named_children[-1] if declarator.named_children else None
    return declarator.child_by_field_name("declarator")


@cache
def _parser(language: LanguageName) -> Parser:
    from tree_sitter import Parser

    return Parser(_language(language))


@cache
def _language(language: LanguageName):  # type: ignore[no-untyped-def]
    from tree_sitter import Language

    if language == "c":
        import tree_sitter_c

        return Language(tree_sitter_c.language())
    import tree_sitter_cpp

    return Language(tree_sitter_cpp.language())
