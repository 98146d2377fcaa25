"""Answers at points: what both kinds of evaluation share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from moeplan.arrays import is_array, np
from moeplan.errors import UserError
from moeplan.model.spec import ModelSpec
from moeplan.sweeping.ask import Ask, Group
from moeplan.sweeping.checks import check_value
from moeplan.sweeping.inputs import Room

__all__ = ["Answer", "Evaluator", "Found", "picked"]


class Found(NamedTuple):
    """A column at some points: a number or word for all of them, or an array or list; its unit.

    value is None where the points have nothing there; `missing` then says so if it is no null.
    """

    value: Any
    unit: str = ""
    missing: str = ""


class Answer(NamedTuple):
    """Columns at `points`, and the points that are not legal with their reasons."""

    points: Any
    columns: Mapping[str, Found]
    reasons: Mapping[int, str]


class Evaluator(ABC):
    """Evaluates points of a group, as arrays; points that cannot be are told apart by name."""

    chunk: int
    """Points at a time: what one pass may need in memory."""

    def __init__(self, asked: Ask) -> None:
        self.asked = asked
        self._wrong = {name: self._wrong_values(name) for name in asked.arrays}

    def _wrong_values(self, name: str) -> dict[int, str]:
        """Places of values that formulas made and that the input cannot have."""
        out: dict[int, str] = {}
        if name in self.asked.given:
            return out
        for at, value in enumerate(self.asked.grid.columns[name].values):
            try:
                check_value(self.asked.inputs[name], value, self.asked.mode)
            except UserError as problem:
                out[at] = str(problem)
        return out

    def answers(self, group: Group) -> list[Answer]:
        """Everything about the points of a group."""
        good = np.ones(len(group.points), dtype=bool)
        reasons: dict[int, str] = {}
        for name, wrong in self._wrong.items():
            if wrong:
                at = self.asked.grid.columns[name].at[group.points]
                for i in np.flatnonzero(np.isin(at, list(wrong))):
                    reasons.setdefault(int(group.points[i]), wrong[int(at[i])])
                    good[i] = False
        out = [Answer(group.points[:0], {}, reasons)] if reasons else []
        points = group.points[good]
        if points.size:
            try:
                prepared = self.prepare(group.shared)
            except UserError as problem:
                return [*out, _refused(points, problem)]
            out += self._parts(prepared, points)
        return out

    def _parts(self, prepared: Any, points: Any) -> list[Answer]:
        """Points at once; where that is refused, its halves, down to the single point."""
        try:
            return [self.evaluate(prepared, points, self._numbers(points))]
        except UserError as problem:
            if points.size == 1:
                return [_refused(points, problem)]
        half = points.size // 2
        return [*self._parts(prepared, points[:half]), *self._parts(prepared, points[half:])]

    def _numbers(self, points: Any) -> dict[str, Any]:
        """The arrays of points; of a single one, its exact numbers."""
        columns = self.asked.grid.columns
        if points.size == 1:
            return {name: columns[name].take(points)[0] for name in self.asked.arrays}
        return {name: columns[name].array(points) for name in self.asked.arrays}

    # ------------------------------------------------------------------------------ shared
    def of_room(self, values: Mapping[str, Any], room: Room) -> dict[str, Any]:
        """The values that belong to a room, by the room's own key."""
        inputs = self.asked.inputs
        return {inputs[n].key: v for n, v in values.items() if inputs[n].room == room}

    def spec(self, shared: Mapping[str, Any]) -> ModelSpec:
        """The model of a group, its config changed."""
        return self.asked.architecture(shared).changed(self.of_room(shared, "shape"))

    def first(self, group: Group) -> Answer | None:
        """The answer at a group's first point, or None where it has none."""
        try:
            point = group.points[:1]
            return self.evaluate(self.prepare(group.shared), point, self._numbers(point))
        except UserError:
            return None

    @abstractmethod
    def prepare(self, shared: Mapping[str, Any]) -> Any:
        """What all points of a group share. Raises `UserError` where none of them can be."""

    @abstractmethod
    def evaluate(self, prepared: Any, points: Any, numbers: Mapping[str, Any]) -> Answer:
        """The columns at points. Raises `UserError` where one of them cannot be told apart."""


def _refused(points: Any, problem: UserError) -> Answer:
    return Answer(points[:0], {}, {int(p): str(problem) for p in points})


def picked(found: Found, good: Any) -> Found:
    """A column at the good points only."""
    value = found.value
    if is_array(value) and value.ndim:
        return Found(np.broadcast_to(value, good.shape)[good], found.unit)
    if isinstance(value, list):
        return Found([v for v, keep in zip(value, good, strict=True) if keep], found.unit)
    return found
