"""Time of a fused MoE op: selection, two grouped GEMMs, activation and combine, from its parts.

A grouped GEMM over experts e with m_e rows runs Σ_e ⌈m_e/BM⌉·⌈N/BN⌉ tiles. Its time is
(t_c⁴ + t_m⁴)^¼ with t_c = (tiles/SMs + fill) · (matmul of a tile ⊕ loads of its operands + tile
overhead) and t_m = bytes / read bandwidth · (1 + in flight · (1/u − 1/u_full)), u being the bytes
that its tiles have under way at a time and u_full what shared memory can hold. `fill` stands for
whole waves: what is lost on average while the first one fills and the last one drains. Tiles of
other ranks' experts still start, find nothing and write zeros: `idle_tile` each.

Two quirks of Triton's kernel are named: where the inner dimension is no multiple of 16, operands
are loaded element by element (`unaligned_*`), and where the router's weight multiplies the input
(Llama 4), the input is passed over again (`input_passes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np

from moeplan.calibration.loads import Loads, loads
from moeplan.calibration.optime import (
    Constant,
    Constants,
    Device,
    Features,
    smooth_max,
    starved,
)
from moeplan.calibration.points import Points
from moeplan.calibration.tiles import TileColumns, torch_grouped_tiles, vllm_tiles
from moeplan.calibration.traits import moe_traits

__all__ = ["GROUPED", "FusedMoE", "GroupedGemm"]

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
ELEMENT = 2  # bytes of bf16
ALIGNMENT = 16  # elements that the inner dimension must be a multiple of for wide loads
SPILL = 64  # accumulators a thread, from which on unaligned tiles run out of registers

GROUPED: Mapping[str, Constant] = {
    "tile_load_rate": Constant(
        "B/s", "operands that all tiles together load from cache", 1.1e13, 1e9, 1e15, "matrix"
    ),
    "fill": Constant("waves", "waves lost to filling and draining", 1.0, 0.01, 10),
    "tile_overhead": Constant("s", "start and end of a tile", 8e-7, 1e-9, 2e-5),
    "read_bandwidth": Constant(
        "B/s", "memory bandwidth with shared memory full of loads", 4.3e12, 1e8, 1e14, "memory"
    ),
    "in_flight": Constant(
        "B", "bytes under way that few tiles lack for half of it", 4e6, 1e3, 1e8, "memory"
    ),
}
"""Constants of a grouped GEMM."""


def grouped_seconds(g: Mapping[str, Any], c: Constants) -> _Array:
    """Seconds of a grouped GEMM from what `grouped_features` made."""
    matrix = g["tile_flops"] * (g["units"] / g["matrix"])
    loading = g["tile_bytes"] * (g["units"] / c["tile_load_rate"])
    tile = smooth_max(matrix, loading) + c["tile_overhead"]
    if g["unaligned"].any():
        spill = np.where(g["spills"], c["unaligned_spill"], 1.0)
        extra = c["unaligned_tile"] + c["unaligned_step"] * g["steps"] * spill
        tile = tile + np.where(g["unaligned"], extra, 0)
    compute = (g["tiles"] / g["units"] + c["fill"]) * tile
    memory = g["bytes"] / c["read_bandwidth"] * (1 + c["in_flight"] * g["starved"])
    return smooth_max(compute, memory)


def grouped_features(
    device: Device, tile: TileColumns, counted: Loads, n: _Array, k: _Array, weight_bytes: float
) -> dict[str, Any]:
    """What a grouped GEMM's time depends on: rows of `counted` times a matrix [k, n] an expert."""
    columns = np.ceil(n / tile.n)
    steps = np.ceil(k / tile.k)
    inner = steps * tile.k
    tiles = _pick(counted.tiles, tile.m) * columns
    stage = (tile.m + tile.n) * tile.k * ELEMENT
    fitting = np.maximum(np.floor(device.shared_memory / ((tile.stages - 1) * stage)), 1)
    together = np.minimum(tiles, device.multiprocessors * fitting)
    return {
        "units": device.multiprocessors,
        "matrix": device.matrix,
        "memory": device.memory,
        "tiles": tiles,
        "idle_tiles": (_pick(counted.all_tiles, tile.m) * columns - tiles) / device.multiprocessors,
        "tile_flops": 2 * tile.m * tile.n * inner,
        "tile_bytes": ELEMENT * (tile.m + tile.n) * inner,
        "steps": steps,
        "unaligned": k % ALIGNMENT != 0,
        "spills": tile.m * tile.n >= SPILL * 32 * tile.warps,
        "bytes": weight_bytes * counted.active * n * k + ELEMENT * counted.rows * (n + k),
        "flops": 2 * counted.rows * n * k,
        "starved": starved(together * (tile.stages - 1) * stage, device),
    }


