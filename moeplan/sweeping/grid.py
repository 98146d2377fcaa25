"""The points of a sweep: the product of its axes, with what formulas make of them.

A column is a list of different values and, for each point, a place in it. Places of an axis follow
from the point's number and take no memory; those of a formula take 4 bytes a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from moeplan.arrays import np
from moeplan.errors import UserError, near_miss
from moeplan.sweeping.formula import Formula

__all__ = ["Column", "Grid", "Places", "product"]

_LARGEST = 2**53  # whole numbers up to here are exact in float64


@dataclass(frozen=True)
class Places:
    """The place of a point's value on an axis of `size` values that each last `stride` points."""

    stride: int
    size: int

    def __getitem__(self, points: Any) -> Any:
        return points // self.stride % self.size


class Column(NamedTuple):
    """Different values, and the place of each point's value among them, by `at[points]`."""

    values: Sequence[Any]
    at: Any

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in self.values)

    def take(self, points: Any) -> list[Any]:
        """The values of some points."""
        return [self.values[i] for i in self.at[points]]

    def array(self, points: Any) -> Any:
        """The numbers of some points, float64."""
        return np.asarray(self.values, np.float64)[self.at[points]]


class Grid:
    """Columns by name, and for points where a formula has no value, why."""

    def __init__(self, columns: dict[str, Column], count: int) -> None:
        self.columns = columns
        self.count = count
        self.reasons: dict[int, str] = {}

    def add(
        self, name: str, formula: Formula, base: Callable[[str, Grid], Column | None]
    ) -> Column:
        """Make a column of a formula over others, or over the model's own values (`base`)."""
        values: dict[str, Any] = {}
        every = np.arange(self.count)
        for used in formula.names:
            found = self.columns.get(used) if used != name else None
            found = base(used, self) if found is None else found
            where = f"--set {name}={formula.text}"
            if found is None:
                known = [n for n in self.columns if n != name]
                raise UserError(
                    f"{where}: {used!r} has no value here{near_miss(used, known)}; give it one "
                    f"with --vary or an earlier --set"
                )
            if not found.numeric:
                raise UserError(f"{where}: {used!r} is not a number")
            values[used] = found.array(every)
        result = np.broadcast_to(np.asarray(formula.over(values), np.float64), (self.count,))
        reason = f"{name} = {formula.text} has no finite value"
        for point in np.flatnonzero(~np.isfinite(result)):
            self.reasons.setdefault(int(point), reason)
        distinct, at = np.unique(result, return_inverse=True)
        self.columns[name] = Column([_number(x) for x in distinct.tolist()], at.astype(np.int32))
        return self.columns[name]


def product(axes: Mapping[str, Sequence[Any]], most: int) -> Grid:
    """Every combination, the last axis fastest. `UserError` for more than `most` points."""
    count = math.prod(len(values) for values in axes.values())
    if count > most:
        sizes = " x ".join(f"{len(v):,} {name}" for name, v in axes.items())
        raise UserError(
            f"{sizes} are {count:,} points, more than --max-points {most:,}: vary less, or allow "
            "more"
        )
    columns, stride = {}, count
    for name, values in axes.items():
        stride //= len(values)
        columns[name] = Column(values, Places(stride, len(values)))
    return Grid(columns, count)


def _number(x: float) -> float:
    return int(x) if math.isfinite(x) and x.is_integer() and abs(x) < _LARGEST else x
