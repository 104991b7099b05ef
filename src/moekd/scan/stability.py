"""How stable a verdict is: the share of renamings of local variables, which change no meaning, under which it holds."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from moekd.data.text import digest, normalise
from moekd.rewrite.renaming import Renaming, Template, fault_of_renaming

if TYPE_CHECKING:
    from moekd.scan.model import ScanModel

#: What variables are called in plain C; a renaming draws from them.
_WORDS = """
    acc addr amount arg base bit block buf bytes cell chunk cnt code col cur data delta depth desc dest diff elem entry
    err field first flag frame from gap head height hint idx info inner input item iter key kind last left len level
    limit line lo hi mark mask mid mode msg next node num obj off old order outer output owner part pass path peer pos
    prev ptr query range rank rate ref rem req res rest ret right root row scale seg seq shift side size slot src stage
    state step sub sum tab tail tag target temp text tmp token top total type unit used val vec view way weight width
"""
_NAMES = _WORDS.split()


def stability(model: ScanModel, function: str, least_p: float, *, renamings: int) -> float | None:
    """Return the share of renamings under which the probability stays at or above `least_p`; None without variables.

    Each renaming gives every local variable another name and has passed the check of rewrite/renaming.py. They are
    drawn by the function's own text: one function, one answer.

    Args:
        function: source of the function as it stands in the file.
        renamings: how many are tried; equal texts count once.
    """
    template = Template.of(normalise(function))
    rng = Random(digest(template.code.text))
    drawn = [_renaming(template, rng) for _ in range(renamings)]
    texts = {
        template.render(renaming): None
        for renaming in drawn
        if renaming and fault_of_renaming(template, renaming) is None
    }
    if not texts:
        return None
    p = [model.facts.p_vulnerable(margin) for margin in model.margins(list(texts)).tolist()]
    return sum(one >= least_p for one in p) / len(p)


def _renaming(template: Template, rng: Random) -> Renaming:
    """A new name for each variable, as far as the free names reach."""
    free = [name for name in rng.sample(_NAMES, len(_NAMES)) if template.is_free(name)]
    return {one.name: name for one, name in zip(template.identifiers, free, strict=False)}
