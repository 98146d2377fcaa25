"""Times of many points, in blocks that a processor's cache holds, and of equal points once.

A GEMM's model tries each tile at each point: of thousands of points these arrays no longer fit a
cache, and waiting for memory takes most of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from moeplan.arrays import is_array, np
from moeplan.calibration.band import Banded
from moeplan.calibration.points import Points

__all__ = ["BLOCK", "in_blocks"]

BLOCK = 1024
"""Points of a block: with 78 choices a point, one array takes 640 kB."""


def in_blocks(points: Points, answer: Callable[[Points], Banded]) -> Banded:
    """What `answer` gives for points whose columns are numbers, or arrays of one dimension.

    The same numbers as one call gives, which is made where points are few or of other shapes.
    `answer` works element by element, and points carry no loads.
    """
    arrays = {name: column for name, column in points.columns.items() if is_array(column)}
    if not arrays:
        return answer(points)
    shapes = {column.shape for column in arrays.values()}
    size = next(iter(arrays.values())).size
    if len(shapes) > 1 or len(next(iter(shapes))) != 1 or size <= BLOCK:
        return answer(points)
    back = None
    if len(arrays) == 1:
        [(name, column)] = arrays.items()
        arrays[name], back = np.unique(column, return_inverse=True)
        size = arrays[name].size
    pieces = []
    for start in range(0, size, BLOCK):
        here = {name: column[start : start + BLOCK] for name, column in arrays.items()}
        length = min(BLOCK, size - start)
        pieces.append((length, answer(replace(points, columns={**points.columns, **here}))))
    return _joined(pieces, back)


def _joined(pieces: list[tuple[int, Banded]], back: Any) -> Banded:
    """Pieces of so many points as one, and each point's place in it where points were equal."""

    def join(values: list[Any]) -> Any:
        whole = np.concatenate(
            [np.broadcast_to(v, n) for (n, _), v in zip(pieces, values, strict=True)]
        )
        return whole if back is None else whole[back]

    names = dict.fromkeys(name for _, made in pieces for name in made.outside)
    return Banded(
        lower=join([made.lower for _, made in pieces]),
        expected=join([made.expected for _, made in pieces]),
        upper=join([made.upper for _, made in pieces]),
        regime=join([made.regime for _, made in pieces]),
        outside={n: join([made.outside.get(n, False) for _, made in pieces]) for n in names},
    )
