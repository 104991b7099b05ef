"""Search of several objectives at once, on any callables: the front, how much it covers, and nothing about training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from moekd.errors import SettingsError
from moekd.students.age_moea import survival_scores

if TYPE_CHECKING:
    from moekd.students.space import Configuration, Space

#: Values to be made small, float64, (configurations,).
Objective = Callable[[Sequence["Configuration"]], np.ndarray]
Method: TypeAlias = Literal["nsga2", "age-moea"]


@dataclass(frozen=True)
class Limit:
    """`of(configurations) <= largest`."""

    of: Objective
    largest: float


@dataclass(frozen=True)
class Point:
    """A configuration and the value of each objective, smaller is better."""

    configuration: Configuration
    values: Mapping[str, float]


def pareto_front(
    space: Space,
    objectives: Mapping[str, Objective],
    *,
    method: Method,
    seed: int,
    limits: Mapping[str, Limit] | None = None,
    population: int = 50,
    generations: int = 100,
) -> list[Point]:
    """Configurations of which none is better in one objective without being worse in another.

    Args:
        method: "nsga2" with uniform crossover (probability 0.6) and genes drawn anew (0.1 each), AVATAR's rates with a
            crossover that works (methods.md 2.8 a); its loop of 50 rounds of 10 pairs around an archive is not kept.
            Or "age-moea" with simulated binary crossover (0.9, eta 15) and polynomial mutation (1 / axes, eta 30), as
            in MORPH's code, from a Latin hypercube. Whole numbers are rounded before they are judged, hidden widths
            repaired.
        seed: of everything random; equal seeds give equal fronts.
        limits: name -> what must not exceed which value; need not be objectives.
    Returns:
        Distinct points, by the first objective.
    Raises:
        SettingsError: no configuration within the limits was found.
    Source: Deb et al. 2002 (NSGA-II); Panichella 2019 (AGE-MOEA), GECCO; methods.md 2.5 and 3.4.
    """
    from pymoo.optimize import minimize

    limits = limits or {}
    found = minimize(
        problem(space, objectives, limits),
        algorithm(space, method, population, seed),
        ("n_gen", generations),
        seed=seed,
    )
    if found.X is None:
        stated = ", ".join(f"{name} <= {limit.largest:g}" for name, limit in limits.items())
        raise SettingsError(
            f"the search of the space {space.name} found nothing with {stated} in {generations} generations; "
            "ask for a larger --budget"
        )
    rows = np.unique(space.repaired(np.atleast_2d(found.X)), axis=0)
    configurations = [space.configuration(row) for row in rows]
    table = np.column_stack([objective(configurations) for objective in objectives.values()])
    points = [
        Point(one, dict(zip(objectives, map(float, row), strict=True)))
        for one, row, kept in zip(configurations, table, not_dominated(table), strict=True)
        if kept
    ]
    return sorted(points, key=lambda point: tuple(point.values.values()))


def not_dominated(values: np.ndarray) -> np.ndarray:
    """Which rows of (points, objectives) no other dominates by being nowhere worse and somewhere better; (points,)."""
    no_worse = (values[:, None] <= values[None]).all(axis=2)  # [i, j]: i is nowhere worse than j
    better = (values[:, None] < values[None]).any(axis=2)
    return np.asarray(~(no_worse & better).any(axis=0))


def hypervolume(values: np.ndarray, reference: Sequence[float]) -> float:
    """Share of the box from zero to `reference` that the points dominate, 0 to 1; larger is better.

    Args:
        values: (points, objectives), all >= 0, to be made small. A point beyond the reference adds nothing.
        reference: the worst value worth anything, > 0, for each objective. Fronts compare only by the same one.
    Raises:
        ValueError: shapes do not agree, a value is negative or not finite, or a reference is not positive.
    Source: Zitzler, Thiele 1998; computed by pymoo.
    """
    from pymoo.indicators.hv import HV

    worst = np.asarray(reference, dtype=float)
    if values.ndim != 2 or values.shape[1:] != worst.shape or not len(values):
        raise ValueError(f"points are {values.shape}, the reference {worst.shape}; wanted (points, objectives)")
    if not (np.isfinite(values).all() and (values >= 0).all() and np.isfinite(worst).all() and (worst > 0).all()):
        raise ValueError("values must be finite and not negative, and the reference finite and positive")
    return float(HV(ref_point=np.ones(len(worst)))(values / worst))


def problem(space: Space, objectives: Mapping[str, Objective], limits: Mapping[str, Limit]) -> Any:
    """The `pymoo` problem over positions on the space's axes."""
    from pymoo.core.problem import Problem

    class Architectures(Problem):
        def __init__(self) -> None:
            last = [len(values) - 1 for values in space.axes.values()]
            super().__init__(
                n_var=len(last), n_obj=len(objectives), n_ieq_constr=len(limits), xl=np.zeros(len(last)), xu=last
            )

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            configurations = [space.configuration(row) for row in x]
            out["F"] = np.column_stack([objective(configurations) for objective in objectives.values()])
            if limits:
                out["G"] = np.column_stack([one.of(configurations) - one.largest for one in limits.values()])

    return Architectures()


def algorithm(space: Space, method: Method, population: int, seed: int) -> Any:
    """The `pymoo` algorithm that `pareto_front` describes."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.repair import Repair
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.crossover.ux import UX
    from pymoo.operators.mutation.pm import PM

    class ToTheSpace(Repair):
        def _do(self, problem: Any, x: np.ndarray, **kwargs: Any) -> np.ndarray:
            return space.repaired(x)

    start = space.latin_hypercube if method == "age-moea" else space.at_random
    shared = {
        "pop_size": population,
        "sampling": start(population, np.random.default_rng(seed)),
        "repair": ToTheSpace(),
        "eliminate_duplicates": True,
    }
    if method == "nsga2":
        return NSGA2(crossover=UX(prob=0.6), mutation=_redraw(space, probability=0.1), **shared)
    mutation = PM(prob=1.0, prob_var=1 / len(space.axes), eta=30)
    return NSGA2(
        crossover=SBX(prob=0.9, eta=15),
        mutation=mutation,
        survival=_geometry_survival(),
        tournament_type="comp_by_rank_and_crowding",
        **shared,
    )


def _geometry_survival() -> Any:
    """AGE-MOEA's survival for pymoo's loop; all else is shared with NSGA-II."""
    from pymoo.core.survival import Survival
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    class GeometrySurvival(Survival):
        def _do(self, problem: Any, pop: Any, *args: Any, n_survive: int | None = None, **kwargs: Any) -> Any:
            values = pop.get("F")
            ranks = NonDominatedSorting().do(values, return_rank=True)[1]
            scores = survival_scores(values, ranks)
            for one, rank, score in zip(pop, ranks, scores, strict=True):
                one.set("rank", rank)
                one.set("crowding", score)
            return pop[np.lexsort((-scores, ranks))[:n_survive]]

    return GeometrySurvival(filter_infeasible=True)


def _redraw(space: Space, probability: float) -> Any:
    """Mutation that draws each gene anew with this probability."""
    from pymoo.core.mutation import Mutation

    class Redraw(Mutation):
        def _do(self, problem: Any, x: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any) -> np.ndarray:
            fresh = random_state.integers(0, [len(values) for values in space.axes.values()], x.shape)
            return np.where(random_state.random(x.shape) < probability, fresh, x)

    return Redraw(prob=1.0)
