"""The searches of the papers and ours, each a short recipe: space, objectives, surrogates and a rule for the pick.

    Compressor   no training: the optimum of a formula, and the published genetic algorithm beside it
    AVATAR       size off the target, error, formula FLOPs; largest accuracy within the size, then fewest FLOPs
    MORPH        size, error, formula FLOPs, flips under renaming; the size nearest to the target
    ours         bytes shipped in int8, error, milliseconds; largest accuracy within the bytes, then fewest milliseconds

Error and flips are guessed by surrogates from candidates that were trained (`ledger`), milliseconds from architectures
that were timed (`latency`). Both FLOPs and milliseconds are of a text that fills the maximal length: a search knows no
texts, and of BigVul's balanced functions half fill 400 tokens.
Sources: methods.md 1.2, 2.5 and 2.9, 3.3 and 3.4.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from moekd.errors import SettingsError
from moekd.students import compressor
from moekd.students.cost import cost_of, reference_flops
from moekd.students.latency import PUBLISHED
from moekd.students.pareto import Limit, Method, Objective, Point, hypervolume, not_dominated, pareto_front
from moekd.students.space import Configuration, Space, avatar_space, moekd_space, shipped_bytes
from moekd.students.surrogate import Model, Surrogate, fit_surrogate

if TYPE_CHECKING:
    from pathlib import Path

    from moekd.students.latency import Latency
    from moekd.students.ledger import Evaluated

Kind: TypeAlias = Literal["avatar", "morph", "moekd"]
_SIZES = {"": 1, "b": 1, "kb": 1000, "mb": 1_000_000}


@dataclass(frozen=True)
class Recipe:
    """One search by its parts.

    Attributes:
        space: budget in bytes -> space.
        size_bytes: of a configuration, as this method counts them.
        size_name, size: name of the objective made of size and budget in bytes, in MB, and how it is made.
        work: name of the objective that stands for time: FLOPs by the references' formula, or processor milliseconds.
        measures: names of what surrogates guess from evaluated candidates.
        model: of the surrogates.
        method: of the search.
        within: whether the budget is a limit, and so for the pick; else the nearest size is picked.
    """

    space: Callable[[int], Space]
    size_bytes: Callable[[Configuration], int]
    size_name: str
    size: Callable[[int, int], float]
    work: Literal["gflops", "milliseconds"]
    measures: tuple[str, ...]
    model: Model
    method: Method
    within: bool


def formula_gflops(one: Configuration) -> float:
    """Of a text that fills the maximal length, as AVATAR and MORPH count."""
    work = reference_flops(one.layers, one.hidden, one.intermediate, one.vocabulary, one.heads, one.max_length)
    return float(work) / 1e9


RECIPES: dict[Kind, Recipe] = {
    "avatar": Recipe(
        space=avatar_space,
        size_bytes=Configuration.reference_bytes,
        size_name="megabytes_off",
        size=lambda size, budget: abs(size - budget) / 1e6,
        work="gflops",
        measures=("accuracy",),
        model="bayesian-ridge",
        method="nsga2",
        within=True,  # the reference lets candidates exceed the target and picks by hand
    ),
    "morph": Recipe(
        space=avatar_space,
        size_bytes=Configuration.reference_bytes,
        size_name="megabytes",
        size=lambda size, budget: size / 1e6,
        work="gflops",
        measures=("accuracy", "flips"),
        model="gradient-boosting",
        method="age-moea",
        within=False,
    ),
    "moekd": Recipe(
        space=moekd_space,
        size_bytes=shipped_bytes,
        size_name="megabytes",
        size=lambda size, budget: size / 1e6,
        work="milliseconds",
        measures=("accuracy",),
        model="gradient-boosting",
        method="nsga2",
        within=True,
    ),
}


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        front: points that no other beats; objectives `megabytes_off` (AVATAR) or `megabytes`, `gflops` or, for ours,
            `milliseconds` (guessed), `error` (1 - accuracy, guessed) and, for MORPH, `flips` (guessed share).
        picked: the one to train, by the recipe's rule; ours is looked for around the front's, too.
        surrogates: by measure, with their errors.
        latency: the guess of milliseconds, with its error; None where they are no objective.
        reference: the worst value of each objective that the hypervolume counts.
        hypervolume: share of the box to `reference` that the front dominates.
        seconds: of fitting and searching, without timing.
    """

    front: list[Point]
    picked: Point
    surrogates: Mapping[str, Surrogate]
    latency: Latency | None
    reference: Mapping[str, float]
    hypervolume: float
    seconds: float


