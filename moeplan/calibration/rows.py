"""Expected times of the rows of a pass, and the band around each.

A row is an operation of a block with the numbers of its workload. Matmuls, attention and what only
moves bytes have a model each; the rows of an MoE block between router and combine share one, so
they get their parts of it. Exchanges between ranks are the network's and get no time here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from moeplan.arrays import ceil, larger, real
from moeplan.calibration.band import Banded, banded
from moeplan.calibration.blocks import in_blocks
from moeplan.calibration.points import Kind, Points
from moeplan.calibration.store import Calibration
from moeplan.calibration.uniform import Loads, uniform_loads
from moeplan.model.ffn import MoE
from moeplan.model.ops import Block, Op, Weight
from moeplan.quantity import Number, evaluate

__all__ = [
    "MOE_PARTS",
    "Calibrations",
    "Degrees",
    "Row",
    "RowTime",
    "Stored",
    "kind_of",
    "row_times",
]

Calibrations: TypeAlias = "Callable[[str], Mapping[str, Calibration]]"
"""For a number format of matmul operands, the calibration of each kind of op."""

MOE_PARTS = (
    "select",
    "permute",
    "experts_gate_up",
    "experts_activation",
    "experts_down",
    "combine",
)
"""Rows of an MoE block whose times are parts of the MoE op's ("experts_up" without a gate)."""

ELEMENT = 2  # bytes of bf16
EAGER_LAUNCH = 6e-6  # seconds of host time for a kernel that torch launches; assumed
KERNELS = {"select": 6, "grouped_linear": 2}  # of a row; one where its kind is not here
BACKWARD = 3.0  # forward and backward of a matmul or an element-wise row, in forwards
ATTENTION_BACKWARD = 3.5  # the backward pass of attention computes the scores again
_SPLIT = {"column": "n", "row": "k", "heads": "n", "vocab": "n"}


class Row(Protocol):
    """An operation with the numbers of its workload: `moeplan.estimation.fold.Line` is one."""

    @property
    def op(self) -> Op:
        """The operation."""

    @property
    def block(self) -> Block:
        """The block that it belongs to."""

    @property
    def env(self) -> Mapping[str, Number]:
        """The numbers that its formulas may use."""


class Stored(NamedTuple):
    """A weight: the format that its matmul runs in, and bytes of an element as stored."""

    peak: str = "bf16"
    bytes: Number = 2


class Degrees(NamedTuple):
    """What divides a row on one GPU, and how tokens spread over experts.

    tp: tensor parallelism. ep: ranks among which the experts are divided; each brings as many
    tokens as the pass has. distribution: as in `moeplan.calibration.loads`. training: rows stand
    for forward and backward. eager: kernels are launched one by one and not from a CUDA graph, so
    that a row takes at least its kernels' launches.
    """

    tp: int = 1
    ep: int = 1
    distribution: str = "uniform"
    training: bool = False
    eager: bool = False


@dataclass(frozen=True)
class RowTime:
    """Seconds of one row in one layer. origin: measured or assumed; outside: what is out of range.

    used: the calibration that answered.
    """

    name: str
    lower: Number
    expected: Number
    upper: Number
    origin: str
    used: Calibration
    outside: str

    @property
    def calibration(self) -> str:
        """The name of the calibration that answered."""
        return self.used.name


def row_times(
    rows: Iterable[Row],
    calibrations: Calibrations,
    degrees: Degrees | None = None,
    stored: Callable[[Row, Weight | None], Stored] | None = None,
) -> list[RowTime | None]:
    """The time of each row, or None for an exchange, which the network has to answer for.

    `calibrations` is such as `partial(for_gpu, "h200")` (`moeplan.calibration.derived`). `stored`
    tells how a weight of a row's block is stored (all in bf16 without it). Numbers of the rows may
    be arrays that broadcast.
    """
    timer = _Timer(calibrations, degrees or Degrees(), stored or (lambda row, weight: Stored()))
    return [None if row.op.kind == "exchange" else timer.time(row) for row in rows]


def kind_of(block: Block, op: Op) -> Kind:
    """Which op-time model answers for a row."""
    if isinstance(block, MoE) and op.name in (*MOE_PARTS, "experts_up"):
        return "moe"
    if op.gemm is not None:
        return "gemm"
    return "attention" if op.kind in ("attention", "scan") else "bytes"


