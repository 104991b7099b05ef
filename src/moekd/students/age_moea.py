"""Which points AGE-MOEA keeps: the part of it that is its own, as pure functions on a table of objectives.

It estimates the curve that the front lies on, sum of f ** p = 1, and prefers points that are close to the ideal and far
from each other as measured along it. Ours, because pymoo 0.6.2 runs its own only with numba: 208 MB more to install
for these lines, and no better fronts in the seeds that were tried (docs/experiments.md).
Source: Panichella 2019, "An adaptive evolutionary algorithm based on non-Euclidean geometry for many-objective
optimization", GECCO.
"""

from __future__ import annotations

import math

import numpy as np


def survival_scores(values: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """How much each point is worth keeping among those of its rank, float64, (points,); larger is better.

    Args:
        values: objectives, (points, objectives), to be made small, finite.
        ranks: 0 for points that nobody dominates, 1 for those that only they dominate, and so on; (points,).
    Returns:
        The best point for each objective of rank 0 has infinity; later ranks are worth their closeness to the ideal.
    """
    first = values[ranks == 0]
    ideal = first.min(axis=0)
    corners = extremes(first - ideal)
    scaled = (values - ideal) / intercepts(first - ideal, corners)
    power = exponent(np.delete(scaled[ranks == 0], corners, axis=0))
    lengths = np.maximum(_length(scaled, power), 1e-12)
    scores = 1 / lengths
    scores[ranks == 0] = _spread_scores(scaled[ranks == 0], lengths[ranks == 0], corners, power)
    return scores


def extremes(front: np.ndarray) -> np.ndarray:
    """Rows closest to each axis, distinct, ascending; `front` is (points, objectives) with the ideal at zero."""
    squared = np.square(front)
    off_axis = squared.sum(axis=1, keepdims=True) - squared  # (points, objectives)
    return np.unique(off_axis.argmin(axis=0))


def intercepts(front: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Where the plane through the extreme points meets the axes, > 0; the largest values where none does."""
    largest = front.max(axis=0)
    fallback = np.where(largest > 0, largest, 1.0)
    if len(corners) < front.shape[1]:
        return fallback
    try:
        inverse = np.linalg.solve(front[corners], np.ones(front.shape[1]))
    except np.linalg.LinAlgError:
        return fallback
    if not (np.isfinite(inverse).all() and (inverse > 1e-12).all()):
        return fallback
    return np.asarray(1 / inverse)


def exponent(front: np.ndarray) -> float:
    """p of the curve, sum of f ** p = 1, on which the point in the middle of the scaled front lies; 1 without one."""
    if not len(front):
        return 1.0
    squared, along = np.square(front).sum(axis=1), np.square(front.sum(axis=1)) / front.shape[1]
    mean = float(front[(squared - along).argmin()].mean())  # of the point closest to the diagonal
    if not 0 < mean < 1:
        return 1.0
    power = math.log(front.shape[1]) / -math.log(mean)
    return power if power > 0.1 else 1.0


def _spread_scores(front: np.ndarray, lengths: np.ndarray, corners: np.ndarray, power: float) -> np.ndarray:
    """Extreme points first; then again and again the point with the largest distance to its two nearest chosen ones."""
    distances = _length(front[:, None] - front[None], power) / lengths[:, None]  # (points, points)
    scores = np.full(len(front), math.inf)
    chosen, left = list(corners), [row for row in range(len(front)) if row not in corners]
    while left:
        nearest = np.sort(distances[np.ix_(left, chosen)], axis=1)[:, :2].sum(axis=1)
        place = int(nearest.argmax())
        scores[left[place]] = nearest[place]
        chosen.append(left.pop(place))
    return scores


def _length(vectors: np.ndarray, power: float) -> np.ndarray:
    return np.asarray((np.abs(vectors) ** power).sum(axis=-1) ** (1 / power))
