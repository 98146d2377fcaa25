"""Time of ops that are no matmul: by their bytes, and of attention by its FLOPs and bytes.

Element-wise ops, gathers, sorts and top-k: t = launches · launch + bytes / bandwidth · (1 + (half /
bytes)^shape): small ones never fill the memory's queues. Attention: t = launch + (t_c⁴ + t_m⁴)^¼ at
the rate and bandwidth that the kernel reaches; prefill and decode are calibrated apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from moeplan.arrays import larger, np, pick, real
from moeplan.calibration.optime import Constant, Constants, Device, Features, smooth_max
from moeplan.calibration.points import Points
from moeplan.quantity import Number

__all__ = ["Attention", "Bytes"]


class Bytes:
    """The op-time model of ops that move bytes in a number of kernels."""

    kind: ClassVar[str] = "bytes"
    constants: ClassVar[Mapping[str, Constant]] = {
        "launch": Constant("s", "fixed cost of a kernel", 2.5e-6, 1e-8, 1e-3),
        "bandwidth": Constant("B/s", "bandwidth of large ones", 4e12, 1e8, 1e14, "memory"),
        "half": Constant("B", "size that reaches half of it", 1.7e7, 1e2, 1e10, "memory"),
        "shape": Constant("", "how fast the bandwidth rises with the size", 0.8, 0.2, 1.5),
    }
    regimes: ClassVar[tuple[str, ...]] = ("up to 16 MiB", "above 16 MiB")

    def prepare(self, points: Points, device: Device) -> Features:
        """Bytes and kernels."""
        return {
            "bytes": larger(real(points["bytes"]), 1.0),
            "launches": real(points["launches"]),
        }

    def seconds(self, features: Features, constants: Constants) -> Number:
        """Seconds of each point."""
        size, c = features["bytes"], constants
        moving = size / c["bandwidth"] * (1 + (c["half"] / size) ** c["shape"])
        return features["launches"] * c["launch"] + moving

    def floor(self, features: Features, device: Device) -> Number:
        """Seconds at the datasheet's bandwidth."""
        return features["bytes"] / device.memory

    def regime(self, features: Features) -> Number:
        """By size."""
        return pick(features["bytes"] < 1 << 24, 0, 1)

    def informed(self, features: Features) -> set[str]:
        """All of them."""
        return set(self.constants)

    def fitted(self, features: Features) -> Number:
        """All of them."""
        return np.ones(features["bytes"].shape, dtype=bool)


class Attention:
    """The op-time model of attention kernels."""

    kind: ClassVar[str] = "attention"
    constants: ClassVar[Mapping[str, Constant]] = {
        "launch": Constant("s", "fixed cost of the kernel", 4e-6, 1e-8, 1e-3),
        "matrix_rate": Constant(
            "FLOP/s",
            "rate over the scores that a causal kernel computes",
            5e14,
            1e8,
            1e16,
            "matrix",
        ),
        "bandwidth": Constant(
            "B/s", "bandwidth over queries, keys and values", 3.5e12, 1e8, 1e14, "memory"
        ),
    }
    regimes: ClassVar[tuple[str, ...]] = ("attention",)

    def prepare(self, points: Points, device: Device) -> Features:
        """FLOPs and bytes."""
        return {name: real(points[name]) for name in ("flops", "bytes")}

    def seconds(self, features: Features, constants: Constants) -> Number:
        """Seconds of each point."""
        f, c = features, constants
        return c["launch"] + smooth_max(f["flops"] / c["matrix_rate"], f["bytes"] / c["bandwidth"])

    def floor(self, features: Features, device: Device) -> Number:
        """Seconds at the datasheet's rates."""
        return larger(features["flops"] / device.matrix, features["bytes"] / device.memory)

    def regime(self, features: Features) -> Number:
        """One."""
        return pick(features["flops"] >= 0, 0, 0)

    def informed(self, features: Features) -> set[str]:
        """All of them."""
        return set(self.constants)

    def fitted(self, features: Features) -> Number:
        """All of them."""
        return np.ones(features["bytes"].shape, dtype=bool)
