"""A layout's answer as one tree of plain numbers: what --json prints and the tables show.

Keys are those of `moeplan.parallel`, with `by_rank`, `traffic`, `pieces` and `assumptions`. What is
not known (a bill without a price) is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from moeplan.calc import calc, value
from moeplan.cluster.hardware import Cluster, all_in_power, price, prices
from moeplan.cluster.layout import Layout
from moeplan.cluster.network import Network
from moeplan.estimation.all_to_all import ROW_FORMATS
from moeplan.model.spec import ModelSpec
from moeplan.parallel import (
    BINDS,
    SERVING_BINDS,
    ServingJob,
    ServingPlan,
    TrainingJob,
    TrainingPlan,
    model_speed_limit,
)
from moeplan.parallel.account import account_named
from moeplan.parallel.costs import HIDDEN
from moeplan.parallel.limits import cache_transfer, disaggregate
from moeplan.parallel.optime import AtBound, RowTimes
from moeplan.quantity import Quantity, plain

__all__ = [
    "assumed",
    "bare_tree",
    "pooled",
    "power_of",
    "price_of",
    "serving_answer",
    "training_answer",
]

_SHOWN = ("tp", "cp", "pp", "vpp", "dp", "ep", "etp", "edp", "zero", "microbatch", "batch", "m")
_KINDS = ("sp", "schedule", "recompute", "overlap", "order", "split")
_TOLD = ("all_in_power", "price_per_hour")  # in a line of their own
_ENDS: tuple[Literal["lower", "upper"], ...] = ("lower", "upper")
_PARTS = {"etp": "tp", "dense": "dp", "edp": "dp", **{n: n for n in ("tp", "ep", "cp", "pp")}}
"""Parts of a step's time, by the groups whose messages they are."""
_OF_PREFILL = (
    "prefill_seconds", "prefill_tokens_per_second_per_gpu", "dollars_per_million_input",
)  # fmt: skip
_SERVED = ("tp", "pp", "dp", "ep", "etp", "edp")


def training_answer(
    spec: ModelSpec, layout: Layout, cluster: Cluster, job: TrainingJob
) -> dict[str, Any]:
    """What training costs on a layout. `UserError` with every rule that the layout breaks."""
    plan = TrainingPlan(spec, cluster, job)
    found = plan.explain(layout)
    roles = zip(plan.pieces.all, plan.pieces.roles, strict=True)
    layers = {piece.name for piece, role in roles if role == "layer"}
    ranks = []
    for row in plan.by_rank(layout):
        counts = {
            name: sum(n for piece, n in row[held].items() if piece in layers)
            for name, held in (("layers", "held"), ("layers_in_flight", "alive"))
        }
        ranks.append({"rank": row["rank"], **counts, **row})
    out = _head(plan, layout, "training", _SHOWN)
    out["layout"] |= {name: getattr(layout, name) for name in _KINDS}
    if layout.recompute == "selective":
        out["layout"]["selective"] = list(layout.selective)
    out["job"] = _job(job, ("sequence", "tokens", "optimizer", "precision", "kept", "mtp"))
    out["notes"] = _beyond(spec, plain(job.sequence))
    out["hidden"] = [group for group, under in HIDDEN[layout.overlap].items() if under]
    numbers = {name: x for name, x in found.items() if name not in ("pieces", "ranks")}
    out |= {**numbers, "binds": BINDS[found["binds"]]}
    out |= {"by_rank": ranks, "traffic": plan.traffic(layout)}
    out |= _under_compute(out)
    out["pieces"] = {
        name: {key: x for key, x in piece.items() if not isinstance(x, (list, tuple, dict))}
        for name, piece in found["pieces"].items()
    }
    more = [
        f"exchange: dispatch in {job.dispatch}, combine in {job.combine}, {job.policy}, "
        f"the fullest GPU {plain(job.imbalance):g} times the mean",
        f"account {job.account}: {account_named(job.account).about}",
        *([] if job.tokens is None else [price_of(job, cluster), power_of(job, cluster)]),
    ]
    out["stack"] = _stack_of(plan.times)
    out["band"] = _band(
        plan.times,
        lambda times: TrainingPlan(spec, cluster, job, times=times).evaluate(layout),
        ("step",),
    )
    if job.tokens is None:
        numbers = {n: x for n, x in numbers.items() if n not in ("dollars", "energy")}
    out["assumptions"] = assumed(numbers, plan.times, more)
    return bare_tree(out)


