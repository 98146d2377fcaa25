"""A serving search's answer as one tree of plain numbers, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from moeplan.calc import value
from moeplan.parallel import SERVING_BINDS, ServingJob
from moeplan.plan.ask_serving import ServingQuestion
from moeplan.plan.bands import serving_pools
from moeplan.plan.front_serving import FrontPoint
from moeplan.plan.serving import DEGREES, Option, Pool, ServingFound
from moeplan.plan.serving_changes import ServingChange
from moeplan.plan.serving_words import degrees_of
from moeplan.quantity import plain
from moeplan.report.layout_answer import assumed, bare_tree, price_of

__all__ = ["serving_plan_answer"]

_NUMBERS = (
    "batch", "max_batch", "ttft", "tpot", "tpot_lower", "tpot_upper", "prefill_seconds",
    "memory_weights", "memory_cache_per_sequence", "memory_overhead", "prefill_share",
)  # fmt: skip
_AT_MOST = (
    "requests_per_second", "prefill_tokens_per_second_per_gpu", "decode_tokens_per_second_per_gpu",
)  # fmt: skip

_Numbers: TypeAlias = "Mapping[tuple[str, Pool], Mapping[str, Any]]"


def serving_plan_answer(
    question: ServingQuestion,
    found: ServingFound,
    changes: Sequence[ServingChange],
    front: Sequence[FrontPoint],
) -> dict[str, Any]:
    """All of a search for serving."""
    demand = found.demand
    job = found.jobs[0]
    plan = next(iter(found.plans.values()))
    numbers = _shown(found)
    rows = [_option(question, found, option, numbers) for option in found.options]
    out: dict[str, Any] = {
        "kind": "serving plan",
        "by": question.by,
        "model": question.spec.title or question.spec.name,
        "cluster": {"gpu": found.cluster.gpu.name, "id": found.cluster.gpu.id,
                    "domain": found.cluster.domain_size, "memory": plan.capacity},
        "stack": plan.inference.times.stack.name,
        "demand": {"requests_per_second": demand.rate, "input": job.input, "output": job.output,
                   "cached": job.cached, "ttft": demand.ttft, "tpot": demand.tpot,
                   "gpus": demand.gpus, "utilization": demand.utilization},
        "space": _space(found, question),
        "best": rows,
    }  # fmt: skip
    if rows:
        out["by_mode"] = {
            mode: None if option is None else _option(question, found, option, numbers)
            for mode, option in found.by_mode.items()
        }
        out["sensitivity"] = [_change(c, found.options[0]) for c in changes]
        out["assumptions"] = _assumptions(found)
    else:
        out["nothing"] = {"counts": found.counts}
    out["front"] = [_point(found, p) for p in front]
    return bare_tree(out)


def _shown(found: ServingFound) -> _Numbers:
    """Of all pools that are shown."""
    shown: dict[str, list[Pool]] = {}
    for option in (*found.options, *found.by_mode.values()):
        if option is not None:
            shown.setdefault(option.mode, []).extend(option.pools)
    return serving_pools(found, shown)


def _band(found: ServingFound, option: Option, numbers: _Numbers) -> dict[str, list[float]]:
    """TTFT of the first pool, with what sending the cache takes, and TPOT of the last."""
    first, last = option.pools[0], option.pools[-1]
    sent = 0.0
    if len(option.pools) > 1:
        sent = float(found.transfers[first.instance.job][first.instance.row])
    return {
        "ttft": [seconds + sent for seconds in numbers[option.mode, first]["band"]["ttft"]],
        "tpot": numbers[option.mode, last]["band"]["tpot"],
    }


def _option(
    question: ServingQuestion, found: ServingFound, option: Option, numbers: _Numbers
) -> dict[str, Any]:
    """One way to carry the requests: its pools, latencies and what it costs."""
    demand = found.demand
    pools = [_pool(question, found, option, i, numbers) for i in range(len(option.pools))]
    plan = found.plans[option.mode, option.pools[0].instance.job]
    each = float(value(plan.price()))
    hourly, output = each * option.gpus, demand.rate * plain(found.jobs[0].output) * 3600
    prefill = pools[0]["prefill_share"] * option.gpus if len(pools) == 1 else pools[0]["gpus"]
    spent = prefill * each, (option.gpus - prefill) * each
    return {
        "mode": option.mode,
        "gpus": option.gpus,
        "others": option.others,
        "ttft": option.ttft,
        "tpot": option.tpot,
        "band": _band(found, option, numbers),
        "output_tokens_per_second_per_gpu": output / 3600 / option.gpus,
        "dollars_per_hour": hourly,
        "dollars_per_million_output": hourly / output * 1e6,
        "dollars_per_million": {
            "input": spent[0] / (demand.rate * plain(found.jobs[0].input) * 3600) * 1e6,
            "output": spent[1] / output * 1e6,
        },
        "pools": pools,
        "load": demand.rate / min(p["carries"] for p in pools),
        "binds": pools[-1]["binds"],
    }


def _pool(
    question: ServingQuestion,
    found: ServingFound,
    option: Option,
    number: int,
    at_load: _Numbers,
) -> dict[str, Any]:
    """A pool: numbers of an instance at the load, and what one could carry at most."""
    pool = option.pools[number]
    job, row = pool.instance
    answer = found.answers[option.mode, job]
    here = at_load[option.mode, pool]
    layout, gpus = found.layout(row), int(found.columns["gpus"][row])
    role = "both" if len(option.pools) == 1 else ("prefill", "decode")[number]
    most = {name: float(answer[name][row]) for name in _AT_MOST}
    numbers = {name: float(here[name]) for name in _NUMBERS} | most
    own = found.jobs[job]
    return {
        "role": role,
        "instances": pool.count,
        "gpus": pool.gpus,
        "instance_gpus": gpus,
        "layout": degrees_of(layout),
        **{name: int(plain(getattr(layout, name))) for name in DEGREES},
        **_formats(own, found),
        **numbers,
        "transfer": float(found.transfers[job][row]) if role == "prefill" else None,
        "carries": _carries(role, pool, gpus, numbers, own),
        "largest_batch": float(answer["batch"][row]),
        "binds": SERVING_BINDS[int(answer["binds"][row])],
        "command": question.command(layout, gpus, own, option.mode, pool.batch),
        "alike": [degrees_of(found.layout(other.row)) for other in pool.alike],
    }


def _carries(
    role: str, pool: Pool, gpus: int, numbers: Mapping[str, float], job: ServingJob
) -> float:
    """Requests per second of a pool."""
    if role == "both":
        return float(pool.count * numbers["requests_per_second"])
    if role == "prefill":
        new = plain(job.input) * (1 - plain(job.cached))
        return float(pool.gpus * numbers["prefill_tokens_per_second_per_gpu"] / new)
    return float(pool.gpus * numbers["decode_tokens_per_second_per_gpu"] / plain(job.output))


def _formats(job: ServingJob, found: ServingFound) -> dict[str, Any]:
    return {"weights": job.weights, "cache": job.cache, "draft": plain(job.draft)}


def _space(found: ServingFound, question: ServingQuestion) -> dict[str, Any]:
    formats = [_formats(job, found) for job in found.jobs]
    return {
        "combinations": found.combinations,
        "counts": found.counts,
        "sizes": sorted({int(n) for n in found.columns["gpus"]}),
        "degrees": {n: sorted({int(x) for x in found.columns[n]}) for n in DEGREES},
        "formats": {n: list(dict.fromkeys(f[n] for f in formats)) for n in formats[0]},
        "modes": list(question.modes),
        "pinned": sorted(question.pins or {}),
    }


def _change(change: ServingChange, best: Option) -> dict[str, Any]:
    if not change.found.options:
        return {"change": change.name, "gpus": None}
    option = change.found.options[0]
    pools = [
        {"instances": p.count, "layout": degrees_of(change.found.layout(p.instance.row))}
        for p in option.pools
    ]
    return {
        "change": change.name,
        "gpus": option.gpus,
        "more": option.gpus - best.gpus,
        "mode": option.mode,
        "tpot": option.tpot,
        "ttft": option.ttft,
        "pools": pools,
    }


def _point(found: ServingFound, p: FrontPoint) -> dict[str, Any]:
    return {
        "tpot": p.tpot, "tokens_per_second_per_user": 1 / p.tpot,
        "output_tokens_per_second_per_gpu": p.rate, "ttft": p.ttft, "batch": p.batch,
        "mode": p.mode, "layout": degrees_of(p.layout), "gpus": p.gpus,
        "prefill": None if p.prefill is None else degrees_of(p.prefill),
        **_formats(found.jobs[p.job], found),
        "meets": found.demand.tpot is None or p.tpot <= found.demand.tpot,
    }  # fmt: skip


def _assumptions(found: ServingFound) -> list[dict[str, Any]]:
    option = found.options[0]
    job, row = option.pools[0].instance
    plan = found.plans[option.mode, job]
    explained = plan.explain(found.layout(row), int(found.columns["gpus"][row]))
    own = plan.job
    more = [
        f"exchange: dispatch in {own.dispatch}, combine in {own.combine}, decoding "
        f"{own.decode_policy}, prefill {own.prefill_policy}",
        f"no room for bursts: instances are planned at {found.demand.utilization:.0%} of their "
        f"rate; TTFT is {plain(own.queueing):g} times the prefill",
        price_of(own, found.cluster),
    ]
    return assumed(explained, plan.inference.times, more)
