"""Time of matmuls on the cores of a CPU, dense or over experts that are multiplied one by one.

t = launch + calls · call + W₁/vector bandwidth + W₂/packing bandwidth + FLOPs/matrix rate. A matrix
that meets a single row is read once (W₁ bytes, a matrix-vector product). One that meets several is
first packed into blocks that fit the caches (W₂): read, written and read again, and one core cannot
multiply meanwhile, so the times add up. Rows count in blocks of eight, what the registers hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from moeplan.arrays import larger, np, pick, real
from moeplan.calibration.moe import counted_rows
from moeplan.calibration.optime import Constant, Constants, Device, Features
from moeplan.calibration.points import Points
from moeplan.quantity import Number

__all__ = ["CpuMatmul"]

ELEMENT = 4  # bytes of fp32
BLOCK = 8  # rows


class CpuMatmul:
    """The op-time model of dense and of experts' matmuls on a CPU."""

    kind: ClassVar[str] = "cpu_matmul"
    constants: ClassVar[Mapping[str, Constant]] = {
        "launch": Constant("s", "fixed cost of the op", 3e-5, 1e-7, 1e-2),
        "call": Constant("s", "fixed cost of an expert's matmul", 1e-5, 1e-8, 1e-2),
        "vector_bandwidth": Constant(
            "B/s", "at which matrices that meet one row are read", 1.5e10, 1e8, 1e13, "memory"
        ),
        "packing_bandwidth": Constant(
            "B/s", "at which matrices that meet several rows are packed", 8e9, 1e8, 1e13, "memory"
        ),
        "matrix_rate": Constant("FLOP/s", "on packed blocks", 7e10, 1e8, 1e15, "matrix"),
    }
    regimes: ClassVar[tuple[str, ...]] = (
        "router", "experts, up to 4 rows each", "experts, above 4 rows each",
    )  # fmt: skip

    def prepare(self, points: Points, device: Device) -> Features:
        """Calls, bytes of matrices by how they are read, and FLOPs of whole blocks."""
        p = points.columns
        experts, one = p["experts"], p["experts"] * 0 + 1
        top_k = p.get("topk", one)
        counted = counted_rows(points, larger(p["rows"] // top_k, 1), experts, top_k, one)
        n, k, rows = (real(p[name]) for name in ("n", "k", "rows"))
        matrix = ELEMENT * n * k
        return {
            "calls": counted.active,
            "vector": counted.single * matrix,
            "packed": (counted.active - counted.single) * matrix,
            "block_flops": 2 * n * k * BLOCK * (counted.tiles[BLOCK] - counted.single),
            "flops": 2 * n * k * counted.rows,
            "bytes": counted.active * matrix + ELEMENT * counted.rows * (n + k),
            "mean_rows": rows / larger(counted.active, 1),
            "dense": experts == 1,
        }

    def seconds(self, features: Features, constants: Constants) -> Number:
        """Seconds of each point."""
        f, c = features, constants
        read = f["vector"] / c["vector_bandwidth"] + f["packed"] / c["packing_bandwidth"]
        computed = f["block_flops"] / c["matrix_rate"]
        return c["launch"] + f["calls"] * c["call"] + read + computed

    def floor(self, features: Features, device: Device) -> Number:
        """Seconds at the measured roofs."""
        return larger(features["flops"] / device.matrix, features["bytes"] / device.memory)

    def regime(self, features: Features) -> Number:
        """The router apart; experts by the rows that each gets."""
        return pick(features["dense"], 0, pick(features["mean_rows"] <= 4, 1, 2))

    def informed(self, features: Features) -> set[str]:
        """All of them."""
        return set(self.constants)

    def fitted(self, features: Features) -> Number:
        """Those over experts: a router is small enough for other kernels."""
        return np.logical_not(features["dense"])
