"""A slow GPU: tiles are made one by one and handed to whichever multiprocessor is free.

It shares no code with the package, and knows only what the documentation says about the kernels.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence


def schedule(durations: Sequence[float], units: int) -> float:
    """End of the last of many tiles when each goes to the unit that is free first."""
    free = [0.0] * units
    for duration in durations:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def fourth(a: float, b: float) -> float:
    """The smooth maximum of two times."""
    return (a**4 + b**4) ** 0.25


def grouped(
    rows: Sequence[int], n: int, k: int, c: dict[str, float], units: int, peak: float
) -> float:
    """Seconds of torch's grouped GEMM: tiles of 64 x 128 x 128, or 128 x 256 x 64."""
    bm, bn, bk = (64, 128, 128) if sum(rows) / len(rows) <= 128 else (128, 256, 64)
    inner = math.ceil(k / bk) * bk
    tile = c["tile_overhead"] + fourth(
        2 * bm * bn * inner * units / peak, 2 * (bm + bn) * inner * units / c["tile_load_rate"]
    )
    tiles = [tile for count in rows for _ in range(math.ceil(count / bm) * math.ceil(n / bn))]
    bytes_ = sum(2 * n * k for count in rows if count) + 2 * sum(rows) * (n + k)
    return c["launch"] + fourth(schedule(tiles, units), bytes_ / c["read_bandwidth"])


def dense(m: int, n: int, k: int, c: dict[str, float], units: int) -> float:
    """Seconds of a dense GEMM with the better of two tile shapes and no split."""
    best = math.inf
    for bm, bn in ((128, 128), (64, 128), (128, 256), (256, 128), (64, 64)):
        inner = math.ceil(k / 64) * 64
        tile = c["tile_overhead"] + 2 * bm * bn * inner * units / c["matrix_rate"]
        blocks = math.ceil(m / bm) * math.ceil(n / bn)
        bytes_ = 2 * (m * k + n * k + m * n)
        best = min(best, fourth(schedule([tile] * blocks, units), bytes_ / c["read_bandwidth"]))
    return c["launch"] + best
