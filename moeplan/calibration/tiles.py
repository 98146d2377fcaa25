"""Tiles of matmul kernels, and which of them a backend takes: facts read from the backends' code.

A tile is the piece of the output [m, n] that one thread block makes, walking along the inner
dimension in steps of k with `stages` buffers of operands in shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from moeplan.arrays import anywhere, is_one_of, pick
from moeplan.quantity import Number

__all__ = [
    "CUBLAS_SPLITS",
    "CUBLAS_TILES",
    "Tile",
    "choose",
    "torch_grouped_tiles",
    "vllm_tiles",
]

_ALWAYS = float("inf")


class Tile(NamedTuple):
    """Rows, columns and step of a tile, its operand buffers, and warps of 32 threads.

    Of many points each field is an array.
    """

    m: Number
    n: Number
    k: Number
    stages: Number
    warps: Number


Menu: TypeAlias = "Sequence[tuple[float, Tile]]"
"""(limit, tile) in rising order: the first tile whose limit is not below the deciding number."""

VLLM_DEFAULT: Menu = (
    (32, Tile(16, 64, 128, 4, 4)),
    (64, Tile(32, 64, 128, 3, 4)),
    (96, Tile(32, 128, 64, 3, 4)),
    (128, Tile(64, 128, 64, 3, 4)),
    (512, Tile(64, 128, 64, 3, 8)),
    (_ALWAYS, Tile(128, 128, 64, 3, 8)),
)
"""By tokens of the pass: get_default_config of vLLM's fused MoE for bf16 (since 0.17, PR 34846)."""

VLLM_TUNED: Menu = (
    (1, Tile(16, 64, 128, 4, 4)),
    (10, Tile(16, 128, 128, 3, 4)),
    (24, Tile(32, 128, 128, 3, 4)),
    (63, Tile(64, 128, 64, 3, 4)),
    (_ALWAYS, Tile(128, 256, 64, 4, 8)),
)
"""By rows per expert that the tuning ran with: what vLLM's tuned files for the H200 have in common.
Single files differ in steps and stages."""

VLLM_TUNED_WIDTHS = {
    8: (2, (1792, 2048, 3584, 4096, 7168, 14336)),
    16: (1, (1024, 2048)),
    64: (8, (320, 640, 1280, 2560)),
    128: (8, (96, 176, 192, 256, 352, 384, 512, 704, 768, 1024)),
    512: (10, (64, 128, 256, 512)),
}
"""For a rank's number of experts: top-k of the models that were tuned, and the expert widths (after
tensor parallelism) for which vLLM ships a bf16 file for the H200."""

TORCH_GROUPED: Menu = ((128, Tile(64, 128, 128, 3, 8)), (_ALWAYS, Tile(128, 256, 64, 3, 8)))
"""By average rows per expert: torch's CUTLASS grouped GEMM on compute capability 9.0."""

CUBLAS_TILES = (
    (64, 64), (64, 128), (64, 256), (96, 128), (96, 256), (128, 64), (128, 128), (128, 192),
    (128, 256), (160, 128), (192, 128), (256, 128), (320, 128),
)  # fmt: skip
"""(rows, columns) of a dense GEMM's tiles on compute capability 9.0; the library picks the best."""

CUBLAS_SPLITS = (1, 2, 4, 8, 16, 32)
"""Into how many parts the inner dimension of a dense GEMM may be split."""


def choose(menu: Menu, number: Number) -> Tile:
    """The menu's tile for each point's deciding number."""
    chosen = menu[-1][1]
    for limit, tile in reversed(menu[:-1]):
        chosen = _either(number <= limit, tile, chosen)
    return chosen


def _either(test: Number, yes: Tile, no: Tile) -> Tile:
    return Tile(*(pick(test, a, b) for a, b in zip(yes, no, strict=True)))


def vllm_tiles(tokens: Number, local_experts: Number, width: Number) -> Tile:
    """What vLLM's fused MoE takes for tokens of all ranks, experts and their width on one rank."""
    chosen = choose(VLLM_DEFAULT, tokens)
    for experts, (top_k, widths) in VLLM_TUNED_WIDTHS.items():
        tuned = (local_experts == experts) & is_one_of(width, widths)
        if anywhere(tuned):
            chosen = _either(tuned, choose(VLLM_TUNED, tokens * top_k / experts), chosen)
    return chosen


def torch_grouped_tiles(rows: Number, local_experts: Number) -> Tile:
    """What torch's grouped GEMM takes for the average number of rows per expert."""
    return choose(TORCH_GROUPED, rows / local_experts)
