"""What one piece of a model costs a GPU in one microbatch: memory, times, messages.

The numbers depend on tp, cp, ep, etp, the microbatch and the kinds of a layout only. They are
computed for each different combination once, and looked up by everything that follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

from moeplan.calc import add, calc
from moeplan.cluster.layout import Layout
from moeplan.cluster.network import Network
from moeplan.model.ops import Op
from moeplan.parallel.costs import DROPPED_ROWS, HIDDEN, Alike, PieceCost, RowCost, dropped
from moeplan.parallel.divide import Divided, OwnRow
from moeplan.parallel.jobs import TrainingJob
from moeplan.parallel.optime import RowTimes, Seconds, Work
from moeplan.parallel.stages import Piece
from moeplan.parallel.traffic import ACTIVATION_BYTES, ExchangeFormats, Message, messages
from moeplan.quantity import Quantity, Source

__all__ = ["Coster"]

_TAKEN = Quantity.given(
    20 / 132, "", "taken", Source("assumed", "20 of 132 multiprocessors send (arXiv 2412.19437)")
)

_WIDE = ("router", "head")
"""Matmuls that stay in bf16 when training in fp8 (DeepSeek-V3, arXiv 2412.19437, 3.3.1)."""


class Coster:
    """Costs of pieces under one set of degrees."""

    def __init__(
        self,
        own: Divided,
        layout: Layout,
        job: TrainingJob,
        net: Network,
        times: RowTimes,
        gradient_bytes: int,
    ) -> None:
        self.own, self.layout, self.job, self.net, self.times = own, layout, job, net, times
        self.gradient_bytes = gradient_bytes
        self.formats = ExchangeFormats(job.dispatch, job.combine, job.policy, job.imbalance)
        self.bounds = True
        self._made: dict[int, Alike] = {}

    def under(self, layout: Layout, *, bounds: bool = True) -> Coster:
        """The same degrees under other recomputation or overlap; what is alike is kept.

        bounds: add up bounds of times and bytes by tier too.
        """
        out = copy(self)
        out.layout, out.bounds = layout, bounds
        return out

    def _alike(self, piece: Piece) -> Alike:
        """What recomputation and overlap do not change, made once."""
        if id(piece) not in self._made:
            bare = piece.role == "copy"
            self._made[id(piece)] = Alike(
                [] if bare else [(row.op, self._row(row)) for row in self.own.rows(piece)],
                [] if bare else messages(self.own, piece, self.net, self.formats, training=True),
                [] if bare else list(self.own.kept(piece, self.job.kept == "fp8")),
                self._parameters(piece),
                self._buffer(piece),
            )
        return self._made[id(piece)]

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
        alike = self._alike(piece)
        rows, sent = list(self.rows(piece)), alike.sent
        out = PieceCost({}, rows, [], sent)
        n = out.numbers
        n |= alike.parameters
        n |= self._activations(piece, out)
        n |= self._times(rows, sent)
        self._wait(n, len(self.own.moes(piece)) if piece.role != "copy" else 0)
        return out

    def _wait(self, n: dict[str, Any], moes: int) -> None:
        """What a fitted stack adds to its kernels' time: gaps, and the host's part."""
        stack = self.times.stack
        if stack.busy == 1 and not stack.host:
            return
        source = Source("assumed", f"stack {stack.name}: {stack.source}")
        busy = Quantity.given(stack.busy, "", "busy", source)
        host = Quantity.given(moes * stack.host, "s", "host", source)
        if not self.own.degrees.explained:
            busy, host = busy.value, host.value
        shares = {"compute": "1", "backward": "2/3"}
        for name in ("compute", "backward", "recompute", "wgrad"):
            more = f" + {shares[name]}*host" if name in shares else ""
            given = {"host": host} if more else {}
            n[name] = calc(f"seconds/busy{more}", "s", seconds=n[name], busy=busy, **given)
        parts = {name: n[name] for name in ("compute", "recompute", "tp", "ep", "cp")}
        n["time"] = add(parts, "s")
        if "upper" in n:
            n["upper"] = calc("seconds/busy + host", "s", seconds=n["upper"], busy=busy, host=host)

    def _parameters(self, piece: Piece) -> dict[str, Any]:
        parts: dict[str, dict[str, Any]] = {"dense": {}, "experts": {}}
        for i, (weight, group, elements) in enumerate(self.own.parameters(piece)):
            parts[group][f"{weight.name} {i}"] = elements
        return {group: add(found, "parameters") for group, found in parts.items()}

    def _activations(self, piece: Piece, out: PieceCost) -> dict[str, Any]:
        full = self.layout.recompute == "full" and piece.is_layer
        selective = self.layout.recompute == "selective" and piece.is_layer
        everything: dict[str, Any] = {}
        kept: dict[str, Any] = {}
        alike = self._alike(piece)
        for i, (tensor, size) in enumerate(alike.kept):
            name = f"{tensor.name} {i}"
            everything[name] = size
            always = tensor.name in ("logits", "head_input")  # no layer: never computed again
            if (not full and not (selective and dropped(tensor, self.layout))) or always or i == 0:
                kept[name] = size
                out.kept.append((tensor.name, size))
        total, held = add(everything, "B"), add(kept, "B")
        return {
            "kept": held,
            "workspace": calc("total - kept", "B", total=total, kept=held),
            "buffer": alike.buffer,
        }

    def _buffer(self, piece: Piece) -> Any:
        """One layer's rows to experts and back, while they travel."""
        moes = self.own.moes(piece)
        if not moes or piece.role == "copy":
            return 0
        moe, d = moes[0], self.own.degrees
        symbols = moe.symbols if d.explained else moe.values
        return calc(
            "pick(ep*etp > 1, 2*width*T*each*D*imbalance, 0)",
            "B",
            ep=d.ep,
            etp=d.etp,
            width=ACTIVATION_BYTES,
            T=self.own.routed_tokens,
            each=symbols[moe.each],
            D=symbols[moe.width],
            imbalance=self.job.imbalance,
        )

    # --------------------------------------------------------------------------------- times
    def _times(self, rows: list[RowCost], sent: list[Message]) -> dict[str, Any]:
        def summed(pick: str) -> Any:
            return add({f"{r.name} {i}": getattr(r, pick) for i, r in enumerate(rows)}, "s")

        names = ("forward", "again", "input_gradient", "weight_gradient")
        forward, again, inputs, wgrad = (self._slowed(summed(name), sent) for name in names)
        backward = calc("inputs + weights", "s", inputs=inputs, weights=wgrad)
        full = self.layout.recompute == "full"
        groups = {"tp": ("tp", "etp"), "ep": ("ep",), "cp": ("cp",)}
        f = {x: _messages(sent, g, "seconds", "forward") for x, g in groups.items()}
        b = {x: _messages(sent, g, "seconds", "backward") for x, g in groups.items()}
        if full:  # the forward pass again, messages included
            b = {x: calc("back + again", "s", back=b[x], again=f[x]) for x in b}
        exposed = self._exposed(f, b, forward, calc("b + r", "s", b=backward, r=again))
        compute = calc("forward + backward", "s", forward=forward, backward=backward)
        work = calc("compute + again", "s", compute=compute, again=again)
        parts = {x: calc("f + b", "s", f=exposed[x][0], b=exposed[x][1]) for x in groups}
        back = add({x: exposed[x][1] for x in groups}, "s")
        return {
            "time": calc("work + tp + ep + cp", "s", work=work, **parts),
            "backward": calc(
                "backward + again + sent", "s", backward=backward, again=again, sent=back
            ),
            "wgrad": wgrad,
            "compute": compute,
            "recompute": again,
            **parts,
            **(self._bounds(sent, rows, full) if self.bounds else {}),
        }

    def _bounds(self, sent: list[Message], rows: list[RowCost], full: bool) -> dict[str, Any]:
        """Seconds where all messages run under compute and rows are at the fast end of their bands,
        and where none do and rows are at the slow end; bytes by tier."""
        least, most = (
            self._slowed(
                add({f"{r.name} {i}": getattr(r, bound) for i, r in enumerate(rows)}, "s"), sent
            )
            for bound in ("lower", "upper")
        )
        every = ("tp", "etp", "ep", "cp")
        upper = [_messages(sent, every, "upper", way) for way in ("forward", "backward")]
        lower = [_messages(sent, every, "lower", way) for way in ("forward", "backward")]
        if full:
            upper.append(upper[0])
            lower.append(lower[0])
        return {
            "lower": calc(
                "max(work, sent)", "s", work=least, sent=add(dict(enumerate_(lower)), "s")
            ),
            "upper": calc("work + sent", "s", work=most, sent=add(dict(enumerate_(upper)), "s")),
            **{x: _sent(sent, x, full) for x in ("up", "out")},
        }

    def _slowed(self, seconds: Any, sent: list[Message]) -> Any:
        """Compute beside a hidden exchange, which needs multiprocessors of its own."""
        exchanges = [m for m in sent if m.group == "ep"]
        if not exchanges or not HIDDEN[self.layout.overlap]["ep"]:
            return seconds
        taken: Any = _TAKEN if self.own.degrees.explained else _TAKEN.value
        return calc(
            "pick(n > 1, seconds/(1 - taken), seconds)", "s", n=exchanges[0].n, seconds=seconds,
            taken=taken,
        )  # fmt: skip

    def _exposed(
        self, f: dict[str, Any], b: dict[str, Any], forward: Any, backward: Any
    ) -> dict[str, tuple[Any, Any]]:
        """Seconds of each group's messages that compute does not cover, forward and backward."""
        hidden = HIDDEN[self.layout.overlap]
        if not any(hidden[x] for x in f):
            return {x: (f[x], b[x]) for x in f}
        covers = []
        joint = self.layout.overlap == "dualpipe"
        both = calc("forward + backward", "s", forward=forward, backward=backward)
        for side, compute in ((f, forward), (b, backward)):
            wanted = {x: side[x] for x in f if hidden[x]}
            if joint:
                wanted = {
                    f"{x} {i}": way[x] for x in f if hidden[x] for i, way in enumerate((f, b))
                }
                compute = both
            covers.append(
                calc(
                    "min(1, compute/max(hidden, 1e-30))",
                    "",
                    compute=compute,
                    hidden=add(wanted, "s"),
                )
            )
        return {
            x: tuple(
                calc("seconds*(1 - cover)", "s", seconds=side[x], cover=cover)
                if hidden[x]
                else side[x]
                for side, cover in zip((f, b), covers, strict=True)
            )
            for x in f
        }


def enumerate_(parts: list[Any]) -> Iterator[tuple[str, Any]]:
    """Parts by their number, for sums."""
    return ((f"pass {i}", part) for i, part in enumerate(parts))


def _messages(sent: list[Message], groups: tuple[str, ...], figure: str, way: str) -> Any:
    parts = {}
    for i, message in enumerate(sent):
        times = getattr(message, way)
        if message.group in groups and not (isinstance(times, int) and times == 0):
            seconds = getattr(message, figure)
            name = f"{message.group} {message.op} {i}"
            parts[name] = calc("times*seconds", "s", times=times, seconds=seconds)
    return add(parts, "s")


def _sent(sent: list[Message], tier: str, full: bool) -> Any:
    parts = {}
    for i, message in enumerate(sent):
        parts[f"{message.group} {message.op} {i}"] = calc(
            "(times*forward + backward)*size",
            "B",
            times=2 if full else 1,
            forward=message.forward,
            backward=message.backward,
            size=getattr(message, tier),
        )
    return add(parts, "B")
