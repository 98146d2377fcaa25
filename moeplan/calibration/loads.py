"""How many rows each expert of the busiest rank gets, as statistics of many points at once.

A grouped matmul runs whole tiles, so its time depends on Σ_e ⌈m_e / BM⌉ and not on Σ_e m_e. Four
distributions of T·k rows over E experts, in contiguous ranks of E/ep experts:

- ``balanced``: token i takes experts i + j·⌈E/k⌉ (round robin); exact.
- ``uniform``: every token takes k experts at random: each m_e is Binomial(T, k/E). On one rank in
  closed form (`moeplan.calibration.uniform`), on the busiest of several from draws.
- ``power_law_A``: expert weights with density ∝ x^−A on [1, 0.8·T] ([0.01, 2] where T·k ≤ E), in
  proportion to which the rows are given out, no expert more than T.
- ``zipf:A``: the r-th most popular expert has weight r^−A, and popularity is in random order.

What has no closed form is sampled with one fixed set of draws for all points, so a point's answer
does not depend on the points beside it. Of the ranks the busiest counts: the others wait for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np

from moeplan.calibration.uniform import BLOCK_ROWS, Loads, uniform_loads
from moeplan.errors import UserError, near_miss
from moeplan.quantity import Number

__all__ = [
    "BLOCK_ROWS",
    "Distribution",
    "Loads",
    "loads",
    "loads_of_ranks",
    "loads_of_rows",
    "parse_distribution",
]

_STATISTICS = 3 + 2 * len(BLOCK_ROWS)
_CHUNK = 1 << 18  # sampled rows per expert at work at a time

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
_FORM = re.compile(r"(balanced|uniform|power_law_(?P<power>.+)|zipf:(?P<zipf>.+))")


@dataclass(frozen=True)
class Distribution:
    """A rule of who gets which token; `exponent` is that of the skewed ones."""

    kind: str
    exponent: float = 0.0

    @property
    def skewed(self) -> bool:
        """Whether experts differ in popularity."""
        return self.kind in ("power_law", "zipf")


@lru_cache(maxsize=256)
def parse_distribution(text: str, where: str = "distribution") -> Distribution:
    """Read balanced, uniform, power_law_A or zipf:A. Raises UserError for anything else."""
    match = _FORM.fullmatch(text.strip().lower())
    if match is None:
        known = ("balanced", "uniform", "power_law_1.2", "zipf:1.2")
        raise UserError(
            f"{where}: {text!r} is not a distribution; allowed are balanced, uniform, "
            f"power_law_EXPONENT and zipf:EXPONENT{near_miss(text, known)}"
        )
    number = match["power"] or match["zipf"]
    if number is None:
        return Distribution(match[1])
    try:
        exponent = float(number)
    except ValueError:
        exponent = -1.0
    if not 0 < exponent <= 10:
        raise UserError(f"{where}: the exponent of {text!r} is a number above 0 and up to 10")
    return Distribution("power_law" if match["power"] else "zipf", exponent)


def loads(
    tokens: _Array, experts: _Array, top_k: _Array, ep: _Array, distribution: Sequence[str]
) -> Loads:
    """Loads of many points; `tokens` counts those of all ranks together, before routing.

    All arguments have one length. Each different point is worked out once.
    """
    names, code = np.unique(np.asarray(distribution, dtype=str), return_inverse=True)
    columns = np.stack([np.asarray(a, dtype=np.int64) for a in (tokens, experts, top_k, ep, code)])
    points, place = np.unique(columns, axis=1, return_inverse=True)
    out = np.empty((_STATISTICS, points.shape[1]))
    for shape in np.unique(points[[1, 3, 4]], axis=1).T:
        at = np.flatnonzero((points[[1, 3, 4]] == shape[:, None]).all(0))
        rule = parse_distribution(str(names[shape[2]]))
        if rule.kind == "uniform" and shape[1] == 1:
            T, k = points[0, at].astype(np.float64), points[2, at].astype(np.float64)
            out[:, at] = _packed(uniform_loads(T, float(shape[0]), k))
            continue
        samples = 1 if rule.kind == "balanced" else _samples(int(shape[0]))
        step = max(1, _CHUNK // int(samples * shape[0]))
        for start in range(0, at.size, step):
            here = at[start : start + step]
            out[:, here] = _statistics(points[0, here], points[2, here], shape[0], shape[1], rule)
    return _unpack(out[:, place.ravel()])


def loads_of_ranks(
    tokens: Number, experts: Number, top_k: Number, ep: Number, distribution: str
) -> Loads:
    """Loads of the busiest of ep ranks, numbers for numbers, without other ranks' tiles."""
    given = [np.atleast_1d(np.asarray(x, np.float64)) for x in (tokens, experts, top_k, ep)]
    shape = np.broadcast_shapes(*(x.shape for x in given))
    T, E, k, n = (np.broadcast_to(np.maximum(np.ceil(x), 1), shape).ravel() for x in given)
    found = loads(T, E, k, n, [distribution] * T.size)
    many = any(np.ndim(x) for x in (tokens, experts, top_k, ep))

    def shaped(column: _Array) -> Number:
        return column.reshape(shape) if many else float(column[0])

    tiles = {block: shaped(column) for block, column in found.tiles.items()}
    rows, active, single = (shaped(x) for x in (found.rows, found.active, found.single))
    return Loads(rows, active, tiles, tiles, single)


