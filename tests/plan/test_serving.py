"""The search for serving against a loop over single evaluations, and relations that must hold."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import Layout
from moeplan.cluster.rules import legal
from moeplan.errors import UserError
from moeplan.load import load_preset
from moeplan.parallel import ServingJob, ServingPlan
from moeplan.plan.ask_serving import ServingQuestion
from moeplan.plan.front_serving import serving_front
from moeplan.plan.pools import DEGREES, Demand
from moeplan.plan.sensitivity import scaled
from moeplan.plan.serving import search_serving
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


@cache
def with_batch(gpus, degrees, disaggregated, batch):
    """One instance that decodes this many sequences together."""
    job = ServingJob(**LENGTHS, disaggregated=disaggregated, batch=batch)
    layout = Layout(**dict(zip(DEGREES, degrees, strict=True)))
    return ServingPlan(mixtral(), cluster(f"h100x{gpus}"), job).evaluate(layout)


def at_load(gpus, layout, disaggregated, most, rate):
    """TPOT with the least batch whose rate is enough, found by halving."""
    degrees = tuple(getattr(layout, name) for name in DEGREES)

    def carries(batch):
        a = with_batch(gpus, degrees, disaggregated, batch)
        if disaggregated:
            return a["decode_tokens_per_second_per_gpu"] * gpus / 500 >= rate * (1 - 1e-8)
        return a["requests_per_second"] >= rate * (1 - 1e-8)

    low, high = 0, int(most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if carries(middle) else (middle, high)
    return with_batch(gpus, degrees, disaggregated, high)["tpot"]


def pools(rate, ttft, tpot, disaggregated):
    """GPUs and a function of TPOT at the load, of decoding instances that are in time."""
    out = []
    for n, layout, a in singles(disaggregated, tpot):
        if not a["fits"] or (tpot and a["tpot"] > tpot):
            continue
        if not disaggregated and ttft and a["ttft"] > ttft:
            continue
        each = a["requests_per_second"]
        if disaggregated:
            each = a["decode_tokens_per_second_per_gpu"] * n / 500
        count = needed(rate, each)
        share = partial(at_load, n, layout, disaggregated, a["batch"], rate / count)
        out.append((count * n, share))
    return out


def prefills(rate, ttft):
    """GPUs and TTFT of prefill pools, in order."""
    link = cluster("h100x8").scale_out_bandwidth.value
    out = []
    for n, _, a in singles(True, None):
        wait = a["ttft"] + a["memory_cache_per_sequence"] / link
        if a["fits"] and (not ttft or wait <= ttft):
            each = a["prefill_tokens_per_second_per_gpu"] * n / 2000
            out.append((needed(rate, each) * n, wait))
    return sorted(out)


def fewest(found):
    """The least GPUs, and of those the least TPOT."""
    if not found:
        return None
    least = min(gpus for gpus, _ in found)
    return least, min(tpot() for gpus, tpot in found if gpus == least)


@pytest.mark.parametrize(("rate", "ttft", "tpot"), [(5, 1.0, 0.05), (0.2, None, None),
                                                    (40, 0.4, 0.03)])  # fmt: skip
def test_the_search_is_a_loop_over_single_evaluations(rate, ttft, tpot):
    demand = Demand(rate, ttft, tpot)
    found = search_serving(mixtral(), cluster("h100x8"), [ServingJob(**LENGTHS)], demand, [1, 2, 4])
    together = pools(rate, ttft, tpot, False)
    assert found.counts["aggregated"]["legal"] == len(singles(False, tpot))
    assert found.counts["aggregated"]["meet"] == len(together)
    best = found.by_mode["aggregated"]
    assert (best is None) == (not together)
    if together:
        assert (best.gpus, best.tpot) == pytest.approx(fewest(together))
    first, then = prefills(rate, ttft), pools(rate, ttft, tpot, True)
    best = found.by_mode["disaggregated"]
    assert (best is None) == (not first or not then)
    if best is not None:
        gpus, seconds = fewest(then)
        assert (best.gpus, best.tpot) == pytest.approx((first[0][0] + gpus, seconds))
        assert best.ttft == pytest.approx(first[0][1])


def test_the_fastest_on_some_gpus_is_that_of_a_loop():
    """All of them decode, but for those that prefill."""
    demand = Demand(8, 1.0, 0.05, gpus=12)
    found = search_serving(
        mixtral(), cluster("h100x8"), [ServingJob(**LENGTHS)], demand, [1, 2, 4], by="time"
    )
    expected = {"aggregated": [], "disaggregated": []}
    for mode, found_in in expected.items():
        apart = mode == "disaggregated"
        left = 12 - (prefills(8, 1.0)[0][0] if apart else 0)
        for n, layout, a in singles(apart, 0.05):
            if not a["fits"] or a["tpot"] > 0.05 or (not apart and a["ttft"] > 1):
                continue
            each = a["decode_tokens_per_second_per_gpu"] * n / 500
            each = each if apart else a["requests_per_second"]
            count = left // n
            if count >= needed(8, each):
                found_in.append(at_load(n, layout, apart, a["batch"], 8 / count))
        assert found.by_mode[mode].tpot == pytest.approx(min(found_in))
    assert found.options[0].tpot == pytest.approx(min(map(min, expected.values())))
    few = search_serving(mixtral(), cluster("h100x8"), [ServingJob(**LENGTHS)], demand, [1, 2, 4])
    assert found.options[0].tpot < few.options[0].tpot
    with pytest.raises(UserError, match="--by time needs --gpus"):
        search_serving(mixtral(), cluster("h100x8"), [ServingJob(**LENGTHS)],
                       replace(demand, gpus=None), [1, 2], by="time")  # fmt: skip


def test_gpus_that_make_nobody_faster_are_left_out():
    demand = Demand(0.05, 1.0, 0.05, gpus=8)
    few, many = (
        search_serving(mixtral(), cluster("h100x8"), [ServingJob(**LENGTHS)],
                       replace(demand, gpus=gpus), [2], by="time").options[0]
        for gpus in (8, 400)
    )  # fmt: skip
    assert many.pools[-1].batch == 1
    assert (few.gpus, few.tpot) == (many.gpus, many.tpot)
    assert few.gpus < 8


@pytest.mark.parametrize("rate", [0.01, 6, 30])
def test_what_users_see_does_not_hang_on_the_limit(rate):
    """A looser limit never makes the answer slower on as many GPUs, and few requests are fast."""
    answers = []
    for tpot in (0.02, 0.03, 0.05, 0.1, None):
        found = search_serving(
            mixtral(), cluster("h100x8"), [ServingJob(**LENGTHS)], Demand(rate, 1.0, tpot), [2, 4]
        )
        answers.append((found.options[0].gpus, found.options[0].tpot))
    for tight, loose in itertools.pairwise(answers):
        assert loose[0] < tight[0] or loose <= (tight[0], tight[1] * (1 + 1e-9))


def test_the_best_ten_are_the_ten_best_of_all_pairs():
    demand = Demand(8, None, 0.05)
    found = search_serving(
        mixtral(), cluster("h100x8"), [ServingJob(**LENGTHS)], demand, [1, 2, 4],
        modes=("disaggregated",),
    )  # fmt: skip
    then = sorted((gpus, tpot()) for gpus, tpot in pools(8, None, 0.05, True))
    first = prefills(8, None)
    kinds = {(g + p[0], f"{t:.9g}") for g, t in then for p in first}  # alike are one row
    expected = sorted((gpus, float(tpot)) for gpus, tpot in kinds)
    got = [(o.gpus, o.tpot) for o in found.options]
    assert got == sorted(got)
    assert len({o.pools[-1].instance for o in found.options}) == len(got)
    unlike = list(dict.fromkeys((gpus, float(f"{tpot:.9g}")) for gpus, tpot in got))
    assert np.allclose(unlike, expected[: len(unlike)], rtol=1e-7)


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
