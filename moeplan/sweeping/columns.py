"""Columns in the making: answers of many tasks, gathered into one array a column.

A sweep is made in stretches of its points, each a `Sweep` of its own with the same columns; where
all points are needed at a time there is one stretch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moeplan.arrays import is_array, np
from moeplan.sweeping.answers import Answer, Found
from moeplan.sweeping.ask import Ask
from moeplan.sweeping.formula import Formula
from moeplan.sweeping.inputs import UNITS

__all__ = ["Columns", "Sweep", "cells", "title_of"]

_EXACT = 2**53  # whole numbers up to here are exact in float64
_LARGEST = 2**63


@dataclass
class Sweep:
    """The columns of a sweep, each with one entry a point, and what is to be said of them.

    axes: the inputs that are varied; inputs: those that are fixed or linked too. columns: inputs
    first, then what is shown, then `reason` (why a point is not legal, else "").
    Numbers are int64, or float64 with nan where a point has none; words, and whole numbers that
    float64 cannot hold, are objects with None. units: of the columns that have one. same: what was
    left out, because it is the same at every point. on_cluster: points are layouts, and the column
    `fits` says which of them the GPU's memory holds. links: formulas of inputs.
    """

    title: str
    axes: tuple[str, ...]
    inputs: tuple[str, ...]
    shown: tuple[str, ...]
    columns: dict[str, Any]
    units: dict[str, str] = field(default_factory=dict)
    same: dict[str, Any] = field(default_factory=dict)
    on_cluster: bool = False
    links: dict[str, Formula] = field(default_factory=dict)

    @property
    def points(self) -> int:
        """How many points there are."""
        return len(self.columns["reason"])

    @property
    def legal(self) -> Any:
        """Which points have an answer."""
        return self.columns["reason"] == ""

    @property
    def too_large(self) -> Any:
        """Which legal points do not fit the GPU's memory."""
        fits = self.columns.get("fits") if self.on_cluster else None
        if fits is None:
            return np.zeros(self.points, dtype=bool)
        return self.legal & (fits == False)  # noqa: E712 (an object column holds None too)


class Columns:
    """Answers of a stretch of points, to be gathered into columns of all of them or of some."""

    def __init__(self, asked: Ask) -> None:
        self.asked = asked
        self.answers: list[Answer] = []
        self.missing: dict[str, str] = {}
        self.units: dict[str, str] = {}
        self.reasons: dict[int, str] = {}

    def take(self, answer: Answer) -> None:
        """Keep an answer."""
        self.reasons |= answer.reasons
        if not len(answer.points):
            return
        self.answers.append(answer)
        for path, found in answer.columns.items():
            if found.missing:
                self.missing.setdefault(path, found.missing)
            if found.unit and found.value is not None:
                self.units.setdefault(path, found.unit)

    def answered(self) -> Any:
        """The points that have an answer so far, in order, and those before that have no value."""
        points = np.concatenate(
            [
                *(np.asarray(answer.points) for answer in self.answers),
                np.fromiter(self.reasons, dtype=np.int64),
            ]
        ).astype(np.int64)
        if not points.size:
            return points
        broken = [point for point in self.asked.grid.reasons if point < points.max()]
        return np.unique(np.concatenate([points, np.asarray(broken, dtype=np.int64)]))

    def sweep(self, points: Any) -> Sweep:
        """The columns at points, in order; answers are of these only, and are let go."""
        asked = self.asked
        places = [np.searchsorted(points, answer.points) for answer in self.answers]
        columns = {}
        for name in asked.inputs:
            column = asked.grid.columns[name]
            columns[name] = _column(list(column.values))[column.at[points]]
        for path in asked.show:
            pieces = [
                (at, answer.columns[path])
                for at, answer in zip(places, self.answers, strict=True)
                if answer.columns[path].value is not None
            ]
            columns[path] = _gathered(pieces, points.size)
        columns["reason"] = self._reasons(points)
        named = asked.axes, tuple(asked.inputs), asked.show
        found = Sweep(
            title_of(asked), *named, columns, self._units(), on_cluster=asked.mode != "estimate",
            links=asked.links,
        )  # fmt: skip
        self.answers, self.reasons = [], {}
        return found

    def _reasons(self, points: Any) -> Any:
        out = np.full(points.size, "", dtype=object)
        known = self.asked.grid.reasons
        if known:
            for place, point in enumerate(points.tolist()):
                out[place] = known.get(point, "")
        if self.reasons:
            out[np.searchsorted(points, list(self.reasons))] = list(self.reasons.values())
        return out

    def _units(self) -> dict[str, str]:
        out = {}
        for name, known in self.asked.inputs.items():
            if known.kind in UNITS:
                out[name] = UNITS[known.kind]
        return out | self.units


def title_of(asked: Ask) -> str:
    """What a sweep is of: its models, what they do, and where."""
    name = ", ".join(model.name for model in asked.models.values())
    if asked.mode == "estimate":
        return name
    work = "training" if asked.mode == "train" else "serving"
    where = f" on {asked.cluster}" if asked.cluster else ""
    return f"{name}, {work}{where}"


def _column(values: list[Any]) -> Any:
    """Values as an array of the plainest type that holds them all exactly."""
    if all(_is_number(v) for v in values) and not any(_inexact(v) for v in values):
        whole = all(isinstance(v, int) for v in values)
        return np.asarray(values, np.int64 if whole else np.float64)
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def _inexact(value: Any) -> bool:
    """Whether a number is a whole one that float64 does not hold."""
    return isinstance(value, int) and abs(value) > _EXACT and int(float(value)) != value


def _gathered(pieces: list[tuple[Any, Found]], count: int) -> Any:
    """One array of all pieces: int64, float64 with nan for what is missing, or objects."""
    values = [found.value for _, found in pieces]
    full = sum(len(points) for points, _ in pieces) == count
    if all(_is_whole(v) for v in values) and values:
        most = max(abs(v) for v in values)
        if full and most < _LARGEST:
            return _filled(np.zeros(count, dtype=np.int64), pieces)
        if most > _EXACT and any(_inexact(v) for v in values):
            return _filled(np.full(count, None, dtype=object), pieces)
    if all(_is_number(v) for v in values):
        return _filled(np.full(count, np.nan), pieces)
    if full and all(_is_flag(v) for v in values):
        return _filled(np.zeros(count, dtype=bool), pieces)
    return _filled(np.full(count, None, dtype=object), pieces)


def _filled(out: Any, pieces: list[tuple[Any, Found]]) -> Any:
    for points, found in pieces:
        value = found.value
        out[points] = np.array(value, dtype=object) if isinstance(value, list) else value
    return out


def _is_whole(value: Any) -> bool:
    if is_array(value):
        return bool(value.dtype.kind == "i")
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if is_array(value):
        return bool(value.dtype.kind in "if")
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return bool(value.dtype.kind == "b") if is_array(value) else isinstance(value, bool)


def cells(column: Any) -> list[Any]:
    """A column as plain values, the same for every file: None where there is nothing.

    Whole numbers that float64 holds exactly are ints.
    """
    values = column.tolist()
    if column.dtype.kind != "f":
        return list(values)
    finite = np.isfinite(column)
    with np.errstate(invalid="ignore"):
        whole = finite & (column == np.floor(column)) & (np.abs(column) < _EXACT)
    return [
        int(v) if w else v if good else None
        for v, w, good in zip(values, whole.tolist(), finite.tolist(), strict=True)
    ]
