"""Rows per expert in closed form: beside exact binomials, simulated tokens, and one another."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moeplan.calibration.loads import loads
from moeplan.calibration.uniform import BLOCK_ROWS, expected_blocks, uniform_loads


def exact(tokens: int, p: float, block: int) -> float:
    """E⌈m/B⌉ of a binomial, term by term."""
    total = 0.0
    for m in range(tokens + 1):
        log = (
            math.lgamma(tokens + 1) - math.lgamma(m + 1) - math.lgamma(tokens - m + 1)
            + m * math.log(p) + (tokens - m) * math.log1p(-p)
        )  # fmt: skip
        total += math.exp(log) * math.ceil(m / block)
    return total


@pytest.mark.parametrize("tokens", [1, 3, 16, 100, 700, 4000])
@pytest.mark.parametrize("p", [1 / 256, 8 / 256, 8 / 64, 2 / 8, 0.7])
@pytest.mark.parametrize("block", [8, 64, 256])
def test_expected_tiles_are_the_exact_sum(tokens, p, block):
    assert expected_blocks(tokens, p, block) == pytest.approx(exact(tokens, p, block), rel=0.02)


def test_every_expert_of_every_token_is_certain():
    found = uniform_loads(100, 8, 8)
    assert (found.rows, found.active, found.single) == (800, 8, 0)
    assert found.tiles[64] == pytest.approx(16, rel=1e-6)


def test_simulated_tokens_give_the_same_statistics():
    rng, tokens, experts, top_k = np.random.default_rng(0), 48, 32, 4
    seen = {"active": [], "single": [], 8: [], 16: []}
    for _ in range(400):
        chosen = np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k]
        rows = np.bincount(chosen.ravel(), minlength=experts)
        seen["active"].append((rows > 0).sum())
        seen["single"].append((rows == 1).sum())
        for block in (8, 16):
            seen[block].append(np.ceil(rows / block).sum())
    found = uniform_loads(tokens, experts, top_k)
    assert found.active == pytest.approx(np.mean(seen["active"]), rel=0.01)
    assert found.single == pytest.approx(np.mean(seen["single"]), abs=0.2)
    for block in (8, 16):
        assert found.tiles[block] == pytest.approx(np.mean(seen[block]), rel=0.02)


def test_ranks_share_what_one_rank_would_have():
    whole, part = uniform_loads(1024, 64, 6), uniform_loads(1024, 64, 6, 8)
    for block in BLOCK_ROWS:
        assert part.tiles[block] == pytest.approx(whole.tiles[block] / 8)
    assert part.rows == whole.rows / 8


def test_numbers_and_arrays_say_the_same():
    tokens = np.array([1.0, 7.0, 64.0, 1000.0, 2e6])
    many = uniform_loads(tokens, 128.0, 8.0)
    for place, count in enumerate(tokens.tolist()):
        one = uniform_loads(count, 128, 8)
        assert many.active[place] == pytest.approx(one.active, rel=1e-12)
        for block in BLOCK_ROWS:
            assert many.tiles[block][place] == pytest.approx(one.tiles[block], rel=1e-9)
    table = loads(tokens, *(np.full(5, x) for x in (128, 8, 1)), ["uniform"] * 5)
    assert table.tiles[64] == pytest.approx(many.tiles[64])
