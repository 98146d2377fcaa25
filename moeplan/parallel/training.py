"""Training on layouts: legality, memory, time and money, for one layout or for arrays of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from moeplan.arrays import is_array, np, pick
from moeplan.calc import calc, value
from moeplan.cluster.hardware import Cluster
from moeplan.cluster.layout import NUMBERS, Layout
from moeplan.cluster.network import Collectives, Network
from moeplan.cluster.rules import Rule, check, legal, rules
from moeplan.estimation.flops import forward
from moeplan.estimation.memory import optimizer_named
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Workload
from moeplan.parallel.account import account_named
from moeplan.parallel.axes import Axes, Located
from moeplan.parallel.costs import PieceCost
from moeplan.parallel.divide import Degrees, Divided, widths
from moeplan.parallel.jobs import TrainingJob
from moeplan.parallel.lookup import CHUNK, Tables, piece_counts, some
from moeplan.parallel.memory import WHOLE_FROM
from moeplan.parallel.money import hourly, run_bill
from moeplan.parallel.optime import RowTimes, row_times
from moeplan.parallel.ranksums import Looked, RankSums, rank_sums
from moeplan.parallel.stages import Pieces, Rank, places, ranks
from moeplan.parallel.step import StepInputs, training_step
from moeplan.parallel.table import Coster
from moeplan.parallel.views import message_rows, rank_rows
from moeplan.quantity import Number, Quantity, Source, plain

__all__ = ["BINDS", "TrainingPlan", "evaluate_training", "explain_training"]

BINDS = ("compute", "tensor parallel", "all-to-all", "context parallel", "pipeline sends",
         "data parallel", "bubble", "recomputation", "optimizer", "memory")  # fmt: skip
_BINDING = ("compute", "tp", "ep", "cp", "pp", "dp", "bubble", "recompute", "optimizer")


def evaluate_training(
    spec: ModelSpec,
    layout: Layout,
    cluster: Cluster,
    job: TrainingJob,
    gpus: Any = None,
    *,
    times: RowTimes | None = None,
    collectives: Collectives | None = None,
) -> dict[str, Any]:
    """What training costs under a layout, or under each of many; see `moeplan.parallel`.

    gpus: GPUs that a layout must fill (None: the cluster's). times, collectives: measured models
    in the place of the rooflines. Raises `UserError` for one layout that breaks a rule.
    """
    plan = TrainingPlan(spec, cluster, job, times=times, collectives=collectives)
    return plan.evaluate(layout, gpus)


def explain_training(
    spec: ModelSpec, layout: Layout, cluster: Cluster, job: TrainingJob, gpus: Any = None
) -> dict[str, Any]:
    """The same keys for one layout as explained quantities, with `stages`, `pieces`."""
    return TrainingPlan(spec, cluster, job).explain(layout, gpus)


class TrainingPlan:
    """A model, a cluster and a job: what all layouts share, prepared once."""

    def __init__(
        self,
        spec: ModelSpec,
        cluster: Cluster,
        job: TrainingJob,
        *,
        times: RowTimes | None = None,
        collectives: Collectives | None = None,
    ) -> None:
        self.spec, self.cluster, self.job = spec, cluster, job
        self.times: RowTimes = times or row_times(cluster.gpu, job.stack)
        self.net = Network.of(cluster, collectives or self.times.fabric)
        self.pieces = Pieces(spec, mtp=job.mtp)
        self.account = account_named(job.account)
        self.optimizer = optimizer_named(job.optimizer)
        self.widths = widths(self.pieces.all)
        reported = cluster.gpu.memory_reported
        self.capacity = cluster.gpu.memory_bytes if reported is None else reported
        self.sequence = plain(job.sequence)
        self._kept_tables: dict[Any, Tables] = {}
        self._last: tuple[Any, Coster] | None = None
        self.flops = {mask: self._flops(mask) for mask in ("causal", "full")}

    def _flops(self, mask: Any) -> Number:
        """Model FLOPs of one sequence, forward and backward."""
        work = Workload("train", B=1, S=self.sequence, C=self.sequence, mask=mask)
        roles: Any = ("model", "encoder", "mtp") if self.job.mtp else ("model", "encoder")
        return 3 * forward(self.spec, work, roles)

    # ------------------------------------------------------------------------------ legality
    def facts(self, gpus: Any = None) -> dict[str, Number]:
        """What rules know besides the layout: E, F, L, S and the GPUs."""
        moe = self.spec.moe
        out = {
            "gpus": plain(self.cluster.gpus.value if gpus is None else gpus),
            "L": self.pieces.layers,
            "S": self.sequence,
        }
        if moe is not None:
            out |= {"E": moe.values["E"], "F": moe.values["F"]}
        return out

    def rules(self, layout: Layout) -> list[Rule]:
        """The rules of this model under a layout's kinds."""
        return rules(layout, self.widths, experts=self.spec.moe is not None)

    def legal(self, layout: Layout, gpus: Any = None) -> Any:
        """Whether all rules hold, elementwise."""
        return legal(layout, self.rules(layout), **self.facts(gpus))

    # -------------------------------------------------------------------------------- answers
    def evaluate(self, layout: Layout, gpus: Any = None) -> dict[str, Any]:
        """Numbers for numbers, arrays for arrays."""
        if layout.is_many or is_array(plain(gpus)):
            return self._many(layout, gpus)
        check(layout, self.rules(layout), **self.facts(gpus))
        return self._one(layout, explained=False)

    def explain(self, layout: Layout, gpus: Any = None) -> dict[str, Any]:
        """Quantities, with the ranks and the pieces behind them."""
        check(layout, self.rules(layout), **self.facts(gpus))
        return self._one(layout.explained, explained=True)

    def by_rank(self, layout: Layout, gpus: Any = None) -> list[dict[str, Any]]:
        """Memory of every pipeline rank; see `moeplan.parallel.views.rank_rows`."""
        check(layout, self.rules(layout), **self.facts(gpus))
        return rank_rows(self, layout)

    def traffic(self, layout: Layout, gpus: Any = None) -> list[dict[str, Any]]:
        """Messages of a step; see `moeplan.parallel.views.message_rows`."""
        check(layout, self.rules(layout), **self.facts(gpus))
        return message_rows(self, layout)

    def rank_list(self, layout: Layout) -> tuple[Rank, ...]:
        """The pipeline ranks of one layout."""
        bare = layout.values
        return ranks(
            *self.stage_key,
            int(bare["pp"]),
            int(bare["vpp"]),
            layout.split,
            layout.schedule,
            _rounds(layout, bare),
        )

    def looked(
        self,
        layout: Layout,
        costs: list[PieceCost],
        found: tuple[Rank, ...],
        every: tuple[Rank, ...],
    ) -> Looked:
        """Some ranks of one layout, of `every` there is, as sums see them."""
        return Looked(
            column=lambda name, k: costs[k].numbers[name],
            held=[some(r.held) for r in found],
            alive=[some(r.alive) for r in found],
            depth=[r.depth for r in found],
            rank=[r.number for r in found],
            count=piece_counts(every, layout.schedule),
            names=[p.name for p in self.pieces.all],
        )

    def _one(self, layout: Layout, *, explained: bool) -> dict[str, Any]:
        v = _numbers(layout) if explained else dict(layout.values)
        costs = self.costs(layout, v, explained=explained)
        every = self.rank_list(layout)
        looked = self.looked(layout, costs, places(every), every)
        sums = self.sums(layout, looked, shards=layout.values["zero"] >= WHOLE_FROM)
        out = self._finish(layout, v, training_step(self.inputs(layout, v), sums))
        if explained:
            out["pieces"] = {
                p.name: {**c.numbers, "kept_by_row": c.kept, "rows": c.rows, "messages": c.messages}
                for p, c in zip(self.pieces.all, costs, strict=True)
            }
            out["ranks"] = every
        return out

    def sums(self, layout: Layout, looked: Looked, *, shards: bool) -> RankSums:
        """What the deciding ranks hold and take."""
        return rank_sums(
            looked,
            halves=layout.schedule == "dualpipe",
            shards=shards,
            recomputes=layout.recompute != "none",
        )

    def costs(self, layout: Layout, v: dict[str, Any], *, explained: bool) -> list[PieceCost]:
        """Each piece's numbers under degrees v (numbers, quantities, or arrays)."""
        coster = self.coster(layout, v, explained=explained)
        return [coster.cost(piece) for piece in self.pieces.all]

    def coster_again(self, layout: Layout, axes: Axes, key: bytes) -> Coster:
        """As `coster`; for the same axes (of that key) as last time, what is alike is kept."""
        last = (layout.sp, layout.order, key)
        if self._last is None or self._last[0] != last:
            self._last = last, self.coster(layout, axes.degrees, located=axes.located)
        return self._last[1].under(layout)

    def prepare(self, kinds: Iterable[Layout], degrees: dict[str, Any]) -> None:
        """Fill the tables of several kinds for arrays of the same degrees, which costs little more
        than those of one.
        """
        for layout in kinds:
            self._tables(layout).fill(degrees)

    def coster(
        self,
        layout: Layout,
        v: dict[str, Any],
        *,
        explained: bool = False,
        located: Located | None = None,
    ) -> Coster:
        """What costs pieces under degrees v, with a layout's kinds.

        located: of degrees on axes (`Axes.degrees`), the layouts that costs are for.
        """
        job = self.job
        sequence = job.sequence if explained else self.sequence
        work = Workload("train", B=1, S=self.sequence, C=self.sequence)
        degrees = Degrees(
            tp=v["tp"],
            cp=v["cp"],
            ep=v["ep"],
            etp=v["etp"],
            B=v["microbatch"],
            S=sequence,
            C=sequence,
            work=work,
            sp=layout.sp,
            imbalance=job.imbalance if explained else plain(job.imbalance),
            explained=explained,
            share=v.get("share"),
        )
        own = Divided(degrees, self.account)
        optimizer = self.optimizer
        return Coster(own, layout, job, self.net, self.times, optimizer.gradients, located)

    def inputs(self, layout: Layout, v: dict[str, Any]) -> StepInputs:
        """What a step's formulas take."""
        explained = isinstance(v["tp"], Quantity)
        bandwidth, hidden = self.cluster.gpu.memory_bandwidth, self.spec.hidden
        job = self.job if explained else replace(self.job, sequence=self.sequence)
        return StepInputs(
            v,
            layout,
            job,
            self.net.line,  # of every layout and large: their tables' bandwidth counts
            self.optimizer,
            bandwidth if explained else bandwidth.value,
            hidden if explained else hidden.value,
        )

    @property
    def stage_key(self) -> tuple[tuple[int, ...], tuple[str, ...], int]:
        """What ranks depend on besides a layout: the order of layers, the pieces, MTP modules."""
        return self.pieces.order, self.pieces.roles, self.pieces.modules

    # ------------------------------------------------------------------------------- money
    def _finish(self, layout: Layout, v: dict[str, Any], out: dict[str, Any]) -> dict[str, Any]:
        """What follows from memory and step: fits, MFU, tokens per second, dollars, energy."""
        explained = isinstance(v["tp"], Quantity)

        def own(q: Any) -> Any:
            return q if explained else value(q)

        step, gpus = out["step"], v["world"]
        out["gpus"] = gpus
        out["memory_free"] = calc("capacity - used", "B", capacity=own(self.capacity),
                                  used=out["memory"])  # fmt: skip
        out["legal"] = True
        out["fits"] = value(out["memory_free"]) >= 0
        peak = self.cluster.gpu.peak("bf16" if "bf16" in self.cluster.gpu.peaks else "fp16")
        for key, mask in (("mfu", "causal"), ("mfu_full", "full")):
            flops = self._given(self.flops[mask], "FLOP", "flops", explained)
            work = calc("batch*flops", "FLOP", batch=v["batch"], flops=flops)
            out["step_flops" if mask == "causal" else "step_flops_full"] = work
            out[key] = calc("work/(step*gpus*peak)", "", work=work, step=step, gpus=gpus,
                            peak=own(peak))  # fmt: skip
        tokens = calc("batch*S", "tokens", batch=v["batch"], S=own(self.job.sequence))
        out["tokens_per_second"] = calc("tokens/step", "tokens/s", tokens=tokens, step=step)
        out["tokens_per_second_per_gpu"] = calc(
            "rate/gpus", "tokens/s", rate=out["tokens_per_second"], gpus=gpus
        )
        out |= run_bill(self.job, self.cluster.gpu.id, out["tokens_per_second"], gpus, own)
        parts = [value(out[f"time_{name}"]) for name in _BINDING]
        # where messages outlast the compute above them, they set the step with what is hidden too
        waited, every = parts[_BINDING.index("dp")], value(out["dp_seconds"])
        parts[_BINDING.index("dp")] = pick(waited > 0, every, waited)
        at = np.argmax(np.stack(np.broadcast_arrays(*parts)), axis=0)
        binds = np.where(out["fits"], at, BINDS.index("memory"))
        out["binds"] = binds if is_array(step) else int(binds)
        return out

    def _given(self, number: Any, unit: str, symbol: str, explained: bool) -> Any:
        if not explained:
            return number
        source = Source("config", "model FLOPs, see `estimate`, flops")
        return Quantity.given(number, unit, symbol, source)

    def price(self) -> Any:
        """Dollars per GPU-hour; nan where none is known."""
        return hourly(self.job.price, self.cluster.gpu.id)

    # -------------------------------------------------------------------------------- arrays
    def _many(self, layout: Layout, gpus: Any) -> dict[str, Any]:
        found = [plain(getattr(layout, name)) for name in NUMBERS]
        count = plain(self.cluster.gpus.value if gpus is None else gpus)
        spread = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (*found, count)))
        shape = spread[0].shape
        flat = {n: a.ravel() for n, a in zip((*NUMBERS, "gpus"), spread, strict=True)}
        size = flat["tp"].size
        good = self._mask(layout, flat)
        at = np.flatnonzero(good)
        tables = self._tables(layout)
        many = layout.at({name: flat[name][at] for name in NUMBERS})
        out: dict[str, Any] = {}
        if at.size:
            sums, row = tables.prepare(many.values)
        for start in range(0, at.size, CHUNK):
            part = slice(start, start + CHUNK)
            v = {name: a[part] for name, a in many.values.items()}
            step = training_step(self.inputs(layout, v), sums.take(row[part]))
            answer = self._finish(layout, v, step)
            for name, numbers in answer.items():
                if name not in out:
                    out[name] = _empty(name, size, whole=at.size == size)
                out[name][at[part]] = numbers
        out.setdefault("fits", np.zeros(size, dtype=bool))
        out["legal"] = good
        return {name: a.reshape(shape) for name, a in out.items()}

    def _mask(self, layout: Layout, flat: dict[str, Any]) -> Any:
        """Which layouts break no rule."""
        size = flat["tp"].size
        good = np.zeros(size, dtype=bool)
        for start in range(0, size, CHUNK):
            part = slice(start, start + CHUNK)
            chunk = {name: a[part] for name, a in flat.items()}
            count = chunk.pop("gpus")
            good[part] = self.legal(layout.at(chunk), count)
        return good

    def _tables(self, layout: Layout) -> Tables:
        """The tables of a layout's kinds, kept for the next call."""
        kinds = (layout.sp, layout.schedule, layout.recompute, layout.selective, layout.overlap,
                 layout.order, layout.split)  # fmt: skip
        if kinds not in self._kept_tables:
            self._kept_tables[kinds] = Tables(self, layout)
        return self._kept_tables[kinds]