def search(
    kind: Kind,
    budget_bytes: int,
    evaluated: Sequence[Evaluated],
    *,
    seed: int,
    latency: Callable[[int], Latency] | None = None,
) -> Searched:
    """Fit surrogates to the evaluated candidates, search the space by them, and pick one student to train.

    Args:
        budget_bytes: for AVATAR and MORPH of the references' formula, for ours of all files shipped in int8.
        evaluated: candidates with `accuracy`, and for MORPH `flips`, both shares from 0 to 1.
        latency: budget in bytes -> guess of milliseconds. Ours needs it and asks once, after the candidates were
            found to be enough; the others never do.
    Raises:
        SettingsError: nothing fits the budget, or there are too few evaluated candidates.
        DataError: a candidate lacks a measure.
    """
    started = time.perf_counter()
    recipe = RECIPES[kind]
    space = _known_kinds(recipe.space(budget_bytes), evaluated)
    surrogates = {
        measure: fit_surrogate(space, evaluated, measure, model=recipe.model, seed=seed) for measure in recipe.measures
    }
    timed, waited = None, 0.0
    if recipe.work == "milliseconds":
        if latency is None:
            raise ValueError(f"the search {kind!r} has milliseconds for an objective and needs `latency`")
        asked = time.perf_counter()
        timed = latency(budget_bytes)
        waited = time.perf_counter() - asked
    objectives = _objectives(recipe, budget_bytes, surrogates, timed)
    limits = {"size in bytes": Limit(lambda found: np.array(list(map(recipe.size_bytes, found))), budget_bytes)}
    front = pareto_front(space, objectives, method=recipe.method, seed=seed, limits=limits if recipe.within else {})
    picked = pick(recipe, front, budget_bytes)
    if timed:
        picked = descended(
            picked, space, objectives, ("error", "milliseconds"), lambda one: recipe.size_bytes(one) <= budget_bytes
        )
        front = with_point(front, picked)
    # Twice the budget, a GFLOP for each of these megabytes, and always wrong: the same for every seed of a budget. In
    # time the published student: nobody waits longer for ours.
    worst = {"error": 1.0, "flips": 1.0} | ({"milliseconds": timed.published_ms} if timed else {})
    reference = {name: worst.get(name, 2 * budget_bytes / 1e6) for name in objectives}
    return Searched(
        front=front,
        picked=picked,
        surrogates=surrogates,
        latency=timed,
        reference=reference,
        hypervolume=hypervolume(
            np.array([[point.values[name] for name in objectives] for point in front]), list(reference.values())
        ),
        seconds=time.perf_counter() - started - waited,
    )


def _known_kinds(space: Space, evaluated: Sequence[Evaluated]) -> Space:
    """The space without kinds that no candidate has: surrogates know nothing of them."""
    seen = {name: {getattr(one.configuration, name) for one in evaluated} for name in space.kinds}
    axes = {
        name: tuple(value for value in values if value in seen[name]) or values if name in seen else values
        for name, values in space.axes.items()
    }
    return replace(space, axes=axes)


def pick(recipe: Recipe, front: Sequence[Point], budget_bytes: int) -> Point:
    """The student to train: see the table at the top of this module."""

    def by_accuracy(point: Point) -> tuple[float, float]:
        return point.values["error"], point.values[recipe.work]

    if not recipe.within:
        return min(front, key=lambda p: (abs(recipe.size_bytes(p.configuration) - budget_bytes), *by_accuracy(p)))
    return min((p for p in front if recipe.size_bytes(p.configuration) <= budget_bytes), key=by_accuracy)


