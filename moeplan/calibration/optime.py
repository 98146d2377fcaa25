"""What all op-time models share: constants with meaning, the device's rates, the smooth maximum.

Every kind of op has one model t = t_0 + (t_c⁴ + t_m⁴)^¼ over arrays of shapes: a fixed cost, the
time of the tiles that it computes, the time of the bytes that it moves. A model is a class with its
constants, `prepare` (what does not depend on them, once) and `seconds` (the rest, for each trial
of a fit). Shapes are numbers or arrays: the same lines answer for one op, without numpy, and for
many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

from moeplan.arrays import larger, root, smaller
from moeplan.calibration.points import Points
from moeplan.cluster.hardware import Gpu
from moeplan.quantity import Number

__all__ = [
    "Constant",
    "Constants",
    "Device",
    "Features",
    "OpModel",
    "device_of",
    "smooth_max",
    "starved",
]

Constants: TypeAlias = "Mapping[str, float]"
Features: TypeAlias = "Mapping[str, Any]"
Scale: TypeAlias = Literal["matrix", "memory", "none"]


@dataclass(frozen=True)
class Constant:
    """A fitted number: unit, meaning, where the search starts and between what it stays.

    scale: the datasheet rate in whose proportion it is carried to another GPU. default: its value
    where the points say nothing about it.
    """

    unit: str
    meaning: str
    start: float
    low: float
    high: float
    scale: Scale = "none"
    default: float | None = None


@dataclass(frozen=True)
class Device:
    """Datasheet rates of one GPU: FLOP/s (dense, bf16), B/s, and its multiprocessors.

    shared_memory: bytes of a multiprocessor that tiles in flight share. kind: "gpu" or "cpu", whose
    cores are the multiprocessors.
    """

    id: str
    matrix: float
    memory: float
    multiprocessors: int
    shared_memory: float = 228 * 1024
    kind: str = "gpu"


class OpModel(Protocol):
    """The op-time model of one kind of op."""

    kind: ClassVar[str]
    constants: ClassVar[Mapping[str, Constant]]
    regimes: ClassVar[tuple[str, ...]]

    def prepare(self, points: Points, device: Device) -> Features:
        """What the time depends on besides the constants."""

    def seconds(self, features: Features, constants: Constants) -> Number:
        """Seconds of each point."""

    def floor(self, features: Features, device: Device) -> Number:
        """Seconds that the datasheet allows: max(FLOPs / peak, bytes / bandwidth)."""

    def regime(self, features: Features) -> Number:
        """Which of `regimes` each point's error is judged in, by its place."""

    def informed(self, features: Features) -> set[str]:
        """The constants that these points say something about."""

    def fitted(self, features: Features) -> Number:
        """Which points a fit uses; the others are only judged by it."""


def smooth_max(a: Number, b: Number) -> Number:
    """(a⁴ + b⁴)^¼: the larger of two times, and up to 19 % more where they are alike."""
    top = larger(a, b)
    ratio = smaller(a, b) / larger(top, 1e-300)
    square = ratio * ratio
    return top * root(root(1 + square * square))


def starved(under_way: Number, device: Device) -> Number:
    """1/u − 1/u_full for u bytes under way: how far tiles are from filling the memory's queues."""
    full = device.multiprocessors * device.shared_memory
    return larger(1 / larger(under_way, 1.0) - 1 / full, 0.0)


def device_of(gpu: Gpu) -> Device:
    """The rates that op times are scaled by. A GPU without a bf16 rate takes fp16's.

    Where the number of multiprocessors is not known, 132 (those of an H200) stand in.
    """
    name = next((name for name in ("bf16", "fp16") if name in gpu.peaks), next(iter(gpu.peaks)))
    units = gpu.sm_count.value if gpu.sm_count is not None else 132
    return Device(
        gpu.id, float(gpu.peaks[name].value), float(gpu.memory_bandwidth.value), int(units)
    )