def loads_of_rows(rows: Sequence[Sequence[int]]) -> Loads:
    """Loads of measured histograms: rows of each expert of one rank, one histogram a point."""
    out = np.empty((_STATISTICS, len(rows)))
    for i, histogram in enumerate(rows):
        counts = np.asarray(histogram, dtype=np.float64)[None, None]
        out[:, i] = _summary(counts, counts)[:, 0]
    return _unpack(out)


def _packed(found: Loads) -> _Array:
    every = (found.rows, found.active, found.single)
    return np.stack([*every, *found.tiles.values(), *found.all_tiles.values()])


def _unpack(table: _Array) -> Loads:
    n = len(BLOCK_ROWS)
    tiles = dict(zip(BLOCK_ROWS, table[3 : 3 + n], strict=True))
    everywhere = dict(zip(BLOCK_ROWS, table[3 + n :], strict=True))
    return Loads(table[0], table[1], tiles, everywhere, table[2])


def _statistics(T: _Array, k: _Array, E: int, ep: int, rule: Distribution) -> _Array:
    if rule.kind == "balanced":
        counts = _round_robin(T, k, E)[:, None]
    elif rule.kind == "uniform":
        counts = _binomial(T, k, E)
    else:
        counts = _shares_to_rows(_shares(T, k, E, rule), T, k, ep)
    ranks = counts.reshape(*counts.shape[:2], ep, E // ep)
    if rule.kind == "balanced":
        busiest = ranks[:, :, 0]  # the first rank is never behind another
    else:
        pick = ranks.sum(-1).argmax(-1)[:, :, None, None]
        busiest = np.take_along_axis(ranks, pick, 2)[:, :, 0]
    return _summary(busiest, counts)


def _summary(local: _Array, everywhere: _Array) -> _Array:
    """[statistics, points] of rows [points, samples, experts]."""
    parts = [local.sum(-1), (local > 0).sum(-1), (local == 1).sum(-1)]
    parts += [np.ceil(local / block).sum(-1) for block in BLOCK_ROWS]
    parts += [np.ceil(everywhere / block).sum(-1) for block in BLOCK_ROWS]
    return np.stack([part.mean(-1) for part in parts])


def _round_robin(T: _Array, k: _Array, E: int) -> _Array:
    """Rows of each expert [points, E]: expert i + j·s of token i for j < k, with s = ⌈E/k⌉.

    Fewer than s tokens are spread over a stride: token i starts at ⌊i·s/T⌋.
    """
    stride = -(-E // k)
    out = np.zeros((T.size, E))
    expert = np.arange(E)
    for j in range(int(k.max(initial=0))):
        many = np.flatnonzero((stride <= T) & (j < k))
        first = (expert - j * stride[many, None]) % E
        out[many] += np.maximum((T[many, None] - 1 - first) // E + 1, 0)
    few = np.flatnonzero(stride > T)
    if few.size:
        token = np.arange(int(T[few].max()))
        start = token * stride[few, None] // T[few, None]
        for j in range(int(k[few].max())):
            row, column = np.nonzero((token < T[few, None]) & (j < k[few, None]))
            chosen = (start[row, column] + j * stride[few][row]) % E
            np.add.at(out, (few[row], chosen), 1)
    return out


def _samples(E: int) -> int:
    """How often the experts are drawn: few experts need more draws for a steady mean."""
    return min(max(1024 // E, 6), 16)


@lru_cache(maxsize=64)
def _draws(E: int) -> _Array:
    """Uniform draws [samples, E], the same ones on every call."""
    return np.random.default_rng(E).random((_samples(E), E))


@lru_cache(maxsize=64)
def _normal_draws(E: int) -> _Array:
    inverse = NormalDist().inv_cdf
    flat = [inverse(min(max(u, 1e-12), 1 - 1e-12)) for u in _draws(E).ravel().tolist()]
    return np.array(flat).reshape(-1, E)


def _binomial(T: _Array, k: _Array, E: int) -> _Array:
    """Rows of each expert, Binomial(T, k/E), by a Cornish-Fisher quantile of fixed draws.

    Where an expert has less than about one row, whether it has any is drawn exactly.
    """
    p = (k / E)[:, None, None]
    mean, z, u = T[:, None, None] * p, _normal_draws(E), _draws(E)
    spread = np.sqrt(mean * (1 - p))
    drawn = np.maximum(np.round(mean + spread * z + (1 - 2 * p) * (z * z - 1) / 6), 0)
    any_row = u > (1 - p) ** T[:, None, None]
    rows: _Array = np.where(any_row, np.clip(drawn, 1, T[:, None, None]), 0)
    return rows


def _shares(T: _Array, k: _Array, E: int, rule: Distribution) -> _Array:
    """Weights of the experts [points, samples, E], summing to one."""
    a, u = rule.exponent, _draws(E)
    if rule.kind == "zipf":
        rank = u.argsort(-1).argsort(-1) + 1.0
        weights = np.broadcast_to(rank**-a, (T.size, *u.shape))
    else:
        dense = (T * k > E)[:, None, None]
        low = np.where(dense, 1.0, 0.01)
        high = np.where(dense, np.maximum(0.8 * T, 1)[:, None, None], 2.0)
        if a == 1:
            weights = low * (high / low) ** u
        else:
            weights = (low ** (1 - a) + (high ** (1 - a) - low ** (1 - a)) * u) ** (1 / (1 - a))
    shares: _Array = weights / weights.sum(-1, keepdims=True)
    return shares


def _shares_to_rows(shares: _Array, T: _Array, k: _Array, ep: int) -> _Array:
    """Whole rows in proportion to shares, T·k in all, at most T an expert.

    What rounding and the limit leave over goes to the emptiest experts, rank after rank; what
    rounding gave too much is taken from the fullest.
    """
    n, samples, E = shares.shape
    limit = np.repeat(T, samples).astype(np.float64)
    total = np.repeat(T * k, samples)
    rows = np.minimum(np.round(shares.reshape(-1, E) * total[:, None]), limit[:, None])
    left = total - rows.sum(1)
    few, many = np.flatnonzero(left > 0), np.flatnonzero(left < 0)
    rows[few] = _fill(rows[few], left[few], ep, limit[few])
    top = limit[many, None]
    rows[many] = top - _fill(top - rows[many], -left[many], ep, limit[many])
    out: _Array = rows.reshape(n, samples, E)
    return out


def _fill(rows: _Array, amount: _Array, ep: int, limit: _Array) -> _Array:
    """Raise the lowest of each line [lines, E] to a common level until `amount` is given out.

    The remainder below one row an expert goes to one rank after the other.
    """
    E = rows.shape[1]
    low = np.sort(rows, 1)
    below = np.cumsum(low, 1)
    reached = (np.arange(1, E + 1) * low - below <= amount[:, None]).sum(1)
    sum_below = np.take_along_axis(below, reached[:, None] - 1, 1)[:, 0]
    level = np.minimum(np.floor((amount + sum_below) / reached), limit)
    out = np.maximum(rows, level[:, None])
    rest = amount - (out - rows).sum(1)
    open_ = (out == level[:, None]) & (level < limit)[:, None]
    order = open_.reshape(-1, ep, E // ep).transpose(0, 2, 1).reshape(-1, E)
    gets = order & (np.cumsum(order, 1) <= rest[:, None])
    filled: _Array = out + gets.reshape(-1, E // ep, ep).transpose(0, 2, 1).reshape(-1, E)
    return filled