def descended(
    start: Point,
    space: Space,
    objectives: Mapping[str, Objective],
    order: Sequence[str],
    allowed: Callable[[Configuration], bool],
) -> Point:
    """The point that is left when one or two sizes at a time change as long as that is better by `order`.

    Boosted trees guess the same accuracy for many architectures, and of these a front of 50 points holds any one:
    without this the pick took up to twice the time of others that are as good. Steps of one size alone end at once,
    because a student within a budget grows in one place only where it shrinks in another.

    Args:
        space: has no kinds.
        order: names of objectives, the first decides, the next among equals.
        allowed: holds for `start`.
    """
    best = start
    while True:
        near = [one for one in _near(best.configuration, space) if allowed(one)]
        # Rounded, so that sums in another order are no progress: this ends.
        table = np.column_stack([objectives[name](near) for name in order]).round(9)
        row, here = np.lexsort(table.T[::-1])[0], near.index(best.configuration)
        if tuple(table[row]) >= tuple(table[here]):
            return best
        values = {name: float(objective([near[row]])[0]) for name, objective in objectives.items()}
        best = Point(near[row], values)


def _near(one: Configuration, space: Space) -> list[Configuration]:
    """The configuration, and all that differ from it in one or two sizes and are divided by their heads."""
    found = {
        replace(one, **dict(zip(names, values, strict=True)))
        for names in combinations(space.axes, 2)
        for values in product(*(space.axes[name] for name in names))
    }
    return sorted((each for each in found if each.hidden % each.heads == 0), key=astuple)


def with_point(front: Sequence[Point], point: Point) -> list[Point]:
    """The front with one more point, by the first objective, without those that it dominates."""
    points = sorted([*(one for one in front if one != point), point], key=lambda one: tuple(one.values.values()))
    kept = not_dominated(np.array([list(one.values.values()) for one in points]))
    return [one for one, stays in zip(points, kept, strict=True) if stays]


def search_compressor(budget_bytes: int, *, seed: int) -> dict[str, Any]:
    """Compressor's optimum with its costs, and what the published genetic algorithm finds with this seed.

    Raises:
        SettingsError: the budget is below the smallest architecture.
    """
    started = time.perf_counter()
    found = compressor.optimum(budget_bytes)
    exact = time.perf_counter()
    genetic = compressor.genetic_search(budget_bytes, np.random.default_rng(seed))
    return {
        "architecture": asdict(found.shape),
        "fitness": found.fitness,
        "cost": asdict(cost_of(found.shape, length=found.shape.max_length)),
        "seconds": exact - started,
        "genetic": {
            "architecture": asdict(genetic.shape),
            "fitness": genetic.fitness,
            "agrees": genetic.shape == found.shape,
            "seed": seed,
            "seconds": time.perf_counter() - exact,
        },
    }


def parse_bytes(text: str) -> int:
    """Bytes of "3MB", "1.6 MB", "500kB" or "3000000"; MB are decimal.

    Raises:
        SettingsError: the text is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    if not match or match[2].lower() not in _SIZES or float(match[1]) == 0:
        raise SettingsError(f"--budget wants a size such as 3MB, 1.6MB or 3000000, got {text!r}")
    return round(float(match[1]) * _SIZES[match[2].lower()])


def as_json(
    kind: Kind, budget_bytes: int, found: Searched, *, seed: int, measured_ms: float | None = None
) -> dict[str, Any]:
    """All of a search's result as plain data; `measured_ms` is of the pick, where milliseconds are an objective."""
    timing = {"latency": asdict(found.latency), "measured_ms": measured_ms} if found.latency else {}
    return {
        "search": kind,
        "budget_bytes": budget_bytes,
        "seed": seed,
        "picked": _point(found.picked),
        "front": [_point(point) for point in found.front],
        "surrogates": {
            name: {"points": one.points, "error": one.error, "constant_error": one.constant_error}
            for name, one in found.surrogates.items()
        },
        "hypervolume": found.hypervolume,
        "reference": dict(found.reference),
        "seconds": found.seconds,
        **timing,
    }


