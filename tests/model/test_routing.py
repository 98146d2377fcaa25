from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import UserError
from moeplan.model.routing import (
    expected_active_experts,
    expected_distinct,
    expected_rows_per_destination,
    probability_active,
    probability_reached,
)

DOC = Path(__file__).parents[2] / "docs" / "all-to-all.md"


def sigmoid_of_normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Scores as DeepSeek-V3 makes them from standard normal logits."""
    return 1 / (1 + np.exp(-rng.standard_normal(shape)))


SCORES = {
    "sigmoid of normal": sigmoid_of_normal,
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.random(shape),
    "exponential": lambda rng, shape: rng.standard_exponential(shape),
}


def route(tokens, E, k, G, M, rule, rng, scores=sigmoid_of_normal):
    """Route random tokens the way a router does; returns the chosen expert ids [tokens, k]."""
    x = scores(rng, (tokens, E))
    ranked = np.sort(x.reshape(tokens, G, E // G), axis=2)[:, :, ::-1]
    if rule == "uniform":
        group_scores = rng.random((tokens, G))
    else:
        group_scores = ranked[:, :, : {"max": 1, "top2_sum": 2}[rule]].sum(axis=2)
    threshold = np.sort(group_scores, axis=1)[:, G - M, None]
    allowed = np.repeat(group_scores >= threshold, E // G, axis=1)
    return np.argsort(np.where(allowed, x, -np.inf), axis=1)[:, E - k :]


def reached(ids, E, n):
    """Mark which of n destinations each token reaches: bool [tokens, n]."""
    hit = np.zeros((len(ids), n), dtype=bool)
    np.put_along_axis(hit, ids // (E // n), True, axis=1)
    return hit


def mean_and_error(samples):
    return samples.mean(), samples.std(ddof=1) / math.sqrt(len(samples))


# Published figures


@pytest.mark.parametrize(
    ("nodes", "distinct", "remote"), [(4, 3.61, 2.71), (8, 5.29, 4.63), (16, 6.52, 6.12)]
)
def test_published_distinct_nodes_of_top_8_of_256(nodes, distinct, remote):
    value = expected_distinct(256, 8, nodes)
    assert round(value, 2) == distinct
    assert round(value * (nodes - 1) / nodes, 2) == remote


# Exact enumeration: every outcome counted, in fractions


def mean_distinct(outcomes, E, n):
    """Mean number of blocks touched over equally likely sets of experts."""
    sizes = [len({expert // (E // n) for expert in chosen}) for chosen in outcomes]
    return Fraction(sum(sizes), len(sizes))


@pytest.mark.parametrize(
    ("E", "k", "n"), [(6, 1, 3), (6, 3, 2), (8, 3, 4), (8, 5, 8), (9, 4, 3), (10, 10, 5)]
)
def test_ungrouped_equals_all_subsets(E, k, n):
    expected = float(mean_distinct(list(combinations(range(E), k)), E, n))
    assert expected_distinct(E, k, n) == expected
    assert expected_distinct(E, k, n, 1, 1, "max") == expected


GROUPED = [
    # E, k, n, G, M: destinations inside a group, equal to one, of several, and cut by borders
    (8, 3, 8, 4, 2),
    (8, 3, 4, 4, 2),
    (8, 3, 2, 4, 2),
    (8, 2, 1, 4, 3),
    (6, 2, 2, 3, 2),
    (6, 2, 3, 2, 1),
    (6, 3, 2, 3, 2),
    (6, 4, 3, 2, 2),
    (8, 4, 8, 2, 1),
]


@pytest.mark.parametrize(("E", "k", "n", "G", "M"), [*GROUPED, (12, 4, 4, 6, 3), (12, 4, 4, 3, 2)])
def test_uniform_groups_equal_all_outcomes(E, k, n, G, M):
    size = E // G
    outcomes = [
        chosen
        for groups in combinations(range(G), M)
        for chosen in combinations([e for g in groups for e in range(g * size, g * size + size)], k)
    ]
    expected = float(mean_distinct(outcomes, E, n))
    assert expected_distinct(E, k, n, G, M) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(("E", "k", "n", "G", "M"), GROUPED)
def test_best_expert_groups_equal_all_rankings(E, k, n, G, M):
    outcomes = []
    for ranking in permutations(range(E)):
        groups = list(dict.fromkeys(expert // (E // G) for expert in ranking))[:M]
        outcomes.append([e for e in ranking if e // (E // G) in groups][:k])
    expected = float(mean_distinct(outcomes, E, n))
    assert expected_distinct(E, k, n, G, M, "max") == pytest.approx(expected, rel=1e-15)


# Simulation


CASES = [
    (256, 8, 8, 4),  # DeepSeek-V3
    (160, 6, 8, 3),  # DeepSeek-V2
    (72, 5, 6, 2),
    (128, 8, 1, 1),  # Qwen3
]


@pytest.mark.parametrize("rule", ["uniform", "max"])
@pytest.mark.parametrize(("E", "k", "G", "M"), CASES)
def test_random_tokens_agree(E, k, G, M, rule):
    ids = route(8000, E, k, G, M, rule, np.random.default_rng(3))
    for n in (n for n in (2, 3, 4, 5, 8, 9, 12, 16, 32, 64, E) if E % n == 0):
        hit = reached(ids, E, n)
        mean, error = mean_and_error(hit.sum(axis=1))
        assert abs(expected_distinct(E, k, n, G, M, rule) - mean) <= 4 * error + 1e-9, n
        rows = expected_rows_per_destination(len(ids), E, k, n, G, M, rule)
        if n % G == 0 or G % n == 0:  # else destinations differ, and `rows` is their mean
            tolerance = 5 * math.sqrt(len(ids)) / 2  # binomial counts: sd at most sqrt(T)/2
            assert np.abs(hit.sum(axis=0) - rows).max() <= tolerance


def test_active_experts_agree_with_random_batches():
    E, k, T = 64, 6, 12
    ids = route(T * 2000, E, k, 8, 4, "top2_sum", np.random.default_rng(5)).reshape(2000, T * k)
    active = np.array([len(set(batch)) for batch in ids.tolist()])
    mean, error = mean_and_error(active)
    assert abs(expected_active_experts(E, k, T) - mean) <= 4 * error


def test_documented_simulation_of_the_top2_sum_rule():
    """The table in the docs: its models are ours, its simulation is repeated here, smaller."""
    row = r"^\| (\d+) " + r"\| ([\d.]+) " * 3 + r"\| ([−+][\d.]+) % " * 2 + r"\|$"
    rows = re.findall(row, DOC.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(cells[0]) for cells in rows] == [4, 8, 16, 32, 64]
    ids = route(20000, 256, 8, 8, 4, "top2_sum", np.random.default_rng(11))
    for cells in rows:
        n = int(cells[0])
        uniform, best, simulated, *errors = (float(cell.replace("−", "-")) for cell in cells[1:])
        assert uniform == round(expected_distinct(256, 8, n, 8, 4), 3)
        assert best == round(expected_distinct(256, 8, n, 8, 4, "top2_sum"), 3)
        mean, sigma = mean_and_error(reached(ids, 256, n).sum(axis=1))
        assert abs(simulated - mean) <= 4 * sigma + 0.001
        signed = [100 * (model / simulated - 1) for model in (uniform, best)]
        assert errors == pytest.approx(signed, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize(
    ("E", "k", "G", "M", "documented"),
    [(256, 8, 8, 4, 0.008), (160, 6, 8, 3, 0.014), (64, 6, 8, 4, 0.028)],
)
def test_documented_error_of_top2_sum(E, k, G, M, documented, scores):
    ids = route(20000, E, k, G, M, "top2_sum", np.random.default_rng(13), SCORES[scores])
    for n in (4, 8, 16, 32):
        mean, error = mean_and_error(reached(ids, E, n).sum(axis=1))
        model = expected_distinct(E, k, n, G, M, "top2_sum")
        assert abs(model / mean - 1) <= documented + 4 * error / mean


# Relations


@st.composite
def routings(draw):
    """Legal (E, k, n, G, M), nested or not."""
    G, n = draw(st.integers(1, 8)), draw(st.integers(1, 16))
    E = math.lcm(G, n) * draw(st.integers(1, 8))
    M = draw(st.integers(1, G))
    return E, draw(st.integers(1, min(8, E // G * M))), n, G, M


@given(routings(), st.sampled_from(["uniform", "max", "top2_sum"]))
def test_bounds(point, rule):
    E, k, n, G, M = point
    value = expected_distinct(*point, rule)
    spread = -(-(E // G) // (E // n)) + 1  # destinations that a group can lie in
    assert math.ceil(k / (E // n)) - 1e-9 <= value
    assert value <= min(n, k, M * spread) + 1e-9
    assert value == pytest.approx(n * probability_reached(*point, rule))


@given(routings())
def test_no_limit_equals_no_groups(point):
    E, k, n, G, _ = point
    free = expected_distinct(E, k, n)
    assert expected_distinct(E, k, n, G, G) == pytest.approx(free, rel=1e-12)
    assert expected_distinct(E, k, n, G, G, "max") == pytest.approx(free, rel=1e-12)
    assert expected_distinct(E, k, n, G) == pytest.approx(free, rel=1e-12)


@given(routings(), st.sampled_from(["uniform", "max"]))
def test_a_tighter_limit_never_reaches_more(point, rule):
    E, k, n, G, M = point
    if M < G:
        wider = expected_distinct(E, k, n, G, M + 1, rule)
        assert expected_distinct(*point, rule) <= wider * (1 + 1e-12)


@given(routings())
def test_every_expert_a_destination_is_k(point):
    E, k, _, G, M = point
    assert expected_distinct(E, k, E, G, M) == pytest.approx(k, rel=1e-12)
    assert expected_distinct(E, k, E, G, M, "max") == pytest.approx(k, rel=1e-12)
    assert expected_distinct(E, k, 1, G, M) == pytest.approx(1, rel=1e-12)


@given(st.lists(routings(), min_size=3, max_size=3), st.sampled_from(["uniform", "max"]))
def test_arrays_equal_numbers(points, rule):
    columns = [np.array(column) for column in zip(*points, strict=True)]
    together = expected_distinct(*columns, rule)
    assert together.dtype == np.float64
    np.testing.assert_allclose(together, [expected_distinct(*p, rule) for p in points], rtol=1e-9)


def test_arrays_broadcast_and_illegal_points_are_nan():
    E = np.array([256, 255, 16, np.nan, 0, 1e300])[:, None]
    k = np.array([8, 9])
    values = expected_distinct(E, k, 8, 8, 1)
    assert values.shape == (6, 2)
    # 255 experts do not divide; a group of 16 experts holds 2; a group of 256 holds 32
    np.testing.assert_array_equal(np.isfinite(values).sum(axis=1), [2, 0, 0, 0, 0, 0])
    assert np.isnan(expected_distinct(64, np.array([2.5]), 8)).all()
    assert np.isnan(expected_distinct(64, 8, np.array([0]))).all()
    assert np.isnan(probability_active(np.array([4.0, 0.0]), 5, 1)).all()


def test_points_beside_a_huge_illegal_one_are_still_told_apart():
    # numbering the points with one digit per symbol takes 66 bits here, all above E's lost
    huge = 2**31 - 1
    columns = [
        np.array(c) for c in ([64, 128, 1], [2, 2, 3], [4, 4, huge], [1, 1, huge], [1, 1, 3])
    ]
    values = expected_distinct(*columns)
    singly = [expected_distinct(64, 2, 4), expected_distinct(128, 2, 4), np.nan]
    np.testing.assert_allclose(values, singly, rtol=1e-12)


def test_active_experts_limits():
    assert expected_active_experts(64, 8, 0) == 0
    assert expected_active_experts(64, 8, 1) == pytest.approx(8)
    assert expected_active_experts(64, 64, 1) == 64
    assert expected_active_experts(2048, 1, 10**9) == pytest.approx(2048)
    assert probability_active(np.array([4.0, 8.0]), 2, 1).tolist() == [0.5, 0.25]


# Experts that compute nothing: a token may draw them, and nothing is sent for them


@pytest.mark.parametrize(("E", "Z", "k", "n"), [(4, 1, 1, 2), (6, 3, 4, 3), (4, 4, 3, 4)])
def test_experts_that_compute_nothing_are_nowhere(E, Z, k, n):
    """Every equally likely draw of k of E + Z experts, one after the other."""
    reached = [len({e // (E // n) for e in d if e < E}) for d in combinations(range(E + Z), k)]
    real = k * E / (E + Z)
    found = expected_distinct(E, k, n, real=real)
    assert found == pytest.approx(sum(reached) / len(reached), rel=1e-12)
    array = expected_distinct(np.array([E, E]), k, n, real=np.array([real, 0]))
    np.testing.assert_allclose(array, [found, 0], rtol=1e-12)
    assert expected_distinct(E, k, n, real=0) == 0
    assert expected_distinct(E, k, n, real=k) == pytest.approx(expected_distinct(E, k, n))


def test_real_experts_out_of_range():
    with pytest.raises(UserError, match=r"real=-1 .* at least 0"):
        expected_distinct(16, 2, 4, real=-1)
    assert expected_distinct(16, 2, 4, real=3) == pytest.approx(expected_distinct(16, 3, 4))
    np.testing.assert_allclose(
        expected_distinct(16, 2, np.array([4]), real=3), expected_distinct(16, 3, 4), rtol=1e-12
    )
    with pytest.raises(UserError, match="groups"):
        expected_distinct(16, 2, 4, 4, 2, real=1)
    assert np.isnan(expected_distinct(16, 2, 4, real=np.array([17.0, -1.0, np.nan]))).all()


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((256, 8, 7), "destinations=7 does not divide experts=256.*nearest divisor is 8"),
        ((256, 8, 8, 7, 4), r"groups \(n_group\)=7 does not divide"),
        ((256, 8, 8, 4, 8), r"limit \(topk_group\)=8 exceeds"),
        ((16, 5, 4, 4, 1), "top_k=5 exceeds the 4 experts in the 1 of 4 groups"),
        ((16, 17, 4), "top_k=17 exceeds the 16 experts"),
        ((16, 2.5, 4), "top_k=2.5 must be a whole number"),
        ((0, 1, 1), "experts=0 must be a whole number"),
        ((16, float("nan"), 4), "top_k=nan must be a whole number"),
        ((16, 4, 4, None, 2), "without groups"),
        ((16, 4, 4, 4, 2, "top2_sums"), "did you mean 'top2_sum'"),
    ],
)
def test_illegal_numbers_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        expected_distinct(*arguments)


def test_more_experts_a_token_than_experts_are_refused():
    with pytest.raises(UserError, match="top_k=9 must lie between 0 and experts=8"):
        expected_active_experts(8, 9, 1)
