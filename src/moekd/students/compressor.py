"""Compressor's search of an architecture: the exact optimum of its fitness, and its genetic algorithm as published.

No student is trained: fitness is a formula, and scoring all 10,944,000 architectures takes less than a second.
Source: Shi et al. 2022, ASE, and its code; methods.md 1.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moekd.errors import SettingsError
from moekd.students.cost import reference_flops, reference_parameters
from moekd.students.shapes import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

#: The released search space, in the order of its sorted gene names.
AXES = {
    "heads": (1, 2, 4, 8),
    "hidden": tuple(range(16, 769, 16)),
    "intermediate": tuple(range(32, 3072, 32)),  # 3072 is left out by the reference's half-open range
    "layers": tuple(range(1, 13)),
    "vocabulary": tuple(range(1000, 50_001, 1000)),
}
#: The order of genes in a genome drawn at random; crossover sorts them. Mutation goes from one gene to the last, so it
#: always changes the layers of the former and always the vocabulary of the latter.
_FIRST_ORDER = ("vocabulary", "heads", "hidden", "intermediate", "layers")
_LENGTH = 514
_POPULATION, _GENERATIONS, _CROSSOVER = 50, 100, 0.6  # the reference's defaults

Genome = tuple[int, ...]  # a value of each axis, in their order


@dataclass(frozen=True)
class Found:
    """An architecture and how fit it is, in GFLOPs minus megabytes off the target."""

    shape: Shape
    fitness: float


def fitness(shape: Shape, target_bytes: int) -> float:
    """Formula GFLOPs minus the distance of the formula's size from the target in MB, in either direction."""
    return _fitness((shape.heads, shape.hidden, shape.intermediate, shape.layers, shape.vocabulary), target_bytes)


def optimum(target_bytes: int) -> Found:
    """The fittest of all architectures of the space; of equally fit ones the one with fewer parameters.

    Args:
        target_bytes: size that fitness asks for, by formula; a hard limit in neither direction, as in the reference.
    Raises:
        SettingsError: the target is below the smallest architecture of the space.
    """
    import numpy as np

    _require_feasible(target_bytes)
    h, i, v = np.ix_(*(np.array(AXES[name]) for name in ("hidden", "intermediate", "vocabulary")))
    best: tuple[float, int, Genome] | None = None
    for layers in AXES["layers"]:
        parameters = reference_parameters(layers, h, i, v, _LENGTH)  # (hidden, intermediate, vocabulary)
        distance = np.abs(4 * parameters - target_bytes) / 1e6
        for heads in AXES["heads"]:
            score = reference_flops(layers, h, i, v, heads, _LENGTH) / 1e9 - distance
            ties = np.argwhere(score == score.max())
            fewest = min(ties, key=lambda place: int(parameters[tuple(place)]))
            x, y, z = (int(number) for number in fewest)
            genome = heads, AXES["hidden"][x], AXES["intermediate"][y], layers, AXES["vocabulary"][z]
            found = float(score.max()), -int(parameters[x, y, z]), genome
            best = found if best is None else max(best, found)
    assert best is not None
    return Found(_shape(best[2]), best[0])


def genetic_search(target_bytes: int, rng: np.random.Generator) -> Found:
    """The reference's genetic algorithm: 50 genomes, 100 generations of 50 children, the best 50 survive.

    It shows what the published search finds: for 3 MB the optimum with 2 of 60 seeds, else something less fit
    (docs/results/search-benchmark.json). `optimum` is exact and as fast.

    Raises:
        SettingsError: the target is below the smallest architecture of the space.
    """
    _require_feasible(target_bytes)
    population: dict[Genome, _Member] = {}
    while len(population) < _POPULATION:
        drawn = {name: AXES[name][int(rng.integers(len(AXES[name])))] for name in _FIRST_ORDER}
        _add(population, drawn, target_bytes, rng)
    for _ in range(_GENERATIONS):
        parents = list(population.values())
        for _ in range(_POPULATION // 2):
            first, second = rng.choice(len(parents), 2, replace=False)
            for child in _children(parents[first].genes, parents[second].genes, rng):
                _add(population, child, target_bytes, rng)
        ranked = sorted(population.items(), key=lambda item: item[1].fitness, reverse=True)
        population = dict(ranked[:_POPULATION])
    genome, best = next(iter(population.items()))
    return Found(_shape(genome), best.fitness)


@dataclass(frozen=True)
class _Member:
    genes: dict[str, int]  # in the order in which mutation goes through them
    fitness: float


def _add(population: dict[Genome, _Member], genes: dict[str, int], target_bytes: int, rng: np.random.Generator) -> None:
    """Put a genome into the population, mutated until it is new there."""
    while (genome := tuple(genes[name] for name in AXES)) in population:
        genes = _mutated(genes, rng)
    population[genome] = _Member(genes, _fitness(genome, target_bytes))


def _children(
    first: dict[str, int], second: dict[str, int], rng: np.random.Generator
) -> tuple[dict[str, int], dict[str, int]]:
    """One-point crossover of the sorted genes, or both parents mutated."""
    if rng.random() < _CROSSOVER:
        cut = int(rng.integers(1, len(AXES)))
        return _crossed(first, second, cut), _crossed(second, first, cut)
    return _mutated(first, rng), _mutated(second, rng)


def _crossed(first: dict[str, int], second: dict[str, int], cut: int) -> dict[str, int]:
    return {name: (first if place < cut else second)[name] for place, name in enumerate(AXES)}


def _mutated(genes: dict[str, int], rng: np.random.Generator) -> dict[str, int]:
    """Every gene from a random place to the last, in the genome's own order, takes another value."""
    start = int(rng.integers(len(genes)))
    return {
        name: _another(AXES[name], value, rng) if place >= start else value
        for place, (name, value) in enumerate(genes.items())
    }


def _another(values: Sequence[int], value: int, rng: np.random.Generator) -> int:
    """One of the other values, each as likely."""
    place = int(rng.integers(len(values) - 1))
    return values[place + (place >= values.index(value))]


def _fitness(genome: Genome, target_bytes: int) -> float:
    heads, hidden, intermediate, layers, vocabulary = genome
    flops = reference_flops(layers, hidden, intermediate, vocabulary, heads, _LENGTH)
    size = 4 * reference_parameters(layers, hidden, intermediate, vocabulary, _LENGTH)
    return float(flops / 1e9 - abs(size - target_bytes) / 1e6)


def _shape(genome: Genome) -> Shape:
    heads, hidden, intermediate, layers, vocabulary = genome
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        intermediate=intermediate,
        vocabulary=vocabulary,
        max_length=400,
        positions=_LENGTH,
    )


def _require_feasible(target_bytes: int) -> None:
    smallest = 4 * _shape(tuple(values[0] for values in AXES.values())).reference_parameters()
    if target_bytes < smallest:
        raise SettingsError(
            f"no architecture of Compressor's space is as small as {target_bytes:,} bytes: the smallest takes "
            f"{smallest:,} bytes by its formula. Ask for --budget {smallest}"
        )
