"""Batches at a border: the largest that a limit allows, the least that carries a load.

What grows with the batch is found for whole numbers between two that are known: in each round at
the place where a line through both ends meets the limit, beside it, and half way (in logarithms).
Numbers and arrays take the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeplan.arrays import anywhere, floor, is_array, larger, np, pick, root, smaller

__all__ = ["border"]

_ROUNDS = 60  # more than any batch needs: half way alone takes 20


def border(over: Callable[[Any, Any], Any], most: Any) -> Any:
    """The largest whole number from 1 to `most` for which `over` is at most 0; 1 where none is.

    over(batch, at): how far a batch is over the limit, which grows with it; for an array `most`
    that of the places `at`, of which each has as many batches as there are blocks in `batch`.
    """
    if is_array(most):
        return _arrays(over, np.maximum(1.0, np.floor(most)))
    low, high = 1.0, max(1.0, float(floor(most)))
    at_high = over(high, None)
    if at_high <= 0:
        return high
    ends = low, high, over(low, None), at_high
    if ends[2] > 0:
        return low
    for _ in range(_ROUNDS):
        if ends[1] - ends[0] <= 1:
            break
        points = _points(*ends)
        ends = _narrowed(*ends, points, [over(p, None) for p in points])
    return ends[0]


def _arrays(over: Callable[[Any, Any], Any], most: Any) -> Any:
    every = np.arange(most.size)
    both = over(np.concatenate([np.ones(most.size), most]), every)
    at_low, at_high = both[: most.size], both[most.size :]
    found = np.where(at_high <= 0, most, 1.0)
    at = np.flatnonzero((at_low <= 0) & (at_high > 0))
    ends = np.ones(at.size), most[at], at_low[at], at_high[at]
    for _ in range(_ROUNDS):
        wide = ends[1] - ends[0] > 1
        found[at] = ends[0]
        if not anywhere(wide):
            break
        at, ends = at[wide], tuple(x[wide] for x in ends)
        points = _points(*ends)
        values = over(np.concatenate(points), at).reshape(len(points), -1)
        ends = _narrowed(*ends, points, list(values))
    return found


def _points(low: Any, high: Any, at_low: Any, at_high: Any) -> list[Any]:
    """Whole numbers between both ends where the border may be."""
    straight = floor(low + (high - low) * at_low / (at_low - at_high))
    half = floor(root(low * high))
    return [larger(low + 1, smaller(high - 1, p)) for p in (straight, straight + 1, half)]


def _narrowed(
    low: Any, high: Any, at_low: Any, at_high: Any, points: list[Any], values: list[Any]
) -> tuple[Any, Any, Any, Any]:
    """Both ends with what the points told: the first that is over, and the last below it."""
    for point, value in zip(points, values, strict=True):
        nearer = (value > 0) & (point < high)
        high, at_high = pick(nearer, point, high), pick(nearer, value, at_high)
    for point, value in zip(points, values, strict=True):
        nearer = (value <= 0) & (point > low) & (point < high)
        low, at_low = pick(nearer, point, low), pick(nearer, value, at_low)
    return low, high, at_low, at_high
