"""Rows per expert where every token takes k of E experts at random, in closed form.

Each expert gets m ~ Binomial(T, p) rows with p = k/E. It runs ⌈m/B⌉ tiles of B rows, and
E⌈m/B⌉ = Σ_j≥0 P(m > j·B): the first term is 1 − (1−p)^T, the others come from the normal
distribution with a correction for skewness (Edgeworth), and only those within six standard
deviations of the mean need to be looked at. Where m spreads over more than half a tile its
remainder is as good as uniform, so the sum is mean/B + (B−1)/(2B). A sampled check is among the
tests.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.arrays import ceil, exp, larger, pick, root
from moeplan.quantity import Number

__all__ = ["BLOCK_ROWS", "Loads", "expected_blocks", "uniform_loads"]

BLOCK_ROWS = (8, 16, 32, 64, 128, 256)
"""Tile heights for which tiles are counted."""

_WIDE = 6.0  # standard deviations beyond which a normal distribution has nothing left
_TERMS = 8  # multiples of B within them while the spread is at most B/2
_TAIL = (0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429)
_SCALE, _NORM = 0.2316419, 0.3989422804014327


@dataclass(frozen=True)
class Loads:
    """Statistics of the busiest rank, one value a point (means over the samples).

    rows: rows of its experts. active: experts with a row, single: with exactly one. tiles: by tile
    height, tiles of its experts. all_tiles: the same over every rank's experts.
    """

    rows: Number
    active: Number
    tiles: dict[int, Number]
    all_tiles: dict[int, Number]
    single: Number


def uniform_loads(tokens: Number, experts: Number, top_k: Number, ranks: Number = 1) -> Loads:
    """Loads of one of `ranks` ranks, which share the experts evenly; `tokens` are those of all.

    Numbers or arrays that broadcast; top_k may be a mean. Only this rank's tiles are counted.
    """
    p = top_k / experts
    local = experts / ranks
    tiles = {block: local * expected_blocks(tokens, p, block) for block in BLOCK_ROWS}
    active = local * (1 - (1 - p) ** tokens)
    single = local * tokens * p * larger(1 - p, 0.0) ** larger(tokens - 1, 0)
    return Loads(tokens * top_k / ranks, active, tiles, tiles, single)


def expected_blocks(tokens: Number, p: Number, block: int) -> Number:
    """E⌈m/B⌉ of m ~ Binomial(tokens, p) and B = block."""
    mean = tokens * p
    spread = larger(root(mean * (1 - p)), 1e-9)
    skew = (1 - 2 * p) / spread
    first = larger(ceil((mean - _WIDE * spread) / block), 1)
    some = 1 - (1 - p) ** tokens + first - 1
    for step in range(_TERMS):
        z = ((first + step) * block + 0.5 - mean) / spread
        density = _NORM * exp(-z * z / 2)
        above = _tail(z, density) + density * (z * z - 1) * skew / 6
        some = some + larger(above, 0.0)
    return pick(2 * spread < block, some, mean / block + (block - 1) / (2 * block))


def _tail(z: Number, density: Number) -> Number:
    """P(Z > z) of a normal Z (Abramowitz and Stegun 26.2.17, to 7.5e-8), density being its own."""
    t = 1 / (1 + _SCALE * abs(z))
    sum_: Number = 0.0
    for factor in reversed(_TAIL):
        sum_ = t * (factor + sum_)
    return pick(z >= 0, density * sum_, 1 - density * sum_)
