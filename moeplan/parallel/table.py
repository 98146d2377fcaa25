"""What one piece of a model costs a GPU in one microbatch: memory, times, messages.

The numbers depend on tp, cp, ep, etp, the microbatch and the kinds of a layout only. They are
computed for each different combination once, and looked up by everything that follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import replace
from typing import Any

from moeplan.calc import add, calc
from moeplan.cluster.layout import Layout
from moeplan.cluster.network import Network
from moeplan.model.ops import Kept, Op
from moeplan.parallel.axes import Located, Terms
from moeplan.parallel.costs import DROPPED_ROWS, Alike, PieceCost, RowCost, dropped
from moeplan.parallel.divide import Divided, OwnRow
from moeplan.parallel.jobs import TrainingJob
from moeplan.parallel.optime import RowTimes, Seconds, Work
from moeplan.parallel.piece_times import (
    GROUPS,
    WAYS,
    bytes_sent,
    message_seconds,
    piece_times,
)
from moeplan.parallel.stages import Piece
from moeplan.parallel.traffic import ACTIVATION_BYTES, ExchangeFormats, Message, messages

__all__ = ["Coster"]

_HELD = ("dense", "experts", "kept", "workspace", "buffer", "up", "out")
"""Numbers that are sums, of the piece's numbers."""

_WIDE = ("router", "head")
"""Matmuls that stay in bf16 when training in fp8 (DeepSeek-V3, arXiv 2412.19437, 3.3.1)."""


