"""The sections of an estimate, each a tree of explained quantities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from moeplan.arrays import is_array, np
from moeplan.cluster.hardware import Gpu, price, prices
from moeplan.estimation.all_to_all import AllToAll, Traffic, all_to_all
from moeplan.estimation.fold import MTP, group_label, layer_count
from moeplan.estimation.memory import (
    StoredTensors,
    activations,
    optimizer_named,
    training_state,
    weights_by_component,
)
from moeplan.estimation.scenario import Scenario
from moeplan.estimation.timing import floor
from moeplan.model.ffn import MoE
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Workload
from moeplan.quantity import Later, Number, Quantity, Source, derive, total
from moeplan.units import parse

__all__ = ["cost", "exchange", "memory", "model", "time"]

PASSES = ("prefill", "decode", "training")
BOUNDS = ("lower", "sequential", "upper")


def _sum(parts: Mapping[Any, Quantity], unit: str) -> Quantity:
    return total([(str(name), part) for name, part in parts.items()], unit)


def model(spec: ModelSpec) -> dict[str, Any]:
    """What the model is: its shape in the field's usual words."""
    out: dict[str, Any] = {
        "name": spec.name,
        "title": spec.title or spec.name,
        "family": spec.family,
        "source": spec.source,
        "layers": spec.layers,
        "moe_layers": spec.moe_layers,
        "hidden_size": spec.hidden,
        "vocabulary": spec.vocabulary,
        "tied_embeddings": spec.tied,
        "max_context": spec.max_context,
        "not_counted": list(spec.not_counted),
        "unread_keys": list(spec.unread),
    }
    moe = spec.moe
    if moe is not None:
        out |= {
            "experts": moe.symbols["E"],
            "top_k": moe.symbols["k"],
            "expert_width": moe.symbols["F"],
            "shared_width": moe.symbols.get("Fs"),
            "router": moe.routing.score,
            "n_group": moe.routing.groups,
            "topk_group": moe.routing.group_limit,
        }
    return out


def cache_format(spec: ModelSpec, s: Scenario) -> str:
    """The user's format of keys and values, else what the checkpoint asks for, else bf16."""
    return str(s["cache"] or spec.checkpoint.cache or "bf16")


def workloads(s: Scenario) -> dict[str, Workload]:
    """The passes of a scenario: prefill and one decoding step of a batch, a training microbatch."""
    context, batch = s.quantity("context"), s.quantity("batch")
    one = Quantity(1, "tokens", symbol="S", formula="1", note="one new token a sequence")
    length = context.named("S")
    return {
        "prefill": Workload("prefill", B=batch, S=length, C=context),
        "decode": Workload("decode", B=batch, S=one, C=context),
        "training": Workload("train", B=s.quantity("microbatch").named("B"), S=length, C=context),
    }


def memory(
    spec: ModelSpec,
    s: Scenario,
    gpu: Gpu,
    parameters: Quantity,
    cache: Quantity,
    stored: StoredTensors,
) -> dict[str, Any]:
    """Weights as stored, training state and activations, and what serving holds."""
    components = weights_by_component(spec, stored=stored)
    weights = _sum(components, "B")
    serving = total([("weights", weights), ("kv_cache", cache)], "B")
    checkpoint = spec.checkpoint
    return {
        "weights": weights,
        "weights_mtp": _sum(weights_by_component(spec, MTP, stored), "B"),
        "weights_format": (checkpoint.quantised or checkpoint.base).name,
        "weights_by_component": dict(components),
        "training": {
            **training_state(parameters, optimizer_named(s["optimizer"]).name),
            "microbatch": s.quantity("microbatch"),
            "activations_per_layer": activations(spec, workloads(s)["training"]),
        },
        "serving": {
            "weights": weights,
            "kv_cache": cache,
            "total": serving,
            "gpu": gpu.id,
            "gpu_memory": gpu.memory_bytes,
            "gpus_at_least": derive(
                "ceil(held/capacity)", "GPUs", held=serving, capacity=gpu.memory_bytes
            ),
        },
    }


def exchange(spec: ModelSpec, s: Scenario, gpu: Gpu) -> dict[str, Any] | None:
    """All-to-all traffic of expert parallelism, per MoE layer and per step; None if dense."""
    moe = spec.moe
    if moe is None:
        return None
    ep = s.quantity("ep", _default_ep(moe.values["E"], s["node"]))
    node = s.quantity("node")
    if "node" not in s.given and is_array(ep.value):
        node = derive("min(n, node)", "GPUs", n=ep, node=node).named("g")
    elif "node" not in s.given and ep.value < node.value:
        node = ep.named("g")  # a group smaller than a node lies in one
    result = all_to_all(
        s.quantity("tokens"),
        moe.symbols[moe.width].named("H"),
        moe.symbols["E"],
        moe.symbols["k"],
        ep,
        node,
        real=moe.symbols.get("r"),
        n_group=_grouping("G", "n_group", moe.routing.groups),
        topk_group=_grouping("M", "topk_group", moe.routing.group_limit),
        rule=moe.routing.group_score if moe.routing.groups > 1 else "uniform",
        dispatch=s["dispatch"],
        combine=s["combine"],
        policy=s["policy"],
        imbalance=s.quantity("imbalance"),
    )
    counts = [(group_label(group), layer_count(group)) for group, _ in spec.blocks(MoE)]
    layers = total(counts, "layers")
    return {
        "tokens": s.quantity("tokens"),
        "ep": ep,
        "node": node,
        "policy": s["policy"],
        "dispatch_format": s["dispatch"],
        "combine_format": s["combine"],
        "imbalance": s.quantity("imbalance"),
        "expected_gpus": result.expected_gpus,
        "expected_nodes": result.expected_nodes,
        "per_layer": _directions(result),
        "forward_step": _directions(result.per_step(layers)),
        "training_step": _directions(result.per_step(layers, backward=True)),
        "time": Later(partial(_exchange_time, gpu, result, node, layers, s["policy"])),
    }