def serving_answer(
    spec: ModelSpec, layout: Layout, cluster: Cluster, job: ServingJob, gpus: int | None = None
) -> dict[str, Any]:
    """What serving costs on an instance. `UserError` with every rule that the layout breaks.

    gpus: of one instance, where the cluster holds several.
    """
    plan = ServingPlan(spec, cluster, job)
    found = plan.explain(layout, gpus)
    out = _head(plan, layout, "serving", _SERVED)
    degrees = {name: out["layout"][name] for name in _SERVED if name != "edp"}
    out["layout"]["text"] = ",".join(f"{n}={x}" for n, x in degrees.items() if x != 1)
    names = ("input", "output", "cached", "prefill_batch", "tpot", "disaggregated", "draft")
    out["job"] = _job(job, names)
    numbers = plan.evaluate(layout, gpus)  # nan where nothing fits
    out |= {**numbers, "binds": SERVING_BINDS[numbers["binds"]]}
    out["job"]["fragmentation"] = job.overheads.fragmentation
    out["notes"] = _beyond(spec, plain(job.input) + plain(job.output))
    out["stack"] = _stack_of(plan.inference.times)
    out["speed_limit"] = _speed_limit(plan, layout, numbers) if numbers["fits"] else None
    out["band"] = _band(
        plan.inference.times,
        lambda times: ServingPlan(
            spec, cluster, replace(job, batch=numbers["batch"] if numbers["fits"] else 1), times
        ).evaluate(layout, gpus),
        ("ttft", "tpot"),
    )
    accepted = f", each accepted with {plain(job.acceptance):g}" if plain(job.draft) else ""
    more = [
        f"exchange: dispatch in {job.dispatch}, combine in {job.combine}, decoding "
        f"{job.decode_policy}, prefill {job.prefill_policy}, the fullest GPU "
        f"{plain(job.imbalance):g} times the mean, {plain(job.overlap):.0%} of it under compute",
        f"drafted tokens: {plain(job.draft)}{accepted}; queueing: TTFT is {plain(job.queueing):g} "
        "times the prefill",
        price_of(job, cluster),
    ]
    out["assumptions"] = assumed(found, plan.inference.times, more)
    return bare_tree(out)


def pooled(
    trees: Sequence[Mapping[str, Any]], pool: Mapping[str, Any], cluster: Cluster, job: ServingJob
) -> dict[str, Any]:
    """The answer of instances that share a cluster: the decoding layout's tree with the GPUs and
    requests of all. Where prefill has a layout of its own (the second tree), TTFT is that one's
    and then the sending of the request's cache; rates per GPU are those in balance.
    """
    out = {**trees[0], "gpus": pool["gpus"], "gpus_of_instance": trees[0]["gpus"]}
    out |= {"requests_per_second": pool["requests_per_second"], "pool": dict(pool)}
    if len(trees) == 1:
        return out
    decode, prefill = trees
    transfer = plain(cache_transfer(Network.of(cluster), prefill["memory_cache_per_sequence"]))

    def after(seconds: float | None) -> float | None:
        return None if seconds is None else seconds + transfer

    out |= {name: prefill[name] for name in _OF_PREFILL}
    out |= {name: after(prefill[name]) for name in ("ttft_lower", "ttft", "ttft_upper")}
    out["band"] = {**decode["band"], "ttft": [after(x) for x in prefill["band"]["ttft"]]}
    if decode["fits"] and prefill["fits"]:
        out |= disaggregate(prefill, decode, job, transfer)
    out["pool"] |= {"ttft": out["ttft"], "transfer": transfer}
    return bare_tree({**out, "prefill": prefill})


