"""Layouts that no other beats on two counts, kept while layouts stream past."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeplan.arrays import np

__all__ = ["Front", "undominated"]

_BINS = 4096


def undominated(first: Any, second: Any) -> Any:
    """Indices of the points of which no other is at most as large in both, by the first count.

    Of equal points one stays.
    """
    order = np.lexsort((second, first))
    best = np.minimum.accumulate(second[order])
    lower = np.ones(order.size, dtype=bool)
    lower[1:] = second[order][1:] < best[:-1]
    return order[lower]


class Front:
    """The undominated of all points (first, second) that were added, with rows of other numbers.

    most: the largest `first`. A table of the best `second` by `first` sorts most points out.
    """

    def __init__(self, most: float, width: int) -> None:
        self.first, self.second = np.empty(0), np.empty(0)
        self.rows = np.empty((width, 0))
        self._scale = _BINS / most
        self._best = np.full(_BINS + 2, np.inf)

    def add(self, first: Any, second: Any, rows: Callable[[Any], Any]) -> None:
        """Add points; `rows` gives the other numbers (width, n) of those at some indices."""
        # a bin's best is of points in lower bins, which are no larger in `first`
        bins = (first * self._scale).astype(np.int32)
        at = np.flatnonzero(second < self._best.take(bins, mode="clip"))
        if not at.size:
            return
        at = at[undominated(first[at], second[at])]
        self._merge(first[at], second[at], rows(at))

    def join(self, other: Front) -> None:
        """Add another front's points."""
        self._merge(other.first, other.second, other.rows)

    def _merge(self, first: Any, second: Any, rows: Any) -> None:
        first = np.concatenate([self.first, first])
        second = np.concatenate([self.second, second])
        rows = np.concatenate([self.rows, rows], axis=1)
        if not first.size:
            return
        at = undominated(first, second)
        self.first, self.second, self.rows = first[at], second[at], rows[:, at]
        # the best of the points at most as large as each bin's lower edge
        count = np.searchsorted(self.first, np.arange(_BINS + 2) / self._scale, side="right")
        self._best = np.where(count > 0, self.second[np.maximum(count - 1, 0)], np.inf)
