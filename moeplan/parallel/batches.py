"""Batches at a border: the largest that a limit allows, the least that carries a load.

What grows with the batch is found for whole numbers between two that are known: in each round at
the place where a line through both ends meets the limit, beside it, and half way (in logarithms).
Numbers and arrays take the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

from moeplan.arrays import anywhere, floor, is_array, larger, np, pick, root, smaller
from moeplan.parallel.limits import by_turns

__all__ = ["Step", "blocks", "border", "largest_in_time", "least_carrying"]

Step: TypeAlias = "Callable[[Any, Any], Any]"
"""Seconds of a decoding step with a batch, of arrays those of rows `at`; see `border`."""

_SLACK = 1e-9  # of a load that is carried but for rounding
_SCANNED, _FEWEST, _MOST = 4096, 12, 96  # batches of all rows, and of each, that are tried first
_ROUNDS = 60  # more than any batch needs: half way alone takes 20


def blocks(x: Any, batch: Any, at: Any) -> Any:
    """Rows `at` of an array, again for each block of batches; a number is what it is."""
    if at is None or not is_array(x) or not x.ndim:
        return x
    return np.tile(x[at], batch.size // at.size)


def largest_in_time(
    step: Step, most: Any, *, limit: Any, prefill: Any, gpus: Any, output: Any
) -> Any:
    """The largest batch of at most `most` whose time per output token is within `limit` (s).

    prefill: GPU-seconds of a request's prefill that takes turns with decoding, else None. gpus: of
    the instance. output: tokens of a request.
    """

    def over(batch: Any, at: Any) -> Any:
        seen = step(batch, at)
        if prefill is not None:
            seen = by_turns(
                seen, blocks(prefill, batch, at), batch, blocks(gpus, batch, at), output
            )
        return seen - blocks(limit, batch, at)

    with np.errstate(all="ignore") if is_array(most) else nullcontext():
        return border(over, most)


def least_carrying(
    step: Step, most: Any, *, rate: Any, prefill: Any, gpus: Any, output: Any
) -> Any:
    """The least batches of at most `most` that carry `rate` requests a second; arrays.

    prefill, gpus, output: see `largest_in_time`.
    """

    def over(batch: Any, at: Any) -> Any:
        prefilling = blocks(prefill, batch, at) / blocks(gpus, batch, at)
        busy = prefilling + output * step(batch, at) / batch
        return 1 / (blocks(rate, batch, at) * busy) - 1 + _SLACK  # above 0 it carries them

    if not most.size:
        return np.ones(0)
    # what a GPU yields has dips, where tiles fill badly: the first batch that carries counts
    most = np.maximum(1.0, np.floor(most))
    count = int(np.clip(_SCANNED // most.size, _FEWEST, _MOST))
    share = np.linspace(0, 1, count).reshape(-1, 1)
    tried = np.floor(most**share * (1 + 1e-12))
    with np.errstate(all="ignore"):
        carries = over(tried.ravel(), np.arange(most.size)).reshape(tried.shape) > 0
        carries[-1] = True  # but for rounding it does
        first = carries.argmax(axis=0)
        high, low = (
            np.take_along_axis(tried, np.maximum(0, at)[None], axis=0)[0]
            for at in (first, first - 1)
        )
        return np.where(first == 0, 1.0, np.minimum(border(over, high, low) + 1, high))


def border(over: Callable[[Any, Any], Any], most: Any, least: Any = 1.0) -> Any:
    """The largest whole number from `least` to `most` for which `over` is at most 0, else `least`.

    over(batch, at): how far a batch is over the limit, which grows with it; for an array `most`
    that of the places `at`, of which each has as many batches as there are blocks in `batch`.
    """
    if is_array(most):
        most = np.maximum(1.0, np.floor(most))
        return _arrays(over, most, np.broadcast_to(least, most.shape))
    low, high = least, max(1.0, float(floor(most)))
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


def _arrays(over: Callable[[Any, Any], Any], most: Any, least: Any) -> Any:
    every = np.arange(most.size)
    both = over(np.concatenate([least, most]), every)
    at_low, at_high = both[: most.size], both[most.size :]
    found = np.where(at_high <= 0, most, least)
    at = np.flatnonzero((at_low <= 0) & (at_high > 0))
    ends = least[at], most[at], at_low[at], at_high[at]
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
