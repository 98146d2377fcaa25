"""The search for serving against a loop over single evaluations, and relations that must hold."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import Layout
from moeplan.cluster.rules import legal
from moeplan.load import load_preset
from moeplan.parallel import ServingJob, ServingPlan
from moeplan.plan.ask_serving import ServingQuestion, serving_front
from moeplan.plan.sensitivity import scaled
from moeplan.plan.serving import Demand, search_serving
from moeplan.plan.serving_changes import serving_changes

LENGTHS = {"input": 2000, "output": 500}


@cache
def mixtral():
    return load_preset("mixtral")


@cache
def singles(disaggregated, tpot, sizes=(1, 2, 4)):
    """Every legal instance evaluated by itself, on a machine of its own size."""
    out = []
    for gpus in sizes:
        job = ServingJob(**LENGTHS, tpot=tpot, disaggregated=disaggregated)
        plan = ServingPlan(mixtral(), cluster(f"h100x{gpus}"), job)
        whole = range(1, gpus + 1)
        for tp, pp, dp, ep, etp in itertools.product(whole, repeat=5):
            if tp * pp * dp != gpus:
                continue
            layout = Layout(tp=tp, pp=pp, dp=dp, ep=ep, etp=etp)
            if legal(plan._plain(layout), plan.rules(layout), **plan.facts(gpus)):
                out.append((gpus, layout, plan.evaluate(layout, gpus)))
    return out


def needed(rate, each):
    return max(1, math.ceil(rate / each * (1 - 1e-12)))


@pytest.mark.parametrize(("rate", "ttft", "tpot"), [(5, 1.0, 0.05), (0.2, None, None),
                                                    (40, 0.4, 0.03)])  # fmt: skip
def test_the_search_is_a_loop_over_single_evaluations(rate, ttft, tpot):
    demand = Demand(rate, ttft, tpot)
    found = search_serving(mixtral(), cluster("h100x8"), [ServingJob(**LENGTHS)], demand, [1, 2, 4])
    together = [
        (needed(rate, a["requests_per_second"]) * gpus, a["tpot"])
        for gpus, _, a in singles(False, tpot)
        if a["fits"] and (not ttft or a["ttft"] <= ttft) and (not tpot or a["tpot"] <= tpot)
    ]
    assert found.counts["aggregated"]["legal"] == len(singles(False, tpot))
    assert found.counts["aggregated"]["meet"] == len(together)
    best = found.by_mode["aggregated"]
    assert (best is None) == (not together)
    if together:
        assert (best.gpus, best.tpot) == pytest.approx(min(together))
    link = cluster("h100x8").scale_out_bandwidth.value
    apart = singles(True, tpot)
    pairs = [
        (
            needed(rate * 2000, p["prefill_tokens_per_second_per_gpu"] * n) * n
            + needed(rate * 500, d["decode_tokens_per_second_per_gpu"] * m) * m,
            d["tpot"],
        )
        for n, _, p in apart
        if p["fits"] and (not ttft or p["ttft"] + p["memory_cache_per_sequence"] / link <= ttft)
        for m, _, d in apart
        if d["fits"] and (not tpot or d["tpot"] <= tpot)
    ]
    best = found.by_mode["disaggregated"]
    assert (best is None) == (not pairs)
    if pairs:
        assert (best.gpus, best.tpot) == pytest.approx(min(pairs))


def test_the_best_ten_are_the_ten_best_of_all_pairs():
    demand = Demand(8, None, 0.05)
    found = search_serving(
        mixtral(), cluster("h100x8"), [ServingJob(**LENGTHS)], demand, [1, 2, 4],
        modes=("disaggregated",),
    )  # fmt: skip
    apart = [row for row in singles(True, 0.05) if row[2]["fits"]]
    link = cluster("h100x8").scale_out_bandwidth.value
    pools = {"p": set(), "d": set()}  # pools of equal GPUs, seconds and rate are one answer
    for n, _, a in apart:
        first = a["prefill_tokens_per_second_per_gpu"]
        gpus = needed(8 * 2000, first * n) * n
        wait = a["ttft"] + a["memory_cache_per_sequence"] / link
        pools["p"].add((gpus, f"{wait:.11g}", f"{gpus * first:.11g}"))
        if a["tpot"] <= 0.05:
            then = a["decode_tokens_per_second_per_gpu"]
            gpus = needed(8 * 500, then * n) * n
            pools["d"].add((gpus, f"{a['tpot']:.11g}", f"{gpus * then:.11g}"))
    pairs = sorted((p[0] + d[0], float(d[1]), float(p[1])) for p in pools["p"] for d in pools["d"])
    got = [(o.gpus, o.tpot, o.ttft) for o in found.options]
    assert np.allclose(got, pairs[:10], rtol=1e-9)


@settings(max_examples=5)
@given(rate=st.floats(0.1, 200), more=st.floats(1, 4))
def test_more_requests_never_need_fewer_gpus(rate, more):
    few, many = (
        search_serving(mixtral(), cluster("h100x8"), [ServingJob(**LENGTHS)],
                       Demand(r, 1.0, 0.05), [2, 4]).options[0].gpus
        for r in (rate, rate * more)
    )  # fmt: skip
    assert few <= many


def test_looser_limits_and_cached_input_never_need_more():
    def gpus(cached=0.0, **limits):
        jobs = [ServingJob(**LENGTHS, cached=cached)]
        demand = Demand(20, limits.get("ttft", 1.0), limits.get("tpot", 0.03))
        return search_serving(mixtral(), cluster("h100x8"), jobs, demand, [2, 4]).options[0].gpus

    base = gpus()
    assert gpus(ttft=2.0) <= base
    assert gpus(tpot=0.1) <= base
    assert gpus(cached=0.9) <= base


def test_instances_carry_the_requests_and_one_less_would_not():
    found = search_serving(
        mixtral(), cluster("h100x8"), [ServingJob(**LENGTHS)], Demand(20, 1.0, 0.05), [2, 4],
        modes=("aggregated",),
    )  # fmt: skip
    for option in found.options:
        (pool,) = option.pools
        each = found.answers["aggregated", 0]["requests_per_second"][pool.instance.row]
        assert pool.count * each >= 20 * (1 - 1e-9)
        assert pool.count == 1 or (pool.count - 1) * each < 20


def test_fewer_bits_are_tried_beside_each_other():
    jobs = [ServingJob(**LENGTHS, weights=w) for w in ("bf16", "fp8")]
    found = search_serving(mixtral(), cluster("h100x8"), jobs, Demand(5, None, 0.05), [1, 2, 4])
    one = search_serving(mixtral(), cluster("h100x8"), jobs[:1], Demand(5, None, 0.05), [1, 2, 4])
    assert found.options[0].gpus <= one.options[0].gpus
    assert found.combinations == 2 * one.combinations
    assert found.options[0].pools[0].instance.job == 1


def test_a_front_and_changes_follow_from_single_evaluations():
    question = ServingQuestion(
        mixtral(), "h100", [ServingJob(**LENGTHS)], Demand(5, 1.0, 0.05), sizes=(2, 4),
        modes=("aggregated",),
    )  # fmt: skip
    found = question.search()
    points = serving_front(question, found)
    assert [p.tpot for p in points] == sorted(p.tpot for p in points)
    assert [p.rate for p in points] == sorted(p.rate for p in points)
    for p in points[:: max(1, len(points) // 5)]:
        job = ServingJob(**LENGTHS, batch=p.batch)
        a = ServingPlan(mixtral(), cluster(f"h100x{p.gpus}"), job).evaluate(p.layout)
        assert (a["tpot"], a["output_tokens_per_second_per_gpu"]) == pytest.approx((p.tpot, p.rate))
    changes = {c.name: c.gpus for c in serving_changes(question, found)}
    best = found.options[0].gpus
    machine = found.cluster  # what was not searched again could not have won
    slow = replace(machine.gpu, memory_bandwidth=scaled(machine.gpu.memory_bandwidth, 0.8))
    whole = question.under(replace(machine, gpu=slow), question.jobs, (2, 4))
    assert changes["memory bandwidth -20%"] == whole.options[0].gpus
    for name, gpus in changes.items():
        better = "+" in name
        assert gpus is None or (gpus <= best if better else gpus >= best), name


def test_a_hybrid_model_and_mtp_are_served():
    found = search_serving(
        load_preset("deepseek-v3"), cluster("h200x16"),
        [ServingJob(**LENGTHS, draft=d) for d in (0, 1)], Demand(2, None, 0.05), [8, 16],
    )  # fmt: skip
    assert found.options
    nano = search_serving(
        load_preset("nemotron-3-nano-30b-a3b"), cluster("h100x8"), [ServingJob(**LENGTHS)],
        Demand(2), [1, 2, 4],
    )  # fmt: skip
    assert nano.options
