"""Memory and step time of a grid of layouts: the same formulas as one layout, without the rest.

A search looks at memory and time of each layout, and at everything else of a few. Layouts that
share pp, vpp and kinds have the same pipeline ranks, so a rank's vectors are plain numbers here and
sums over pieces run over arrays of the other degrees. ZeRO stages are a second axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from moeplan.arrays import is_array, np
from moeplan.calc import value
from moeplan.cluster.layout import Layout, Schedule
from moeplan.parallel.axes import Axes, Terms
from moeplan.parallel.jobs import Overheads
from moeplan.parallel.lookup import piece_counts, some
from moeplan.parallel.memory import WHOLE_FROM, with_overheads
from moeplan.parallel.ranksums import Looked, RankSums, largest
from moeplan.parallel.stages import Rank, leading, ranks
from moeplan.parallel.step import (
    StateBytes,
    StepInputs,
    data_time,
    in_flight,
    resting_bytes,
    step_time,
)
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
    """A pipeline's ranks that can decide, by what they hold, and how often each piece runs."""

    by_held: dict[tuple[float, ...], list[Rank]]
    counts: list[Any]

    @classmethod
    def of(cls, plan: TrainingPlan, layout: Layout, pp: int, vpp: int, rounds: int) -> Place:
        """Of pp ranks with vpp chunks. rounds: microbatches, as in-flight tables see them."""
        every = ranks(*plan.stage_key, pp, vpp, layout.split, layout.schedule, rounds)
        return _place(every, layout.schedule)


@lru_cache(maxsize=1024)
def _place(every: tuple[Rank, ...], schedule: Schedule) -> Place:
    by_held: dict[tuple[float, ...], list[Rank]] = {}
    for rank in leading(every):
        by_held.setdefault(rank.held, []).append(rank)
    return Place(by_held, piece_counts(every, schedule))


class Scanned:
    """Layouts of one pp and kinds, with what neither chunks nor a model's pieces change.

    layout: the kinds. values: numbers by name: pp is one number, zero an array of shape (Z, 1), the
    others of shape (G,). groups: `data_groups`. state: `state_bytes`, of shape (Z, G). coster: what
    costs pieces for these layouts.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        layout: Layout,
        values: dict[str, Any],
        groups: dict[str, Any],
        state: StateBytes,
        coster: Coster,
    ) -> None:
        self.plan, self.layout, self.values = plan, layout, values
        self.groups, self.state = groups, state
        costs = [coster.cost(piece).numbers for piece in plan.pieces.all]
        self.column = partial(_column, costs)  # that knows nothing of this object: no cycle
        assert coster.located is not None
        self.located = coster.located
        self.shards = bool((values["zero"] >= WHOLE_FROM).any())
        self._made: dict[Any, Any] = {}

    def sums(self, found: Sequence[Rank], counts: Sequence[Any]) -> RankSums:
        """Sums over some ranks' pieces."""
        looked = Looked(
            column=self.column,
            held=[some(r.held) for r in found],
            alive=[some(r.alive) for r in found],
            depth=[r.depth for r in found],
            rank=[r.number for r in found],
            count=counts,
            names=[p.name for p in self.plan.pieces.all],
            wide=self.located.wide,
        )
        return self.plan.sums(self.layout, looked, shards=self.shards)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What many places share, made for the first of them."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _column(costs: Sequence[dict[str, Any]], name: str, k: int) -> Any:
    """A number of a piece for each layout."""
    number = costs[k][name]
    return Terms.of(number) if is_array(number) else number


def memory_and_step(layouts: Scanned, place: Place, vpp: int, most: float) -> tuple[Any, Any, Any]:
    """Bytes on the most loaded GPU, and the seconds of a step where that is at most `most`.

    Returns memory of shape (Z, G), the places in it (flat) that hold at most `most` bytes, and the
    seconds of a step at these.
    """
    plan, held = layouts.plan, place.by_held
    given = plan.inputs(layouts.layout, {**layouts.values, "vpp": vpp})
    memory = _memory(layouts, place, given)
    at = np.flatnonzero(memory <= most)
    if not at.size:
        return memory, at, np.empty(0)
    key = (*held, *place.counts)
    first = [own[0] for own in held.values()]
    sums = layouts.once(("time", key), lambda: layouts.sums(first, place.counts))
    data = layouts.once(("data", key), lambda: data_time(given, layouts.groups, sums, sent=False))
    time = step_time(given, sums, layouts.groups, sent=False, data=data)
    return memory, at, np.broadcast_to(time.step, memory.shape).ravel().take(at)


def _resting(sums: RankSums, state: StateBytes, overheads: Overheads) -> Any:
    return with_overheads(resting_bytes(sums, 0, state), overheads)


def _memory(layouts: Scanned, place: Place, given: StepInputs) -> Any:
    """Bytes on the most loaded GPU: ranks that hold the same pieces differ in activations alone."""
    overheads, used = layouts.plan.job.overheads, []
    for vector, own in place.by_held.items():
        sums = layouts.sums(own, place.counts)
        resting = layouts.once(
            ("resting", vector),
            partial(_resting, sums, layouts.state, overheads),
        )
        alive = largest([in_flight(given, sums, c) for c in range(sums.count)], "B")
        used.append(resting + (1 + value(overheads.fragmentation)) * alive)
    return largest(used, "B")
