"""Time of ops that are no matmul: by their bytes, and of attention by its FLOPs and bytes.

Element-wise ops, gathers, sorts and top-k: t = launches · launch + bytes / bandwidth · (1 + (half /
bytes)^shape): small ones never fill the memory's queues. Attention: t = launch + (t_c⁴ + t_m⁴)^¼ at
the rate and bandwidth that the kernel reaches; prefill and decode are calibrated apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np

from moeplan.calibration.optime import Constant, Constants, Device, Features, smooth_max
from moeplan.calibration.points import Points

__all__ = ["Attention", "Bytes"]

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


class Bytes:
    """The op-time model of ops that move bytes in a number of kernels."""

    kind: ClassVar[str] = "bytes"
    constants: ClassVar[Mapping[str, Constant]] = {
        "launch": Constant("s", "fixed cost of a kernel", 2.5e-6, 1e-8, 1e-3),
        "bandwidth": Constant("B/s", "bandwidth of large ones", 4e12, 1e8, 1e14, "memory"),
        "half": Constant("B", "size that reaches half of it", 1.7e7, 1e2, 1e10, "memory"),
        "shape": Constant("", "how fast the bandwidth rises with the size", 0.8, 0.2, 1.5),
    }

    def prepare(self, points: Points, device: Device) -> Features:
        """Bytes and kernels."""
        return {
            "bytes": np.maximum(points["bytes"].astype(np.float64), 1.0),
            "launches": points["launches"].astype(np.float64),
        }

    def seconds(self, features: Features, constants: Constants) -> _Array:
        """Seconds of each point."""
        size, c = features["bytes"], constants
        moving = size / c["bandwidth"] * (1 + (c["half"] / size) ** c["shape"])
        out: _Array = features["launches"] * c["launch"] + moving
        return out

    def floor(self, features: Features, device: Device) -> _Array:
        """Seconds at the datasheet's bandwidth."""
        out: _Array = features["bytes"] / device.memory
        return out

    def regimes(self, features: Features) -> _Array:
        """By size."""
        return np.where(features["bytes"] < 1 << 24, "up to 16 MiB", "above 16 MiB")

    def informed(self, features: Features) -> set[str]:
        """All of them."""
        return set(self.constants)

    def fitted(self, features: Features) -> _Array:
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

    def prepare(self, points: Points, device: Device) -> Features:
        """FLOPs and bytes."""
        return {name: points[name].astype(np.float64) for name in ("flops", "bytes")}

    def seconds(self, features: Features, constants: Constants) -> _Array:
        """Seconds of each point."""
        f, c = features, constants
        return c["launch"] + smooth_max(f["flops"] / c["matrix_rate"], f["bytes"] / c["bandwidth"])

    def floor(self, features: Features, device: Device) -> _Array:
        """Seconds at the datasheet's rates."""
        out: _Array = np.maximum(
            features["flops"] / device.matrix, features["bytes"] / device.memory
        )
        return out

    def regimes(self, features: Features) -> _Array:
        """One."""
        return np.full(features["flops"].shape, "all")

    def informed(self, features: Features) -> set[str]:
        """All of them."""
        return set(self.constants)

    def fitted(self, features: Features) -> _Array:
        """All of them."""
        return np.ones(features["bytes"].shape, dtype=bool)
