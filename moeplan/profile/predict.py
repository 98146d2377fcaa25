"""What a measured pass is expected to take, from the block's rows and this run's own roofs.

For each row: FLOPs, and bytes with the experts that really got a token in place of their expected
number; t_c = FLOPs / GEMM roof, t_m = bytes / bandwidth roof, t_0 = launches · launch time. The
floor is max(t_c, t_m). Where a calibration fits the device and backend, it gives the expected time;
elsewhere that is t_0 + (t_c⁴ + t_m⁴)^¼ at the roofs themselves, which real kernels do not reach; on
a CPU with what `host` knows of small matmuls, new pages and small operations.
Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

from moeplan.errors import UserError, near_miss
from moeplan.model.ffn import MoE, Routing
from moeplan.model.ops import Op
from moeplan.model.workload import Workload
from moeplan.profile.host import ROWS, Host
from moeplan.profile.record import Direction, OpPrediction, Prediction, Roof, Stage, Subject, now
from moeplan.quantity import Number, evaluate

__all__ = [
    "DTYPES",
    "JUDGED",
    "LAUNCHES",
    "TOGETHER",
    "UNCALIBRATED",
    "Calibrated",
    "Rates",
    "Shape",
    "block_of",
    "calibration_for",
    "dtype_bytes",
    "phase_of",
    "predict",
    "subject_of",
]

DTYPES: Mapping[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Number formats that layers are measured in, with the bytes of an element."""

UNCALIBRATED = (
    "No calibration for this device and backend: the prediction assumes that the measured roofs "
    "are reached in full. Expect it to be too fast, by 20 to 30 %."
)

UNCALIBRATED_CPU = (
    "No calibration for this device and backend: the prediction is made of what this run measured "
    "of the processor beside the layer. Expect errors of some ten percent, more under other load."
)

OTHERS = (
    "The prediction is that of the torch backend, beside which this one is shown: its errors are "
    "not counted."
)

JUDGED = ("torch",)
"""Backends that predictions are made for. `reference` is there to be right, others to compare."""

TOGETHER = "experts"
"""The phase of a backend that runs all from permute to combine in one call."""

_ROUTED = frozenset(
    ("permute", "experts_gate_up", "experts_up", "experts_activation", "experts_down", "combine")
)

LAUNCHES: Mapping[Stage, Mapping[str, int]] = {
    "forward": {"linear": 1, "grouped_linear": 2, "pointwise": 1, "gather": 1, "select": 15},
    "backward": {"linear": 2, "grouped_linear": 4, "pointwise": 1, "gather": 2, "select": 6},
}
"""Kernels that the `torch` backend launches for a row, by its kind: read off its code, with two for
a grouped matmul (a set-up kernel before the GEMM) and 10 to 20 for scores, top-k and sort."""


class Calibrated(Protocol):
    """A calibrated model of op times for one device and backend."""

    @property
    def name(self) -> str:
        """What the record says the prediction was made with."""

    def seconds(
        self,
        op: Op,
        work: OpPrediction,
        rows_per_expert: Sequence[int],
        env: Mapping[str, Number],
    ) -> float | None:
        """Expected seconds of a row, or None where it has no constants for its kind.

        env: the numbers of the row's formulas, with the experts that got a row as A.
        """


@dataclass(frozen=True)
class Shape:
    """What a prediction is about: a block at a size, as it is routed and run."""

    block: MoE
    tokens: int
    rows_per_expert: Sequence[int]
    dtype: str
    direction: Direction
    backend: str = "torch"
    together: bool = False


def phase_of(row: str, *, together: bool) -> str:
    """The phase that a row is measured in: its own, or the one of all routed rows together."""
    return TOGETHER if together and row in _ROUTED else row


def dtype_bytes(dtype: str) -> int:
    """Bytes of an element. Raises UserError for a format that is not measured."""
    if dtype not in DTYPES:
        allowed = ", ".join(DTYPES)
        raise UserError(f"--dtype {dtype!r}: allowed are {allowed}{near_miss(dtype, DTYPES)}")
    return DTYPES[dtype]


def calibration_for(device: str, backend: str, dtype: str) -> Calibrated | None:
    """The calibration that ships for a device and backend, or None."""
    if find_spec("moeplan.calibration") is None:
        return None
    find: Callable[..., Calibrated | None] | None = getattr(
        import_module("moeplan.calibration"), "for_profile", None
    )
    return find(device, backend, dtype) if find is not None else None


