"""Every combination of degrees that fills some GPUs, and which of them are legal, as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from moeplan.arrays import np
from moeplan.cluster.hardware import Gpu
from moeplan.cluster.layout import Layout, quiet
from moeplan.parallel import TrainingPlan
from moeplan.parallel.axes import Axes
from moeplan.parallel.scan import Scanned
from moeplan.parallel.step import StateBytes, data_groups, state_bytes
from moeplan.parallel.table import Coster
from moeplan.plan.space import Space
from moeplan.quantity import compile_formula, evaluate, plain

__all__ = ["Grid", "Part", "divisors", "domain_of"]


def divisors(number: int) -> list[int]:
    """All divisors, in order."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def domain_of(gpu: Gpu) -> int:
    """GPUs in a domain of a machine of this GPU, as `moeplan.cluster.hardware.cluster` has it."""
    return 8 if gpu.scale_up_domain is None else int(plain(gpu.scale_up_domain))


class Part(NamedTuple):
    """Rows of a grid of one pp, their numbers of chunks, and microbatches in in-flight tables."""

    pp: int
    chunks: list[int]
    rows: Any
    rounds: int

    @property
    def size(self) -> int:
        """Layouts, for one ZeRO stage."""
        return len(self.rows) * len(self.chunks)


@dataclass(frozen=True, eq=False)
class Grid:
    """Degrees of all layouts with vpp = 1 that fill `gpus` GPUs with a batch, one row each.

    tp, cp, dp and pp take all factors of the GPUs; ep and etp all divisors of the experts and of
    their width that divide a stage's GPUs; the microbatch all divisors of a replica's sequences.
    Rows are in the order of pp. origin: of a part of a grid, its rows in the whole.
    """

    plan: TrainingPlan
    space: Space
    gpus: int
    batch: int
    columns: dict[str, Any]
    zero: Any
    origin: Any = None
    _by_order: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: TrainingPlan, space: Space, gpus: int, batch: int) -> Grid:
        """The grid for a number of GPUs and of sequences a step."""
        rows = _rows(plan, space, gpus, batch)
        names = ("pp", "tp", "cp", "dp", "ep", "etp", "microbatch")
        columns = dict(zip(names, rows, strict=True))
        zero = np.array([z for z in range(4) if space.allows("zero", z)], np.float64)
        return cls(plan, space, gpus, batch, columns, zero.reshape(-1, 1))

    def narrowed(self, kinds: Sequence[Layout]) -> Grid:
        """The rows that break no rule that all of some kinds have: few of them are legal."""
        common = set.intersection(*(set(self._without_chunks(k)) for k in kinds))
        good = np.ones(self.size, dtype=bool)
        for formula in common:
            good &= self._holds(formula)
        rows = np.flatnonzero(good)
        columns = {name: a[rows] for name, a in self.columns.items()}
        return Grid(self.plan, self.space, self.gpus, self.batch, columns, self.zero, rows)

    def number(self, rows: Any) -> Any:
        """The numbers of some rows in the whole grid."""
        return rows if self.origin is None else self.origin[rows]

    @cached_property
    def axes(self) -> Axes:
        """The degrees that a piece's cost depends on, as axes."""
        return Axes.of(self.columns)

    @cached_property
    def many(self) -> Layout:
        """All rows as one layout, with vpp = 1."""
        return Layout(**self.columns, batch=float(self.batch), zero=1)

    def _shared(self, kinds: Layout) -> tuple[dict[str, Any], StateBytes]:
        """Groups of data parallelism and bytes of state of all rows, under an order of ranks."""
        if kinds.order not in self._by_order:
            v = {**self.many.values, "zero": self.zero}
            given = self.plan.inputs(kinds, v)
            groups = data_groups(given)
            self._by_order[kinds.order] = groups, state_bytes(given, groups)
        shared: tuple[dict[str, Any], StateBytes] = self._by_order[kinds.order]
        return shared

    def scanned(self, kinds: Layout, rows: Any, pp: int, coster: Coster) -> Scanned:
        """Some rows of one pp, with these kinds, whose pieces `coster` costs."""
        groups, state = self._shared(kinds)
        values = {
            name: a.take(rows) if np.ndim(a) else a for name, a in self.many.values.items()
        } | {"pp": pp, "zero": self.zero}  # fmt: skip
        found = {name: a.take(rows) if np.ndim(a) else a for name, a in groups.items()}
        part = StateBytes(*(a.take(rows, axis=1) if a.shape[1] > 1 else a for a in state))
        own = coster.at(self.axes.located.rows(rows))
        return Scanned(self.plan, kinds, values, found, part, own)

    # ------------------------------------------------------------------------------ legality
    @cached_property
    def _bare(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Symbols of all rows, and results of rules by formula."""
        return {**self.many.values, **self.plan.facts(self.gpus)}, {}

    def _holds(self, formula: str) -> Any:
        symbols, kept = self._bare
        if formula not in kept:
            with quiet(True):
                kept[formula] = evaluate(formula, symbols)
        return kept[formula]

    def _without_chunks(self, kinds: Layout) -> list[str]:
        """Formulas of the rules of some kinds that vpp has no part in."""
        return [r.holds for r in self.plan.rules(kinds)
                if "vpp" not in compile_formula(r.holds)[1]]  # fmt: skip

    def parts(self, kinds: Layout) -> Iterator[Part]:
        """The legal rows under some kinds, by pp and vpp."""
        rules, alone = self.plan.rules(kinds), self._without_chunks(kinds)
        chunked = [r.holds for r in rules if r.holds not in alone]
        good = np.ones(self.size, dtype=bool)
        for formula in alone:
            good &= self._holds(formula)
        facts = self.plan.facts(self.gpus)
        for pp in np.unique(self.columns["pp"]).astype(int).tolist():
            start, stop = np.searchsorted(self.columns["pp"], [pp, pp + 0.5])
            rows = start + np.flatnonzero(good[start:stop])
            if not rows.size:
                continue
            known = {**facts, "pp": pp, "batch": self.batch}
            chunks = [
                vpp
                for vpp in range(1, int(facts["L"]) // pp + 1)
                if self.space.allows("vpp", vpp)
                and all(evaluate(formula, {**known, "vpp": vpp}) for formula in chunked)
            ]
            if chunks:
                yield from self._by_rounds(kinds, pp, chunks, rows)

    def _by_rounds(self, kinds: Layout, pp: int, chunks: list[int], rows: Any) -> Iterator[Part]:
        if kinds.schedule != "interleaved":
            yield Part(pp, chunks, rows, 0)
            return
        once = self._bare[0]["m"][rows] == pp  # all forwards first
        for rounds, part in ((pp, rows[once]), (3 * pp, rows[~once])):
            if part.size:
                yield Part(pp, chunks, part, rounds)

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(self.columns["pp"])

    @cached_property
    def combinations(self) -> int:
        """Rows times chunks and ZeRO stages that were tried, for one choice of the other kinds."""
        pps, counts = np.unique(self.columns["pp"], return_counts=True)
        layers, pinned = self.plan.pieces.layers, self.space.pins.get("vpp")
        each = [len(pinned) if pinned else max(1, layers // int(pp)) for pp in pps]
        return int(sum(n * v for n, v in zip(counts, each, strict=True))) * len(self.zero)


def _rows(plan: TrainingPlan, space: Space, gpus: int, batch: int) -> Any:
    """pp, tp, cp, dp, ep, etp and microbatch of each combination, ordered by pp."""
    facts = plan.facts(gpus)
    experts = [d for d in divisors(int(facts.get("E", 1))) if space.allows("ep", d)]
    widths = [d for d in divisors(int(facts.get("F", 1))) if space.allows("etp", d)]
    pairs = np.array([(e, w) for e in experts for w in widths], np.float64).reshape(-1, 2)
    micro: dict[int, Any] = {}
    out = []
    for pp in divisors(gpus):
        if pp > facts["L"] or not space.allows("pp", pp):
            continue
        stage = gpus // pp
        inside = pairs[stage % (pairs[:, 0] * pairs[:, 1]) == 0]
        for tp in divisors(stage):
            for cp in divisors(stage // tp):
                dp = stage // (tp * cp)
                if batch % dp or not all(
                    space.allows(n, x) for n, x in (("tp", tp), ("cp", cp), ("dp", dp))
                ):
                    continue
                if dp not in micro:
                    found = [d for d in divisors(batch // dp) if space.allows("microbatch", d)]
                    micro[dp] = np.array(found, np.float64)
                each = micro[dp]
                block = np.empty((7, len(inside) * len(each)))
                block[:4] = np.array([[pp], [tp], [cp], [dp]])
                block[4:6] = np.repeat(inside.T, len(each), axis=1)
                block[6] = np.tile(each, len(inside))
                out.append(block)
    return np.concatenate(out, axis=1) if out else np.empty((7, 0))
