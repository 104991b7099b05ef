"""The three attacks. Each is a short recipe on a `Search`, and says where it departs from its reference.

Common to all: new names are legal and free, so that no variant changes the meaning (the references let WIR-Random and
names outside their identifier list collide); candidates come in a fixed order, and the first of equal ones is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from moekd.attack.search import Asking, Search
    from moekd.config import Attack
    from moekd.rewrite import Renaming

_TINY = 1e-10  # keeps the acceptance ratio of MHM finite


def alert(
    search: Search, substitutes: Mapping[str, Sequence[str]], rng: np.random.Generator, settings: Attack
) -> Asking[None]:
    """ALERT: rename the most important identifier first, greedily; then a genetic search if that was not enough.

    Args:
        substitutes: candidate names of each identifier, best first.
    Source: Yang et al. 2022, arXiv:2201.08698, sections 3.2 and 3.3; methods.md 7.2. Departs from the reference code
        in what methods.md 7.6 lists as its faults: members of the population are never edited in place, the fitness of
        every member is known, and a child that two equal parents give is mutated and kept.
    """
    assert search.p_original is not None
    names = {name: tuple(options)[: settings.candidates] for name, options in substitutes.items()}
    if not any(names.values()):
        return
    current: Renaming = {}
    p_current = search.p_original
    for name in (yield from search.importance()):
        options = [current | {name: new} for new in names.get(name, ()) if search.may_use(new, current)]
        answers = yield from search.try_all(options)
        best = search.lowest(options, answers)
        if best is not None and answers[best] < p_current:
            current, p_current = options[best], answers[best]
    if settings.genetic:
        yield from _genetic(search, names, current, rng, settings)


def _genetic(
    search: Search,
    names: Mapping[str, Sequence[str]],
    greedy: Renaming,
    rng: np.random.Generator,
    settings: Attack,
) -> Asking[None]:
    """Crossover and mutation over maps of identifiers to names; starts from the single renames of the greedy stage."""
    order = [one.name for one in search.template.identifiers if names.get(one.name)]
    population: list[Renaming] = [{}, *({old: new} for old, new in greedy.items())]
    p = yield from search.try_all(population)
    for _ in range(max(settings.generations * len(population), 10)):
        children = []
        for _ in range(settings.children):
            first, second = (population[int(rng.integers(len(population)))] for _ in range(2))
            child = _crossed(first, second, order, rng) if rng.random() < settings.crossover else first
            if child in (first, second):
                child = _mutated(child, order, names, rng)
            if len(set(child.values())) == len(child) and all(search.template.is_free(new) for new in child.values()):
                children.append(child)
        answers = yield from search.try_all(children)
        for child, p_child in zip(children, answers, strict=True):
            worst = max(range(len(population)), key=lambda index: p[index])
            if p_child < p[worst] and child not in population and search.is_valid(child):
                population[worst], p[worst] = child, p_child
        search.lowest(population, p)


def _crossed(first: Renaming, second: Renaming, order: Sequence[str], rng: np.random.Generator) -> Renaming:
    """One-point crossover: names of `first` up to a point drawn at random, of `second` from there on."""
    point = int(rng.integers(len(order) + 1))
    head, tail = set(order[:point]), set(order[point:])
    return {old: new for old, new in first.items() if old in head} | {
        old: new for old, new in second.items() if old in tail
    }


def _mutated(
    parent: Renaming, order: Sequence[str], names: Mapping[str, Sequence[str]], rng: np.random.Generator
) -> Renaming:
    """One gene drawn anew from its substitutes."""
    old = order[int(rng.integers(len(order)))]
    return parent | {old: names[old][int(rng.integers(len(names[old])))]}


def mhm(search: Search, vocabulary: Sequence[str], rng: np.random.Generator, settings: Attack) -> Asking[None]:
    """MHM: rename an identifier drawn at random to the best of random names, and accept it by Metropolis's rule.

    A step from p to p' (of the label) is accepted with probability min(1, (1 - p') / (1 - p)). With
    `settings.mhm_rule = "hill-climbing"` it is accepted only if p does not rise, as in the references' runs, whose
    threshold of 1 turns the sampling off (methods.md 7.3).

    Source: Zhang et al. 2020, AAAI, "Generating adversarial examples for holding robustness of source code processing
        models", section 4. Departs from the reference code: what is accepted is the best candidate, not the last.
    """
    assert search.p_original is not None
    names = [one.name for one in search.template.identifiers]
    current: Renaming = {}
    p_current = search.p_original
    for _ in range(settings.iterations if vocabulary else 0):
        name = names[int(rng.integers(len(names)))]
        drawn = _drawn_names(vocabulary, settings.candidates, rng)
        options = [current | {name: new} for new in drawn if search.may_use(new, current)]
        answers = yield from search.try_all(options)
        best = search.lowest(options, answers)
        u = rng.random()
        if best is None:
            continue
        alpha = (1 - answers[best] + _TINY) / (1 - p_current + _TINY)
        if u <= alpha and (alpha >= 1 or settings.mhm_rule == "metropolis"):
            current, p_current = options[best], answers[best]


def wir_random(search: Search, vocabulary: Sequence[str], rng: np.random.Generator, settings: Attack) -> Asking[None]:
    """WIR-Random: identifiers by falling importance, each renamed to the best of names drawn at random.

    Source: Zeng et al. 2022, ISSTA, "An extensive study on pre-trained models for program understanding and
        generation"; the simple form of methods.md 7.4. Departs from it: a new name must be free.
    """
    assert search.p_original is not None
    if not vocabulary:
        return
    current: Renaming = {}
    p_current = search.p_original
    for name in (yield from search.importance()):
        drawn = _drawn_names(vocabulary, settings.candidates, rng)
        options = [current | {name: new} for new in drawn if search.may_use(new, current)]
        answers = yield from search.try_all(options)
        best = search.lowest(options, answers)
        if best is not None and answers[best] < p_current:
            current, p_current = options[best], answers[best]


def _drawn_names(vocabulary: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Names drawn with replacement, each once, in the order of the draw."""
    return list(dict.fromkeys(vocabulary[index] for index in rng.integers(len(vocabulary), size=count)))
