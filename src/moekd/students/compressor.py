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
    from collections.abc import Container

    import numpy as np

#: The released search space, in the order of its sorted gene names.
AXES = {
    "heads": (1, 2, 4, 8),
    "hidden": tuple(range(16, 769, 16)),
    "intermediate": tuple(range(32, 3072, 32)),  # 3072 is left out by the reference's half-open range
    "layers": tuple(range(1, 13)),
    "vocabulary": tuple(range(1000, 50_001, 1000)),
}
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

    It shows what the published search finds: for 3 MB the optimum with 3 of 60 seeds, else something less fit.
    `optimum` is exact and as fast.

    Raises:
        SettingsError: the target is below the smallest architecture of the space.
    """
    _require_feasible(target_bytes)
    population: dict[Genome, float] = {}
    while len(population) < _POPULATION:
        genome = tuple(int(rng.choice(values)) for values in AXES.values())
        genome = _until_new(genome, population, rng)
        population[genome] = _fitness(genome, target_bytes)
    for _ in range(_GENERATIONS):
        children: dict[Genome, float] = {}
        parents = list(population)
        while len(children) < _POPULATION:
            first, second = rng.choice(len(parents), 2, replace=False)
            for child in _children(parents[first], parents[second], rng):
                child = _until_new(child, population.keys() | children.keys(), rng)
                children[child] = _fitness(child, target_bytes)
        ranked = sorted((population | children).items(), key=lambda item: item[1], reverse=True)
        population = dict(ranked[:_POPULATION])
    genome, score = next(iter(population.items()))
    return Found(_shape(genome), score)


def _children(first: Genome, second: Genome, rng: np.random.Generator) -> tuple[Genome, Genome]:
    """One-point crossover, or both parents mutated."""
    if rng.random() < _CROSSOVER:
        cut = int(rng.integers(1, len(first)))
        return first[:cut] + second[cut:], second[:cut] + first[cut:]
    return _mutated(first, rng), _mutated(second, rng)


def _mutated(genome: Genome, rng: np.random.Generator) -> Genome:
    """Every gene from a random position to the last takes another value."""
    start = int(rng.integers(len(genome)))
    axes = list(AXES.values())
    fresh = (
        int(rng.choice([value for value in axes[place] if value != genome[place]]))
        for place in range(start, len(genome))
    )
    return genome[:start] + tuple(fresh)


def _until_new(genome: Genome, known: Container[Genome], rng: np.random.Generator) -> Genome:
    while genome in known:
        genome = _mutated(genome, rng)
    return genome


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