def _exchange_time(
    gpu: Gpu, result: AllToAll, node: Quantity, layers: Quantity, policy: str
) -> dict[str, Any] | None:
    from moeplan.estimation.exchange_time import exchange_time  # loads tables: only when asked

    return exchange_time(gpu, result, node.value, layers, kernels=policy != "copies")


def _grouping(symbol: str, key: str, value: Number) -> Quantity:
    """Groups of experts, or how many of them a token may use."""
    if not is_array(value) and value == 1:
        return Quantity(1, "groups", symbol=symbol, formula="1", note="experts are not grouped")
    return Quantity.given(value, "groups", symbol, Source("config", key))


def _default_ep(experts: Number, node: Number) -> Number:
    """The largest divisor of E up to 64 that fits whole nodes, or lies inside one."""
    if is_array(experts) or is_array(node):
        return _each_pair(_default_ep, experts, node)
    fits = [d for d in range(1, 65) if experts % d == 0 and (d % node == 0 or node % d == 0)]
    return max(fits)


def _each_pair(function: Callable[[int, int], Number], a: Number, b: Number) -> Number:
    """A function of two whole numbers over arrays, once for each different pair; else nan."""
    pairs = np.stack([np.ravel(x) for x in np.broadcast_arrays(a, b)])
    distinct, at = np.unique(pairs, axis=1, return_inverse=True)
    whole = (distinct >= 1).all(axis=0) & (distinct % 1 == 0).all(axis=0)
    found = [
        function(*map(int, pair)) if good else np.nan
        for pair, good in zip(distinct.T, whole, strict=True)
    ]
    return np.asarray(found, np.float64)[at.ravel()].reshape(
        np.broadcast_shapes(np.shape(a), np.shape(b))
    )


def _directions(result: AllToAll) -> dict[str, Any]:
    return {"dispatch": _traffic(result.dispatch), "combine": _traffic(result.combine)}


def _traffic(traffic: Traffic) -> dict[str, Quantity]:
    return {
        "local": traffic.local,
        "same_node": traffic.same_node,
        "other_nodes": traffic.other_nodes,
        "forwarded": traffic.forwarded,
        "sent": traffic.total_sent,
        "busiest": traffic.busiest,
    }


def time(spec: ModelSpec, s: Scenario, gpu: Gpu, stored: StoredTensors) -> dict[str, Any]:
    """The datasheet's floor of each pass on one GPU, and tokens per second at it."""
    out: dict[str, Any] = {
        "kind": "floor",
        "gpu": gpu.id,
        "peaks": dict(gpu.peaks),
        "bandwidth": gpu.memory_bandwidth,
    }
    for name, work in workloads(s).items():
        found = floor(spec, work, gpu, cache_format(spec, s), stored)
        tokens = derive("B*S", "tokens", B=work.symbols["B"], S=work.symbols["S"])
        out[name] = {
            "tokens": tokens,
            **{
                f"{bound}_tokens_per_second": derive(
                    "tokens/seconds", "tokens/s", tokens=tokens, seconds=found[bound]
                )
                for bound in BOUNDS
            },
            **found,
            "calibrated": Later(partial(_calibrated, spec, work, gpu, stored)),
        }
    return out


def _calibrated(
    spec: ModelSpec, work: Workload, gpu: Gpu, stored: StoredTensors
) -> dict[str, Any] | None:
    from moeplan.estimation.expected import expected  # loads the fits: only when asked

    return expected(spec, work, gpu, stored)


def hourly_price(s: Scenario, gpu: Gpu) -> tuple[str, Quantity] | None:
    """Kind of price and dollars per GPU-hour: a kind on file, or an amount that the user gives."""
    wanted = s["price"]
    if wanted is None:
        first = next(iter(prices(gpu.id)), None)
        return None if first is None else (first.kind, first.per_hour)
    if is_array(wanted) or not str(wanted)[:1].isalpha():
        amount = wanted if is_array(wanted) else parse(wanted, "money", where="--price")
        return "user", Quantity.given(amount, "$/h", "price", Source("user", "--price"))
    found = price(gpu.id, wanted)
    return found.kind, found.per_hour


def cost(s: Scenario, gpu: Gpu, seconds: Mapping[str, Any]) -> dict[str, Any] | None:
    """Dollars per million tokens at the floor and the expected time; None without a known price."""
    found = hourly_price(s, gpu)
    if found is None:
        return None
    kind, per_hour = found
    out: dict[str, Any] = {
        "gpu": gpu.id,
        "price_kind": kind,
        "dollars_per_gpu_hour": per_hour,
    }
    for name in PASSES:
        section = seconds[name]
        out[f"{name}_dollars_per_million_tokens"] = {
            bound: derive(
                "price/3600*seconds/tokens*1000000",
                "$",
                price=per_hour,
                seconds=section[bound],
                tokens=section["tokens"],
            )
            for bound in BOUNDS
        } | {"expected": Later(partial(_expected_cost, per_hour, section))}
    return out


def _expected_cost(per_hour: Quantity, section: Mapping[str, Any]) -> Quantity | None:
    """Dollars per million tokens at the expected time; None without a calibration."""
    calibrated = section["calibrated"]()
    if calibrated is None:
        return None
    return derive(
        "price/3600*seconds/tokens*1000000",
        "$",
        price=per_hour,
        seconds=calibrated["expected"],
        tokens=section["tokens"],
    )