def render(result: Mapping[str, Any]) -> str:
    """A few lines for people, of what `as_json` or `search_compressor` gave."""
    if result["search"] == "compressor":
        cost, genetic = result["cost"], result["genetic"]
        agrees = "the same" if genetic["agrees"] else f"another, of fitness {genetic['fitness']:.4f}"
        return "\n".join(
            [
                f"optimum of 10,944,000 architectures, {result['seconds']:.1f} s: {_named(result['architecture'])}",
                f"fitness {result['fitness']:.4f}; {cost['parameters']:,} parameters, {cost['weight_bytes']:,} bytes, "
                f"{4 * cost['reference_parameters']:,} by the reference's formula",
                f"genetic algorithm, seed {genetic['seed']}, {genetic['seconds']:.1f} s: {agrees}",
            ]
        )
    lines = [f"{len(result['front'])} points on the front, hypervolume {result['hypervolume']:.3f}"]
    lines += [
        f"surrogate of {name}: error {one['error']:.4f} on candidates left out of {one['points']}, "
        f"{one['constant_error']:.4f} for the mean"
        for name, one in result["surrogates"].items()
    ]
    values = ", ".join(f"{name} {value:.4f}" for name, value in result["picked"]["values"].items())
    lines += [f"picked: {_named(result['picked']['configuration'])}", values]
    return "\n".join(_with_times(lines, result) if "latency" in result else lines)


def _with_times(lines: Sequence[str], result: Mapping[str, Any]) -> list[str]:
    """What was timed before the lines on the pick, and the pick's own time behind them."""
    made = result["latency"]
    about, lengths = made["about"], ", ".join(map(str, made["lengths"]))
    *before, picked, values = lines
    return [
        *before,
        f"milliseconds: error {made['error']:.2f} on architectures left out of {made['architectures']} timed, "
        f"{made['constant_error']:.2f} for the mean ({about['measured']}, {about['threads']} thread, {lengths} tokens; "
        f"{made['seconds']:.0f} s)",
        picked,
        values,
        f"measured: {result['measured_ms']:.2f} milliseconds for {result['picked']['configuration']['max_length']} "
        f"tokens; Compressor's published student {made['published_ms']:.2f} for its {PUBLISHED.max_length}",
    ]


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def plot_front(found: Searched, path: Path) -> None:
    """Write an image of the front: error against each other objective, the picked point marked."""
    import matplotlib

    from moekd.files import writing

    matplotlib.use("Agg")
    from matplotlib import pyplot

    others = [name for name in found.reference if name != "error"]
    figure, axes = pyplot.subplots(1, len(others), figsize=(4 * len(others), 3.5), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], others, strict=True):
        axis.scatter([p.values[name] for p in found.front], [p.values["error"] for p in found.front], s=12)
        axis.scatter([found.picked.values[name]], [found.picked.values["error"]], s=60, marker="x", color="black")
        axis.set_xlabel(name)
        axis.set_ylabel("error, guessed")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _objectives(
    recipe: Recipe, budget_bytes: int, surrogates: Mapping[str, Surrogate], latency: Latency | None
) -> dict[str, Objective]:
    def size(found: Sequence[Configuration]) -> np.ndarray:
        return np.array([recipe.size(recipe.size_bytes(one), budget_bytes) for one in found])

    def gflops(found: Sequence[Configuration]) -> np.ndarray:
        return np.array([formula_gflops(one) for one in found])

    guesses: dict[str, Objective] = {"error": lambda found: 1 - surrogates["accuracy"].predict(found)}
    if "flips" in surrogates:
        guesses["flips"] = surrogates["flips"].predict
    return {recipe.size_name: size, recipe.work: latency.predict if latency else gflops, **guesses}


def _point(point: Point) -> dict[str, Any]:
    return {"configuration": asdict(point.configuration), "values": dict(point.values)}
