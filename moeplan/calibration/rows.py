"""Expected times of the rows of a pass, and the band around each.

A row is an operation of a block with the numbers of its workload. Matmuls, attention and what only
moves bytes have a model each; the rows of an MoE block between router and combine share one, so
they get their parts of it. Exchanges between ranks are the network's and get no time here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from moeplan.calibration.points import Points, points_of
from moeplan.calibration.predict import Predicted, banded
from moeplan.calibration.store import Calibration
from moeplan.model.ffn import MoE
from moeplan.model.ops import Block, Op
from moeplan.quantity import Number, evaluate

__all__ = ["MOE_PARTS", "Degrees", "Row", "RowTime", "row_times"]

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

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

    calibration: the name of the one that was used.
    """

    name: str
    lower: Number
    expected: Number
    upper: Number
    origin: str
    calibration: str
    outside: str


def row_times(
    rows: Iterable[Row], calibrations: Mapping[str, Calibration], degrees: Degrees | None = None
) -> list[RowTime | None]:
    """The time of each row, or None for an exchange, which the network has to answer for.

    `calibrations` gives one for each kind of op, as `moeplan.calibration.derived.for_gpu` does.
    Numbers of the rows may be arrays that broadcast.
    """
    timer = _Timer(calibrations, degrees or Degrees())
    return [None if row.op.kind == "exchange" else timer.time(row) for row in rows]


class _Timer:
    def __init__(self, calibrations: Mapping[str, Calibration], degrees: Degrees) -> None:
        self.calibrations, self.degrees = calibrations, degrees
        self._moe: dict[tuple[int, int], tuple[dict[str, _Array], Predicted]] = {}

    def time(self, row: Row) -> RowTime:
        op = row.op
        if isinstance(row.block, MoE) and op.name in (*MOE_PARTS, "experts_up"):
            return self._part(row, "experts_gate_up" if op.name == "experts_up" else op.name)
        if op.gemm is not None:
            return self._answer(row, self._gemm(row), BACKWARD)
        if op.kind in ("attention", "scan"):
            return self._answer(row, self._attention(row), ATTENTION_BACKWARD)
        moved = ELEMENT * (self._number(row, op.read) + self._number(row, op.write))
        points = points_of("bytes", bytes=np.ceil(self._shared(op, moved)), launches=1)
        return self._answer(row, points, BACKWARD)

    def _number(self, row: Row, formula: str) -> Number:
        return evaluate(formula, row.env)

    def _shared(self, op: Op, amount: Number) -> Number:
        """The part of a row that one of the tensor-parallel ranks does."""
        return amount / self.degrees.tp if op.shard in (*_SPLIT, "experts", "tokens") else amount

    def _gemm(self, row: Row) -> Points:
        assert row.op.gemm is not None
        m, k, n = (np.asarray(self._number(row, f), dtype=np.float64) for f in row.op.gemm)
        divided = _SPLIT.get(row.op.shard)
        tp = self.degrees.tp
        return points_of(
            "gemm",
            m=np.ceil(m),
            n=np.ceil(n / tp) if divided == "n" else n,
            k=np.ceil(k / tp) if divided == "k" else k,
        )

    def _attention(self, row: Row) -> Points:
        op, tp = row.op, self.degrees.tp
        elements = sum(self._number(row, f) for f in (op.read, op.write, op.cached))
        flops = np.maximum(np.asarray(self._number(row, op.flops), dtype=np.float64), 1.0)
        return points_of("attention", flops=flops / tp, bytes=np.ceil(ELEMENT * elements / tp))

    def _answer(self, row: Row, points: Points, passes: float) -> RowTime:
        found = self.calibrations[points.kind]
        fit = found.fits[points.kind]
        features = fit.model.prepare(points, found.device)
        seconds = fit.model.seconds(features, fit.constants)
        times = banded(points, fit, seconds, features, found.device)
        factor = passes if self.degrees.training else 1.0
        return self._made(row, times, np.ones(1), factor, found, fit.origin)

    def _part(self, row: Row, name: str) -> RowTime:
        found = self.calibrations["moe"]
        fit = found.fits["moe"]
        key = id(row.block), id(row.env)
        if key not in self._moe:
            self._moe[key] = self._moe_op(row, found)
        parts, whole = self._moe[key]
        factor = BACKWARD if self.degrees.training else 1.0
        return self._made(row, whole, parts[name] / whole.expected, factor, found, fit.origin)

    def _moe_op(self, row: Row, found: Calibration) -> tuple[dict[str, _Array], Predicted]:
        fit = found.fits["moe"]
        model: Any = fit.model
        points = moe_points(row.block, row.env, self.degrees)  # type: ignore[arg-type]
        features = model.prepare(points, found.device)
        parts = model.parts(features, fit.constants)
        seconds = np.sum(list(parts.values()), axis=0)
        return parts, banded(points, fit, seconds, features, found.device)

    def _made(
        self,
        row: Row,
        times: Predicted,
        share: _Array,
        factor: float,
        found: Calibration,
        origin: str,
    ) -> RowTime:
        """A row that takes the part `share` of a predicted op, in `factor` passes."""
        kernels = KERNELS.get(row.op.kind, 1) if self.degrees.eager else 0
        least = factor * kernels * EAGER_LAUNCH
        lower, expected, upper = (
            _plain(np.maximum(factor * share * seconds, least))
            for seconds in (times.lower, times.expected, times.upper)
        )
        outside = " ".join(
            sorted({w for text in set(times.outside.tolist()) for w in text.split()})
        )
        return RowTime(row.op.name, lower, expected, upper, origin, found.name, outside)


def moe_points(block: MoE, env: Mapping[str, Number], degrees: Degrees) -> Points:
    """The MoE op of one rank.

    With ep > 1 an exchange has brought this rank its rows, ep·T·k/ep of them, so the op runs over
    E/ep experts and T·k rows, each a token of its own where a rank has fewer than k experts.
    """
    tokens, experts = (np.asarray(env[s], dtype=np.float64) for s in ("T", "E"))
    top_k = np.asarray(env[block.each], dtype=np.float64)
    local = np.maximum(np.floor(experts / degrees.ep), 1)
    single = (local < top_k) | (top_k != np.floor(top_k))
    return points_of(
        "moe",
        num_tokens=_whole(np.where(single, tokens * top_k, tokens)),
        hidden_size=_whole(env[block.width]),
        inter_size=_whole(env["F"]),
        topk=_whole(np.where(single, 1, top_k)),
        num_experts=_whole(local),
        moe_tp_size=degrees.tp,
        moe_ep_size=1,
        distribution=degrees.distribution,
        gated=block.gated,
        weight_on_input=block.routing.weigh == "input",
    )


def _whole(value: Number) -> _Array:
    out: _Array = np.maximum(np.ceil(np.asarray(value, dtype=np.float64)), 1).astype(np.int64)
    return out


def _plain(value: _Array) -> Number:
    return float(value[0]) if value.size == 1 else value
