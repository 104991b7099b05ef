"""C and C++ source parsed by tree-sitter: trees, and the functions of a file.

Everything is in bytes: spans of a tree are byte offsets, and text that is not ASCII would shift them otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tree_sitter import Node, Parser, Query, Tree

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


def parse(source: bytes, language: LanguageName) -> Tree:
    """Parse a file or a single function. Never fails: what is not understood becomes ERROR and MISSING nodes."""
    return _parser(language).parse(source)


def functions(source: bytes, language: LanguageName) -> list[FunctionSpan]:
    """Return the outermost function definitions with a body, in the order of the file."""
    from tree_sitter import QueryCursor

    root = parse(source, language).root_node
    nodes = QueryCursor(_definitions(language)).captures(root).get("definition", [])
    found: list[FunctionSpan] = []
    for node in sorted(nodes, key=lambda node: (node.start_byte, -node.end_byte)):
        if node.child_by_field_name("body") is None or (found and node.start_byte < found[-1].end):
            continue
        outer = _with_template_head(node)
        found.append(
            FunctionSpan(
                name=_name(node),
                start=outer.start_byte,
                end=outer.end_byte,
                first_line=outer.start_point[0] + 1,
                last_line=outer.end_point[0] + 1,
                whole=not node.has_error,
            )
        )
    return found


def _with_template_head(node: Node) -> Node:
    parent = node.parent
    return parent if parent is not None and parent.type == "template_declaration" else node


def _name(node: Node) -> str:
    declarator = node.child_by_field_name("declarator")
    while declarator is not None:
        inner = declarator.child_by_field_name("declarator")
        if inner is None:
            break
        declarator = inner
    return (declarator.text or b"").decode("utf-8", "replace") if declarator is not None else ""


@cache
def _parser(language: LanguageName) -> Parser:
    from tree_sitter import Parser

    return Parser(_language(language))


@cache
def _definitions(language: LanguageName) -> Query:
    from tree_sitter import Query

    return Query(_language(language), "(function_definition) @definition")


@cache
def _language(language: LanguageName):  # type: ignore[no-untyped-def]
    from tree_sitter import Language

    if language == "c":
        import tree_sitter_c

        return Language(tree_sitter_c.language())
    import tree_sitter_cpp

    return Language(tree_sitter_cpp.language())
