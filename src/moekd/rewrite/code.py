"""The parsed text of one sample: what every rewrite works on. All positions are bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from moekd.syntax import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tree_sitter import Node, Tree

    from moekd.syntax import LanguageName

_WORD = re.compile(rb"(?:[A-Za-z_]|[^\x00-\x7f])(?:\w|[^\x00-\x7f])*")
_LITERALS = frozenset(
    {"string_literal", "char_literal", "raw_string_literal", "system_lib_string", "concatenated_string"}
)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One token of the tree; `kind` is the parser's name of it, such as "identifier" or "+="."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Code:
    """Source text of one function with its tree.

    Attributes:
        source: UTF-8; a lone surrogate is kept as its three bytes.
        language: the one that understood more of it.
    """

    source: bytes
    language: LanguageName
    tree: Tree

    @classmethod
    def of(cls, text: str, language: LanguageName | None = None) -> Code:
        """Parse a text; without a language as C, or as C++ where C leaves errors and C++ has fewer. Never fails."""
        source = text.encode("utf-8", "surrogatepass")
        if language is not None:
            return cls(source, language, parse(source, language))
        as_c = cls(source, "c", parse(source, "c"))
        if not as_c.root.has_error:
            return as_c
        as_cpp = cls(source, "cpp", parse(source, "cpp"))
        return as_cpp if as_cpp.error_bytes < as_c.error_bytes else as_c

    @property
    def root(self) -> Node:
        return self.tree.root_node

    @property
    def text(self) -> str:
        return decoded(self.source)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node in the order of the text, parents first."""
        found, stack = [], [self.root]
        while stack:  # a stack of our own: nesting is as deep as the input likes
            node = stack.pop()
            found.append(node)
            stack.extend(reversed(node.children))
        return tuple(found)

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """Tokens in order; those that the parser added are there too, without extent."""
        return tuple(
            Leaf(f"missing {node.type}" if node.is_missing else node.type, node.start_byte, node.end_byte)
            for node in self.nodes
            if not node.child_count
        )

    @cached_property
    def error_bytes(self) -> int:
        """Bytes inside ERROR nodes, plus one for each token that is missing."""
        return sum(node.end_byte - node.start_byte if node.type == "ERROR" else node.is_missing for node in self.nodes)

    @cached_property
    def words(self) -> frozenset[str]:
        """Everything that looks like a name anywhere in the text, comments and literals included."""
        return frozenset(decoded(word) for word in _WORD.findall(self.source))

    @cached_property
    def has_function(self) -> bool:
        """Whether the parser found a function with a body outside of what it did not understand."""
        return any(
            node.type == "function_definition" and node.child_by_field_name("body") is not None
            for node in self.root.children
        ) or any(
            node.type == "function_definition" and not _inside_error(node) for node in self.nodes if node.child_count
        )

    def slice(self, node: Node | Leaf) -> bytes:
        if isinstance(node, Leaf):
            return self.source[node.start : node.end]
        return self.source[node.start_byte : node.end_byte]

    def leaf_texts(self) -> Iterator[bytes]:
        """Texts of the tokens in order, without comments and without tokens that the parser added."""
        return (self.slice(leaf) for leaf in self.leaves if leaf.kind != "comment" and leaf.end > leaf.start)


def decoded(source: bytes) -> str:
    """Text of bytes that `Code.source` is made of."""
    return source.decode("utf-8", "surrogatepass")


def is_literal(node: Node) -> bool:
    return node.type in _LITERALS


def words_of(source: bytes) -> set[str]:
    """Everything that looks like a name in a piece of source."""
    return {decoded(word) for word in _WORD.findall(source)}


def _inside_error(node: Node) -> bool:
    parent = node.parent
    while parent is not None:
        if parent.type == "ERROR":
            return True
        parent = parent.parent
    return False