def _beyond(spec: ModelSpec, tokens: Any) -> list[str]:
    """A sequence longer than the model was made for, as an estimate notes it."""
    longest = plain(spec.max_context)
    if longest is None or tokens <= longest:
        return []
    return [f"a sequence of {tokens:,} tokens is beyond the model's own {longest:,}"]


def _stack_of(times: RowTimes) -> dict[str, Any]:
    """The stack, and whether it has nothing of what software adds."""
    s = times.stack
    alone = s.busy == 1 and not s.host
    return {"name": s.name, "calibrated": s.calibrated, "ops_alone": alone}


def _under_compute(a: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a step's messages that the overlap hides, by kind; and for data parallelism the
    seconds under which they may lie: the last microbatch's, or from ZeRO-2 on all of them.
    """
    sent = dict.fromkeys(_PARTS.values(), 0.0)
    for row in a["traffic"]:
        sent[_PARTS[row["group"]]] += value(row["seconds"])
    found = {
        n: s - value(a[f"time_{n}"]) for n, s in sent.items() if n in a["hidden"] and n != "pp"
    }
    if "pp" in a["hidden"]:  # what is waited for is the first and last microbatch's chain
        found["pp"] = sent["pp"]
    layout = a["layout"]
    work = sum(value(a[f"time_{n}"]) for n in ("compute", "recompute", "tp", "ep", "cp"))
    cover = work if layout["zero"] >= 2 else work / layout["m"]
    least = 1e-6 * value(a["step"])  # rounding
    return {
        "hidden_seconds": {name: x for name, x in found.items() if x > least},
        "hidden_dp_cover": cover if "dp" in a["hidden"] else None,
    }


def _speed_limit(
    plan: ServingPlan, layout: Layout, numbers: Mapping[str, Any]
) -> dict[str, Any] | None:
    """`moeplan.parallel.model_speed_limit` of an instance, with what went into it."""
    spec, job, v = plan.spec, plan.job, layout.values
    group = v["ep"] * v["etp"]
    if spec.moe is None or v["ep"] == 1:
        return None
    crosses = plan.net.out is not None and group > plain(plan.cluster.domain_size)
    link = plan.net.out if crosses and plan.net.out is not None else plan.net.up
    hidden = spec.moe.values[spec.moe.width]
    bytes_of = {
        name: value(calc(ROW_FORMATS[word], "B", H=hidden)) / hidden
        for name, word in (("dispatch", job.dispatch), ("combine", job.combine))
    }
    tokens = numbers["batch"] * (1 + plain(job.draft)) / v["world"]
    found = model_speed_limit(spec, tokens, link, microbatches=1, **bytes_of)
    return {
        "layer": found["exchange"],
        "step": found["step"],
        "tokens": tokens,
        "experts": spec.moe.values["k"],
        "hidden": hidden,
        "layers": spec.moe_layers,
        "bandwidth": link,
        "link": "scale-out" if crosses else "scale-up",
        **bytes_of,
    }


def _band(
    times: RowTimes, evaluate: Callable[[RowTimes], Mapping[str, Any]], names: tuple[str, ...]
) -> dict[str, list[Any]]:
    """Of each figure its values with all ops at the fast, and at the slow end of their bands."""
    ends = [evaluate(AtBound(times, bound)) for bound in _ENDS]
    return {name: [end[name] for end in ends] for name in names}


def _head(
    plan: TrainingPlan | ServingPlan, layout: Layout, kind: str, shown: tuple[str, ...]
) -> dict[str, Any]:
    spec, cluster = plan.spec, plan.cluster
    moe = spec.moe
    values = layout.values
    return {
        "kind": kind,
        "model": {
            "name": spec.title or spec.name,
            "layers": plan.pieces.layers,
            "experts": None if moe is None else moe.values["E"],
            "expert_width": None if moe is None else moe.values["F"],
            "divided_by_tp": {what: sorted(counts) for what, counts in plan.widths.items()},
        },
        "cluster": {
            "id": cluster.id,
            "name": cluster.name,
            "gpu": cluster.gpu.name,
            "gpus": cluster.gpus,
            "domain": cluster.domain_size,
            "memory": plan.capacity,
            "memory_datasheet": cluster.gpu.memory_bytes,
        },
        "layout": {"text": str(layout), **{name: values[name] for name in shown}},
    }


def _job(job: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(job, name) for name in names}


def price_of(job: TrainingJob | ServingJob, cluster: Cluster) -> str:
    """The price of a GPU-hour in words, with its source."""
    device, given = cluster.gpu.id, job.price
    if given is not None and (not isinstance(given, str) or "$" in given):
        return f"price: {given}, as given"
    if given is None and not prices(device):
        return f"price: none is on file for {device}; --price '$2/h' gives one"
    found = price(device, given)
    source = found.per_hour.source
    where = f"; {source.where}" if source else ""
    return f"price: ${plain(found.per_hour):.2f} a GPU-hour ({found.kind}{where})"


def power_of(job: TrainingJob, cluster: Cluster) -> str:
    """The power of a GPU in words, with its source."""
    if job.power is not None:
        return f"power: {plain(job.power):,g} W a GPU, all in, as given"
    found = all_in_power(cluster.gpu.id)
    if found is None:
        return f"power: none is on file for {cluster.gpu.id}; --power '1.5 kW' gives one"
    where = f" ({found.source.where})" if found.source else ""
    return f"power: {found.value:,g} W a GPU, all in{where}"


def assumed(found: Mapping[str, Any], times: RowTimes, more: list[str]) -> list[dict[str, Any]]:
    """How rows are timed, what the numbers assume below that, and what the job does."""
    told = [f"stack {times.stack.name}: {_stack(times)}"]
    known = times.sources()
    told += [f"{about}; {why}" for about, why in known.items()]
    seen: dict[str, Quantity] = {}
    visited: set[int] = set()
    for number in found.values():
        for assumed in number.assumptions(visited) if isinstance(number, Quantity) else ():
            assert assumed.source is not None
            where = assumed.source.where
            if not (where.startswith(f"stack {times.stack.name}:") or where in known.values()):
                seen.setdefault(where, assumed)
    out = [_entry(why) for why in told]
    for where, q in sorted(seen.items()):
        if q.symbol in _TOLD:
            continue
        out.append({"symbol": q.symbol, "value": q.value, "unit": q.unit, "why": where})
    return out + [_entry(why) for why in more]


def _stack(times: RowTimes) -> str:
    """What a stack takes of the peaks and adds for software, in words."""
    s = times.stack
    parts = []
    if not s.calibrated:
        parts.append(
            f"linear {s.linear:.2f}, grouped {s.grouped:.2f}, attention {s.attention:.2f} of the "
            f"matmul peak, times {s.low:g} in 8 bit; {s.memory:.2f} of the memory bandwidth; "
            f"{1e6 * s.launch:g} us between kernels"
        )
    if s.busy != 1 or s.host:
        parts.append(f"busy {s.busy:.2f}, host {1e3 * s.host:g} ms an MoE layer")
    return "; ".join([*parts, s.source])


def _entry(why: str) -> dict[str, Any]:
    return {"symbol": "", "value": None, "unit": "", "why": why}


def bare_tree(out: Mapping[str, Any]) -> dict[str, Any]:
    """A tree with plain numbers for quantities, and None for what is not finite."""
    return {name: _bare(x) for name, x in out.items()}


def _bare(given: Any) -> Any:
    """Plain numbers all the way down; what is not finite is None."""
    if isinstance(given, Mapping):
        return {name: _bare(x) for name, x in given.items()}
    if isinstance(given, (list, tuple)):
        return [_bare(x) for x in given]
    number = value(given)
    number = number.item() if hasattr(number, "item") else number
    return None if isinstance(number, float) and not math.isfinite(number) else number
