"""What a candidate's accuracy would be, guessed from the few candidates that were trained, with the guess's error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from moekd.errors import DataError, SettingsError

if TYPE_CHECKING:
    from moekd.students.ledger import Evaluated
    from moekd.students.space import Configuration, Space

Model: TypeAlias = Literal["bayesian-ridge", "gradient-boosting"]
MIN_POINTS = 10  # MORPH's script makes as many a run; cross-validation below leaves at least 8 to fit
_FOLDS = 5
_ROUNDS = 500  # of draws, until the budget is called too small


@dataclass(frozen=True)
class Surrogate:
    """A fitted guess of one measure.

    Attributes:
        predict: configurations -> guesses, float64, (configurations,), within the range of the measured values.
        points: how many candidates it was fitted on.
        error: mean absolute error on candidates left out of the fit (5 folds), in the measure's unit.
        constant_error: the same of guessing the mean. A surrogate that is no better knows nothing.
    """

    predict: Callable[[Sequence[Configuration]], np.ndarray]
    points: int
    error: float
    constant_error: float


def fit_surrogate(space: Space, evaluated: Sequence[Evaluated], measure: str, *, model: Model, seed: int) -> Surrogate:
    """Fit a guess of `measure` to the candidates evaluated so far.

    The reference fits codes of kinds as numbers and raw sizes; here kinds are one-hot and sizes logarithms, scaled.

    Args:
        measure: name of a value of every candidate, such as `accuracy`.
        model: Bayesian ridge regression, as AVATAR's, or gradient boosting, as MORPH's, with scikit-learn's defaults.
            MORPH's paper fits accuracy on the logit scale, its code does not; its search of flips' parameters on a
            grid is left out: 540 choices are many for some ten points.
        seed: of the folds and of boosting.
    Raises:
        SettingsError: fewer than 10 different candidates.
        DataError: a candidate lacks the measure, its value is no share from 0 to 1, or the space has no such candidate.
    Source: methods.md 2.4 and 3.3; encoding as proposed in 2.9.
    """
    from sklearn.model_selection import KFold, cross_val_predict

    different = len({one.configuration for one in evaluated})
    if different < MIN_POINTS:
        raise SettingsError(
            f"the surrogate of {measure} has {different} evaluated candidates and needs {MIN_POINTS} at least: "
            "train them with --config CONFIG --set search.points=20, or give the file of evaluated ones with --points"
        )
    for one in evaluated:
        _require_of_the_space(space, one.configuration)
    values = np.array([_value(one, measure) for one in evaluated])
    table = features(space, [one.configuration for one in evaluated])
    folds = KFold(_FOLDS, shuffle=True, random_state=seed)
    left_out = cross_val_predict(_estimator(model, seed), table, values, cv=folds)
    means = np.empty_like(values)
    for fitted_on, tested_on in folds.split(table):
        means[tested_on] = values[fitted_on].mean()
    fitted = _estimator(model, seed).fit(table, values)

    def predict(configurations: Sequence[Configuration]) -> np.ndarray:
        guesses = fitted.predict(features(space, configurations))
        return np.clip(guesses, values.min(), values.max())  # a line goes on beyond what anybody has seen

    return Surrogate(
        predict=predict,
        points=len(evaluated),
        error=float(np.abs(left_out - values).mean()),
        constant_error=float(np.abs(means - values).mean()),
    )


def features(space: Space, configurations: Sequence[Configuration]) -> np.ndarray:
    """What surrogates read, float64, (configurations, features): 0..1 each, but the last.

    One column for each ordered axis, its logarithm scaled to the axis; one for each value of a kind; and the logarithm
    of the parameters, base 10 in units of a million.
    """
    columns = []
    for name, values in space.axes.items():
        found = [getattr(one, name) for one in configurations]
        if name in space.kinds:
            columns += [[float(value == kind) for value in found] for kind in values]
        else:
            low, high = (math.log(float(end)) for end in (values[0], values[-1]))
            columns.append([(math.log(value) - low) / ((high - low) or 1.0) for value in found])
    columns.append([math.log10(one.parameters() / 1e6) for one in configurations])
    return np.array(columns).T


def spread(
    space: Space, count: int, allowed: Callable[[Configuration], bool], rng: np.random.Generator
) -> list[Configuration]:
    """Candidates to train first: each the farthest of 20 random ones from those chosen before.

    Distances are between scaled features; on raw values, as in the reference, the vocabulary alone decides.

    Args:
        allowed: whether a candidate is within the limits.
    Raises:
        SettingsError: among many random candidates hardly one is allowed, or so few are that they repeat.
    Source: AVATAR's adaptive random sampling; methods.md 2.4.
    """
    chosen: list[Configuration] = []
    while len(chosen) < count:
        found = _allowed(space, 20 if chosen else 1, allowed, rng)
        if chosen:
            distances = features(space, found)[:, None] - features(space, chosen)[None]
            found = [found[int(np.square(distances).sum(axis=2).min(axis=1).argmax())]]
            if found[0] in chosen:
                raise SettingsError(
                    f"of {count} different candidates of the space {space.name} only {len(chosen)} were found within "
                    "the budget; ask for a larger --budget"
                )
        chosen += found
    return chosen


def _allowed(
    space: Space, count: int, allowed: Callable[[Configuration], bool], rng: np.random.Generator
) -> list[Configuration]:
    found: list[Configuration] = []
    for _ in range(_ROUNDS):
        drawn = map(space.configuration, space.at_random(count, rng))
        found += [one for one in drawn if allowed(one)]
        if len(found) >= count:
            return found[:count]
    raise SettingsError(
        f"of {_ROUNDS * count} random candidates of the space {space.name} only {len(found)} are within the budget; "
        "ask for a larger --budget"
    )


def _require_of_the_space(space: Space, one: Configuration) -> None:
    """Sizes may lie outside: a candidate of a larger budget tells something, too."""
    for name, values in space.axes.items():
        value = getattr(one, name)
        if value not in values if name in space.kinds else value <= 0:
            wanted = f"one of {', '.join(values)}" if name in space.kinds else "above 0"
            raise DataError(
                f"an evaluated candidate has {name} {value!r}, and in the space {space.name} it is {wanted}: {one}. "
                "Give the candidates that were trained for this search"
            )


def _value(one: Evaluated, measure: str) -> float:
    value = one.values.get(measure)
    if value is None or not 0 <= value <= 1:
        found = "no value" if value is None else f"{value:g}"
        raise DataError(
            f"{measure} must be a share from 0 to 1 of every evaluated candidate; got {found} of {one.configuration}"
        )
    return value


def _estimator(model: Model, seed: int) -> Any:
    if model == "bayesian-ridge":
        from sklearn.linear_model import BayesianRidge

        return BayesianRidge()
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(random_state=seed)
