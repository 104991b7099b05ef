"""Renaming of local variables by byte spans, and the check that proves what came out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from moekd.rewrite.code import Code, decoded
from moekd.rewrite.identifiers import Identifier, identifiers
from moekd.rewrite.names import is_legal

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Old name -> new name.
Renaming = dict[str, str]


@dataclass(frozen=True, eq=False)
class Template:
    """A function cut at the identifiers that may be renamed: parsed once, then written out with any names.

    Attributes:
        code: the original.
        identifiers: what may be renamed.
    """

    code: Code
    identifiers: tuple[Identifier, ...]

    @classmethod
    def of(cls, text: str) -> Template:
        code = Code.of(text)
        return cls(code, identifiers(code))

    @cached_property
    def _pieces(self) -> tuple[list[str], list[str]]:
        """Texts between the identifiers, one more than there are, and the identifiers' names in order."""
        spans = sorted((*span, one.name) for one in self.identifiers for span in one.spans)
        ends = [0, *(end for _, end, _ in spans)]
        starts = [*(start for start, _, _ in spans), len(self.code.source)]
        between = [decoded(self.code.source[end:start]) for end, start in zip(ends, starts, strict=True)]
        return between, [name for _, _, name in spans]

    def render(self, renaming: Mapping[str, str]) -> str:
        """Return the text with new names; names that are not in the map stay."""
        between, names = self._pieces
        return self._joined(between, [renaming.get(name, name) for name in names])

    def replace_one(self, renaming: Mapping[str, str], occurrence: int, word: str) -> str:
        """As `render`, with one occurrence (counted over all identifiers) replaced by `word`, which may be no name."""
        between, names = self._pieces
        written = [renaming.get(name, name) for name in names]
        written[occurrence] = word
        return self._joined(between, written)

    def occurrences(self, name: str) -> list[int]:
        """Numbers of the occurrences of an identifier, as `replace_one` counts them."""
        return [index for index, other in enumerate(self._pieces[1]) if other == name]

    @staticmethod
    def _joined(between: list[str], names: list[str]) -> str:
        parts = [""] * (2 * len(names) + 1)
        parts[::2], parts[1::2] = between, names
        return "".join(parts)

    def is_free(self, name: str) -> bool:
        """Whether `name` is a legal new name that occurs nowhere in the function, in whatever role."""
        return name not in self.code.words and is_legal(name, self.code.language)


def fault_of_renaming(template: Template, renaming: Mapping[str, str]) -> str | None:
    """Say why a renaming must not be used, or None: the check that every result of an attack has passed.

    New names are legal, free and distinct; the new text has the same tokens but for the renamed ones, read by the
    parser as the same kinds; and the inverse map, applied to what the *new* text's own analysis finds, gives the
    original back byte for byte.
    """
    changed = {old: new for old, new in renaming.items() if old != new}
    if not changed.keys() <= {one.name for one in template.identifiers}:
        return "not a local variable"
    if len(set(changed.values())) < len(changed):
        return "one name for two variables"
    for name in changed.values():
        if name in template.code.words:
            return "name in use"
        if not is_legal(name, template.code.language):
            return "illegal name"
    after = Code.of(template.render(changed), template.code.language)
    if [leaf.kind for leaf in after.leaves] != [leaf.kind for leaf in template.code.leaves]:
        return "other tokens"
    back = Template(after, identifiers(after)).render({new: old for old, new in changed.items()})
    if back.encode("utf-8", "surrogatepass") != template.code.source:
        return "not invertible"
    return None