def _pick(by_height: Mapping[int, _Array], height: _Array) -> _Array:
    return np.select([height == block for block in by_height], list(by_height.values()))


class FusedMoE:
    """The op-time model of vLLM's fused MoE on Triton, one latency for the whole op."""

    kind: ClassVar[str] = "moe"
    constants: ClassVar[Mapping[str, Constant]] = {
        "launch": Constant("s", "fixed cost of the op's kernels", 1.6e-5, 1e-7, 1e-3),
        "expert_map": Constant(
            "s", "fixed cost of leaving out other ranks' experts", 5e-6, 1e-8, 1e-4
        ),
        "select": Constant("s", "scores and top-k, for a token and expert", 9e-11, 1e-14, 1e-8),
        **GROUPED,
        "idle_tile": Constant("s", "a tile without rows, on one multiprocessor", 1e-7, 1e-11, 1e-5),
        "bandwidth": Constant(
            "B/s", "bandwidth of activation, combine and copies", 2.2e12, 1e8, 1e14, "memory"
        ),
        "input_passes": Constant(
            "", "passes over the input where the weight multiplies it", 4.0, 0.5, 12, default=2.0
        ),
        "unaligned_tile": Constant(
            "s", "extra start of a tile with unaligned operands", 2.6e-6, 1e-9, 1e-4, default=2.6e-6
        ),
        "unaligned_step": Constant(
            "s", "extra step of a tile with unaligned operands", 1.2e-6, 1e-9, 1e-4, default=1.2e-6
        ),
        "unaligned_spill": Constant(
            "", "factor on that step where registers run out", 3.0, 1.0, 20, default=3.0
        ),
    }

    def prepare(self, points: Points, device: Device) -> Features:
        """Loads, tiles, FLOPs and bytes of the op's parts."""
        p = points.columns
        tokens, hidden, top_k = (
            p[n].astype(np.float64) for n in ("num_tokens", "hidden_size", "topk")
        )
        experts, ep = p["num_experts"], p["moe_ep_size"]
        width = np.floor(p["inter_size"] / p["moe_tp_size"])
        gated, on_input = moe_traits(points)
        inputs = np.where(gated, 2.0, 1.0)
        counted = points.loads or loads(
            p["num_tokens"], experts, p["topk"], ep, p["distribution"].tolist()
        )
        tile = vllm_tiles(tokens, experts // ep, width)
        every = tokens * top_k
        return {
            "tokens": tokens,
            "scored": tokens * experts,
            "sharded": ep > 1,
            "skewed": _skewed(points),
            "gate_up": grouped_features(device, tile, counted, inputs * width, hidden, ELEMENT),
            "down": grouped_features(device, tile, counted, hidden, width, ELEMENT),
            "activation": ELEMENT * every * (inputs + 1) * width,
            "combine": ELEMENT * (every + 2 * tokens) * hidden,
            "input": np.where(on_input, ELEMENT * tokens * hidden, 0.0),
            "selected": 8.0 * tokens * experts,
        }

    def parts(self, features: Features, constants: Constants) -> dict[str, _Array]:
        """Seconds of each part, named as the rows of an MoE block; they add up to the op."""
        f, c = features, constants
        fixed = c["launch"] + np.where(f["sharded"], c["expert_map"], 0)
        idle = c["idle_tile"]
        return {
            "select": fixed + c["select"] * f["scored"],
            "permute": c["input_passes"] * f["input"] / c["bandwidth"],
            "experts_gate_up": grouped_seconds(f["gate_up"], c) + idle * f["gate_up"]["idle_tiles"],
            "experts_activation": f["activation"] / c["bandwidth"],
            "experts_down": grouped_seconds(f["down"], c) + idle * f["down"]["idle_tiles"],
            "combine": f["combine"] / c["bandwidth"],
        }

    def seconds(self, features: Features, constants: Constants) -> _Array:
        """Seconds of each point."""
        out: _Array = np.sum(list(self.parts(features, constants).values()), axis=0)
        return out

    def floor(self, features: Features, device: Device) -> _Array:
        """Seconds at the datasheet's rates, part after part, with the same rows per expert."""
        gemms = (features["gate_up"], features["down"])
        matmuls = sum(
            np.maximum(g["flops"] / device.matrix, g["bytes"] / device.memory) for g in gemms
        )
        moved = features["activation"] + features["combine"] + features["selected"]
        out: _Array = matmuls + moved / device.memory
        return out

    def regimes(self, features: Features) -> _Array:
        """By tokens of the pass, balanced and skewed apart."""
        size = np.select(
            [features["tokens"] <= 64, features["tokens"] <= 1024],
            ["up to 64 tokens", "65 to 1,024 tokens"],
            "above 1,024 tokens",
        )
        skew = np.where(features["skewed"], "skewed, ", "balanced, ")
        return np.char.add(skew, size)

    def informed(self, features: Features) -> set[str]:
        """Quirks are learnt from points that show them."""
        silent = {"expert_map", "idle_tile"} if not features["sharded"].any() else set()
        if not (features["input"] > 0).any():
            silent.add("input_passes")
        unaligned = features["down"]["unaligned"] | features["gate_up"]["unaligned"]
        if not unaligned.any():
            silent |= {"unaligned_tile", "unaligned_step", "unaligned_spill"}
        return set(self.constants) - silent

    def fitted(self, features: Features) -> _Array:
        """Those whose rows per expert are known: a skewed distribution is a sample of many."""
        known: _Array = ~features["skewed"]
        return known


def _skewed(points: Points) -> _Array:
    if "distribution" not in points.columns:
        return np.zeros(len(points), dtype=bool)
    names = points["distribution"]
    return np.char.startswith(names, "power_law") | np.char.startswith(names, "zipf")


class GroupedGemm:
    """The op-time model of one grouped GEMM: torch's `grouped_mm` on compute capability 9.0."""

    kind: ClassVar[str] = "grouped"
    constants: ClassVar[Mapping[str, Constant]] = {
        "launch": Constant("s", "fixed cost of set-up kernel and GEMM", 8e-6, 1e-7, 1e-2),
        **GROUPED,
    }

    def prepare(self, points: Points, device: Device) -> Features:
        """Loads, tiles, FLOPs and bytes. Points carry measured loads, or a distribution."""
        p = points.columns
        rows, experts = p["rows"].astype(np.float64), p["experts"]
        counted = points.loads
        if counted is None:
            top_k = p.get("topk", np.ones_like(experts))
            spread = (
                p["distribution"].tolist() if "distribution" in p else ["uniform"] * len(points)
            )
            counted = loads(
                np.maximum(p["rows"] // top_k, 1), experts, top_k, np.ones_like(experts), spread
            )
        tile = torch_grouped_tiles(rows, experts.astype(np.float64))
        n, k = p["n"].astype(np.float64), p["k"].astype(np.float64)
        made = grouped_features(device, tile, counted, n, k, ELEMENT)
        # this kernel refuses unaligned operands, so none of its time is theirs
        return {**made, "unaligned": np.zeros(rows.shape, dtype=bool)}

    def seconds(self, features: Features, constants: Constants) -> _Array:
        """Seconds of each point."""
        return constants["launch"] + grouped_seconds(features, constants)

    def floor(self, features: Features, device: Device) -> _Array:
        """Seconds at the datasheet's rates."""
        f = features
        out: _Array = np.maximum(f["flops"] / device.matrix, f["bytes"] / device.memory)
        return out

    def regimes(self, features: Features) -> _Array:
        """By what the floor is bound by."""
        compute = features["flops"] / features["matrix"]
        return np.where(
            compute > features["bytes"] / features["memory"], "compute-bound", "memory-bound"
        )

    def informed(self, features: Features) -> set[str]:
        """All of them."""
        return set(self.constants)

    def fitted(self, features: Features) -> _Array:
        """All of them."""
        return np.ones(features["flops"].shape, dtype=bool)