class Coster:
    """Costs of pieces under one set of degrees: of one layout, or of many on axes.

    Degrees on axes give sums that stay apart by what they vary along, and `located` says for which
    layouts they are put together.
    """

    def __init__(
        self,
        own: Divided,
        layout: Layout,
        job: TrainingJob,
        net: Network,
        times: RowTimes,
        gradient_bytes: int,
        located: Located | None = None,
    ) -> None:
        self.own, self.layout, self.job, self.net, self.times = own, layout, job, net, times
        self.gradient_bytes, self.located = gradient_bytes, located
        self.formats = ExchangeFormats(job.dispatch, job.combine, job.policy, job.imbalance)
        self.bounds = True
        self._made: dict[int, Alike] = {}
        self._sums: dict[int, PieceCost] = {}

    def under(self, layout: Layout, *, bounds: bool = True) -> Coster:
        """The same degrees under other recomputation or overlap; what is alike is kept.

        bounds: add up bounds of times and bytes by tier too.
        """
        out = copy(self)
        out.layout, out.bounds, out._sums = layout, bounds, {}
        return out

    def at(self, located: Located) -> Coster:
        """The same for other layouts on the axes."""
        out = copy(self)
        out.located = located
        return out

    def prepare(self, pieces: Iterable[Piece]) -> None:
        """Make what all kinds share, before processes are forked that would each make it."""
        for piece in pieces:
            self._alike(piece)

    def _alike(self, piece: Piece) -> Alike:
        """What recomputation and overlap do not change, made once."""
        if id(piece) not in self._made:
            bare = piece.role == "copy"
            rows = [] if bare else [(row.op, self._row(row)) for row in self.own.rows(piece)]
            sent = [] if bare else messages(self.own, piece, self.net, self.formats, training=True)
            kept = [] if bare else list(self.own.kept(piece, self.job.kept == "fp8"))
            self._made[id(piece)] = Alike(rows, sent, kept, self._common(piece, rows, sent, kept))
        return self._made[id(piece)]

    def _add(self, parts: dict[str, Any], unit: str) -> Any:
        return add(parts, unit) if self.located is None else Terms.of(*parts.values())

    def _common(
        self,
        piece: Piece,
        rows: list[tuple[Op, RowCost]],
        sent: list[Message],
        kept: list[tuple[Kept, Any]],
    ) -> dict[str, Any]:
        """Sums that all kinds share: parameters, bytes, seconds of rows and of messages."""
        parts: dict[str, dict[str, Any]] = {"dense": {}, "experts": {}}
        for i, (weight, group, elements) in enumerate(self.own.parameters(piece)):
            parts[group][f"{weight.name} {i}"] = elements
        out = {group: self._add(found, "parameters") for group, found in parts.items()}
        out["total"] = self._add({f"{t.name} {i}": x for i, (t, x) in enumerate(kept)}, "B")
        out["buffer"] = self._buffer(piece)
        for name in ("forward", "input_gradient", "weight_gradient"):
            out[name] = self._of_rows([row for _, row in rows], name)
        for group, names in GROUPS.items():
            for way in WAYS:
                seconds = message_seconds(sent, names, "seconds", way)
                out[f"{group} {way}"] = self._add(seconds, "s")
        return out

    def _of_rows(self, rows: list[RowCost], name: str) -> Any:
        return self._add({f"{r.name} {i}": getattr(r, name) for i, r in enumerate(rows)}, "s")

    # --------------------------------------------------------------------------------- rows
    def rows(self, piece: Piece) -> Iterator[RowCost]:
        """Seconds of each row; the optimizer's gradients are read and written by each pass."""
        for op, row in self._alike(piece).rows:
            again = piece.is_layer and self._again(op)
            yield row.recomputed() if again else row

    def _again(self, op: Op) -> bool:
        if self.layout.recompute == "none" or op.name == "lm_head":
            return False
        if self.layout.recompute == "full":
            return True
        return any(DROPPED_ROWS[group](op) for group in self.layout.selective)

    def _row(self, row: OwnRow) -> RowCost:
        weighted = row.op.kind in ("linear", "grouped_linear") and bool(row.op.weights)
        moved = calc("2*moved + 2*cached", "B", moved=row.moved, cached=row.cached)
        read = add({w.name: row.weight_elements(w)[0] for w in row.op.weights}, "elements")
        held = add({w.name: row.weight_elements(w)[1] for w in row.op.weights}, "elements")
        formed = self.job.precision if weighted and row.op.component not in _WIDE else "bf16"
        through = calc("moved + 2*weights", "B", moved=moved, weights=read)
        # gradients are added to those of earlier microbatches: read and written
        gradients = calc(
            "moved + 2*each*weights", "B", moved=moved, each=self.gradient_bytes, weights=held
        )
        once = self._seconds(row, through, formed)
        if formed == "fp8" and self.times.stack.calibrated:
            once = self._with_casts(row, moved, once)
        back, into = 1.0, Seconds(0, 0, 0)
        if weighted:
            into = self._seconds(row, gradients, formed)
        else:
            back = self.times.attention_backward if row.op.kind == "attention" else 2.0
        inputs = once.expected
        if back != 1:
            inputs = calc(f"{back:g}*forward", "s", forward=once.expected)
        lower, upper = (
            calc(f"{1 + back:g}*forward + into", "s", forward=a, into=b)
            for a, b in ((once.lower, into.lower), (once.upper, into.upper))
        )
        return RowCost(
            row.op.name, once.expected, inputs, into.expected, lower, upper,
            (once.lower, once.upper),
        )  # fmt: skip

    def _with_casts(self, row: OwnRow, moved: Any, seconds: Seconds) -> Seconds:
        """With the pass in which a matmul's bf16 operand is turned into fp8, once as it is and once
        transposed for the weight gradient: 2 bytes of an element are read and 2 written. Forward
        casts inputs and backward output gradients, each about half of what the row moves.
        """
        work = Work(f"{row.op.name} casts", "pointwise", 0, moved, "bf16")
        cast = self.times.seconds(work, explained=self.own.degrees.explained)
        return Seconds(
            *(calc("matmul + cast", "s", matmul=a, cast=b)
              for a, b in zip(seconds, cast, strict=True))
        )  # fmt: skip

    def _seconds(self, row: OwnRow, moved: Any, number_format: str) -> Seconds:
        gemm = row.op.gemm
        shape = tuple(row.scope(side) for side in gemm) if gemm is not None else None
        work = Work(
            row.op.name,
            row.op.kind,
            row.flops,
            moved,
            number_format,
            shape,
            row.scope(row.op.groups),
            row.scope("E") if row.op.kind == "grouped_linear" else 1,
        )
        return self.times.seconds(work, explained=self.own.degrees.explained)

    # --------------------------------------------------------------------------------- piece
    def cost(self, piece: Piece) -> PieceCost:
        """All numbers of a piece."""
        if id(piece) not in self._sums:
            self._sums[id(piece)] = self._summed(piece)
        made = self._sums[id(piece)]
        sums, located = made.numbers, self.located
        moes = len(self.own.moes(piece)) if piece.role != "copy" else 0
        held = {name: sums[name] for name in _HELD if name in sums}
        taken = {name: x for name, x in sums.items() if name not in _HELD}
        times = piece_times(
            taken if located is None else located.together(taken),
            self.layout,
            self.times.stack,
            moes,
            explained=self.own.degrees.explained,
        )
        return replace(made, numbers={**held, **times})

    def _summed(self, piece: Piece) -> PieceCost:
        """A piece's rows, kept tensors and messages, and their sums."""
        alike = self._alike(piece)
        rows, sums = list(self.rows(piece)), dict(alike.sums)
        kept = list(self._kept(piece, alike.kept))
        sums["again"] = self._of_rows(rows, "again")
        sums["kept"] = self._add({f"{tensor.name} {i}": size for i, tensor, size in kept}, "B")
        sums["workspace"] = calc("total - kept", "B", total=sums.pop("total"), kept=sums["kept"])
        group = next((m.n for m in alike.sent if m.group == "ep"), None)
        if group is not None:
            sums["group"] = group if self.located is None else Terms.of(group)
        if self.bounds:
            sums |= self._bounds(rows, alike.sent)
        return PieceCost(sums, rows, [(tensor.name, size) for _, tensor, size in kept], alike.sent)

    def _kept(self, piece: Piece, every: list[tuple[Kept, Any]]) -> Iterator[tuple[int, Kept, Any]]:
        """Of all tensors those that are not computed again, with their numbers."""
        full = self.layout.recompute == "full" and piece.is_layer
        selective = self.layout.recompute == "selective" and piece.is_layer
        for i, (tensor, size) in enumerate(every):
            always = tensor.name in ("logits", "head_input")  # no layer: never computed again
            left = full or (selective and dropped(tensor, self.layout))
            if not left or always or i == 0:
                yield i, tensor, size

    def _bounds(self, rows: list[RowCost], sent: list[Message]) -> dict[str, Any]:
        """Rows at both ends of their bands, all messages at both ends, and bytes by tier."""
        full = self.layout.recompute == "full"
        every = ("tp", "etp", "ep", "cp")
        out = {"fast": self._of_rows(rows, "lower"), "slow": self._of_rows(rows, "upper")}
        for name, figure in (("most sent", "upper"), ("least sent", "lower")):
            ways = [self._add(message_seconds(sent, every, figure, way), "s") for way in WAYS]
            if full:  # the forward pass again
                ways.append(ways[0])
            out[name] = self._add({f"pass {i}": way for i, way in enumerate(ways)}, "s")
        return out | {tier: self._add(bytes_sent(sent, tier, full), "B") for tier in ("up", "out")}

    def _buffer(self, piece: Piece) -> Any:
        """One layer's rows to experts and back, while they travel."""
        moes = self.own.moes(piece)
        if not moes or piece.role == "copy":
            return 0
        moe, d = moes[0], self.own.degrees
        symbols = moe.symbols if d.explained else moe.values
        size = calc(
            "pick(ep*etp > 1, 2*width*T*each*D*load, 0)",
            "B",
            ep=d.ep,
            etp=d.etp,
            width=ACTIVATION_BYTES,
            T=self.own.routed_tokens,
            each=symbols[moe.each],
            D=symbols[moe.width],
            load=self.own.load(moe),
        )
        return size if self.located is None else Terms.of(size)