def _empty(name: str, size: int, *, whole: bool) -> Any:
    """A column of what points that are not legal have, or of nothing where every point is."""
    if name in ("legal", "fits"):
        return np.zeros(size, dtype=bool)
    if name in ("binds", "stage"):
        return np.full(size, -1, dtype=np.int64)
    return np.empty(size) if whole else np.full(size, np.nan)


def _numbers(layout: Layout) -> dict[str, Any]:
    """A layout's numbers as quantities, with what follows from them."""
    v: dict[str, Any] = {name: getattr(layout, name) for name in NUMBERS}
    v["pool"] = calc("tp*cp*dp", "GPUs", tp=v["tp"], cp=v["cp"], dp=v["dp"])
    v["world"] = calc("pool*pp", "GPUs", pool=v["pool"], pp=v["pp"])
    v["expert"] = calc("ep*etp", "GPUs", ep=v["ep"], etp=v["etp"])
    v["edp"] = calc("per(pool, expert)", "GPUs", pool=v["pool"], expert=v["expert"])
    v["m"] = calc("per(batch, microbatch*dp)", "microbatches", batch=v["batch"],
                  microbatch=v["microbatch"], dp=v["dp"])  # fmt: skip
    return v


def _rounds(layout: Layout, v: dict[str, Any]) -> int:
    """What the in-flight tables must know of m."""
    if layout.schedule != "interleaved":
        return 0
    return int(v["pp"]) * (1 if v["m"] == v["pp"] else 3)