def predict(
    case: Shape, roofs: Sequence[Roof], peak_bytes: int, calibration: Calibrated | None = None
) -> Prediction:
    """The expected time of every row and of the layer, and its peak memory.

    Raises UserError where a roof is missing.
    """
    rates, host = Rates.of(roofs), Host.of(roofs)
    work = Workload("train", B=1, S=case.tokens, C=case.tokens)
    env = dict(case.block.environment(work))
    env["A"] = sum(1 for rows in case.rows_per_expert if rows)
    stages: tuple[Stage, ...] = ("forward", "backward")
    ops = []
    for stage in stages[: 1 if case.direction == "forward" else 2]:
        for op in case.block.rows(work):
            if op.kind == "exchange":
                continue
            row = rates.row(op, stage, env, dtype_bytes(case.dtype))
            seconds = None
            if calibration is not None:
                seconds = calibration.seconds(op, row, case.rows_per_expert, env)
            elif host is not None:
                size = dtype_bytes(case.dtype)
                seconds = host.seconds(op, row, case.rows_per_expert, env, size)
            ops.append(row if seconds is None else row.model_copy(update={"expected": seconds}))
    if case.together:
        ops = _joined(ops)
    note = "" if calibration is not None else UNCALIBRATED if host is None else UNCALIBRATED_CPU
    return Prediction(
        made=now(),
        method=_method(host, calibration),
        note=note if case.backend in JUDGED else OTHERS,
        ops=ops,
        expected=sum(op.expected for op in ops),
        peak_bytes=peak_bytes,
    )


def _method(host: Host | None, calibration: Calibrated | None) -> str:
    if calibration is not None:
        return f"calibration {calibration.name}"
    return "roofs of this run" + (", with small matmuls" if host is not None else "")


def _joined(ops: Sequence[OpPrediction]) -> list[OpPrediction]:
    """The rows with those of the routed experts added up into one."""
    out: dict[tuple[Stage, str], OpPrediction] = {}
    for op in ops:
        key = (op.stage, phase_of(op.name, together=True))
        if key not in out:
            out[key] = op.model_copy(update={"name": key[1]})
            continue
        summed = ("flops", "bytes", "compute", "memory", "launch", "expected")
        sums = {name: getattr(out[key], name) + getattr(op, name) for name in summed}
        out[key] = out[key].model_copy(update=sums)
    return list(out.values())


class Rates(NamedTuple):
    """The roofs that rows are held against: FLOP/s, B/s, and seconds of a launch."""

    gemm: float
    bandwidth: float
    launch: float

    @classmethod
    def of(cls, roofs: Sequence[Roof]) -> Rates:
        """From a run's roofs. Raises UserError where one is missing."""
        values = {roof.name: roof.value for roof in roofs}
        missing = sorted({"gemm", "copy", "reduce", "launch"} - values.keys())
        if missing:
            raise UserError(f"the record has no roof {', '.join(missing)}: measure it anew")
        # a floor takes the fastest: a processor may do better on few rows than on a square matmul,
        # and reading alone is faster than copying on many devices
        gemm = max(rate for name, rate in values.items() if name.startswith(("gemm", ROWS)))
        return cls(gemm, max(values["copy"], values["reduce"]), values["launch"])

    def row(self, op: Op, stage: Stage, env: Mapping[str, Number], size: int) -> OpPrediction:
        """A row in one stage: its work, and its time at each roof."""
        times = 1 if stage == "forward" else 2
        flops = times * int(evaluate(op.flops, env))
        moved = int(times * _activations(op, env, size) + _weights(op, env, size, stage))
        compute, memory = flops / self.gemm, moved / self.bandwidth
        launch = LAUNCHES[stage][op.kind] * self.launch
        return OpPrediction(
            name=op.name,
            stage=stage,
            flops=flops,
            bytes=moved,
            compute=compute,
            memory=memory,
            launch=launch,
            expected=launch + (compute**4 + memory**4) ** 0.25,
        )


def _activations(op: Op, env: Mapping[str, Number], size: int) -> Number:
    """Bytes of activations that a forward row moves.

    Logits and choices are fp32 in every format; the rows count them in two-byte elements.
    """
    read, write = evaluate(op.read, env), evaluate(op.write, env)
    if op.kind == "select":
        return 2 * (read + write)
    return size * read + (2 if op.name == "router" else size) * write


def _weights(op: Op, env: Mapping[str, Number], size: int, stage: Stage) -> Number:
    """Bytes of weights: each used copy read; backward also every copy's gradient written."""
    uses = evaluate(op.uses, env)
    read = sum(evaluate(weight.size, env) * uses for weight in op.weights)
    if stage == "forward":
        return size * read
    return size * (read + sum(evaluate(weight.elements, env) for weight in op.weights))


# -------------------------------------------------------------------- blocks in records
def subject_of(block: MoE, source: str) -> Subject:
    """A block as a record keeps it: its numbers by symbol, its other settings, its routing rule."""
    others = {field.name for field in fields(block)} - {"routing", "names"} - block.values.keys()
    kinds = {name: getattr(block, name) for name in sorted(others)}
    trained = (weight for weight in block.weights() if not weight.buffer)
    return Subject(
        source=source,
        symbols=dict(block.values),
        kinds={name: value for name, value in kinds.items() if value is not None},
        routing=block.routing._asdict(),
        parameters=int(sum(evaluate(weight.elements, block.values) for weight in trained)),
    )


def block_of(subject: Subject) -> MoE:
    """The block of a record's subject; tensor names are not kept. Raises UserError."""
    try:
        fields_: dict[str, Any] = {**subject.symbols, **subject.kinds}
        return MoE(**fields_, routing=Routing(**subject.routing))
    except TypeError as problem:
        raise UserError(
            f"{subject.source}: the record's block is not understood ({problem})"
        ) from None
