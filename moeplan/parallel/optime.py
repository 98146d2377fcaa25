"""Seconds of a row on one GPU: its floor over what a stack of kernels reaches of it.

A row takes the larger of FLOPs over a rate and bytes over the memory bandwidth. A `Stack` names the
part of both that real kernels reach, with where that is known from; "datasheet" is the floor
itself. A calibrated model takes the stack's place by giving `seconds` (see `RowTimes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from moeplan.calc import calc
from moeplan.cluster.hardware import Gpu
from moeplan.errors import UserError, near_miss
from moeplan.model.ops import OpKind
from moeplan.quantity import Quantity, Source

__all__ = ["STACKS", "Roofline", "RowTimes", "Stack", "Work", "stack_named"]


class Work(NamedTuple):
    """What one pass of a row does on a GPU: FLOPs in a number format, and bytes.

    gemm: (m, k, n) of a matmul over `groups` groups, as divided on the GPU, else None.
    """

    name: str
    kind: OpKind
    flops: Any
    moved: Any
    number_format: str
    gemm: tuple[Any, Any, Any] | None = None
    groups: Any = 1


class RowTimes(Protocol):
    """What turns work into seconds: the roofline here, or a calibrated model."""

    def seconds(self, work: Work, *, explained: bool) -> Any:
        """Seconds of one pass of a row; a quantity where `explained`."""


@dataclass(frozen=True)
class Stack:
    """Parts of the peak rates that kernels reach, and the part of a step that the GPU is busy.

    linear, grouped, attention: of the matmul peak; memory: of the bandwidth; low: factor on
    `linear` and `grouped` in 8 bits and less. busy: kernels' share of the time in which nothing
    else was to be waited for (launches, host, gaps, stragglers); a fitted figure. launch: seconds
    between two kernels that depend on each other, which decoding cannot hide. host: seconds that
    the GPU waits for the host in an MoE layer's forward and backward pass of a microbatch.
    """

    name: str
    linear: float
    grouped: float
    attention: float
    memory: float
    low: float
    busy: float
    launch: float
    host: float
    source: str
    kind: str = "assumed"

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
            "datasheet", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, "the floor: every peak is reached"
        ),
        Stack(
            "kernels",
            790 / 989,
            0.65,
            0.6,
            4.3 / 4.8,
            0.75,
            1.0,
            2e-6,
            0.0,
            "H200: bf16 matmul 790 of 989 TFLOP/s and copy 4.3 of 4.8 TB/s as measured; grouped "
            "matmul, attention, the 8-bit factor and 2 us between kernels of a CUDA graph are "
            "round figures of published kernels",
        ),
        Stack(
            "megatron-bridge",
            790 / 989,
            0.65,
            0.6,
            4.3 / 4.8,
            0.75,
            0.95,
            2e-6,
            6e-3,
            "kernels, with `busy` and `host` fitted to the pre-training rows of NVIDIA's "
            "Megatron-Bridge summary, containers 26.02 to 26.04 (errors in docs/cluster.md)",
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


class Roofline:
    """Times of rows at a stack's parts of a GPU's peaks."""

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

    def seconds(self, work: Work, *, explained: bool) -> Any:
        """The larger of compute and memory time."""
        rate: Any = self.rate(work.kind, work.number_format)
        bandwidth: Any = self.bandwidth
        if not explained:
            rate, bandwidth = rate.value, bandwidth.value
        return calc(
            "max(flops/rate, bytes/bandwidth)",
            "s",
            flops=work.flops,
            rate=rate,
            bytes=work.moved,
            bandwidth=bandwidth,
        )
