"""Who gets which token: expected counts under top-k routing, with and without expert groups.

Symbols: E experts in order of their index, k experts a token (top-k), n destinations (GPUs, nodes,
experts), each holding E/n consecutive experts, G groups of E/G consecutive experts of which a token
may use M (`n_group` and `topk_group` of a config.json).

Every function takes numbers or numpy arrays that broadcast. Numbers are computed in exact
fractions; an array is computed in float64, each different point once, and is nan where a point is
illegal. Tokens are routed independently of each other, and all experts are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import ceil, comb, isqrt
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

from moeplan.arrays import is_array, np
from moeplan.errors import UserError, near_miss
from moeplan.quantity import Number, plain

__all__ = [
    "GroupRule",
    "expected_active_experts",
    "expected_distinct",
    "expected_rows_per_destination",
    "nearest_divisor",
    "probability_active",
    "probability_reached",
]

GroupRule: TypeAlias = Literal["uniform", "max", "top2_sum"]
"""How a token picks its M of G groups. "uniform": any M, then any k experts of them. "max": the
groups of its best experts, then the k best experts there (DeepSeek-V2's group_limited_greedy).
"top2_sum": the groups whose two best experts have the largest sum of scores (DeepSeek-V3)."""

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


class _Point(NamedTuple):
    """One array per symbol, all of one length."""

    E: _Array
    k: _Array
    n: _Array
    G: _Array
    M: _Array


_BLOCK = 1 << 14  # points at a time: the dozen arrays at work then stay in the processor's cache
_LARGEST = 1 << 31  # a count beyond it is not a model's


def expected_distinct(
    experts: Number,
    top_k: Number,
    destinations: Number,
    groups: Number = None,
    limit: Number = None,
    rule: GroupRule = "uniform",
    real: Number = None,
) -> Number:
    """Distinct destinations that one token reaches, in expectation.

    Without groups this is n·(1 − C(E − E/n, k) / C(E, k)). With `groups` G and `limit` M it is
    exact for the rules "uniform" and "max" with any continuous scores, wherever the borders of
    destinations and groups lie. "top2_sum" depends on how scores are distributed, so it is
    answered with "max": 0.8 % off for DeepSeek-V3's numbers, 2.8 % at worst in what was simulated
    (docs/all-to-all.md), where "uniform" is 7 to 12 % too low. A `limit` of G, or one group, is
    no limit. Raises UserError for illegal numbers; arrays give nan there.

    real: of a token's k experts so many are somewhere, in expectation and perhaps less than one;
    the others compute nothing and are nowhere (zero-computation experts). The token then draws k of
    a pool of P = E·k/real, of which E are at the destinations: n·(1 − C(P − E/n, k) / C(P, k)).
    Where `real` is above k (in a sweep that varies k alone), it counts as k.
    """
    given = (experts, top_k, destinations, *_group_limit(groups, limit))
    if real is None:
        return plain(destinations) * _probability_reached(given, rule)
    return plain(destinations) * _reached_of_pool(given, plain(real))


def probability_reached(
    experts: Number,
    top_k: Number,
    destinations: Number,
    groups: Number = None,
    limit: Number = None,
    rule: GroupRule = "uniform",
) -> Number:
    """Probability that a token reaches one given destination (their mean, where groups cut them).

    It is `expected_distinct` over n; the arguments and errors are the same.
    """
    return _probability_reached((experts, top_k, destinations, *_group_limit(groups, limit)), rule)


def expected_rows_per_destination(
    tokens: Number,
    experts: Number,
    top_k: Number,
    destinations: Number,
    groups: Number = None,
    limit: Number = None,
    rule: GroupRule = "uniform",
) -> Number:
    """Rows that one destination gets from `tokens` tokens, a token counting once per destination.

    It is the mean where group borders cut destinations, which are then not alike. A row per expert
    instead (no de-duplication) makes tokens·k/n.
    """
    reached = probability_reached(experts, top_k, destinations, groups, limit, rule)
    return plain(tokens) * reached


def probability_active(experts: Number, top_k: Number, tokens: Number) -> Number:
    """Probability that an expert gets at least one of T tokens: 1 − (1 − k/E)^T."""
    return 1 - (1 - _share(plain(experts), plain(top_k))) ** plain(tokens)


def expected_active_experts(experts: Number, top_k: Number, tokens: Number) -> Number:
    """Experts that get at least one of T tokens: E·(1 − (1 − k/E)^T).

    Groups do not change it: an expert still has probability k/E, and tokens are independent.
    """
    return plain(experts) * probability_active(experts, top_k, tokens)


def _share(E: Number, k: Number) -> Number:
    """k/E: the part of all tokens that an expert gets."""
    if is_array(E) or is_array(k):
        return np.divide(k, E, where=(k >= 0) & (k <= E) & (E > 0), out=np.full_like(k + E, np.nan))
    if not 0 <= k <= E or E == 0:
        raise UserError(f"top_k={k} must lie between 0 and experts={E}")
    return k / E


def _group_limit(groups: Number, limit: Number) -> tuple[Number, Number]:
    if groups is None and limit is not None:
        raise UserError(
            f"limit={plain(limit)} of the groups was given without groups; "
            "give both (n_group and topk_group) or neither"
        )
    if groups is None:
        return 1, 1
    return groups, groups if limit is None else limit


def _probability_reached(given: tuple[Number, ...], rule: str) -> Number:
    """Probability for (E, k, n, G, M): checks, then one computation for numbers and arrays."""
    if rule not in get_args(GroupRule):
        allowed = ", ".join(get_args(GroupRule))
        hint = near_miss(rule, get_args(GroupRule))
        raise UserError(f"group rule {rule!r} is not known; it is one of {allowed}{hint}")
    values = [plain(value) for value in given]
    if any(is_array(value) for value in values):
        return _over_points(np.broadcast_arrays(*values), rule)
    return _exact(*_checked(*values), rule)


def _reached_of_pool(given: tuple[Number, ...], real: Number) -> Number:
    """Probability that one of k draws from a pool of E·k/real is an expert of the destination."""
    values = [plain(value) for value in given]
    if any(is_array(value) for value in (*values, real)):
        return _reached_of_pools([np.asarray(value, dtype=np.float64) for value in (*values, real)])
    if not 0 <= real < float("inf"):
        raise UserError(f"real={real!r} of a token's experts must be a number of at least 0")
    E, k, n, G, M = _checked(values[0], max(values[1], ceil(real)), *values[2:])
    if G > M:
        raise UserError("experts that compute nothing are not described with groups of experts")
    if not real:
        return 0.0
    pool, miss = E * k / Fraction(real), Fraction(1)
    for i in range(k):
        miss *= max(pool - E // n - i, Fraction(0)) / (pool - i)
    return float(1 - miss)


def _reached_of_pools(points: Sequence[_Array]) -> _Array:
    """The same for arrays of E, k, n, G, M and the real experts; nan where a point is illegal."""
    E, k, n, G, M, real = np.broadcast_arrays(*points)
    legal = np.logical_and.reduce([(v >= 1) & (v == np.floor(v)) for v in (E, k, n, G, M)])
    with np.errstate(divide="ignore", invalid="ignore"):
        k = np.maximum(k, np.ceil(real))
        legal = legal & _legal(E, k, n, G, M) & (M == G) & (real >= 0)
    some = legal & (real > 0)
    E, k, n, real = (np.where(some, value, 1.0) for value in (E, k, n, real))
    reached = np.where(some, 1 - _untouched(E * k / real, E / n, k), 0.0)
    return cast(_Array, np.where(legal, reached, np.nan))


@lru_cache(maxsize=4096)
def _exact(E: int, k: int, n: int, G: int, M: int, rule: str) -> float:
    """One point in exact fractions: the same computation, over arrays of one Python object.

    Without groups the answer is one binomial ratio, which needs no numpy to be loaded.
    """
    if G == 1 and E % n == 0:
        return float(1 - Fraction(comb(E - E // n, k), comb(E, k)))
    point = _Point(*(np.array([Fraction(value)], dtype=object) for value in (E, k, n, G, M)))
    return float(_mean_over_destinations(point, rule)[0])


def _over_points(points: Sequence[_Array], rule: str) -> _Array:
    """Each different point once, in blocks; nan where a point is illegal."""
    flat = [np.asarray(value, dtype=np.float64).ravel() for value in points]
    whole = np.logical_and.reduce([(v >= 1) & (v <= _LARGEST) & (v == np.floor(v)) for v in flat])
    key = np.zeros(int(whole.sum()), dtype=np.int64)
    for value in flat:
        digit = value[whole].astype(np.int64)
        radix = int(digit.max(initial=0)) + 1
        if int(key.max(initial=0)) + 1 > np.iinfo(np.int64).max // radix:
            key = np.unique(key, return_inverse=True)[1]
        key = key * radix + digit
    different, place = np.unique(key, return_inverse=True)
    one_of = np.empty(different.shape, dtype=np.int64)
    one_of[place] = np.flatnonzero(whole)
    answers = np.full(different.shape, np.nan)
    for start in range(0, different.size, _BLOCK):
        block = [value[one_of[start : start + _BLOCK]] for value in flat]
        legal = np.flatnonzero(_legal(*block))
        point = _Point(*(value[legal] for value in block))
        answers[start + legal] = _mean_over_destinations(point, rule)
    out = np.full(whole.shape, np.nan)
    out[whole] = answers[place]
    return out.reshape(points[0].shape)


def _legal(E: _Array, k: _Array, n: _Array, G: _Array, M: _Array) -> _Array:
    legal: _Array = (E % n == 0) & (E % G == 0) & (M <= G) & (k <= E // G * M)
    return legal


def _checked(E: Number, k: Number, n: Number, G: Number, M: Number) -> tuple[int, ...]:
    """Return the five numbers as ints, or say in one sentence what is wrong with them."""
    names = ("experts", "top_k", "destinations", "groups (n_group)", "limit (topk_group)")
    for name, value in zip(names, (E, k, n, G, M), strict=True):
        if not value >= 1 or value != int(value):
            raise UserError(f"{name}={value!r} must be a whole number of at least 1")
    for name, value in (("destinations", n), ("groups (n_group)", G)):
        if E % value:
            raise UserError(
                f"{name}={value} does not divide experts={E}; each must hold the same number of "
                f"experts (the nearest divisor is {nearest_divisor(int(E), value)})"
            )
    if M > G:
        raise UserError(
            f"limit (topk_group)={M} exceeds groups (n_group)={G}; all groups are no limit"
        )
    if k > E // G * M:
        raise UserError(
            f"top_k={k} exceeds the {E // G * M} experts in the {M} of {G} groups that a token "
            f"may use (experts={E})"
        )
    return int(E), int(k), int(n), int(G), int(M)


def nearest_divisor(number: int, target: Number) -> int:
    """The divisor of `number` that is closest to `target`, for error messages."""
    small = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    return min(small + [number // d for d in small], key=lambda d: abs(d - target))


def _mean_over_destinations(point: _Point, rule: str) -> _Array:
    """P(a token reaches a destination), averaged over the destinations' places in the groups.

    Destinations of B experts start at multiples of B, so their places relative to groups of S
    experts repeat after lcm(B, S), which divides E: each of the n/gcd(n, G) places is as frequent
    as the others. Where n divides G or G divides n, one place stands for all.
    """
    E, k, n, G, M = point
    miss = _miss_uniform if rule == "uniform" else _miss_best_expert
    B, S = E // n, E // G
    places = n.astype(np.int64) // np.gcd(n.astype(np.int64), G.astype(np.int64))
    places = np.where(B <= S, np.where(S % B == 0, 1, places), places)
    reached = np.zeros_like(E)
    for place in range(int(places.max(initial=0))):
        at = np.flatnonzero(place < places)
        b, s = B[at], S[at]
        left = np.minimum(-(place * b) % s, b)
        whole, right = (b - left) // s, (b - left) % s
        overlap = (left, whole, right)
        reached[at] += (1 - miss(E[at], k[at], G[at], M[at], s, overlap)) / places[at]
    return reached


def _untouched(pool: _Array, marked: _Array, draws: _Array) -> _Array:
    """P(draws from a pool, none put back, avoid the marked): C(pool − marked, d) / C(pool, d)."""
    out = np.ones_like(pool)
    for i in range(int(draws.max(initial=0))):
        factor = np.maximum(pool - marked - i, 0) / np.maximum(pool - i, 1)
        out = out * np.where(i < draws, factor, 1)
    return out


def _choose(a: _Array, b: _Array) -> _Array:
    """Binomial coefficient C(a, b) for whole arrays; 0 where b < 0 or b > a."""
    out = np.where((b < 0) | (b > a), 0, np.ones_like(a))
    for i in range(int(b.max(initial=0))):
        out = out * np.where(i < b, (a - i) / (i + 1), 1)
    return out


_Overlap: TypeAlias = tuple[_Array, _Array, _Array]
"""What a destination holds: experts of a group that it cuts on the left, groups that it holds
whole, experts of a group that it cuts on the right."""


def _miss_uniform(
    E: _Array, k: _Array, G: _Array, M: _Array, S: _Array, overlap: _Overlap
) -> _Array:
    """P(no expert of the destination is chosen) when any M groups, then any k of their experts.

    Sums over how many of the destination's groups are among the M (hypergeometric), and whether
    the cut ones are.
    """
    left, whole, right = overlap
    others = G - whole - (left > 0) - (right > 0)
    ways = _choose(G, M)
    miss = np.zeros_like(E)
    for has_left in _flags(left):
        for has_right in _flags(right):
            cut = has_left * left + has_right * right
            for full in range(int(np.minimum(whole, M).max(initial=0)) + 1):
                rest = M - full - has_left - has_right
                weight = _choose(whole, full + 0 * whole) * _choose(others, rest) / ways
                weight = np.where((has_left <= left) & (has_right <= right), weight, 0)
                miss = miss + weight * _untouched(M * S, np.minimum(cut + full * S, M * S), k)
    return miss


def _miss_best_expert(
    E: _Array, k: _Array, G: _Array, M: _Array, S: _Array, overlap: _Overlap
) -> _Array:
    """P(no expert of the destination is chosen) when groups rank by their best expert.

    Walks through the experts from best to worst. Until M groups have turned up, the next one is
    any expert not seen yet, and it is taken; from then on it is any of the M groups' experts not
    seen yet. So the state is how many groups have turned up, and whether the groups that the
    destination cuts are among them.
    """
    left, whole, right = overlap
    limit = int(M.max(initial=0))
    states = [(d, a, b) for d in range(limit + 1) for a in _flags(left) for b in _flags(right)]
    chance = {state: np.full_like(E, 1 if sum(state) == 0 else 0) for state in states}
    plain_groups = G - whole - (left > 0) - (right > 0)
    for i in range(int(k.max(initial=0))):
        after = {state: np.zeros_like(E) for state in states}
        for (d, a, b), here in chance.items():
            closed = d >= M
            pool = np.maximum(np.where(closed, M * S, E) - i, 1)
            go = np.where(i < k, here / pool, 0)
            opened = np.where(closed, 0, go)
            stay = d * S - i - a * left - b * right
            after[d, a, b] = after[d, a, b] + np.where(i < k, go * stay, here)
            if d == limit:
                continue
            after[d + 1, a, b] += opened * (plain_groups - (d - a - b)) * S
            if a == 0 and (d + 1, 1, b) in after:
                after[d + 1, 1, b] += np.where(left > 0, opened * (S - left), 0)
            if b == 0 and (d + 1, a, 1) in after:
                after[d + 1, a, 1] += np.where(right > 0, opened * (S - right), 0)
        chance = after
    return cast(_Array, sum(chance.values()))


def _flags(part: _Array) -> tuple[int, ...]:
    """The values that "the cut group is among them" can take; only 0 where no point has one."""
    return (0, 1) if (part > 0).any() else (0,)
