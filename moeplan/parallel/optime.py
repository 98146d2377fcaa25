"""Seconds of a row on one GPU: by a calibration of its kernels, or by parts of its peaks.

A `Stack` says how rows are timed and what software adds to them. Stacks on calibrated ops take each
row through a fitted model (`moeplan.parallel.calibrated`), with a band. The others take the larger
of FLOPs over a rate and bytes over the memory bandwidth, at parts of both that are named with where
they are known from; "datasheet" is the floor itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from moeplan.calc import calc
from moeplan.cluster.hardware import Gpu
from moeplan.cluster.network import Collectives
from moeplan.errors import UserError, near_miss
from moeplan.model.ops import OpKind
from moeplan.quantity import Quantity, Source

__all__ = [
    "STACKS",
    "AtBound",
    "Roofline",
    "RowTimes",
    "Seconds",
    "Stack",
    "Work",
    "row_times",
    "stack_for",
    "stack_named",
]


class Work(NamedTuple):
    """What one pass of a row does on a GPU: FLOPs in a number format, and bytes.

    gemm: (m, k, n) of a matmul over `groups` groups, as divided on the GPU, else None. experts:
    those that the GPU holds, over which the rows of a grouped matmul are spread.
    """

    name: str
    kind: OpKind
    flops: Any
    moved: Any
    number_format: str
    gemm: tuple[Any, Any, Any] | None = None
    groups: Any = 1
    experts: Any = 1


class Seconds(NamedTuple):
    """Seconds of a row with the band of what gave them; all the same where that has none."""

    lower: Any
    expected: Any
    upper: Any


class RowTimes(Protocol):
    """What turns work into seconds: the roofline here, or a calibrated model.

    attention_backward: forward passes that attention's backward pass takes. fabric: measured times
    of collectives that go with the ops, where there are any.
    """

    stack: Stack
    attention_backward: float
    fabric: Collectives | None

    def seconds(self, work: Work, *, explained: bool) -> Seconds:
        """Seconds of one pass of a row; quantities where `explained`."""

    def sources(self) -> dict[str, str]:
        """What was measured or assumed to time the rows so far, and where that is from."""


@dataclass(frozen=True)
class Stack:
    """How rows are timed, and the part of a step that the GPU is busy.

    calibrated: rows go through fitted op-time models; else linear, grouped, attention: parts of the
    matmul peak that kernels reach; memory: of the bandwidth; low: factor on `linear` and `grouped`
    in 8 bits and less. busy: kernels' share of the time in which nothing
    else was to be waited for (launches, host, gaps, stragglers); a fitted figure. launch: seconds
    between two kernels that depend on each other, which decoding cannot hide. host: seconds that
    the GPU waits for the host in an MoE layer's forward and backward pass of a microbatch.
    """

    name: str
    source: str
    calibrated: bool = False
    linear: float = 1.0
    grouped: float = 1.0
    attention: float = 1.0
    memory: float = 1.0
    low: float = 1.0
    busy: float = 1.0
    launch: float = 0.0
    host: float = 0.0

    def part(self, kind: OpKind, number_format: str) -> float:
        """Reached part of the matmul peak."""
        lower = self.low if number_format in ("fp8", "fp4", "int8") else 1.0
        if kind == "grouped_linear":
            return self.grouped * lower
        return self.attention if kind in ("attention", "scan") else self.linear * lower


STACKS: dict[str, Stack] = {
    s.name: s
    for s in (
        Stack(
            "calibrated",
            "op times of the GPU's calibration (docs/accuracy.md), nothing added for software",
            calibrated=True,
        ),
        Stack("datasheet", "the floor: every peak is reached"),
        Stack(
            "kernels",
            "H200: bf16 matmul 790 of 989 TFLOP/s and copy 4.3 of 4.8 TB/s as measured; grouped "
            "matmul, attention, the 8-bit factor and 2 us between kernels of a CUDA graph are "
            "round figures of published kernels",
            linear=790 / 989,
            grouped=0.65,
            attention=0.6,
            memory=4.3 / 4.8,
            low=0.75,
            launch=2e-6,
        ),
        Stack(
            "megatron-bridge",
            "calibrated, with `host` (and `busy`, which came out as 1) fitted to the pre-training "
            "rows of NVIDIA's Megatron-Bridge summary, containers 26.02 to 26.04 (errors in "
            "docs/accuracy.md)",
            calibrated=True,
            host=5e-3,
        ),
        Stack(
            "sglang",
            "calibrated, with `busy` fitted to the prefill speed that SGLang publishes of 96 H100 "
            "(errors in docs/accuracy.md)",
            calibrated=True,
            busy=0.54,
        ),
    )
}


def stack_named(name: str) -> Stack:
    """The stack of that name, or an error with a near miss."""
    if name not in STACKS:
        raise UserError(
            f"stack {name!r} is unknown: allowed are {', '.join(STACKS)}{near_miss(name, STACKS)}"
        )
    return STACKS[name]


def stack_for(gpu: Gpu, name: str | None) -> Stack:
    """The stack of that name; without one calibrated ops, or "kernels" where nothing is known of
    the GPU's kernels. Raises `UserError` for a calibrated stack on such a GPU.
    """
    from moeplan.calibration.derived import VENDORS  # loads the fits

    known = gpu.vendor in VENDORS
    if name is None:
        return STACKS["calibrated" if known else "kernels"]
    found = stack_named(name)
    if found.calibrated and not known:
        raise UserError(
            f"stack {name!r}: no calibration knows {gpu.name}; allowed are datasheet and kernels"
        )
    return found


def row_times(gpu: Gpu, name: str | None) -> RowTimes:
    """What times the rows of a stack (see `stack_for`) on a GPU."""
    stack = stack_for(gpu, name)
    if not stack.calibrated:
        return Roofline(gpu, stack)
    from moeplan.parallel.calibrated import CalibratedTimes  # loads the fits

    return CalibratedTimes(gpu, stack)


class AtBound:
    """Times of rows at one end of their bands: what a whole step takes there."""

    def __init__(self, times: RowTimes, bound: Literal["lower", "upper"]) -> None:
        self.times, self.bound = times, bound
        self.stack, self.attention_backward = times.stack, times.attention_backward
        self.fabric = times.fabric

    def seconds(self, work: Work, *, explained: bool) -> Seconds:
        """The bound three times."""
        found = getattr(self.times.seconds(work, explained=explained), self.bound)
        return Seconds(found, found, found)

    def sources(self) -> dict[str, str]:
        """Those of the times themselves."""
        return self.times.sources()


class Roofline:
    """Times of rows at a stack's parts of a GPU's peaks."""

    attention_backward = 2.0
    fabric: Collectives | None = None

    def __init__(self, gpu: Gpu, stack: Stack) -> None:
        self.gpu = gpu
        self.stack = stack
        self._rates: dict[tuple[OpKind, str], Quantity] = {}
        source = Source("assumed", f"stack {stack.name}: {stack.source}")
        reached = Quantity.given(stack.memory, "", "reached", source)
        self.bandwidth = calc(
            "reached*bandwidth", "B/s", reached=reached, bandwidth=gpu.memory_bandwidth
        )

    def rate(self, kind: OpKind, number_format: str) -> Quantity:
        """FLOP/s of rows of a kind; where the GPU lacks a format, bf16's."""
        key = (kind, number_format)
        if key not in self._rates:
            have = self.gpu.peaks
            named = next((f for f in (number_format, "bf16", "fp16") if f in have), number_format)
            source = Source("assumed", f"stack {self.stack.name}: {self.stack.source}")
            part = Quantity.given(self.stack.part(kind, named), "", "reached", source)
            self._rates[key] = calc(
                "reached*peak", "FLOP/s", reached=part, peak=self.gpu.peak(named)
            )
        return self._rates[key]

    def seconds(self, work: Work, *, explained: bool) -> Seconds:
        """The larger of compute and memory time."""
        rate: Any = self.rate(work.kind, work.number_format)
        bandwidth: Any = self.bandwidth
        if not explained:
            rate, bandwidth = rate.value, bandwidth.value
        time = calc(
            "max(flops/rate, bytes/bandwidth)",
            "s",
            flops=work.flops,
            rate=rate,
            bytes=work.moved,
            bandwidth=bandwidth,
        )
        return Seconds(time, time, time)

    def sources(self) -> dict[str, str]:
        """Nothing but the stack's own source."""
        return {}
