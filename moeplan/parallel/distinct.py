"""Seconds of many rows of work at once, each different one evaluated once.

Layouts share most of their work: a calibrated model of an op is asked for the different ones only.
"""

from __future__ import annotations

from typing import Any

from moeplan.arrays import is_array, np
from moeplan.parallel.optime import RowTimes, Seconds, Work

__all__ = ["distinct_seconds"]

_WORTH = 512  # rows from which sorting is cheaper than evaluating


def distinct_seconds(times: RowTimes, work: Work, *, explained: bool) -> Seconds:
    """`times.seconds` of the work, arrays of which are cut to their different rows meanwhile."""
    given = [work.flops, work.moved, *(work.gemm or ()), work.groups, work.experts]
    arrays = [x for x in given if is_array(x) and x.ndim == 1]
    size = max((x.size for x in arrays), default=0)
    alike = not explained and times.stack.calibrated and size >= _WORTH
    if not alike or any(x.size != size for x in arrays):
        return times.seconds(work, explained=explained)
    code = np.zeros(size, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for x in arrays:
            bits = np.ascontiguousarray(x, dtype=np.float64).view(np.uint64)
            code = (code ^ (bits >> np.uint64(29)) ^ bits) * np.uint64(0x9E3779B97F4A7C15)
    _, first, place = np.unique(code, return_index=True, return_inverse=True)
    if any((x[first][place] != x).any() for x in arrays):  # two rows of one code
        return times.seconds(work, explained=explained)

    def cut(x: Any) -> Any:
        return x[first] if is_array(x) and x.ndim == 1 else x

    few = work._replace(
        flops=cut(work.flops),
        moved=cut(work.moved),
        gemm=None if work.gemm is None else tuple(cut(x) for x in work.gemm),
        groups=cut(work.groups),
        experts=cut(work.experts),
    )
    found = times.seconds(few, explained=False)
    return Seconds(*(x[place] if is_array(x) and x.ndim == 1 else x for x in found))
