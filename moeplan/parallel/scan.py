"""Memory and step time of a grid of layouts: the same formulas as one layout, without the rest.

A search looks at memory and time of each layout, and at everything else of a few. Layouts that
share pp, vpp and kinds have the same pipeline ranks, so a rank's vectors are plain numbers here and
sums over pieces run over arrays of the other degrees. ZeRO stages are a second axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from moeplan.arrays import np
from moeplan.cluster.layout import Layout
from moeplan.parallel.costs import PieceCost
from moeplan.parallel.lookup import piece_counts, some
from moeplan.parallel.memory import with_overheads
from moeplan.parallel.ranksums import Looked, largest
from moeplan.parallel.stages import Rank, leading, ranks
from moeplan.parallel.step import StateBytes, step_time, used_bytes
from moeplan.workers import shared_zeros, spread

if TYPE_CHECKING:
    from moeplan.parallel.training import TrainingPlan

__all__ = ["SCANNED", "PieceTable", "Place", "Scanned", "fill_tables", "memory_and_step"]

SCANNED = ("dense", "experts", "kept", "workspace", "buffer", "time", "wgrad", "backward")
"""The columns of pieces that memory and step time take."""

_AT = {name: i for i, name in enumerate(SCANNED)}
_ROWS = 8192  # combinations at a time, whose arrays stay near the processor


class PieceTable:
    """Numbers of SCANNED by column, piece and combination of degrees (tp, cp, ep, etp, mb)."""

    def __init__(self, pieces: int, rows: int) -> None:
        self.numbers: list[list[Any]] = [
            [shared_zeros(rows) for _ in range(pieces)] for _ in SCANNED
        ]
        self.rows = rows

    def put(self, start: int, costs: Sequence[PieceCost]) -> Any:
        """Keep the costs of pieces of the combinations from `start` on: in arrays that are here.

        Returns by column and piece whether there was anything but zero.
        """
        stop = min(start + _ROWS, self.rows)
        used = np.zeros((len(SCANNED), len(costs)), bool)
        for k, cost in enumerate(costs):
            for q, name in enumerate(SCANNED):
                number = cost.numbers[name]
                used[q, k] = np.ndim(number) > 0 or number != 0
                if used[q, k]:
                    self.numbers[q][k][start:stop] = number
        return used

    def keep(self, used: Any) -> None:
        """Forget the arrays that hold nothing but zeros."""
        self.numbers = [
            [array if used[q, k] else None for k, array in enumerate(row)]
            for q, row in enumerate(self.numbers)
        ]


def fill_tables(
    plan: TrainingPlan, degrees: dict[str, Any], kinds: Sequence[Layout], workers: int = 1
) -> list[PieceTable]:
    """A table for each of some kinds, which share their sequence parallelism.

    degrees: arrays of tp, cp, ep, etp and microbatch. What recomputation and overlap do not change
    is computed once.
    """
    count = len(degrees["tp"])
    tables = [PieceTable(len(plan.pieces.all), count) for _ in kinds]
    starts = range(0, count, _ROWS)

    def fill(start: int) -> list[Any]:
        v = {name: a[start : start + _ROWS] for name, a in degrees.items()}
        coster = plan.coster(kinds[0], v)
        used = []
        for table, layout in zip(tables, kinds, strict=True):
            own = coster.under(layout, bounds=False)
            used.append(table.put(start, [own.cost(piece) for piece in plan.pieces.all]))
        return used

    every = list(spread(fill, starts, workers))
    for i, table in enumerate(tables):
        table.keep(np.any([used[i] for used in every], axis=0))
    return tables


class Place(NamedTuple):
    """A pipeline's ranks: those that can decide, and how often the model runs each piece."""

    deciding: tuple[Rank, ...]
    counts: list[Any]

    @classmethod
    def of(cls, plan: TrainingPlan, layout: Layout, pp: int, vpp: int, rounds: int) -> Place:
        """Of pp ranks with vpp chunks. rounds: microbatches, as in-flight tables see them."""
        every = ranks(*plan.stage_key, pp, vpp, layout.split, layout.schedule, rounds)
        return cls(leading(every), piece_counts(every, layout))


class Scanned:
    """Layouts of one pp and kinds, with what neither chunks nor a model's pieces change.

    layout: the kinds. values: numbers by name: pp is one number, zero an array of shape (Z, 1), the
    others of shape (G,). groups: `data_groups`. state: `state_bytes`, of shape (Z, G). row: each
    layout's combination in `table`.
    """

    def __init__(
        self,
        layout: Layout,
        values: dict[str, Any],
        groups: dict[str, Any],
        state: StateBytes,
        row: Any,
        table: PieceTable,
    ) -> None:
        self.layout, self.values, self.groups, self.state = layout, values, groups, state
        self.row, self.table = row, table
        self._columns: dict[tuple[str, int], Any] = {}

    def column(self, name: str, k: int) -> Any:
        """A number of a piece for each layout."""
        if (name, k) not in self._columns:
            numbers = self.table.numbers[_AT[name]][k]
            self._columns[name, k] = 0.0 if numbers is None else numbers.take(self.row)
        return self._columns[name, k]

    def looked(self, plan: TrainingPlan, place: Place) -> Looked:
        """The tables at a place."""
        found = place.deciding
        return Looked(
            column=self.column,
            held=[some(r.held) for r in found],
            alive=[some(r.alive) for r in found],
            depth=[r.depth for r in found],
            rank=[r.number for r in found],
            count=place.counts,
            names=[p.name for p in plan.pieces.all],
        )


def memory_and_step(
    plan: TrainingPlan, layouts: Scanned, place: Place, vpp: int, most: float
) -> tuple[Any, Any, Any]:
    """Bytes on the most loaded GPU, and the seconds of a step where that is at most `most`.

    Returns memory of shape (Z, G), the places in it (flat) that hold at most `most` bytes, and the
    seconds of a step at these.
    """
    v = {**layouts.values, "vpp": vpp}
    given = plan.inputs(layouts.layout, v)
    looked = layouts.looked(plan, place)
    sums = plan.sums(layouts.layout, looked, gathers=bool((v["zero"] >= 3).any()))
    used = largest([used_bytes(given, sums, c, layouts.state) for c in range(sums.count)], "B")
    memory = with_overheads(used, plan.job.overheads)
    good = memory <= most
    some_zero = good.any(axis=0)
    at = np.flatnonzero(good)
    if not at.size:
        return memory, at, np.empty(0)
    groups = layouts.groups
    if not some_zero.all():  # time of those that hold too much is nobody's concern
        own, size = np.flatnonzero(some_zero), some_zero.size
        v, groups = (
            {n: x.take(own) if np.shape(x) == (size,) else x for n, x in numbers.items()}
            for numbers in (v, groups)
        )
        sums, good = sums.later(own), good[:, own]
    time = step_time(plan.inputs(layouts.layout, v), sums, groups, sent=False)
    return memory, at, np.broadcast_to(time.step, good.shape)[good]
