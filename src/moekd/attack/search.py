"""One attack on one function, as a coroutine: it yields texts and is sent the model's answers.

An attack knows no model. What it yields can be scored together with what attacks on other functions yield, and its
course depends on the answers alone, never on when or with which others they were computed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import TYPE_CHECKING, TypeVar

from moekd.errors import MoekdError
from moekd.records import AttackResult
from moekd.rewrite import Renaming, Template, fault_of_renaming

if TYPE_CHECKING:
    from moekd.records import Outcome, Sample

_T = TypeVar("_T")

#: Yields texts, is sent p_vulnerable of each, and returns what it found.
Asking = Generator[list[str], Sequence[float], _T]

#: A recipe: runs on a search until it is out of ideas. It ends early by the search's own exceptions.
Recipe = Callable[["Search"], Asking[None]]

CHUNK = 64  # texts asked for at once: bounds the memory of long functions
_EXHAUSTIVE = 6  # renames of which every subset is tried for a minimal counter-example


class FooledError(Exception):
    """Ends a recipe: a renaming changed the model's answer and passed the check."""

    def __init__(self, renaming: Renaming, p: float) -> None:
        super().__init__(renaming)
        self.renaming, self.p = renaming, p


class SpentError(Exception):
    """Ends a recipe: the query budget is used up."""


class UnusableAnswerError(MoekdError):
    """The model gave NaN, or not one answer for each text; a scheduler throws it into the attacks it concerns."""


@dataclass
class Search:
    """State of one attack on one function: what was asked, what is left of the budget, how low the score fell.

    Attributes:
        template: the function.
        label: its label, which is also the model's answer on the original.
        budget: most distinct texts that may be asked for.
        p_original: probability of the label on the original text, once asked.
    """

    template: Template
    label: int
    budget: int
    queries: int = 0
    p_original: float | None = None
    p_lowest: float | None = None
    trace: list[tuple[int, float]] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    _answers: dict[bytes, float] = field(default_factory=dict)
    _faults: dict[tuple[tuple[str, str], ...], str | None] = field(default_factory=dict)

    def ask(self, texts: Iterable[str]) -> Asking[list[float]]:
        """Return the probability of the label for each text; for the first ones only where the budget ends.

        A text that was asked before costs nothing.
        """
        answers: list[float] = []
        remaining = iter(texts)
        while chunk := list(islice(remaining, CHUNK)):
            keys = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in chunk]
            fresh: dict[bytes, str] = {}
            within = len(chunk)
            for index, (key, text) in enumerate(zip(keys, chunk, strict=True)):
                if key in self._answers or key in fresh:
                    continue
                if self.queries + len(fresh) == self.budget:
                    within = index
                    break
                fresh[key] = text
            if fresh:
                p_vulnerable = yield list(fresh.values())
                self.queries += len(fresh)
                self._answers |= {
                    key: p if self.label == 1 else round(1 - p, 12) for key, p in zip(fresh, p_vulnerable, strict=True)
                }
            answers += [self._answers[key] for key in keys[:within]]
            if within < len(chunk):
                break
        return answers

    def try_all(self, renamings: Sequence[Renaming]) -> Asking[list[float]]:
        """Return the probability of the label under each renaming.

        Raises:
            FooledError: one of them changes the answer and passes the check; the first such.
            SpentError: the budget ended before all were asked, and none of those asked did.
        """
        answers = yield from self.ask([self.template.render(renaming) for renaming in renamings])
        for renaming, p in zip(renamings, answers, strict=False):
            if self.is_wrong(p) and self.is_valid(renaming):
                self._note(p)
                raise FooledError(renaming, p)
        if len(answers) < len(renamings):
            raise SpentError
        return answers

    def lowest(self, renamings: Sequence[Renaming], answers: Sequence[float]) -> int | None:
        """Return the number of the valid renaming with the lowest answer, the first of equal ones; None if none is."""
        for index in sorted(range(len(renamings)), key=lambda index: answers[index]):
            if self.is_valid(renamings[index]):
                self._note(answers[index])
                return index
        return None

    def importance(self, unknown: str = "<unk>") -> Asking[list[str]]:
        """Return the identifiers by falling importance, those of equal importance in the order of the text.

        The importance of a name is how much the probability of the label falls when one of its occurrences is
        replaced by `unknown`, summed over its occurrences (methods.md 7.2, greedy stage, step 2). Such a text is no
        code: it can never count as a success.
        """
        assert self.p_original is not None
        names = [one.name for one in self.template.identifiers]
        places = [(name, occurrence) for name in names for occurrence in self.template.occurrences(name)]
        answers = yield from self.ask(self.template.replace_one({}, occurrence, unknown) for _, occurrence in places)
        if len(answers) < len(places):
            raise SpentError
        drop = dict.fromkeys(names, 0.0)
        for (name, _), p in zip(places, answers, strict=True):
            drop[name] += self.p_original - p
        return sorted(names, key=lambda name: -drop[name])

    def may_use(self, name: str, renaming: Renaming) -> bool:
        """Whether a new name is legal, occurs nowhere in the function and was not given to another variable."""
        return name not in renaming.values() and self.template.is_free(name)

    def is_wrong(self, p: float) -> bool:
        """Whether a probability of the label means the other answer; a tie means "not vulnerable", as everywhere."""
        return p <= 0.5 if self.label == 1 else p < 0.5

    def is_valid(self, renaming: Renaming) -> bool:
        """Whether a renaming passes the check; each one that does not is counted once, by reason."""
        key = tuple(sorted(renaming.items()))
        if key not in self._faults:
            self._faults[key] = fault = fault_of_renaming(self.template, renaming)
            if fault is not None:
                self.rejected[fault] += 1
        return self._faults[key] is None

    def _note(self, p: float) -> None:
        if self.p_lowest is None or p < self.p_lowest:
            self.p_lowest = p
            self.trace.append((self.queries, p))