class _Timer:
    def __init__(
        self,
        calibrations: Calibrations,
        degrees: Degrees,
        stored: Callable[[Row, Weight | None], Stored],
    ) -> None:
        self.calibrations, self.degrees, self.stored = calibrations, degrees, stored
        self._moe: dict[tuple[int, int], tuple[Calibration, dict[str, Number], Banded]] = {}

    def time(self, row: Row) -> RowTime:
        op, kind = row.op, kind_of(row.block, row.op)
        if kind == "moe":
            return self._part(row, "experts_gate_up" if op.name == "experts_up" else op.name)
        if kind == "gemm":
            stored = self.stored(row, next((w for w in op.weights if w.matmul), None))
            columns = self._gemm(row, stored)
            return self._answer(row, kind, columns, BACKWARD, stored.peak)
        if kind == "attention":
            return self._answer(row, kind, self._attention(row), ATTENTION_BACKWARD)
        moved = ELEMENT * (self._number(row, op.read) + self._number(row, op.write))
        columns = {"bytes": ceil(self._shared(op, moved)), "launches": 1}
        return self._answer(row, kind, columns, BACKWARD)

    def _number(self, row: Row, formula: str) -> Number:
        return evaluate(formula, row.env)

    def _shared(self, op: Op, amount: Number) -> Number:
        """The part of a row that one of the tensor-parallel ranks does."""
        return amount / self.degrees.tp if op.shard in (*_SPLIT, "experts", "tokens") else amount

    def _gemm(self, row: Row, stored: Stored) -> dict[str, Number]:
        assert row.op.gemm is not None
        m, k, n = (real(self._number(row, f)) for f in row.op.gemm)
        divided = _SPLIT.get(row.op.shard)
        tp = self.degrees.tp
        return {
            "m": ceil(m),
            "n": ceil(n / tp) if divided == "n" else n,
            "k": ceil(k / tp) if divided == "k" else k,
            "weight_bytes": stored.bytes,
        }

    def _attention(self, row: Row) -> dict[str, Number]:
        op, tp = row.op, self.degrees.tp
        elements = sum(self._number(row, f) for f in (op.read, op.write, op.cached))
        flops = larger(self._number(row, op.flops), 1.0)
        return {"flops": flops / tp, "bytes": ceil(ELEMENT * elements / tp)}

    def _answer(
        self,
        row: Row,
        kind: Kind,
        columns: dict[str, Number],
        passes: float,
        number_format: str = "bf16",
    ) -> RowTime:
        found = self.calibrations(number_format)[kind]
        fit = found.fits[kind]

        def answer(points: Points) -> Banded:
            features = fit.model.prepare(points, found.device)
            return banded(points, fit, fit.model.seconds(features, fit.constants), features)

        points = Points(kind, columns)
        times = in_blocks(points, answer) if kind == "gemm" else answer(points)
        factor = passes if self.degrees.training else 1.0
        return self._made(row, times, factor, found, fit.origin)

    def _part(self, row: Row, name: str) -> RowTime:
        key = id(row.block), id(row.env)
        if key not in self._moe:
            self._moe[key] = self._moe_op(row)
        found, parts, whole = self._moe[key]
        factor = BACKWARD if self.degrees.training else 1.0
        share = parts[name] / whole.expected * factor
        return self._made(row, whole, share, found, found.fits["moe"].origin)

    def _moe_op(self, row: Row) -> tuple[Calibration, dict[str, Number], Banded]:
        """The whole op, by the format of its experts' weights."""
        assert isinstance(row.block, MoE)
        experts = next(w for w in row.block.weights() if w.shard == "experts" and w.matmul)
        stored = self.stored(row, experts)
        found = self.calibrations(stored.peak)["moe"]
        fit = found.fits["moe"]
        model: Any = fit.model
        points = moe_points(row.block, row.env, self.degrees, stored.bytes)
        features = model.prepare(points, found.device)
        parts = model.parts(features, fit.constants)
        return found, parts, banded(points, fit, sum(parts.values()), features)

    def _made(
        self, row: Row, times: Banded, share: Number, found: Calibration, origin: str
    ) -> RowTime:
        """A row that takes `share` times a predicted op."""
        kernels = KERNELS.get(row.op.kind, 1) if self.degrees.eager else 0
        least = (BACKWARD if self.degrees.training else 1.0) * kernels * EAGER_LAUNCH
        lower, expected, upper = (
            larger(share * seconds, least) for seconds in (times.lower, times.expected, times.upper)
        )
        outside = " ".join(sorted(times.outside))
        return RowTime(row.op.name, lower, expected, upper, origin, found, outside)


def moe_points(
    block: MoE, env: Mapping[str, Number], degrees: Degrees, weight_bytes: Number = ELEMENT
) -> Points:
    """The MoE op of one rank of ep, to which an exchange has brought the rows of its experts.

    Of the ep·T·k rows of all ranks it gets T·k on average, over E/ep experts; it selects for its
    own T tokens.
    """
    tokens, experts = env["T"], env["E"]
    top_k = env[block.each]
    return Points(
        "moe",
        {
            "num_tokens": tokens,
            "hidden_size": env[block.width],
            "inter_size": env["F"],
            "topk": top_k,
            "num_experts": experts,
            "moe_tp_size": degrees.tp,
            "moe_ep_size": degrees.ep,
            "distribution": degrees.distribution,
            "gated": block.gated,
            "weight_on_input": block.routing.weigh == "input",
            "weight_bytes": weight_bytes,
        },
        loads=_loads(tokens * degrees.ep, experts, top_k, degrees),
    )


def _loads(tokens: Number, experts: Number, top_k: Number, degrees: Degrees) -> Loads:
    """Rows of this rank's experts: of the busiest one where experts differ in popularity."""
    if degrees.distribution == "uniform":
        return uniform_loads(real(tokens), experts, top_k, degrees.ep)
    from moeplan.calibration.loads import loads_of_ranks  # draws samples: needs arrays

    return loads_of_ranks(tokens, experts, top_k, degrees.ep, degrees.distribution)
