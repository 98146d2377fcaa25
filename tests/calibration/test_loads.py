"""Rows per expert against loops that hand tokens out one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.calibration.loads import BLOCK_ROWS, loads, loads_of_rows, parse_distribution
from moeplan.errors import UserError


def one(tokens: int, experts: int, top_k: int, ep: int, distribution: str):
    return loads(*(np.array([v]) for v in (tokens, experts, top_k, ep)), [distribution])


shapes = st.tuples(
    st.integers(1, 3000),
    st.sampled_from([(8, 2), (16, 1), (60, 4), (64, 8), (128, 6), (256, 8)]),
    st.sampled_from([1, 2, 4]),
)


@given(shapes)
def test_round_robin_equals_a_loop_over_tokens(shape):
    tokens, (experts, top_k), ep = shape
    stride = -(-experts // top_k)
    counts = [0] * experts
    for i in range(tokens):
        start = i if tokens >= stride else i * stride // tokens
        for j in range(top_k):
            counts[(start + j * stride) % experts] += 1
    mine = counts[: experts // ep]
    found = one(tokens, experts, top_k, ep, "balanced")
    assert found.rows[0] == sum(mine)
    assert found.active[0] == sum(c > 0 for c in mine)
    for block in BLOCK_ROWS:
        assert found.tiles[block][0] == sum(-(-c // block) for c in mine)
        assert found.all_tiles[block][0] == sum(-(-c // block) for c in counts)


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 64, 8), (40, 128, 8), (3000, 64, 6)])
def test_uniform_routing_is_close_to_tokens_that_draw_experts(tokens, experts, top_k):
    rng = np.random.default_rng(3)
    tiles, active = [], []
    for _ in range(60):
        drawn = np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k]
        rows = np.bincount(drawn.ravel(), minlength=experts)
        tiles.append(np.ceil(rows / 16).sum())
        active.append((rows > 0).sum())
    found = one(tokens, experts, top_k, 1, "uniform")
    assert found.rows[0] == pytest.approx(tokens * top_k, rel=0.12)
    assert found.active[0] == pytest.approx(np.mean(active), rel=0.12)
    assert found.tiles[16][0] == pytest.approx(np.mean(tiles), rel=0.12)


@given(shapes, st.sampled_from(["power_law_1.01", "power_law_1.2", "power_law_1", "zipf:1.1"]))
def test_skewed_rows_are_all_given_out_and_the_busiest_rank_counts(shape, distribution):
    tokens, (experts, top_k), ep = shape
    alone = one(tokens, experts, top_k, 1, distribution)
    assert alone.rows[0] == tokens * top_k
    assert alone.active[0] <= min(experts, tokens * top_k)
    shared = one(tokens, experts, top_k, ep, distribution)
    assert shared.rows[0] >= tokens * top_k / ep - 1e-9
    assert shared.rows[0] <= min(tokens * top_k, tokens * experts // ep)
    assert shared.all_tiles[16][0] == pytest.approx(alone.tiles[16][0], rel=0.2)


def test_more_skew_loads_the_busiest_rank_more():
    rows = [one(4096, 128, 8, 8, f"zipf:{a}").rows[0] for a in (0.2, 0.6, 1.0, 1.4)]
    assert rows == sorted(rows)
    assert rows[0] > one(4096, 128, 8, 8, "balanced").rows[0]


@given(
    st.lists(shapes, min_size=2, max_size=6), st.sampled_from(["balanced", "uniform", "zipf:1.1"])
)
def test_a_point_does_not_depend_on_those_beside_it(several, distribution):
    columns = [np.array(c) for c in zip(*[(t, e, k, p) for t, (e, k), p in several], strict=True)]
    together = loads(*columns, [distribution] * len(several))
    for i, (tokens, (experts, top_k), ep) in enumerate(several):
        alone = one(tokens, experts, top_k, ep, distribution)
        assert together.rows[i] == alone.rows[0]
        assert together.tiles[64][i] == alone.tiles[64][0]


def test_measured_histograms_are_counted_as_they_are():
    found = loads_of_rows([[0, 1, 16, 17, 300], [5, 0, 0, 0, 0]])
    assert found.rows.tolist() == [334, 5]
    assert found.active.tolist() == [4, 1]
    assert found.tiles[16].tolist() == [1 + 1 + 2 + 19, 1]
    assert found.tiles[256].tolist() == [3 + 2, 1]


@pytest.mark.parametrize("text", ["even", "power_law_", "zipf:x", "zipf:0", "power_law_-1", ""])
def test_an_unknown_distribution_is_refused(text):
    with pytest.raises(UserError, match="distribution"):
        parse_distribution(text)
