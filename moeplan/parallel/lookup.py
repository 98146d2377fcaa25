"""Tables of pieces and of pipeline ranks, looked up for arrays of layouts.

Layouts differ in a dozen numbers, but a piece's cost depends on five of them and a rank's contents
on three. Each different combination is computed once, when it first turns up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from moeplan.arrays import np
from moeplan.cluster.layout import Layout, Schedule
from moeplan.errors import UserError
from moeplan.parallel.axes import DEGREES, Axes
from moeplan.parallel.costs import COLUMNS
from moeplan.parallel.memory import WHOLE_FROM
from moeplan.parallel.ranksums import Looked, RankSums
from moeplan.parallel.stages import Rank, places, ranks

if TYPE_CHECKING:
    from moeplan.parallel.training import TrainingPlan

__all__ = ["CHUNK", "Tables", "piece_counts", "some"]

CHUNK = 32768  # layouts at a time: the arrays at work stay near the processor
_RADIX = 1 << 12  # degrees and microbatches below 4096: five of them fit an int64
_COLUMN = {name: i for i, name in enumerate(COLUMNS)}


def some(vector: Sequence[float]) -> list[Any]:
    """A rank's vector with None for what it does not hold."""
    return [n if n else None for n in vector]


def piece_counts(every: Sequence[Rank], schedule: Schedule) -> list[Any]:
    """How often the model's ranks run each piece for a microbatch."""
    seen: dict[int, Rank] = {r.number: r for r in every}
    share = 0.5 if schedule == "dualpipe" else 1
    sums = [share * sum(n) for n in zip(*(r.held for r in seen.values()), strict=True)]
    return [n if n else None for n in sums]


class Tables:
    """Tables of pieces and ranks, filled as combinations of degrees turn up."""

    def __init__(self, plan: TrainingPlan, layout: Layout) -> None:
        self.plan, self.layout = plan, layout
        self.pieces = Index(len(DEGREES))
        self.places = Index(3)
        self.numbers: Any = None
        self.rank_rows: list[Any] = []

    def prepare(self, v: dict[str, Any]) -> tuple[RankSums, Any]:
        """Sums for each different combination of both tables' rows, and each layout's place."""
        rows = self.pieces.find([v[name] for name in DEGREES], self._fill)
        rounds = 0 * v["pp"]
        if self.layout.schedule == "interleaved":
            rounds = np.where(v["m"] == v["pp"], 1.0, 3.0)
        at = self.places.find([v["pp"], v["vpp"], rounds], self._fill_ranks)
        pair, place = np.unique(rows * len(self.rank_rows) + at, return_inverse=True)
        size = len(self.rank_rows)
        shards = bool((v["zero"] >= WHOLE_FROM).any())
        found = []
        for start in range(0, pair.size, CHUNK):
            part = pair[start : start + CHUNK]
            looked = self._look(part // size, part % size)
            found.append(self.plan.sums(self.layout, looked, shards=shards).all())
        numbers = {
            name: np.concatenate(
                [np.broadcast_to(s[name], (min(CHUNK, pair.size - i * CHUNK),))
                 for i, s in enumerate(found)]
            )
            for name in found[0].numbers
        }  # fmt: skip
        return RankSums(numbers, found[0].count), place

    def fill(self, v: dict[str, Any]) -> None:
        """Costs of pieces for these degrees, where they are not in the table yet."""
        self.pieces.find([v[name] for name in DEGREES], self._fill)

    def _look(self, rows: Any, at: Any) -> Looked:
        """Both tables' rows."""
        held, alive, depth, index, count = self.rank_arrays
        numbers = self.numbers

        def column(name: str, k: int) -> Any:
            return numbers[_COLUMN[name], k].take(rows)

        memo: dict[tuple[str, int], Any] = {}

        def cached(name: str, k: int) -> Any:
            if (name, k) not in memo:
                memo[name, k] = column(name, k)
            return memo[name, k]

        def vectors(table: Any) -> list[list[Any]]:
            return [[t.take(at) if t.any() else None for t in table[c]] for c in range(len(table))]

        return Looked(
            cached,
            vectors(held),
            vectors(alive),
            [d.take(at) for d in depth],
            [i.take(at) for i in index],
            [t.take(at) if t.any() else None for t in count],
            [p.name for p in self.plan.pieces.all],
        )

    def _fill(self, keys: Any) -> None:
        axes = Axes.of(dict(zip(DEGREES, keys.T, strict=True)))
        coster = self.plan.coster_again(self.layout, axes, keys.tobytes())
        costs = [coster.cost(piece) for piece in self.plan.pieces.all]
        n = len(keys)
        new = np.empty((len(COLUMNS), len(costs), n))
        for q, name in enumerate(COLUMNS):
            for k, cost in enumerate(costs):
                new[q, k] = axes.located.wide(cost.numbers[name])
        old = self.numbers
        self.numbers = new if old is None else np.concatenate([old, new], axis=2)

    def _fill_ranks(self, keys: Any) -> None:
        layout = self.layout
        for pp, vpp, full in keys:
            key = self.plan.stage_key
            every = ranks(*key, int(pp), int(vpp), layout.split, layout.schedule,
                          int(pp * full))  # fmt: skip
            self.rank_rows.append((places(every), piece_counts(every, layout.schedule)))
        most = max(len(found) for found, _ in self.rank_rows)
        pieces, n = len(self.plan.pieces.all), len(self.rank_rows)
        held, alive = np.zeros((most, pieces, n)), np.zeros((most, pieces, n))
        depth, index, count = np.ones((most, n)), np.zeros((most, n)), np.zeros((pieces, n))
        for i, (found, counts) in enumerate(self.rank_rows):
            count[:, i] = [c or 0 for c in counts]
            for c, rank in enumerate(found):
                held[c, :, i], alive[c, :, i] = rank.held, rank.alive
                depth[c, i], index[c, i] = rank.depth, rank.number
        self.rank_arrays = held, alive, depth, index, count


class Index:
    """Rows of combinations of numbers, each given a place when it first turns up."""

    def __init__(self, width: int) -> None:
        self.known: dict[tuple[float, ...], int] = {}
        self.codes = np.empty(0, dtype=np.int64)
        self.order = np.empty(0, dtype=np.int64)
        self.width = width

    def find(self, columns: Sequence[Any], fill: Callable[[Any], None]) -> Any:
        """The place of each row; `fill` is called with the rows that are new."""
        rows = np.stack(np.broadcast_arrays(*columns), axis=1).astype(np.int64)
        if rows.size and rows.max() >= _RADIX:
            raise UserError(f"layout: no degree or microbatch may reach {_RADIX} in an array")
        code = rows[:, 0].copy()
        for i in range(1, self.width):
            code = code * _RADIX + rows[:, i]
        at = np.searchsorted(self.codes, code)
        missing = np.ones(code.shape, dtype=bool)
        inside = at < self.codes.size
        missing[inside] = self.codes[at[inside]] != code[inside]
        if missing.any():
            new, first = np.unique(code[missing], return_index=True)
            fill(rows[missing][first].astype(np.float64))
            base = self.codes.size
            codes = np.concatenate([self.codes, new])
            place = np.concatenate([self.order, base + np.arange(new.size)])
            sort = np.argsort(codes)
            self.codes, self.order = codes[sort], place[sort]
            at = np.searchsorted(self.codes, code)
        return self.order[at]
