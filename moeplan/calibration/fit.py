"""Robust fits of an op-time model to measured points, and errors on points left out.

The loss is a pseudo-Huber one on log(predicted / measured), so a factor of two too fast weighs as
much as one too slow and outliers weigh little. Constants stay between their bounds by a logistic
transform of their logarithm. The search is Levenberg-Marquardt with forward differences: it
starts where the model says, draws nothing at random, and so gives the same answer every time.

This is 60 lines instead of a dependency on scipy, which is larger than the rest of the package's
dependencies together and would be loaded for this alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from moeplan.calibration.optime import Constant, Constants, Device, Features, OpModel
from moeplan.calibration.points import Points
from moeplan.errors import UserError

__all__ = ["GROUP_COLUMNS", "Fit", "fit", "groups", "held_out"]

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

HUBER = 0.08  # log residual from which on a point's pull grows no further
ITERATIONS = 40
DIFFERENCE = 1e-4  # of the transformed constants
ENOUGH = 1e-5  # share of the loss that another step must save
FOLDS = 5
MOST = 1500  # points that a fit takes; of more, it takes every second, third, ...

GROUP_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "moe": ("hidden_size", "inter_size", "topk", "num_experts"),
    "gemm": ("n", "k"),
    "grouped": ("n", "k", "experts"),
    "cpu_matmul": ("n", "k", "experts"),
}
"""What points of a kind have in common when they are left out together: a model, a weight."""


@dataclass(frozen=True)
class Fit:
    """Constants, and those among them that the points said nothing about (kept at defaults)."""

    constants: Constants
    silent: tuple[str, ...]


def fit(model: OpModel, points: Points, device: Device) -> Fit:
    """Fit a model's constants to points with measured times.

    Raises UserError where there are fewer points than constants.
    """
    if points.seconds is None:
        raise UserError(f"{points.source or 'points'}: a fit needs measured times (latency_ms)")
    points = _thinned(_usable(model, points, device))
    assert points.seconds is not None  # taking some of the points keeps their times
    features = model.prepare(points, device)
    informed = model.informed(features)
    free = {name: c for name, c in model.constants.items() if name in informed}
    if len(points) < len(free):
        raise UserError(
            f"{points.source or 'points'}: {len(points)} points of kind {points.kind!r} cannot fix "
            f"{len(free)} constants; measure more shapes"
        )
    kept = {n: _default(c) for n, c in model.constants.items() if n not in informed}
    target = np.log(points.seconds)

    def residuals(x: _Array) -> _Array:
        trial = {**kept, **_constants(free, x)}
        found: _Array = np.log(model.seconds(features, trial)) - target
        return found

    x = _search(residuals, np.array([_to_free(c, _start(c)) for c in free.values()]))
    found = {**kept, **_constants(free, x)}
    return Fit({name: found[name] for name in model.constants}, tuple(sorted(kept)))


def _usable(model: OpModel, points: Points, device: Device) -> Points:
    """The points that the model wants to be fitted to, unless they are too few for it."""
    wanted = model.fitted(model.prepare(points, device))
    return points.take(wanted) if wanted.sum() >= 2 * len(model.constants) else points


def _thinned(points: Points) -> Points:
    step = -(-len(points) // MOST)
    return points if step == 1 else points.take(np.arange(0, len(points), step))


def _start(constant: Constant) -> float:
    return min(max(constant.start, constant.low * 1.01), constant.high / 1.01)


def _default(constant: Constant) -> float:
    return constant.start if constant.default is None else constant.default


def _to_free(constant: Constant, value: float) -> float:
    share = np.log(value / constant.low) / np.log(constant.high / constant.low)
    return float(np.log(share / (1 - share)))


def _constants(free: Mapping[str, Constant], x: _Array) -> dict[str, float]:
    """Constants from their transforms: low·(high/low)^(1 / (1 + e^−x))."""
    share = 1 / (1 + np.exp(-x))
    return {
        name: float(c.low * (c.high / c.low) ** s)
        for (name, c), s in zip(free.items(), share, strict=True)
    }


def _loss(residuals: _Array) -> float:
    return float(np.sum(np.sqrt(1 + (residuals / HUBER) ** 2) - 1))


def _search(residuals: Callable[[_Array], _Array], x: _Array) -> _Array:
    """Levenberg-Marquardt on the weighted residuals, each weight that of the pseudo-Huber loss."""
    here = residuals(x)
    loss, damping = _loss(here), 1e-2
    for _ in range(ITERATIONS):
        slopes = np.stack(
            [(residuals(x + DIFFERENCE * e) - here) / DIFFERENCE for e in np.eye(x.size)], axis=1
        )
        weights = 1 / np.sqrt(1 + (here / HUBER) ** 2)
        normal = (slopes * weights[:, None]).T @ slopes
        gradient = (slopes * weights[:, None]).T @ here
        before = loss
        while damping < 1e8:
            matrix = normal + damping * np.diag(np.diag(normal) + 1e-9)
            step = np.clip(-np.linalg.solve(matrix, gradient), -1, 1)
            there = residuals(x + step)
            if _loss(there) < loss:
                x, here, loss = x + step, there, _loss(there)
                damping = max(damping / 5, 1e-9)
                break
            damping *= 4
        if before - loss < ENOUGH * before:
            break
    return x


def groups(points: Points) -> _Array:
    """The group of each point, as a number: what is left out together."""
    names = GROUP_COLUMNS.get(points.kind, ())
    if not names:
        return np.arange(len(points))
    keys = np.stack([points[name] for name in names])
    place: _Array = np.unique(keys, axis=1, return_inverse=True)[1].ravel()
    return place


def held_out(model: OpModel, points: Points, device: Device) -> tuple[_Array, str]:
    """Seconds predicted for each point by a fit that did not see its group, and how that was done.

    Groups are left out one by one where there are at most five, else in five parts. With a single
    group, every fifth point is left out.
    """
    group = groups(points)
    number = int(group.max()) + 1
    if number == 1:
        fold, how = np.arange(len(points)) % FOLDS, "every fifth point left out in turn"
    else:
        order = np.random.default_rng(0).permutation(number)
        fold = order[group] % min(number, FOLDS)
        parts = f"{number} groups" if number <= FOLDS else f"{FOLDS} parts of {number} groups"
        how = f"{parts} left out in turn"
    out = np.empty(len(points))
    features: Features | None = None
    for part in range(int(fold.max()) + 1):
        left_out = fold == part
        found = fit(model, points.take(~left_out), device)
        features = model.prepare(points.take(left_out), device)
        out[left_out] = model.seconds(features, found.constants)
    return out, how