def attack_sample(sample: Sample, name: str, recipe: Recipe, *, budget: int, minimal: bool) -> Asking[AttackResult]:
    """Attack one function; returns a result whatever happens to it.

    Args:
        name: of the attack, for the result.
        budget: most distinct texts, the original included; texts asked for `minimal` come on top.
        minimal: shrink a successful set of renames to the fewest that still fool the model.
    """
    search = Search(Template.of(sample.func), sample.label, budget)
    found: Renaming = {}
    outcome: Outcome = "withstood"
    reason = ""
    fewest: Renaming | None = None
    minimal_queries = 0
    try:
        unattackable = yield from _first_look(search, sample)
        if unattackable is not None:
            outcome, reason = unattackable
        else:
            yield from recipe(search)
            if search.queries == 1:
                reason = "no candidate names"
    except FooledError as success:
        outcome, found = "fooled", success.renaming
        if minimal:
            try:
                before = search.queries
                search.budget = before + 2**_EXHAUSTIVE + len(found) ** 2
                fewest = yield from _fewest(search, found)
            except UnusableAnswerError:
                fewest = found
            minimal_queries, search.queries = search.queries - before, before
    except SpentError:
        reason = "budget spent"
    except UnusableAnswerError as error:
        outcome, reason = "not attacked", str(error)
    return AttackResult(
        id=sample.id,
        attack=name,
        outcome=outcome,
        reason=reason,
        label=sample.label,
        p_original=search.p_original,
        p_final=search.p_lowest,
        queries=search.queries,
        identifiers=len(search.template.identifiers),
        renames=found,
        text=search.template.render(found) if found else None,
        trace=tuple(search.trace),
        rejected=dict(sorted(search.rejected.items())),
        minimal=fewest,
        minimal_queries=minimal_queries,
    )


def _first_look(search: Search, sample: Sample) -> Asking[tuple[Outcome, str] | None]:
    """Ask for the original; say why there is nothing to attack, or None."""
    answers = yield from search.ask([sample.func])
    if not answers:
        return "not attacked", "budget of 0"
    search.p_original = search.p_lowest = answers[0]
    search.trace.append((1, answers[0]))
    if search.is_wrong(answers[0]):
        return "already wrong", ""
    if not search.template.code.has_function:
        return "not attacked", "does not parse"
    if not search.template.identifiers:
        return "no identifiers", ""
    return None


def _fewest(search: Search, found: Renaming) -> Asking[Renaming]:
    """Return the fewest of the renames that still fool the model.

    Up to six renames: the smallest of all subsets. More: renames are dropped one at a time until none can be, which
    leaves a set that is minimal but may not be the smallest.
    """
    if len(found) <= _EXHAUSTIVE:
        subsets = [dict(part) for size in range(1, len(found)) for part in combinations(found.items(), size)]
        return (yield from _first_fooling(search, subsets)) or found
    kept = found
    while True:
        smaller = [{old: new for old, new in kept.items() if old != dropped} for dropped in kept]
        next_kept = yield from _first_fooling(search, smaller)
        if next_kept is None:
            return kept
        kept = next_kept


def _first_fooling(search: Search, renamings: Sequence[Renaming]) -> Asking[Renaming | None]:
    answers = yield from search.ask([search.template.render(renaming) for renaming in renamings])
    for renaming, p in zip(renamings, answers, strict=True):
        if search.is_wrong(p) and search.is_valid(renaming):
            return renaming
    return None
