"""Search for training: memory and step time of every legal layout, ranked."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from moeplan.arrays import np
from moeplan.calc import value
from moeplan.cluster.layout import Layout
from moeplan.parallel import TrainingPlan
from moeplan.parallel.scan import PieceTable, Place, fill_tables, memory_and_step
from moeplan.plan.front import Front
from moeplan.plan.grid import Grid, Part
from moeplan.plan.space import Space

__all__ = ["ROOM", "SLACK", "Found", "search_training"]

SLACK = 1.35
"""Layouts within this factor of the best step are kept: those that another input could favour."""

ROOM = 1.5
"""Layouts of up to this many times the GPU's memory have their time evaluated too."""

_ROWS = 131072  # layouts (times ZeRO stages) at a time
_NUMBERS = ("kind", "vpp", "row", "zero")


@dataclass
class Found:
    """What a search of one grid found.

    combinations, legal, fit: how many layouts there were. near: the layouts that fit within SLACK
    of the best (at least `top`), sorted by step, then memory; columns of _NUMBERS. front: memory
    and step of layouts that none beats, up to ROOM times the memory. least: the layout that needs
    least memory. by_kind: best step and memory of each kind.
    """

    grid: Grid
    kinds: list[Layout]
    capacity: float
    top: int
    front: Front
    combinations: int = 0
    legal: int = 0
    fit: int = 0
    least: tuple[float, Any] = (float("inf"), None)
    near: Any = field(default_factory=lambda: np.empty((len(_NUMBERS) + 2, 0)))
    best: float = float("inf")
    by_kind: dict[int, tuple[float, Any]] = field(default_factory=dict)

    # --------------------------------------------------------------------------------- adding
    def add(self, kind: int, part: Part, rows: Any, memory: Any, at: Any, step: Any) -> None:
        """Take in a chunk: memory of all its layouts (Z, G), step of those at some places."""
        self.legal += memory.size
        size = rows.size
        lowest = int(memory.argmin())
        if memory.flat[lowest] < self.least[0]:
            self.least = (float(memory.flat[lowest]), self._number(kind, part, rows, [lowest])[:, 0])
        if not at.size:
            return
        held = memory.ravel().take(at)

        def numbers(chosen: Any) -> Any:
            return self._number(kind, part, rows, at[chosen])

        self.front.add(held, step, numbers)
        fits = held <= self.capacity
        count = int(np.count_nonzero(fits))
        self.fit += count
        if not count:
            return
        own = np.where(fits, step, np.inf)
        first = int(own.argmin())
        if own[first] < self.by_kind.get(kind, (np.inf,))[0]:
            self.by_kind[kind] = (float(own[first]), numbers([first])[:, 0])
        self.best = min(self.best, float(own[first]))
        chosen = np.flatnonzero(fits & (step <= self._limit()))
        if chosen.size:
            more = np.concatenate([numbers(chosen), [held[chosen], step[chosen]]])
            self.near = np.concatenate([self.near, more], axis=1)
            if self.near.shape[1] > 8 * size:
                self.trim()

    def _number(self, kind: int, part: Part, rows: Any, places: Any) -> Any:
        zeros, own = np.divmod(np.asarray(places), rows.size)
        out = np.empty((len(_NUMBERS), len(own)))
        out[0], out[1] = kind, part.vpp
        out[2], out[3] = rows[own], self.grid.zero.ravel()[zeros]
        return out

    def _limit(self) -> float:
        """The longest step that is worth keeping."""
        if self.near.shape[1] < self.top:
            return float("inf")
        return max(self.best * SLACK, self._enough)

    _enough: float = float("inf")

    def trim(self) -> None:
        """Drop what is beyond the limit now that the best is known better."""
        step = self.near[-1]
        if step.size >= self.top:
            self._enough = float(np.partition(step, self.top - 1)[self.top - 1])
        self.near = self.near[:, step <= self._limit()]

    def join(self, other: Found) -> None:
        """Take in what another part of the same search found."""
        self.combinations += other.combinations
        self.legal += other.legal
        self.fit += other.fit
        if other.least[0] < self.least[0]:
            self.least = other.least
        self.best = min(self.best, other.best)
        self.near = np.concatenate([self.near, other.near], axis=1)
        for kind, found in other.by_kind.items():
            if found[0] < self.by_kind.get(kind, (np.inf,))[0]:
                self.by_kind[kind] = found
        self.front.join(other.front)

    def finish(self) -> None:
        """Sort what was kept: by step, then by memory, then in the order of the grid."""
        self.trim()
        near = self.near
        self.near = near[:, np.lexsort((near[2], near[1], near[3], near[0], near[4], near[5]))]

    # -------------------------------------------------------------------------------- reading
    def layout(self, numbers: Any) -> Layout:
        """The layout of one column of numbers."""
        kind, vpp, row, zero = (int(x) for x in numbers[:4])
        columns = {name: int(a[row]) for name, a in self.grid.columns.items()}
        return self.kinds[kind].at(
            {**columns, "vpp": vpp, "zero": zero, "batch": self.grid.batch}
        )


def search_training(
    plan: TrainingPlan, space: Space, gpus: int, batch: int, *, top: int = 10, workers: int = 1
) -> Found:
    """Evaluate every legal layout of a space on some GPUs, `batch` sequences a step.

    workers: threads; they give the same result as one.
    """
    grid = Grid.of(plan, space, gpus, batch)
    kinds = list(space.kinds())
    out = _empty(plan, grid, kinds, top)
    with ThreadPoolExecutor(workers) as pool:
        for sp in dict.fromkeys(k.sp for k in kinds):
            here = [k for k in kinds if k.sp == sp]
            alike = {_table_key(k): k for k in here}
            tables = dict(
                zip(alike, fill_tables(plan, grid.degrees, list(alike.values())), strict=True)
            )
            tasks = [(kinds.index(k), k, tables[_table_key(k)]) for k in here]
            found = map(lambda task: _search_kind(out, *task), tasks)
            for part in found:
                out.join(part)
    out.finish()
    return out


def _empty(plan: TrainingPlan, grid: Grid, kinds: list[Layout], top: int) -> Found:
    capacity = float(value(plan.capacity))
    return Found(grid, kinds, capacity, top, Front(ROOM * capacity, len(_NUMBERS)))


def _table_key(kinds: Layout) -> tuple[Any, ...]:
    dropped = kinds.selective if kinds.recompute == "selective" else ()
    return kinds.sp, kinds.recompute, dropped, kinds.overlap


def _search_kind(like: Found, number: int, kinds: Layout, table: PieceTable) -> Found:
    """All layouts of one choice of kinds."""
    grid, plan = like.grid, like.grid.plan
    out = _empty(plan, grid, like.kinds, like.top)
    out.combinations = grid.combinations
    chunk = max(1, _ROWS // len(grid.zero))
    for part in grid.parts(kinds):
        place = Place.of(plan, kinds, part.pp, part.vpp, part.rounds)
        for start in range(0, part.rows.size, chunk):
            rows = part.rows[start : start + chunk]
            scanned = grid.scanned(kinds, rows, part.pp, part.vpp)
            memory, at, step = memory_and_step(plan, scanned, place, table, ROOM * out.capacity)
            out.add(number, part, rows, memory, at, step)
    out.trim()
    return out
