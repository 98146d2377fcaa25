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
from typing import Any, ClassVar

from moeplan.arrays import anywhere, ceil, floor, is_array, larger, np, pick, real, smaller
from moeplan.calibration.optime import (
    Constant,
    Constants,
    Device,
    Features,
    smooth_max,
    starved,
)
from moeplan.calibration.points import Points
from moeplan.calibration.tiles import Tile, torch_grouped_tiles, vllm_tiles
from moeplan.calibration.uniform import Loads
from moeplan.quantity import Number

__all__ = [
    "GROUPED",
    "FusedMoE",
    "GroupedGemm",
    "counted_rows",
    "grouped_features",
    "grouped_seconds",
]

ELEMENT = 2  # bytes of bf16
ALIGNMENT = 16  # elements that the inner dimension must be a multiple of for wide loads
_SKEWED = ("power_law", "zipf")  # beginnings of the distributions' names
SPILL = 64  # accumulators a thread, from which on unaligned tiles run out of registers

GROUPED: Mapping[str, Constant] = {
    "tile_load_rate": Constant(
        "B/s", "operands that all tiles together load from cache", 1.1e13, 1e9, 1e15, "matrix"
    ),
    "throttle": Constant("", "share of the peak rate that long ops lose", 0.1, 0.005, 0.25),
    "throttle_time": Constant(
        "s", "length of an op that loses half of that share", 7e-4, 1e-5, 1e-1
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


def grouped_seconds(g: Mapping[str, Any], c: Constants) -> Number:
    """Seconds of a grouped GEMM from what `grouped_features` made."""
    alone = g["flops"] / g["matrix"]
    lost = c["throttle"] * alone / (alone + c["throttle_time"])
    matrix = g["tile_flops"] * (g["units"] / g["matrix"]) / (1 - lost)
    loading = g["tile_bytes"] * (g["units"] / c["tile_load_rate"])
    tile = smooth_max(matrix, loading) + c["tile_overhead"]
    if anywhere(g["unaligned"]):
        spill = pick(g["spills"], c["unaligned_spill"], 1.0)
        extra = c["unaligned_tile"] + c["unaligned_step"] * g["steps"] * spill
        tile = tile + pick(g["unaligned"], extra, 0.0)
    compute = (g["tiles"] / g["units"] + c["fill"]) * tile
    memory = g["bytes"] / c["read_bandwidth"] * (1 + c["in_flight"] * g["starved"])
    return smooth_max(compute, memory)


def grouped_features(
    device: Device, tile: Tile, counted: Loads, n: Number, k: Number, weight_bytes: float
) -> dict[str, Any]:
    """What a grouped GEMM's time depends on: rows of `counted` times a matrix [k, n] an expert."""
    columns = ceil(n / tile.n)
    steps = ceil(k / tile.k)
    inner = steps * tile.k
    tiles = _pick(counted.tiles, tile.m) * columns
    stage = (tile.m + tile.n) * tile.k * ELEMENT
    fitting = larger(floor(device.shared_memory / ((tile.stages - 1) * stage)), 1)
    together = smaller(tiles, device.multiprocessors * fitting)
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


def _pick(by_height: Mapping[int, Number], height: Number) -> Number:
    found: Number = 0.0
    for block, tiles in by_height.items():
        found = pick(height == block, tiles, found)
    return found


def counted_rows(
    points: Points, tokens: Number, experts: Number, top_k: Number, ep: Number
) -> Loads:
    """The points' own loads, else those of their distribution."""
    if points.loads is not None:
        return points.loads
    from moeplan.calibration.loads import loads  # draws samples: needs arrays

    spread = points.columns.get("distribution")
    names = ["uniform"] * len(points) if spread is None else spread.tolist()
    return loads(tokens, experts, top_k, ep, names)


def _traits(points: Points) -> tuple[Number, Number]:
    """(gated, weight_on_input) of MoE points: their columns, else the presets', else the usual."""
    if "gated" in points.columns and "weight_on_input" in points.columns:
        return points["gated"], points["weight_on_input"]
    from moeplan.calibration.traits import moe_traits  # reads the presets

    return moe_traits(points)


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
        "input_launch": Constant(
            "s", "fixed cost of weighting the input", 4e-6, 1e-8, 1e-4, default=4e-6
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
    regimes: ClassVar[tuple[str, ...]] = tuple(
        f"{load}, {size}"
        for load in ("balanced", "skewed")
        for size in ("up to 64 tokens", "65 to 1,024 tokens", "above 1,024 tokens")
    )

    def prepare(self, points: Points, device: Device) -> Features:
        """Loads, tiles, FLOPs and bytes of the op's parts."""
        p = points.columns
        tokens, hidden, top_k = (real(p[n]) for n in ("num_tokens", "hidden_size", "topk"))
        experts, ep = p["num_experts"], p["moe_ep_size"]
        width = floor(p["inter_size"] / p["moe_tp_size"])
        gated, on_input = _traits(points)
        inputs = pick(gated, 2.0, 1.0)
        counted = counted_rows(points, p["num_tokens"], experts, p["topk"], ep)
        tile = vllm_tiles(tokens, experts // ep, width)
        each = p.get("weight_bytes", ELEMENT)
        every = tokens * top_k
        return {
            "tokens": tokens,
            "scored": tokens * experts,
            "sharded": ep > 1,
            "skewed": _skewed(points),
            "gate_up": grouped_features(device, tile, counted, inputs * width, hidden, each),
            "down": grouped_features(device, tile, counted, hidden, width, each),
            "activation": ELEMENT * every * (inputs + 1) * width,
            "combine": ELEMENT * (every + 2 * tokens) * hidden,
            "input": pick(on_input, ELEMENT * tokens * hidden, 0.0),
            "selected": 8.0 * tokens * experts,
        }

    def parts(self, features: Features, constants: Constants) -> dict[str, Number]:
        """Seconds of each part, named as the rows of an MoE block; they add up to the op."""
        f, c = features, constants
        fixed = c["launch"] + pick(f["sharded"], c["expert_map"], 0.0)
        idle = c["idle_tile"]
        return {
            "select": fixed + c["select"] * f["scored"],
            "permute": pick(f["input"] > 0, c["input_launch"], 0.0)
            + c["input_passes"] * f["input"] / c["bandwidth"],
            "experts_gate_up": grouped_seconds(f["gate_up"], c) + idle * f["gate_up"]["idle_tiles"],
            "experts_activation": f["activation"] / c["bandwidth"],
            "experts_down": grouped_seconds(f["down"], c) + idle * f["down"]["idle_tiles"],
            "combine": f["combine"] / c["bandwidth"],
        }

    def seconds(self, features: Features, constants: Constants) -> Number:
        """Seconds of each point."""
        return sum(self.parts(features, constants).values())

    def floor(self, features: Features, device: Device) -> Number:
        """Seconds at the datasheet's rates, part after part, with the same rows per expert."""
        gemms = (features["gate_up"], features["down"])
        matmuls = sum(larger(g["flops"] / device.matrix, g["bytes"] / device.memory) for g in gemms)
        moved = features["activation"] + features["combine"] + features["selected"]
        return matmuls + moved / device.memory

    def regime(self, features: Features) -> Number:
        """By tokens of the pass, balanced and skewed apart."""
        tokens = features["tokens"]
        size = pick(tokens <= 64, 0, pick(tokens <= 1024, 1, 2))
        return size + pick(features["skewed"], 3, 0)

    def informed(self, features: Features) -> set[str]:
        """Quirks are learnt from points that show them."""
        silent = {"expert_map", "idle_tile"} if not features["sharded"].any() else set()
        if not (features["input"] > 0).any():
            silent |= {"input_passes", "input_launch"}
        unaligned = features["down"]["unaligned"] | features["gate_up"]["unaligned"]
        if not unaligned.any():
            silent |= {"unaligned_tile", "unaligned_step", "unaligned_spill"}
        return set(self.constants) - silent

    def fitted(self, features: Features) -> Number:
        """Those whose rows per expert are known: a skewed distribution is a sample of many."""
        return np.logical_not(features["skewed"])


def _skewed(points: Points) -> Number:
    if "distribution" not in points.columns:
        return points["num_tokens"] < 0
    names = points["distribution"]
    if not is_array(names):
        return names.startswith(_SKEWED)
    return np.char.startswith(names, _SKEWED[0]) | np.char.startswith(names, _SKEWED[1])


class GroupedGemm:
    """The op-time model of one grouped GEMM: torch's `grouped_mm` on compute capability 9.0."""

    kind: ClassVar[str] = "grouped"
    constants: ClassVar[Mapping[str, Constant]] = {
        "launch": Constant("s", "fixed cost of set-up kernel and GEMM", 8e-6, 1e-7, 1e-2),
        **GROUPED,
    }
    regimes: ClassVar[tuple[str, ...]] = ("compute-bound", "memory-bound")

    def prepare(self, points: Points, device: Device) -> Features:
        """Loads, tiles, FLOPs and bytes. Points carry measured loads, or a distribution."""
        p = points.columns
        experts, one = p["experts"], p["experts"] * 0 + 1
        top_k = p.get("topk", one)
        counted = counted_rows(points, larger(p["rows"] // top_k, 1), experts, top_k, one)
        rows, n, k = (real(p[name]) for name in ("rows", "n", "k"))
        tile = torch_grouped_tiles(rows, real(experts))
        made = grouped_features(device, tile, counted, n, k, p.get("weight_bytes", ELEMENT))
        # this kernel refuses unaligned operands, so none of its time is theirs
        return {**made, "unaligned": False}

    def seconds(self, features: Features, constants: Constants) -> Number:
        """Seconds of each point."""
        return constants["launch"] + grouped_seconds(features, constants)

    def floor(self, features: Features, device: Device) -> Number:
        """Seconds at the datasheet's rates."""
        return larger(features["flops"] / device.matrix, features["bytes"] / device.memory)

    def regime(self, features: Features) -> Number:
        """By what the floor is bound by."""
        compute = features["flops"] / features["matrix"]
        return pick(compute > features["bytes"] / features["memory"], 0, 1)

    def informed(self, features: Features) -> set[str]:
        """All of them."""
        return set(self.constants)

    def fitted(self, features: Features) -> Number:
        """All of them."""
        return np.ones(features["flops"].shape, dtype=bool)
