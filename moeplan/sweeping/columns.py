"""Columns in the making: answers of many tasks, gathered into one array a column."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moeplan.arrays import is_array, np
from moeplan.errors import UserError
from moeplan.sweeping.answers import Answer, Found
from moeplan.sweeping.ask import Ask
from moeplan.sweeping.inputs import UNITS

__all__ = ["Columns", "Sweep", "cells"]

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
    `fits` says which of them the GPU's memory holds.
    """

    title: str
    axes: tuple[str, ...]
    inputs: tuple[str, ...]
    shown: tuple[str, ...]
    columns: dict[str, Any]
    units: dict[str, str] = field(default_factory=dict)
    same: dict[str, Any] = field(default_factory=dict)
    on_cluster: bool = False

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
    """Pieces of columns, taken answer by answer."""

    def __init__(self, asked: Ask) -> None:
        self.asked = asked
        self.pieces: dict[str, list[tuple[Any, Found]]] = {path: [] for path in asked.show}
        self.missing: dict[str, str] = {}
        self.units: dict[str, str] = {}
        self.reasons = dict(asked.grid.reasons)

    def take(self, answer: Answer) -> None:
        """Keep an answer."""
        self.reasons |= answer.reasons
        if not len(answer.points):
            return
        for path, found in answer.columns.items():
            if found.missing:
                self.missing.setdefault(path, found.missing)
            if found.value is None:
                continue
            self.pieces[path].append((answer.points, found))
            if found.unit:
                self.units.setdefault(path, found.unit)

    def finish(self, *, all_shown: bool) -> Sweep:
        """The columns. `UserError` where no point is legal, or none has what was asked for.

        all_shown: also what is the same at every point, or is nowhere.
        """
        asked, count = self.asked, self.asked.grid.count
        if len(self.reasons) == count:
            raise UserError(_none_legal(self.reasons, count))
        for path, pieces in self.pieces.items():
            if not pieces and path in self.missing:
                raise UserError(self.missing[path])
        reason = np.full(count, "", dtype=object)
        for point, text in self.reasons.items():
            reason[point] = text
        found = {path: _gathered(pieces, count) for path, pieces in self.pieces.items()}
        same: dict[str, Any] = {}
        shown = list(asked.show)
        if not all_shown:
            shown, same = self._different(found, reason == "")
        columns = {}
        for name in asked.inputs:
            column = asked.grid.columns[name]
            columns[name] = _column(list(column.values))[column.at]
        columns |= {path: found[path] for path in shown}
        columns["reason"] = reason
        named = asked.axes, tuple(asked.inputs), tuple(shown)
        return Sweep(self._title(), *named, columns, self._units(), same, asked.mode != "estimate")

    def _different(self, found: dict[str, Any], legal: Any) -> tuple[list[str], dict[str, Any]]:
        """Columns that differ between legal points, and the values of those that do not."""
        kept, same = [], {}
        for path, column in found.items():
            if not self.pieces[path]:
                continue
            first, *others = dict.fromkeys(column[legal].tolist())
            if others:
                kept.append(path)
            else:
                same[path] = first
        if not kept:
            return list(same), {}
        return kept, same

    def _title(self) -> str:
        asked = self.asked
        name = ", ".join(model.name for model in asked.models.values())
        if asked.mode == "estimate":
            return name
        work = "training" if asked.mode == "train" else "serving"
        where = f" on {asked.cluster}" if asked.cluster else ""
        return f"{name}, {work}{where}"

    def _units(self) -> dict[str, str]:
        out = {}
        for name, known in self.asked.inputs.items():
            if known.kind in UNITS:
                out[name] = UNITS[known.kind]
        return out | self.units


def _others(count: int) -> str:
    return f"{count} other reason{'s' if count > 1 else ''}"


def _none_legal(reasons: dict[int, str], count: int) -> str:
    texts = list(dict.fromkeys(reasons[point] for point in sorted(reasons)))
    if count == 1:
        return f"the point is not legal: {texts[0]}"
    more = f"; and {_others(len(texts) - 1)}" if len(texts) > 1 else ""
    return f"none of the {count:,} points is legal: {texts[0]}{more}"


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

    Whole numbers are ints where the whole column is of whole numbers that are exact.
    """
    values = column.tolist()
    if column.dtype.kind != "f":
        return list(values)
    finite = np.isfinite(column)
    some = column[finite]
    whole = bool((some == np.floor(some)).all() and (np.abs(some) < _EXACT).all())
    return [
        (int(v) if whole else v) if good else None
        for v, good in zip(values, finite.tolist(), strict=True)
    ]
