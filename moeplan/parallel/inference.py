"""A forward pass of serving on a layout: weights and cache on a GPU, seconds of each piece."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moeplan.calc import Scope, add, calc
from moeplan.cluster.hardware import Cluster
from moeplan.cluster.network import Network
from moeplan.estimation.memory import LayerBytes, layer_bytes
from moeplan.model.formats import format_named
from moeplan.model.ops import CacheEntry, Weight
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Workload
from moeplan.parallel.account import ACCOUNTS
from moeplan.parallel.divide import Degrees, Divided, OwnRow
from moeplan.parallel.jobs import ServingJob
from moeplan.parallel.optime import RowTimes, Seconds, Work, row_times
from moeplan.parallel.stages import Piece, Pieces
from moeplan.parallel.traffic import ExchangeFormats, messages
from moeplan.quantity import Quantity, Source, plain

__all__ = ["Inference"]


class Inference:
    """A model as stored, on a cluster, under a serving job."""

    def __init__(
        self, spec: ModelSpec, cluster: Cluster, job: ServingJob, times: RowTimes | None = None
    ) -> None:
        if job.weights is not None:
            spec = replace(spec, checkpoint=spec.checkpoint.stored_as(job.weights))
        self.spec, self.cluster, self.job = spec, cluster, job
        self.pieces = Pieces(spec, mtp=plain(job.draft) is not None and _any(job.draft))
        self.stored: LayerBytes = layer_bytes(spec)
        self.times = times or row_times(cluster.gpu, job.stack)
        self.stack = self.times.stack
        self.net = Network.of(cluster, self.times.fabric)
        cache = job.cache or spec.checkpoint.cache or "bf16"
        self.cache = format_named(str(cache), "cache format")

    # -------------------------------------------------------------------------------- set up
    def divided(self, v: dict[str, Any], phase: Any, B: Any, S: Any, C: Any) -> Divided:
        """The pieces under degrees; B sequences on each data-parallel rank.

        Ranks of a tensor-parallel group hold the same tokens: serving engines all-reduce.
        """
        explained = isinstance(v["tp"], Quantity)
        work = Workload(phase, B=1, S=1, C=1)
        imbalance = self.job.imbalance if explained else plain(self.job.imbalance)
        degrees = Degrees(v["tp"], 1, v["ep"], v["etp"], B, S, C, work, False, imbalance, explained)
        return Divided(degrees, ACCOUNTS["index-map"])

    # -------------------------------------------------------------------------------- memory
    def weight_bytes(self, own: Divided, piece: Piece) -> Any:
        """Bytes of a piece's tensors on a GPU as stored, buffers included."""
        parts: dict[str, Any] = {}
        for group in piece.groups:
            for block in group.blocks:
                scopes = own.scopes(block)
                for weight in block.tensors:
                    if weight.tied is not None:
                        continue
                    scope = scopes["experts" if weight.shard == "experts" else "tensor"]
                    stored = self._stored(group, block, weight, own.degrees.explained)
                    parts[f"{weight.name} {len(parts)}"] = calc(
                        "stored*held/whole", "B", stored=stored, held=scope(weight.elements),
                        whole=block.sizes[weight.name].elements,
                    )  # fmt: skip
        return add(parts, "B")

    def _stored(self, group: Any, block: Any, weight: Weight, explained: bool) -> Any:
        size = self.stored[id(group), id(block), weight.name]
        if not explained:
            return size
        return Quantity.given(size, "B", "stored", Source("config", f"{weight.name} as stored"))

    def cache_bytes(self, own: Divided, piece: Piece, tokens: Any) -> Any:
        """Bytes of cache and state that a sequence of `tokens` holds in one layer on a GPU."""
        parts: dict[str, Any] = {}
        if piece.role != "layer":
            return 0
        for group in piece.groups:
            for block in group.blocks:
                for entry in block.cache():
                    scope = own.scopes(block)["tensor"]
                    parts[f"{entry.name} {len(parts)}"] = self._entry(scope, entry, tokens)
        return add(parts, "B")

    def _entry(self, scope: Scope, entry: CacheEntry, tokens: Any) -> Any:
        bits = self.cache.bits if entry.bits is None else entry.bits
        held: Any = tokens
        if entry.window is not None:
            held = calc("min(tokens, window)", "tokens", tokens=tokens, window=scope(entry.window))
        return calc(
            "(each*held + fixed)*width", "B", each=scope(entry.per_token), held=held,
            fixed=scope(entry.fixed), width=bits / 8,
        )  # fmt: skip

    # --------------------------------------------------------------------------------- times
    def piece_time(
        self, own: Divided, piece: Piece, policy: Any, *, decode: bool
    ) -> dict[str, Any]:
        """Seconds of a forward pass of one layer of a piece: lower, time, upper, and parts."""
        if piece.role == "copy":
            return dict.fromkeys(("lower", "time", "upper", "compute", "exchange", "tensor"), 0)
        launch = self.stack.launch if decode else 0.0
        rows = {f"{r.op.name} {i}": self._row(r, launch) for i, r in enumerate(own.rows(piece))}
        least, compute, most = (
            self._busy(add({name: getattr(row, bound) for name, row in rows.items()}, "s"), own)
            for bound in Seconds._fields
        )
        job = self.job
        formats = ExchangeFormats(job.dispatch, job.combine, policy, plain(job.imbalance))
        sent = [m for m in messages(own, piece, self.net, formats, training=False) if m.forward]
        tensor, exchange = {}, {"lower": {}, "seconds": {}, "upper": {}}  # type: ignore[var-annotated]
        for i, message in enumerate(sent):
            name = f"{message.group} {message.op} {i}"
            if message.group == "ep":
                for bound, parts in exchange.items():
                    parts[name] = getattr(message, bound)
            else:
                tensor[name] = message.seconds
        tp = add(tensor, "s")
        seconds = {bound: add(parts, "s") for bound, parts in exchange.items()}
        share = job.overlap if own.degrees.explained else plain(job.overlap)
        exposed = calc(
            "exchange - min(share*exchange, compute)", "s", exchange=seconds["seconds"],
            share=share, compute=compute,
        )  # fmt: skip
        return {
            "compute": compute,
            "exchange": exposed,
            "tensor": tp,
            "lower": calc("max(compute, tp + ep)", "s", compute=least, tp=tp, ep=seconds["lower"]),
            "time": calc("compute + tp + ep", "s", compute=compute, tp=tp, ep=exposed),
            "upper": calc("compute + tp + ep", "s", compute=most, tp=tp, ep=seconds["upper"]),
        }

    def _busy(self, seconds: Any, own: Divided) -> Any:
        """Kernels' time over the part of the time that a fitted stack's kernels run."""
        stack = self.stack
        if stack.busy == 1:
            return seconds
        busy: Any = Quantity.given(stack.busy, "", "busy", Source("assumed", stack.source))
        return calc(
            "seconds/busy", "s", seconds=seconds, busy=busy if own.degrees.explained else stack.busy
        )

    def _row(self, row: OwnRow, launch: float) -> Seconds:
        explained = isinstance(row.flops, Quantity)
        parts: dict[str, Any] = {}
        for weight in row.op.weights:
            read, _ = row.weight_elements(weight)
            parts[weight.name] = calc(
                "stored*read/whole", "B", read=read,
                stored=self._stored(row.group, row.block, weight, explained),
                whole=row.block.sizes[weight.name].elements,
            )  # fmt: skip
        moved = calc(
            "2*moved + width*cached + weights", "B", moved=row.moved, cached=row.cached,
            width=self.cache.bits / 8, weights=add(parts, "B"),
        )  # fmt: skip
        gemm = row.op.gemm
        work = Work(
            row.op.name, row.op.kind, row.flops, moved, self._format(row),
            tuple(row.scope(side) for side in gemm) if gemm is not None else None,
            row.scope(row.op.groups),
            row.scope("E") if row.op.kind == "grouped_linear" else 1,
        )  # fmt: skip
        found = self.times.seconds(work, explained=explained)
        if not launch:
            return found
        return Seconds(*(calc("seconds + launch", "s", seconds=s, launch=launch) for s in found))

    def _format(self, row: OwnRow) -> str:
        """Number format of a row's matmul: that of its weights, where the GPU has it."""
        weight = next((w for w in row.op.weights if w.matmul), None)
        if weight is None:
            return "bf16"
        name = next(row.group.tensor_names(weight), weight.name)
        return self.spec.checkpoint.of(weight, name).peak


def _any(number: Any) -> bool:
    found = plain(number)
    return bool(getattr(found, "any", lambda: found)())
