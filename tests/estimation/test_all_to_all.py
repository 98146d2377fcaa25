from __future__ import annotations

import math
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import UserError
from moeplan.estimation.all_to_all import AllToAll, all_to_all
from moeplan.quantity import Quantity, Source
from tests.model.test_routing import route

POLICIES = ["copies", "per-gpu", "per-node"]
KINDS = ["local", "same_node", "other_nodes", "forwarded"]


def send(ids, E, ep, node, policy):
    """Send every token's rows one by one; returns rows per token and kind, and rows received.

    The tokens start on the GPUs in turn. A forwarded row is received twice: where it lands, and
    where it is passed on to.
    """
    rows = np.zeros((len(ids), len(KINDS)))
    received = np.zeros(ep)
    for token, chosen in enumerate(ids.tolist()):
        source = token % ep
        targets = [expert // (E // ep) for expert in chosen]
        if policy != "copies":
            targets = sorted(set(targets))
        if policy == "per-node":
            away = {t // node for t in targets} - {source // node}
            landings = {m: m * node + source % node for m in away}
            hops = [("other_nodes", landing) for landing in landings.values()]
            for target in targets:
                if target // node not in landings:
                    hops.append(("local" if target == source else "same_node", target))
                elif target != landings[target // node]:
                    hops.append(("forwarded", target))
        else:
            hops = [
                ("local" if t == source else "same_node", t)
                if t // node == source // node
                else ("other_nodes", t)
                for t in targets
            ]
        for kind, target in hops:
            rows[token, KINDS.index(kind)] += 1
            received[target] += kind != "local"
    return rows, received


LAYOUTS = [
    # E, k, G, M, ep, node
    (256, 8, 8, 4, 32, 8),  # DeepSeek-V3 on 4, 8 and 16 nodes
    (256, 8, 8, 4, 64, 8),
    (256, 8, 8, 4, 128, 8),
    (160, 6, 8, 3, 40, 8),  # five nodes, whose borders cut the eight groups
    (128, 8, 1, 1, 16, 4),
    (64, 6, 1, 1, 8, 8),
    (60, 4, 1, 1, 6, 3),
    (32, 3, 1, 1, 4, 16),  # part of a node
    (16, 2, 1, 1, 16, 1),  # one GPU a node
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", ["uniform", "max"])
@pytest.mark.parametrize(("E", "k", "G", "M", "ep", "node"), LAYOUTS)
def test_random_tokens_agree(E, k, G, M, ep, node, rule, policy):
    tokens, H = 4096, 384
    ids = route(tokens, E, k, G, M, rule, np.random.default_rng(17))
    rows, received = send(ids, E, ep, node, policy)
    result = all_to_all(
        1, H, E, k, ep, node, n_group=G, topk_group=M, rule=rule, policy=policy, dispatch="fp8"
    )
    for direction, row in ((result.dispatch, H + 4 * 3), (result.combine, 2 * H)):
        for kind, samples in zip(KINDS, rows.T, strict=True):
            value = getattr(direction, kind).value / row
            error = samples.std(ddof=1) / math.sqrt(tokens)
            assert abs(value - samples.mean()) <= 4 * error + 1e-9, kind
        sent = rows[:, 1:].sum(axis=1)
        error = sent.std(ddof=1) / math.sqrt(tokens)
        assert received.sum() == sent.sum()
        assert abs(direction.total_sent.value / row - received.sum() / tokens) <= 4 * error + 1e-9


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("E", "k", "ep", "node"), [(8, 3, 4, 2), (8, 2, 8, 4), (9, 4, 9, 3), (6, 6, 3, 1), (8, 3, 2, 4)]
)
def test_every_subset_of_experts_agrees_exactly(E, k, ep, node, policy):
    every = [chosen for chosen in combinations(range(E), k) for _ in range(ep)]
    rows, _ = send(np.array(every), E, ep, node, policy)
    result = all_to_all(len(every), 256, E, k, ep, node, policy=policy, dispatch="bf16")
    for kind, count in zip(KINDS, rows.sum(axis=0), strict=True):
        assert getattr(result.dispatch, kind).value == pytest.approx(512 * count, rel=1e-12)


# Published figures


@pytest.mark.parametrize(
    ("nodes", "distinct", "remote"), [(4, 3.61, 2.71), (8, 5.29, 4.63), (16, 6.52, 6.12)]
)
def test_published_rows_over_the_network(nodes, distinct, remote):
    result = all_to_all(1, 7168, 256, 8, nodes * 8, 8)
    assert round(result.expected_nodes.value, 2) == distinct
    assert round(result.rows.other_nodes.value, 2) == remote


@pytest.mark.parametrize(("nodes", "remote"), [(4, 6), (8, 7), (16, 7.5)])
def test_published_rows_without_deduplication(nodes, remote):
    assert (
        all_to_all(1, 7168, 256, 8, nodes * 8, 8, policy="copies").rows.other_nodes.value == remote
    )


def decode_bytes(hidden, top_k, *, own_share, **options):
    """Bytes of one layer's dispatch and combine, 32 tokens a GPU and one expert on each."""
    experts = 256
    result = all_to_all(32, hidden, experts, top_k, experts, 8, policy="copies", **options)
    both = (result.dispatch, result.combine)
    return sum(t.total_sent.value + (t.local.value if own_share else 0) for t in both)


def test_published_speed_limit_of_decoding():
    """arXiv 2505.09343, 2.3.2: it counts the shared expert and what stays on the GPU as sent."""
    per_layer = decode_bytes(7000, 9, own_share=True, dispatch="fp8_unscaled")
    assert per_layer / 50e9 == pytest.approx(120.96e-6, rel=1e-12)
    assert round(per_layer / 900e9 * 1e6, 2) == 6.72
    per_token = 2 * 61 * per_layer / 50e9  # two micro-batches take turns
    assert round(per_token * 1e3, 2) == 14.76
    assert int(1 / per_token) == 67
    assert round(2 * 61 * per_layer / 900e9 * 1e3, 2) == 0.82


def test_decoding_with_the_real_inputs_sends_less():
    real = decode_bytes(7168, 8, own_share=False)
    # 32·8·255/256 rows of 7168·(1 + 2) B and 56 scales of 4 B
    assert real == 255 * (7168 * 3 + 56 * 4)
    assert 2 * 58 * real / 50e9 == pytest.approx(12.85e-3, abs=5e-6)


# Relations


@st.composite
def layouts(draw, **fixed):
    """Legal arguments of all_to_all, groups nested or not."""
    node = draw(st.integers(1, 8))
    nodes = draw(st.integers(1, 6))
    divisors = [d for d in range(1, node + 1) if node % d == 0]
    ep = node * nodes if nodes > 1 else draw(st.sampled_from(divisors))
    G = draw(st.integers(1, 6))
    E = math.lcm(ep, G) * draw(st.integers(1, 4))
    M = draw(st.integers(1, G))
    return {
        "tokens": draw(st.integers(0, 2**20)),
        "hidden": draw(st.integers(1, 2**14)),
        "experts": E,
        "top_k": draw(st.integers(1, min(10, E // G * M))),
        "ep": ep,
        "node": node,
        "n_group": G,
        "topk_group": M,
        "imbalance": draw(st.floats(1, 8)),
        "rule": draw(st.sampled_from(["uniform", "max", "top2_sum"])),
        "dispatch": draw(st.sampled_from(["fp8", "bf16", "mxfp8", "nvfp4", "fp32"])),
        "metadata": draw(st.booleans()),
    } | fixed


def numbers(result: AllToAll) -> list:
    """Every number of a result, in a fixed order."""
    values = [result.expected_gpus.value, result.expected_nodes.value]
    for step in (result, result.backward()):
        for traffic in (step.dispatch, step.combine):
            names = [*KINDS, "metadata", "slowest", "in_node", "total_sent", "busiest"]
            values += [getattr(traffic, name).value for name in names]
    return values


def at_most(small, large):
    return small <= large * (1 + 1e-12)


@given(layouts())
def test_policies_are_ordered(layout):
    copies, per_gpu, per_node = (
        all_to_all(**layout | {"metadata": False}, policy=p) for p in POLICIES
    )
    for way in ("dispatch", "combine"):
        a, b, c = (getattr(result, way) for result in (per_node, per_gpu, copies))
        assert at_most(a.other_nodes.value, b.other_nodes.value)
        assert at_most(b.other_nodes.value, c.other_nodes.value)
        assert at_most(b.total_sent.value, c.total_sent.value)
        # what the network saves, the node's links carry: every GPU still gets its rows
        assert a.same_node.value == b.same_node.value
        assert at_most(b.total_sent.value, a.total_sent.value)
    reached = copies.expected_gpus.value
    assert at_most(1, reached)
    assert at_most(reached, min(layout["ep"], layout["top_k"]))
    assert at_most(copies.expected_nodes.value, reached)


@given(layouts(), st.sampled_from(POLICIES))
def test_arrays_of_three_equal_three_numbers(layout, policy):
    changes = [{}, {"tokens": 5, "top_k": 1}, {"ep": 1, "imbalance": 2.0}]
    points = [layout | change for change in changes]
    words = {"rule", "dispatch", "metadata"}
    columns = {
        name: layout[name] if name in words else np.array([point[name] for point in points])
        for name in layout
    }
    together = numbers(all_to_all(**columns, policy=policy))
    singly = [numbers(all_to_all(**point, policy=policy)) for point in points]
    for column, *values in zip(together, *singly, strict=True):
        column = np.broadcast_to(column, 3)
        np.testing.assert_allclose(column, values, rtol=1e-9, atol=1e-9)


@given(layouts(), st.sampled_from(POLICIES))
def test_doubling_tokens_doubles_bytes(layout, policy):
    once = all_to_all(**layout, policy=policy)
    twice = all_to_all(**layout | {"tokens": 2 * layout["tokens"]}, policy=policy)
    for way in ("dispatch", "combine"):
        for name in (*KINDS, "metadata", "total_sent", "busiest"):
            small, large = (getattr(getattr(r, way), name).value for r in (once, twice))
            assert large == 2 * small


@given(layouts(ep=1, node=8), st.sampled_from(POLICIES))
def test_one_gpu_sends_nothing(layout, policy):
    result = all_to_all(**layout, policy=policy)
    for traffic in (result.dispatch, result.combine):
        assert traffic.total_sent.value == 0
        assert traffic.busiest.value == 0
        assert traffic.metadata.value == 0
        assert traffic.slowest.value == 1
    assert result.expected_gpus.value == result.expected_nodes.value == 1


@given(layouts(), st.sampled_from(POLICIES))
def test_one_node_uses_no_network(layout, policy):
    layout |= {"node": layout["ep"]}
    result = all_to_all(**layout, policy=policy)
    assert result.dispatch.other_nodes.value == result.dispatch.forwarded.value == 0
    assert result.dispatch.in_node.value == result.dispatch.total_sent.value
    if policy == "copies":
        kept = layout["top_k"] / layout["ep"]
        assert result.rows.same_node.value == pytest.approx(layout["top_k"] - kept)


def test_metadata_is_visible_and_part_of_the_whole():
    arguments = (1000, 7168, 256, 8, 64, 8)
    without = all_to_all(*arguments, policy="per-gpu")
    result = all_to_all(*arguments, policy="per-gpu", metadata=True)
    added = result.dispatch.total_sent.value - without.dispatch.total_sent.value
    assert result.dispatch.metadata.value == pytest.approx(added)
    assert added == pytest.approx(1000 * result.rows.sent.value * 64)  # 8 ids, 8 weights
    assert without.dispatch.metadata.value == result.combine.metadata.value == 0
    one = all_to_all(*arguments, policy="copies", metadata=True).dispatch
    assert one.metadata.value == pytest.approx(1000 * 8 * 63 / 64 * 8)  # one id, one weight


# Load imbalance


@pytest.mark.parametrize("policy", POLICIES)
def test_a_hot_gpu_stays_within_the_bound(policy):
    """Tokens that prefer GPU 0's experts: it receives no more than `busiest` says."""
    E, k, ep, node, tokens = 32, 4, 8, 4, 4096
    rng = np.random.default_rng(23)
    for favour in (0.5, 1.5, 4.0):
        scores = rng.standard_normal((tokens, E))
        scores[:, : E // ep] += favour
        ids = np.argsort(scores, axis=1)[:, E - k :]
        load = np.bincount((ids // (E // ep)).ravel(), minlength=ep)
        _, received = send(ids, E, ep, node, policy)
        bound = all_to_all(
            tokens / ep, 1, E, k, ep, node, policy=policy, dispatch="fp8_unscaled",
            imbalance=load.max() / load.mean(),
        )  # fmt: skip
        assert received.max() <= bound.dispatch.busiest.value * (1 + 4 / math.sqrt(tokens))
        assert received.max() > bound.dispatch.total_sent.value


def test_imbalance_is_limited_by_the_tokens_there_are():
    # every token already reaches every GPU: nobody can get more of them
    full = all_to_all(16, 64, 8, 8, 4, 4, policy="per-gpu", imbalance=3.0)
    assert full.dispatch.slowest.value == 1
    # two experts a GPU and top-4: at most 2 of the 4 rows, twice the mean
    capped = all_to_all(16, 64, 8, 4, 4, 4, policy="copies", imbalance=3.0)
    assert capped.dispatch.slowest.value == 2
    assert capped.dispatch.busiest.value == 16 * 3 * 2 * (64 + 4)  # 3 other GPUs, 2 rows a token


# Steps and backward


def test_backward_swaps_the_roles():
    forward = all_to_all(64, 512, 64, 8, 16, 8, dispatch="bf16", combine="bf16")
    back = forward.backward()
    # with one format the gradient of a dispatch weighs what a combine does, and the reverse
    assert back.dispatch.total_sent.value == forward.combine.total_sent.value
    assert back.combine.total_sent.value == forward.dispatch.total_sent.value
    fp8 = all_to_all(64, 512, 64, 8, 16, 8)
    ratio = fp8.backward().dispatch.other_nodes.value / fp8.backward().combine.other_nodes.value
    assert ratio == pytest.approx((512 + 16) / 1024)
    assert numbers(fp8.backward().backward()) == numbers(fp8)


def test_backward_sends_weight_gradients_back_and_no_ids():
    back = all_to_all(10, 512, 64, 8, 16, 8, metadata=True).backward()
    assert back.dispatch.metadata.value == 0
    assert back.combine.metadata.value == pytest.approx(10 * back.rows.sent.value * 8 * 4)


@given(layouts(), st.integers(0, 100))
def test_a_step_is_layers_times_passes(layout, layers):
    once = all_to_all(**layout)
    back = once.backward()
    inference = once.per_step(layers)
    training = once.per_step(layers, backward=True)
    for way in ("dispatch", "combine"):
        for name in (*KINDS, "metadata", "total_sent", "busiest"):
            f, b, i, t = (
                getattr(getattr(r, way), name).value for r in (once, back, inference, training)
            )
            assert i == pytest.approx(layers * f)
            assert t == pytest.approx(layers * (f + b))
            again = getattr(getattr(inference.backward(), way), name).value
            assert again == pytest.approx(layers * b)
    assert training.rows == once.rows


# Explanations


def leaves(quantity):
    if quantity.source is not None:
        yield quantity
    for part in quantity.inputs.values():
        yield from leaves(part)


def test_every_number_leads_to_its_sources():
    hidden = Quantity.given(7168, symbol="H", source=Source("config", "hidden_size"))
    result = all_to_all(4096, hidden, 256, 8, 64, 8, n_group=8, topk_group=4, rule="max")
    step = result.per_step(58, backward=True)
    for traffic in (result.dispatch, result.backward().combine, step.dispatch, step.combine):
        found = {leaf.source.where for leaf in leaves(traffic.busiest)}
        assert {"hidden_size", "tokens", "experts", "top_k", "ep", "node", "n_group"} <= found
    assert [q.symbol for q in result.dispatch.busiest.assumptions()] == ["imbalance"]
    assert result.dispatch.other_nodes.unit == "B"


@pytest.mark.parametrize("policy", POLICIES)
def test_less_than_one_expert_a_token(policy):
    """One choice of 17, of which 16 experts hold weights: 16 of 17 tokens are sent like top-1."""
    whole = all_to_all(64, 512, 16, 1, 16, 8, policy=policy)
    part = all_to_all(64, 512, 16, 1, 16, 8, policy=policy, real=16 / 17)
    for kind in KINDS:
        sent = getattr(whole.dispatch, kind).value * 16 / 17
        assert getattr(part.dispatch, kind).value == pytest.approx(sent)


# Illegal input

LEGAL = {"tokens": 64, "hidden": 7168, "experts": 256, "top_k": 8, "ep": 64, "node": 8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ep": 48}, "ep=48 does not divide experts=256.*nearest ep that divides is 64"),
        ({"ep": 64, "node": 12}, "ep=64 and node=12 do not fit.*for example ep=60"),
        ({"top_k": 300}, "top_k=300 exceeds the 256 experts"),
        ({"top_k": 0}, "top_k=0 must be a whole number of at least 1"),
        ({"hidden": 7168.5}, "hidden=7168.5 must be a whole number"),
        ({"node": 0}, "node=0 must be a whole number"),
        ({"n_group": 8, "topk_group": 9}, r"limit \(topk_group\)=9 exceeds"),
        ({"n_group": 7}, r"groups \(n_group\)=7 does not divide"),
        ({"tokens": -1}, "tokens=-1 must be a finite number of at least 0"),
        ({"tokens": float("nan")}, "tokens=nan must be a finite number"),
        ({"imbalance": 0.9}, "imbalance=0.9 must be a finite number of at least 1"),
        ({"dispatch": "fp88"}, "dispatch format 'fp88'.*did you mean 'fp8'"),
        ({"combine": "float"}, "combine format 'float' is not known; it is one of bf16"),
        ({"policy": "per-nodes"}, "policy 'per-nodes'.*did you mean 'per-node'"),
        ({"rule": "maxx"}, "group rule 'maxx'.*did you mean 'max'"),
    ],
)
def test_illegal_numbers_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        all_to_all(**LEGAL | change)


def test_illegal_layers_are_refused():
    with pytest.raises(UserError, match=r"moe_layers=1.5 must be a whole number of at least 0"):
        all_to_all(64, 512, 64, 8, 16, 8).per_step(1.5)


@pytest.mark.parametrize("policy", POLICIES)
def test_illegal_points_of_arrays_are_nan(policy):
    bad = [
        {}, {"ep": 48}, {"ep": 0}, {"node": 12}, {"node": 0}, {"top_k": 257}, {"top_k": 2.5},
        {"hidden": 0}, {"tokens": -1}, {"experts": 255}, {"imbalance": 0.5}, {"n_group": 3},
        {"topk_group": 2},
    ]  # fmt: skip
    defaults = LEGAL | {"imbalance": 1.0, "n_group": 1, "topk_group": 1}
    columns = {name: np.array([(defaults | b)[name] for b in bad]) for name in defaults}
    result = all_to_all(**columns, policy=policy)
    for kind in (*KINDS, "total_sent", "busiest", "slowest"):
        finite = np.isfinite(getattr(result.dispatch, kind).value)
        assert finite.tolist() == [True] + [False] * (len(bad) - 1), kind


# Speed


@pytest.mark.slow
def test_a_million_points_take_about_a_second():
    rng, points = np.random.default_rng(0), 1_000_000
    tokens = rng.integers(1, 2**16, points)
    experts, top_k = rng.choice([64, 128, 256, 384, 512], points), rng.integers(1, 17, points)
    ep = 2 ** rng.integers(0, 8, points)
    started = time.perf_counter()
    result = all_to_all(tokens, 7168, experts, top_k, ep, 8, n_group=8, topk_group=4, rule="max")
    assert np.isfinite(result.dispatch.total_sent.value).mean() > 0.5
    assert time.perf_counter() - started < 5  # 0.6 to 1 s on two idle cores; slow machines too
