"""Attacks that take turns in one process: their questions are answered together where the victim allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moekd import numerics
from moekd.attack import recipes
from moekd.attack.search import Asking, Recipe, UnusableAnswerError, attack_sample
from moekd.attack.victims import HasSessions, Victim, answers_of
from moekd.records import AttackResult

if TYPE_CHECKING:
    from moekd.config import Attack, AttackName
    from moekd.records import Sample


def no_substitutes(sample: Sample) -> dict[str, list[str]]:
    """No candidates for any function: where ALERT is not asked for."""
    return {}


@dataclass(frozen=True)
class Names:
    """Where attacks take new names from.

    Attributes:
        vocabulary: what MHM and WIR-Random draw from, most frequent first.
        substitutes: ALERT's candidates of a function, identifier -> names, best first.
    """

    vocabulary: Sequence[str] = ()
    substitutes: Callable[[Sample], Mapping[str, Sequence[str]]] = no_substitutes


@dataclass(frozen=True)
class Work:
    """One attack on one function, and its number in the work list."""

    number: int
    sample: Sample
    attack: AttackName


@dataclass
class _Running:
    """An attack that waits for answers."""

    number: int
    attack: Asking[AttackResult]
    victim: Victim  # of this attack alone, or of all
    asked: list[str]


def run_here(
    victim: Victim, work: Iterable[Work], settings: Attack, names: Names, *, at_once: int
) -> Iterator[tuple[int, AttackResult]]:
    """Yield results as they come, by number; a place that becomes free is taken by the next attack."""
    waiting = iter(work)
    running: list[_Running] = []
    while True:
        while len(running) < at_once and (one := next(waiting, None)) is not None:
            recipe = recipe_of(one, settings, names)
            coroutine = attack_sample(one.sample, one.attack, recipe, budget=settings.budget, minimal=settings.minimal)
            answered = _advance(coroutine, None)
            if isinstance(answered, AttackResult):
                yield one.number, answered
            else:
                own = victim.session(one.sample.func) if isinstance(victim, HasSessions) else victim
                running.append(_Running(one.number, coroutine, own, answered))
        if not running:
            return
        answers = _answer_all(running)
        still_running = []
        for attack in running:
            answered = _advance(attack.attack, answers[attack.number])
            if isinstance(answered, AttackResult):
                yield attack.number, answered
            else:
                attack.asked = answered
                still_running.append(attack)
        running = still_running


def recipe_of(work: Work, settings: Attack, names: Names) -> Recipe:
    """Return the attack with its candidates and its own generator bound."""
    name, sample = work.attack, work.sample
    rng = numerics.generator(settings.seed, name, sample.id)
    if name == "alert":
        return lambda search: recipes.alert(search, names.substitutes(sample), rng, settings)
    if name == "mhm":
        return lambda search: recipes.mhm(search, names.vocabulary, rng, settings)
    return lambda search: recipes.wir_random(search, names.vocabulary, rng, settings)


def _answer_all(running: Sequence[_Running]) -> dict[int, list[float] | UnusableAnswerError]:
    """Answer the questions of all attacks by their numbers, those to the same victim in one call."""
    by_victim: dict[int, list[_Running]] = {}
    for one in running:
        by_victim.setdefault(id(one.victim), []).append(one)
    return {number: answers for group in by_victim.values() for number, answers in _answer(group).items()}


def _answer(group: Sequence[_Running]) -> dict[int, list[float] | UnusableAnswerError]:
    """Answer in one call; if that fails, each question alone, so that one attack cannot spoil the others."""
    distinct = list(dict.fromkeys(text for one in group for text in one.asked))
    try:
        known = dict(zip(distinct, answers_of(group[0].victim, distinct), strict=True))
    except UnusableAnswerError:
        return {one.number: _answer_alone(one) for one in group}
    return {one.number: [known[text] for text in one.asked] for one in group}


def _answer_alone(one: _Running) -> list[float] | UnusableAnswerError:
    try:
        return answers_of(one.victim, one.asked)
    except UnusableAnswerError as error:
        return error


def _advance(
    coroutine: Asking[AttackResult], answers: list[float] | UnusableAnswerError | None
) -> list[str] | AttackResult:
    """Send answers and return the next question, or the result."""
    try:
        if isinstance(answers, UnusableAnswerError):
            return coroutine.throw(answers)
        return coroutine.send(answers) if answers is not None else next(coroutine)
    except StopIteration as end:
        return end.value
