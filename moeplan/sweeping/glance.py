"""What a terminal shows of a sweep, kept while its points go by: some rows, counts and reasons."""

from __future__ import annotations

from typing import Any

from moeplan.errors import UserError
from moeplan.sweeping.ask import Ask
from moeplan.sweeping.columns import Sweep, title_of

__all__ = ["ROWS", "Glance"]

ROWS = 40
"""Points that a table shows: all up to so many, else half of them from each end."""

_TEXTS = 10_000  # different reasons that are told apart


class Glance:
    """Rows and counts of a sweep's stretches, added in order.

    points: added so far, of `planned`. legal, too_large: how many of them have an answer, and have
    one that the GPU's memory does not hold. counts: how often a first reason was given; many_texts
    where there are more than are counted apart. units: of the columns that have one.
    """

    def __init__(self, asked: Ask, *, all_shown: bool) -> None:
        """all_shown: also columns that are the same at every point, or are nowhere."""
        self.asked, self.all_shown = asked, all_shown
        self.title = title_of(asked)
        self.axes, self.inputs = asked.axes, tuple(asked.inputs)
        self.on_cluster = asked.mode != "estimate"
        self.planned = asked.grid.count
        self.points = self.legal = self.too_large = 0
        self.units: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.many_texts = False
        self._head: dict[str, list[Any]] = {}
        self._tail: dict[str, list[Any]] = {}
        self._first: dict[str, Any] = {}
        self._differ: set[str] = set()
        self._present: set[str] = set()
        self._missing: dict[str, str] = {}
        self._texts: dict[str, None] = {}

    def add(self, found: Sweep, missing: dict[str, str]) -> None:
        """The next stretch of points, and what is said of paths that it does not have."""
        legal = found.legal
        self.points += found.points
        self.legal += int(legal.sum())
        self.too_large += int(found.too_large.sum())
        self.units |= found.units
        self._missing = {**missing, **self._missing}
        half = ROWS // 2
        for name, column in found.columns.items():
            head = self._head.setdefault(name, [])
            head += column[: ROWS - len(head)].tolist()
            self._tail[name] = [*self._tail.get(name, []), *column[-half:].tolist()][-half:]
        for path in self.asked.show:
            self._compare(path, found.columns[path][legal])
        self._count(found.columns["reason"][~legal].tolist())

    def _compare(self, path: str, values: Any) -> None:
        """Note whether a column is somewhere, and whether it differs between legal points."""
        if not values.size:
            return
        nothing = values != values if values.dtype.kind == "f" else values == None  # noqa: E711
        if not nothing.all():
            self._present.add(path)
        first = self._first.setdefault(path, values[:1].tolist()[0])
        if path not in self._differ and bool((values != first).any()):
            self._differ.add(path)

    def _count(self, reasons: list[str]) -> None:
        for text in reasons:
            if not self.legal and len(self._texts) < _TEXTS:
                self._texts[text] = None
            first, more, _ = text.partition("; ")
            said = f"{first}; and more" if more else first
            if said in self.counts or len(self.counts) < _TEXTS:
                self.counts[said] = self.counts.get(said, 0) + 1
            else:
                self.many_texts = True

    # ------------------------------------------------------------------------------ in words
    def check(self) -> None:
        """`UserError` where no point is legal, or none has what was asked for."""
        if not self.legal:
            raise UserError(self._none_legal())
        for path in self.asked.show:
            if path not in self._present and path in self._missing:
                raise UserError(self._missing[path])

    def _none_legal(self) -> str:
        first, *others = self._texts
        if self.points == 1:
            return f"the point is not legal: {first}"
        more = f"; and {len(others)} other reason{'s' * (len(others) > 1)}" if others else ""
        return f"none of the {self.points:,} points is legal: {first}{more}"

    @property
    def shown(self) -> tuple[str, ...]:
        """The columns to show: all, or those that differ between points where some do."""
        if self.all_shown:
            return self.asked.show
        somewhere = [path for path in self.asked.show if path in self._present]
        differ = [path for path in somewhere if path in self._differ]
        return tuple(differ or somewhere)

    @property
    def same(self) -> dict[str, Any]:
        """Values of the columns that are left out, because they are the same at every point."""
        if self.all_shown or not self._differ & self._present:
            return {}
        return {
            path: self._first[path]
            for path in self.asked.show
            if path in self._present and path not in self._differ
        }

    @property
    def fixed(self) -> list[str]:
        """Inputs with one value at all points, where there are several points."""
        columns = self.asked.grid.columns
        return [n for n in self.inputs if len(columns[n].values) == 1] if self.planned > 1 else []

    def values(self, name: str) -> list[Any]:
        """A column's values in the rows that are shown."""
        if self.points <= ROWS:
            return self._head[name]
        half = ROWS // 2
        return [*self._head[name][:half], *self._tail[name]]
