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
from typing import Any, ClassVar, TypeAlias

import numpy as np

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

__all__ = ["DenseGemm"]

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
ELEMENT = 2  # bytes of bf16
STEP = 64  # elements of the inner dimension that a tile takes at a time
STAGES = 4  # steps in flight in a tile
NARROW = 512  # columns or inner elements below which a GEMM is none of a transformer layer
LEAST_SPLIT = 128  # elements of the inner dimension that each part of a split keeps


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

    def prepare(self, points: Points, device: Device) -> Features:
        """Waves, FLOPs and loads of every tile and split, [choices, points]."""
        m, n, k = (points[name].astype(np.float64) for name in ("m", "n", "k"))
        tiles = np.array(CUBLAS_TILES, dtype=np.float64)
        splits = np.array(CUBLAS_SPLITS, dtype=np.float64)
        bm, bn = (np.repeat(tiles[:, i], splits.size)[:, None] for i in (0, 1))
        split = np.tile(splits, len(tiles))[:, None]
        inner = np.ceil(k / split / STEP) * STEP
        blocks = np.ceil(m / bm) * np.ceil(n / bn) * split
        waves = np.ceil(blocks / device.multiprocessors)
        together = np.minimum(blocks, device.multiprocessors)
        possible = (split == 1) | (k >= split * LEAST_SPLIT)
        return {
            "m": m, "n": n, "k": k,
            "bytes": ELEMENT * (m * k + n * k + m * n),
            "flops": 2 * m * n * k,
            "units": device.multiprocessors,
            "waves": np.where(possible, waves, np.inf),
            "tile_flops": 2 * bm * bn * inner,
            "tile_bytes": ELEMENT * (bm + bn) * inner,
            "starved": starved(together * (bm + bn) * STEP * STAGES * ELEMENT, device),
            "is_split": split > 1,
            "partial_bytes": 2 * ELEMENT * (split + 1) * m * n,
        }  # fmt: skip

    def seconds(self, features: Features, constants: Constants) -> _Array:
        """Seconds of each point: the best choice of tile and split."""
        f, c = features, constants
        alone = f["flops"] / c["matrix_rate"]
        lost = c["throttle"] * alone / (alone + c["throttle_time"])
        matrix = f["tile_flops"] * (f["units"] / c["matrix_rate"]) / (1 - lost)
        loads = f["tile_bytes"] * (f["units"] / c["tile_load_rate"])
        compute = f["waves"] * (np.maximum(matrix, loads) + c["tile_overhead"])
        memory = f["bytes"] / c["read_bandwidth"] * (1 + c["in_flight"] * f["starved"])
        adding = c["split"] + f["partial_bytes"] / c["tile_load_rate"]
        times = smooth_max(compute, memory) + np.where(f["is_split"], adding, 0)
        best: _Array = c["launch"] + times.min(0)
        return best

    def floor(self, features: Features, device: Device) -> _Array:
        """Seconds at the datasheet's rates."""
        out: _Array = np.maximum(
            features["flops"] / device.matrix, features["bytes"] / device.memory
        )
        return out

    def regimes(self, features: Features) -> _Array:
        """By size of the batch; apart where n or k is below 512."""
        m, n, k = features["m"], features["n"], features["k"]
        names = np.select(
            [m <= 64, m <= 512, m <= 2560],
            ["m up to 64", "m 65 to 512", "m 513 to 2,560"],
            "m above 2,560",
        )
        narrow = np.minimum(n, k) < NARROW
        return np.where(narrow, f"n or k below {NARROW}", names)

    def informed(self, features: Features) -> set[str]:
        """All of them."""
        return set(self.constants)

    def fitted(self, features: Features) -> _Array:
        """Those of real layers: kernels for narrower ones are chosen by other rules."""
        wide: _Array = np.minimum(features["n"], features["k"]) >= NARROW
        return wide
