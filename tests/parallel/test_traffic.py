"""Messages of a step, against tensors and rows that are counted one by one."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import Layout
from moeplan.load import load_preset
from moeplan.parallel import TrainingJob, TrainingPlan, evaluate_training

# Qwen3-30B-A3B by hand: width, layers, heads of queries and of keys, their width, experts, top-k
D, L, H, G, DH, E, K, V, T = 2048, 48, 32, 4, 128, 128, 8, 151_936, 4096


def rows(text, gpus=16, machine="h100x64", name="qwen3-30b-a3b", **job):
    plan = TrainingPlan(load_preset(name), cluster(machine), TrainingJob(**job))
    layout = Layout.parse(text, gpus=gpus)
    return plan.traffic(layout, gpus), plan.evaluate(layout, gpus)


@pytest.mark.parametrize(
    "text",
    [
        "tp=2,pp=2,ep=4,gbs=64",
        "cp=2,ep=8,zero=3,gbs=32,recompute=full",
        "tp=4,sp=0,ep=4,etp=2,pp=2,gbs=32",
        "pp=4,ep=4,schedule=dualpipe,gbs=64",
        "pp=2,vpp=2,ep=8,schedule=interleaved,gbs=64,zero=0",
    ],
)
def test_rows_add_up_to_what_a_step_sends(text):
    found, step = rows(text)
    assert sum(r["up"] for r in found) == pytest.approx(step["sent_scale_up"])
    assert sum(r["out"] for r in found) == pytest.approx(step["sent_scale_out"])
    assert all(r["n"] > 1 and r["times"] > 0 for r in found)


def test_tensor_parallelism_with_and_without_sequence_parallelism():
    """Megatron's figure: 4 all-reduces a layer, or twice as many gathers and scatters.

    Qwen3 has no dense FFN: only attention is divided, so half of that, with one more gather of
    the input for the weight gradient. Embedding and head: one each.
    """
    found, _ = rows("tp=2,sp=0,ep=2,gbs=8", gpus=2)
    (reduced,) = [r for r in found if r["group"] == "tp"]
    assert (reduced["op"], reduced["bytes"]) == ("all_reduce", T * D * 2)
    assert reduced["times"] == 8 * (2 * L + 2)  # 8 microbatches
    found, _ = rows("tp=2,ep=2,gbs=8", gpus=2)
    ops = {r["op"]: r for r in found if r["group"] == "tp"}
    assert ops["all_gather"]["times"] == 8 * (3 * L + 3)
    assert ops["reduce_scatter"]["times"] == 8 * (2 * L + 2)
    one_way = 8 * (5 * L + 5) * T * D * 2 // 2
    assert sum(r["up"] for r in ops.values()) == pytest.approx(one_way)


def test_context_parallelism_passes_keys_and_values_round():
    """Each rank passes T/cp keys and values of 2·G·dh on cp - 1 times, twice that backwards."""
    found, _ = rows("cp=4,ep=4,gbs=2", gpus=4)
    (ring,) = [r for r in found if r["group"] == "cp"]
    assert ring["bytes"] == T // 4 * 2 * G * DH * 2
    assert ring["times"] == 2 * L * 3 * (1 + 2)


def test_pipeline_sends_one_activation_each_way():
    found, _ = rows("pp=4,gbs=16,zero=0", gpus=4)
    (send,) = [r for r in found if r["group"] == "pp"]
    assert send["bytes"] == T * D * 2
    assert send["times"] == 2 * 16


@pytest.mark.parametrize(("ep", "policy"), [(16, "copies"), (16, "per-gpu"), (8, "copies")])
def test_exchange_of_tokens_that_are_routed_one_by_one(ep, policy):
    """Uniform routing, sampled: rows that leave a GPU, and those that leave its domain of 8."""
    found, _ = rows(f"ep={ep},gbs=16", policy=policy)
    rng = random.Random(5)
    sent: Counter[str] = Counter()
    tokens = 4000
    for _ in range(tokens):
        experts = rng.sample(range(E), K)
        gpus = [e // (E // ep) for e in experts]
        for gpu in set(gpus) if policy == "per-gpu" else gpus:
            if gpu:  # the token is on GPU 0
                sent["up" if gpu < 8 else "out"] += 1
    passes = 4 * L * T * D * 2 / tokens  # there and back, forwards and backwards
    for tier in ("up", "out"):
        total = sum(r[tier] for r in found if r["group"] == "ep")
        assert total == pytest.approx(passes * sent[tier], rel=0.02), tier


def test_experts_width_is_shared_by_gathering_and_scattering_rows():
    found, _ = rows("tp=2,etp=2,ep=4,gbs=8", gpus=8)
    shared = {r["op"]: r for r in found if r["group"] == "etp"}
    assert set(shared) == {"all_gather", "reduce_scatter"}
    for row in shared.values():
        assert row["bytes"] == T // 2 * K * D * 2 * 2  # both ranks' rows, in bf16
    whole, _ = rows("tp=2,etp=2,ep=1,gbs=8", gpus=8)
    for row in (r for r in whole if r["group"] == "etp"):
        assert row["bytes"] == T * D * 2  # tokens, not rows: every expert is here


def test_experts_are_copied_over_their_own_group():
    """16 GPUs, EP 8: dense gradients over 16 ranks, experts' over 2."""
    found, _ = rows("ep=8,gbs=16")
    groups = {(r["group"], r["op"]): r for r in found}
    experts = 48 * E // 8 * 3 * D * 768
    assert groups["edp", "reduce_scatter"]["n"] == 2
    assert groups["edp", "reduce_scatter"]["bytes"] == 4 * experts
    assert groups["dense", "all_gather"]["n"] == 16
    assert groups["dense", "all_gather"]["bytes"] == 2 * (30_532_122_624 - 8 * experts)


def test_doubling_tokens_doubles_bytes_and_data_parallel_bytes_stay():
    one, _ = rows("ep=8,tp=2,pp=2,gbs=32")
    two, _ = rows("ep=8,tp=2,pp=2,gbs=32,mbs=2")
    for a in one:
        times = 1 if a["group"] in ("dense", "edp") else 2
        b = next(
            r
            for r in two
            if (r["group"], r["op"], r["bytes"]) == (a["group"], a["op"], times * a["bytes"])
        )
        assert a["times"] == times * b["times"]


def test_an_imbalance_slows_the_exchange_and_not_its_bytes():
    even, skewed = (
        evaluate_training(load_preset("qwen3-30b-a3b"), Layout(dp=8, ep=8, batch=8),
                          cluster("h100x8"), TrainingJob(imbalance=x))
        for x in (1, 1.4)
    )  # fmt: skip
    assert skewed["sent_scale_up"] == even["sent_scale_up"]
    assert skewed["time_ep"] > even["time_ep"]
    assert skewed["time_compute"] > even["time_compute"]
