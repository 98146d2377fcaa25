"""Time of a dense GEMM [m, k] x [k, n] by a library that picks the best tile for each shape.

t = launch + min over tiles and splits of (t_c⁴ + t_m⁴)^¼ (+ the cost of a split), with
t_c = ⌈⌈m/BM⌉·⌈n/BN⌉·splits / SMs⌉ waves of max(2·BM·BN·K / matrix rate, (BM + BN)·K·2 B / tile load
rate) + tile overhead, and t_m = bytes / read bandwidth · (1 + in flight · (1/u − 1/u_full)), u
being the bytes that its tiles have under way at a time and u_full what shared memory can hold.

The matrix rate falls from `matrix_rate` by up to the share `throttle` as a GEMM gets long, since
long ones run into the power limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from moeplan.arrays import ceil, is_array, larger, np, pick, real, smaller
from moeplan.calibration.optime import (
    Constant,
    Constants,
    Device,
    Features,
    smooth_max,
    starved,
)
from moeplan.calibration.points import Points
from moeplan.calibration.tiles import CUBLAS_SPLITS, CUBLAS_TILES
from moeplan.quantity import Number

__all__ = ["DenseGemm"]

ELEMENT = 2  # bytes of bf16
STEP = 64  # elements of the inner dimension that a tile takes at a time
STAGES = 4  # steps in flight in a tile
NARROW = 512  # columns or inner elements below which a GEMM is none of a transformer layer
LEAST_SPLIT = 128  # elements of the inner dimension that each part of a split keeps
_TILES: list[tuple[Any, ...]] = [(*tile, split) for tile in CUBLAS_TILES for split in CUBLAS_SPLITS]


class DenseGemm:
    """The op-time model of dense matmuls."""

    kind: ClassVar[str] = "gemm"
    constants: ClassVar[Mapping[str, Constant]] = {
        "launch": Constant("s", "fixed cost of the kernel", 2e-6, 1e-7, 5e-5),
        "matrix_rate": Constant(
            "FLOP/s", "rate of the tensor cores in short GEMMs", 880e12, 1e9, 1e16, "matrix"
        ),
        "throttle": Constant("", "share of the matrix rate that long GEMMs lose", 0.13, 0.005, 0.6),
        "throttle_time": Constant(
            "s", "length of a GEMM that loses half of that share", 5e-4, 1e-5, 1e-1
        ),
        "tile_load_rate": Constant(
            "B/s", "operands that all tiles together load from cache", 2e13, 1e9, 1e15, "matrix"
        ),
        "tile_overhead": Constant("s", "start and end of a tile", 8e-7, 1e-9, 2e-5),
        "read_bandwidth": Constant(
            "B/s", "memory bandwidth with shared memory full of loads", 4.2e12, 1e8, 1e14, "memory"
        ),
        "in_flight": Constant(
            "B", "bytes under way that few tiles lack for half of it", 1.5e6, 1e3, 1e8, "memory"
        ),
        "split": Constant(
            "s", "fixed cost of adding up a split inner dimension", 2.6e-6, 1e-8, 5e-5
        ),
    }

    regimes: ClassVar[tuple[str, ...]] = (
        "m up to 64", "m 65 to 512", "m 513 to 2,560", "m above 2,560", f"n or k below {NARROW}",
    )  # fmt: skip

    def prepare(self, points: Points, device: Device) -> Features:
        """FLOPs and bytes, and of every tile and split its waves and loads."""
        m, n, k = (real(points[name]) for name in ("m", "n", "k"))
        weights = points.columns.get("weight_bytes", ELEMENT)
        own = ELEMENT * (m * k + m * n) + weights * n * k
        tiles = _TILES
        if is_array(m) or is_array(n) or is_array(k):  # all choices at once, along a first axis
            axes = (-1, *(1,) * np.broadcast(m, n, k).ndim)
            tiles = [tuple(x.reshape(axes) for x in np.array(_TILES, np.float64).T)]
        return {
            "m": m,
            "narrow": smaller(n, k) < NARROW,
            "bytes": points.columns.get("moved", own),
            "flops": 2 * m * n * k,
            "units": device.multiprocessors,
            "choices": [_choice(m, n, k, tile, device) for tile in tiles],
        }

    def seconds(self, features: Features, constants: Constants) -> Number:
        """Seconds of each point: the best choice of tile and split."""
        f, c = features, constants
        alone = f["flops"] / c["matrix_rate"]
        lost = c["throttle"] * alone / (alone + c["throttle_time"])
        a_flop = f["units"] / c["matrix_rate"] / (1 - lost)
        a_load = f["units"] / c["tile_load_rate"]
        least = f["bytes"] / c["read_bandwidth"]
        best: Number = float("inf")
        for waves, flops, loads, lacking, partial in f["choices"]:
            tile = larger(flops * a_flop, loads * a_load) + c["tile_overhead"]
            time = smooth_max(waves * tile, least * (1 + c["in_flight"] * lacking))
            added = c["split"] + partial / c["tile_load_rate"]
            time = time + pick(partial > 0, added, 0.0)
            best = smaller(best, time.min(axis=0) if is_array(time) else time)
        return c["launch"] + best

    def floor(self, features: Features, device: Device) -> Number:
        """Seconds at the datasheet's rates."""
        return larger(features["flops"] / device.matrix, features["bytes"] / device.memory)

    def regime(self, features: Features) -> Number:
        """By size of the batch; apart where n or k is below 512."""
        m = features["m"]
        size = pick(m <= 64, 0, pick(m <= 512, 1, pick(m <= 2560, 2, 3)))
        return pick(features["narrow"], 4, size)

    def informed(self, features: Features) -> set[str]:
        """All of them."""
        return set(self.constants)

    def fitted(self, features: Features) -> Number:
        """Those of real layers: kernels for narrower ones are chosen by other rules."""
        return np.logical_not(features["narrow"])


def _choice(
    m: Number, n: Number, k: Number, tile: tuple[Any, ...], device: Device
) -> tuple[Number, Number, Number, Number, Number]:
    """(waves, FLOPs and loads of a tile, lack of bytes under way, bytes to add up) of a tile's
    rows, columns and parts of the inner dimension.

    Waves are infinite where the inner dimension is too short for the split.
    """
    bm, bn, split = tile
    inner = ceil(k / split / STEP) * STEP
    blocks = ceil(m / bm) * ceil(n / bn) * split
    long_enough = (split == 1) | (k >= split * LEAST_SPLIT)
    waves = pick(long_enough, ceil(blocks / device.multiprocessors), float("inf"))
    together = smaller(blocks, device.multiprocessors)
    return (
        waves,
        2 * bm * bn * inner,
        ELEMENT * (bm + bn) * inner,
        starved(together * ((bm + bn) * STEP * STAGES * ELEMENT), device),
        pick(split > 1, 2 * ELEMENT * (split + 1) * m * n, 0.0),
    )
