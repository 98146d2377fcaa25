"""Memory and step time of a grid of layouts: the same formulas as one layout, without the rest.

A search looks at memory and time of each layout, and at everything else of a few. Layouts that
share pp, vpp and kinds have the same pipeline ranks, so a rank's vectors are plain numbers here and
sums over pieces run over arrays of the other degrees. ZeRO stages are a second axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from moeplan.arrays import is_array, np
from moeplan.cluster.layout import Layout
from moeplan.parallel.axes import Axes, Terms
from moeplan.parallel.lookup import piece_counts, some
from moeplan.parallel.memory import with_overheads
from moeplan.parallel.ranksums import Looked, largest
from moeplan.parallel.stages import Piece, Rank, leading, ranks
from moeplan.parallel.step import StateBytes, step_time, used_bytes
from moeplan.parallel.table import Coster

if TYPE_CHECKING:
    from moeplan.parallel.training import TrainingPlan

__all__ = ["Place", "Scanned", "costers", "memory_and_step"]


def costers(plan: TrainingPlan, axes: Axes, kinds: Sequence[Layout]) -> list[Coster]:
    """What costs the pieces of layouts on axes, for each of some kinds, which share their sequence
    parallelism. What recomputation and overlap do not change is computed here, once.
    """
    first = plan.coster(kinds[0], axes.degrees, located=axes.located)
    first.prepare(plan.pieces.all)
    return [first.under(layout, bounds=False) for layout in kinds]


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
    others of shape (G,). groups: `data_groups`. state: `state_bytes`, of shape (Z, G). coster: what
    costs pieces for these layouts.
    """

    def __init__(
        self,
        layout: Layout,
        values: dict[str, Any],
        groups: dict[str, Any],
        state: StateBytes,
        coster: Coster,
        pieces: Sequence[Piece],
    ) -> None:
        self.layout, self.values, self.groups, self.state = layout, values, groups, state
        self.costs = [coster.cost(piece).numbers for piece in pieces]
        assert coster.located is not None
        self.located = coster.located

    def column(self, name: str, k: int) -> Any:
        """A number of a piece for each layout."""
        number = self.costs[k][name]
        return Terms.of(number) if is_array(number) else number

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
            wide=self.located.wide,
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
