"""Searches of architectures: seconds, evaluations, how often the genetic one ends at the optimum, and hypervolume.

    python benchmarks/search.py [--seeds 10] [--genetic-seeds 60] [--points KIND=FILE ...] [--out FILE]

Compressor's fitness is a formula, so its figures are what a user gets. The other searches guess accuracy and flips from
candidates that were trained; without `--points` they are given invented measures, and then hypervolumes tell how
steadily a search finds the same front, and nothing about students. MORPH's search is also run with pymoo's own
AGE-MOEA where numba is installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moekd.files import write_json
from moekd.students import compressor, pareto
from moekd.students.ledger import Evaluated, read_ledger
from moekd.students.search import RECIPES, Kind, search
from moekd.students.space import Configuration
from moekd.students.surrogate import spread

BUDGETS = (3_000_000, 2_000_000, 1_600_000)
CANDIDATES = 40
#: Of `pareto_front` and of `compressor`: the first generation and a hundred more.
PARETO_EVALUATIONS = 50 * 100
GENETIC_EVALUATIONS = 50 + 50 * 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--genetic-seeds", type=int, default=60)
    parser.add_argument("--points", action="append", default=[], metavar="KIND=FILE")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    given = {kind: Path(path) for kind, _, path in (one.partition("=") for one in arguments.points)}
    parts: dict[str, Callable[[], Any]] = {
        "compressor": lambda: [genetic_against_exact(budget, arguments.genetic_seeds) for budget in BUDGETS],
        **{kind: partial(searched, kind, given.get(kind), arguments.seeds) for kind in RECIPES},
        "age-moea": partial(against_pymoo, arguments.seeds),
    }
    found: dict[str, Any] = {}
    for name, part in parts.items():
        found[name] = part()
        print(name, found[name])
        if arguments.out:
            write_json(arguments.out, found)  # each part as it comes


def genetic_against_exact(budget_bytes: int, seeds: int) -> dict[str, Any]:
    started = time.perf_counter()
    exact = compressor.optimum(budget_bytes)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    fitness = [compressor.genetic_search(budget_bytes, np.random.default_rng(seed)).fitness for seed in range(seeds)]
    row = {
        "budget_bytes": budget_bytes,
        "exact_fitness": exact.fitness,
        "exact_seconds": seconds,
        "genetic_seeds": seeds,
        "genetic_at_the_optimum": sum(value == exact.fitness for value in fitness),
        "genetic_fitness": summary(fitness),
        "genetic_seconds": (time.perf_counter() - started) / seeds,
        "genetic_evaluations": GENETIC_EVALUATIONS,
    }
    return row


def searched(kind: Kind, points: Path | None, seeds: int) -> dict[str, Any]:
    """Seconds and hypervolume of one search at 3 MB over seeds."""
    evaluated = read_ledger(points) if points else invented(kind)
    results = [search(kind, BUDGETS[0], evaluated, seed=seed) for seed in range(seeds)]
    return {
        "budget_bytes": BUDGETS[0],
        "candidates": len(evaluated),
        "measures": "trained" if points else "invented",
        "seeds": seeds,
        "evaluations": PARETO_EVALUATIONS,
        "seconds": float(np.mean([one.seconds for one in results])),
        "front": summary([len(one.front) for one in results]),
        "hypervolume": summary([one.hypervolume for one in results]),
    }


def invented(kind: Kind) -> list[Evaluated]:
    """Candidates whose accuracy rises with the logarithm of their size, and whose flips fall with depth; with noise."""
    recipe = RECIPES[kind]
    rng = np.random.default_rng(0)
    chosen = spread(recipe.space(BUDGETS[0]), CANDIDATES, lambda one: recipe.size_bytes(one) <= BUDGETS[0], rng)
    noise = rng.normal(0, 0.005, (len(chosen), 2))
    return [
        Evaluated(one, {"accuracy": accuracy(one) + float(off[0]), "flips": flips(one) + float(off[1])})
        for one, off in zip(chosen, noise, strict=True)
    ]


def accuracy(one: Configuration) -> float:
    return 0.5 + 0.05 * float(np.log10(one.parameters() / 1e4)) + 0.01 * one.max_length / 512


def flips(one: Configuration) -> float:
    return 0.3 - 0.01 * one.layers + 0.05 * one.hidden_dropout


def against_pymoo(seeds: int) -> dict[str, Any]:
    """Hypervolume of MORPH's four objectives: our survival in pymoo's loop, and pymoo's; the latter needs numba."""
    from scipy.stats import mannwhitneyu

    ours = [morph_hypervolume(seed) for seed in range(seeds)]
    row: dict[str, Any] = {"seeds": seeds, "evaluations": PARETO_EVALUATIONS, "hypervolume": summary(ours)}
    try:
        from pymoo.algorithms.moo.age import AGEMOEASurvival
    except Exception as error:  # pymoo raises a bare Exception where numba is missing
        return row | {"pymoo": str(error)}
    theirs = [morph_hypervolume(seed, survival=AGEMOEASurvival()) for seed in range(seeds)]
    p = float(mannwhitneyu(ours, theirs).pvalue)
    return row | {"pymoo_hypervolume": summary(theirs), "p_mann_whitney": p}


def morph_hypervolume(seed: int, *, survival: Any = None, population: int = 50, generations: int = 100) -> float:
    """Of the front that one run finds on the invented measures without surrogates.

    Args:
        survival: takes the place of our AGE-MOEA's.
    """
    from pymoo.optimize import minimize

    recipe = RECIPES["morph"]
    space = recipe.space(BUDGETS[0])
    one_by_one = {
        "megabytes": lambda one: recipe.size_bytes(one) / 1e6,
        "gflops": recipe.gflops,
        "error": lambda one: 1 - accuracy(one),
        "flips": flips,
    }
    objectives = {name: partial(_of_all, measure) for name, measure in one_by_one.items()}
    algorithm = pareto.algorithm(space, "age-moea", population, seed)
    if survival is not None:
        algorithm.survival = survival
    found = minimize(pareto.problem(space, objectives, {}), algorithm, ("n_gen", generations), seed=seed)
    configurations = [space.configuration(row) for row in space.repaired(found.X)]
    table = np.column_stack([objective(configurations) for objective in objectives.values()])
    return pareto.hypervolume(table, [6.0, 6.0, 1.0, 1.0])


def _of_all(measure: Any, configurations: Sequence[Configuration]) -> np.ndarray:
    return np.array([measure(one) for one in configurations])


def summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "lowest": float(np.min(values)),
        "median": float(np.median(values)),
        "highest": float(np.max(values)),
        "mean": float(np.mean(values)),
    }


if __name__ == "__main__":
    main()
