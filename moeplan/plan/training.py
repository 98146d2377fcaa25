"""Search for training: memory and step time of every legal layout, ranked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from moeplan.arrays import np
from moeplan.calc import value
from moeplan.cluster.layout import Layout
from moeplan.errors import UserError
from moeplan.parallel import TrainingPlan
from moeplan.parallel.scan import Place, costers, memory_and_step
from moeplan.parallel.table import Coster
from moeplan.plan.grid import Grid, Part
from moeplan.plan.space import Space
from moeplan.plan.tally import NUMBERS, Tally
from moeplan.workers import spread

__all__ = ["WORTH", "Found", "Row", "default_batch", "search_training"]

_ROWS = 131072  # layouts (times ZeRO stages) at a time
WORTH = 2_000_000
"""Layouts from which further processes are worth their start."""
_BATCH_TOKENS = 1 << 24
_HARDLY = 1.01  # what is slower by less, and differs in chunks only, is no other choice


@dataclass(frozen=True, eq=False)
class Found:
    """A search's result: the grid, the kinds, and the tally of all legal layouts."""

    grid: Grid
    kinds: list[Layout]
    tally: Tally
    combinations: int

    def layout(self, numbers: Any) -> Layout:
        """The layout of one column of numbers."""
        kind, vpp, row, zero = (int(x) for x in numbers[: len(NUMBERS)])
        columns = {name: int(a[row]) for name, a in self.grid.columns.items()}
        return self.kinds[kind].at({**columns, "vpp": vpp, "zero": zero, "batch": self.grid.batch})

    def rows(self, count: int) -> tuple[list[list[Any]], int]:
        """Numbers of the best layouts; those of equal step and memory are together in a row.

        Left out, and counted: rows that are as those above but for vpp, and hardly slower.
        """
        near = self.tally.near
        if not near.shape[1]:
            return [], 0
        last = near[-2:]
        new = (np.abs(np.diff(last)) > 1e-12 * np.abs(last[:, :-1])).any(axis=0)
        ends = [*(np.flatnonzero(new) + 1).tolist(), near.shape[1]]
        out: list[list[Any]] = []
        shown: dict[tuple[float, ...], float] = {}
        start = left = 0
        for end in ends:
            if len(out) == count:
                break
            names = [tuple(column) for column in near[[0, 2, 3], start:end].T.tolist()]
            step = float(near[-1, start])
            if all(step < _HARDLY * shown.get(name, 0.0) for name in names):
                left += 1
            else:
                out.append(list(near[:, start:end].T))
                for name in names:
                    shown[name] = step
            start = end
        return out, left

    def best(self, count: int) -> list[Layout]:
        """The first of the layouts that fit."""
        return [self.layout(column) for column in self.tally.near.T[:count]]


class Row:
    """A row of an answer: a layout, and those that take as long and hold as much."""

    def __init__(self, found: Found, layout: Layout, *alike: Layout) -> None:
        self.found, self.layout, self.alike = found, layout, alike


def default_batch(gpus: int, sequence: int) -> int:
    """Sequences of a step where nobody says: the multiple of the GPUs nearest to 16 Mi tokens."""
    return gpus * max(1, round(_BATCH_TOKENS / sequence / gpus))


def search_training(
    plan: TrainingPlan, space: Space, gpus: int, batch: int, *, top: int = 10, workers: int = 1
) -> Found:
    """Evaluate every legal layout of a space on some GPUs, `batch` sequences a step.

    top: how many of the best are kept at least. workers: processes; any number gives the same
    result, and a small search takes one.
    """
    if workers < 1:
        raise UserError(f"workers={workers} must be at least 1")
    grid = Grid.of(plan, space, gpus, batch)
    kinds = list(space.kinds())
    total = Tally(float(value(plan.capacity)), top)
    for sp in dict.fromkeys(k.sp for k in kinds) if grid.size else ():
        narrow = grid.narrowed([k for k in kinds if k.sp == sp])
        for found in _spread(_Search(narrow, kinds, top, sp), workers) if narrow.size else ():
            total.join(found)
    total.finish()
    return Found(grid, kinds, total, grid.combinations * len(kinds))


class _Search:
    """Costs of all kinds with one sequence parallelism, and the parts of the search over them."""

    def __init__(self, grid: Grid, kinds: list[Layout], top: int, sp: bool) -> None:
        self.grid, self.kinds, self.top = grid, kinds, top
        alike = {_cost_key(k): k for k in kinds if k.sp == sp}
        found = costers(grid.plan, grid.axes, list(alike.values()))
        self.costers: dict[Any, Coster] = dict(zip(alike, found, strict=True))
        self.tasks = [
            (number, part) for number, k in enumerate(kinds) if k.sp == sp for part in grid.parts(k)
        ]

    def run(self, tasks: Iterable[int]) -> Tally:
        """The tally of some tasks."""
        grid = self.grid
        out = Tally(float(value(grid.plan.capacity)), self.top)
        for task in tasks:
            self._part(out, *self.tasks[task])
        out.trim()
        return out

    def _part(self, out: Tally, number: int, part: Part) -> None:
        grid, kinds = self.grid, self.kinds[number]
        coster = self.costers[_cost_key(kinds)]
        places = [
            (vpp, Place.of(grid.plan, kinds, part.pp, vpp, part.rounds)) for vpp in part.chunks
        ]
        chunk = max(1, _ROWS // len(grid.zero))
        for start in range(0, part.rows.size, chunk):
            rows = part.rows[start : start + chunk]
            scanned = grid.scanned(kinds, rows, part.pp, coster)
            for vpp, place in places:
                found = memory_and_step(scanned, place, vpp, out.most)
                out.add(number, *found, _named(grid, number, vpp, rows))


def _named(grid: Grid, kind: int, vpp: int, rows: Any) -> Any:
    """A function that gives NUMBERS of places in an array of ZeRO stages times rows."""

    def numbers(places: Any) -> Any:
        zeros, own = np.divmod(places, rows.size)
        out = np.empty((len(NUMBERS), len(own)))
        out[0], out[1] = kind, vpp
        out[2], out[3] = grid.number(rows[own]), grid.zero.ravel()[zeros]
        return out

    return numbers


def _cost_key(kinds: Layout) -> tuple[Any, ...]:
    dropped = kinds.selective if kinds.recompute == "selective" else ()
    return kinds.sp, kinds.recompute, dropped, kinds.overlap


# ------------------------------------------------------------------------------------- workers
def _spread(search: _Search, workers: int) -> Iterator[Tally]:
    """Tallies of all tasks, each worker's share of them in turn."""
    sizes = [part.size * len(search.grid.zero) for _, part in search.tasks]
    if workers == 1 or sum(sizes) < WORTH:
        yield search.run(range(len(sizes)))
        return
    yield from spread(search.run, _shares(sizes, workers), workers)


def _shares(sizes: list[int], workers: int) -> list[list[int]]:
    """Tasks for each worker: the largest first, each to the one with the least so far."""
    loads = [0] * workers
    out: list[list[int]] = [[] for _ in range(workers)]
    for task in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = loads.index(min(loads))
        loads[least] += sizes[task]
        out[least].append(task)
    return [sorted(share) for share in out if share]
