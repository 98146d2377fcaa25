"""Speculative decoding with multi-token-prediction (MTP) modules: what an accepted token costs.

A step verifies N drafted tokens and the one before them in one pass of the model over 1 + N new
tokens a sequence, and drafts the next N with N passes of a module over one token each. A draft
counts only where all drafts before it were accepted, each with the same probability a, and the
verification itself always yields a token: 1 + a + a² + ... + a^N tokens a step (DeepSeek-V3, arXiv
2412.19437, section 5.4.3, has N = 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moeplan.arrays import is_array, np
from moeplan.cluster.hardware import Gpu
from moeplan.estimation.flops import forward_by_component
from moeplan.estimation.fold import MODEL, MTP, layer_count
from moeplan.estimation.memory import StoredTensors
from moeplan.estimation.scenario import Scenario
from moeplan.estimation.timing import floor
from moeplan.model.spec import ModelSpec, Role
from moeplan.model.workload import Workload
from moeplan.quantity import Number, Quantity, derive, register, total

__all__ = ["speculation"]

_BOUNDS = ("lower", "sequential", "upper")
_UNITS = {"flops": "FLOP", "bytes": "B", **dict.fromkeys(_BOUNDS, "s")}


def _tokens_per_step(a: Number, N: Number) -> Number:
    """1 + a + a² + ... + a^N; a loop over the few drafted tokens, which has no pole at a = 1."""
    most = int(np.max(N)) if is_array(N) else int(N)
    return sum((i <= N) * a**i for i in range(most + 1))


register("tokens_per_step", _tokens_per_step)


def speculation(
    spec: ModelSpec, s: Scenario, gpu: Gpu, cache: str, stored: StoredTensors, mtp: Quantity
) -> dict[str, Any] | None:
    """The speculation section of an estimate; None where it is not asked for or no module drafts.

    cache: format of keys and values. stored: the model's tensors. mtp: the modules' parameters.
    Times are floors on one GPU; the passes of a step follow each other, so their bounds add up.
    """
    modules = _modules(spec)
    if "draft" not in s.given or modules is None:
        return None
    draft, acceptance, batch = (s.quantity(n) for n in ("draft", "acceptance", "batch"))
    context = s.quantity("context")
    one = Quantity(1, "tokens", symbol="S", formula="1", note="one new token a sequence")
    several = derive("1 + N", "tokens", symbol="S", N=draft)

    def cost(
        model: ModelSpec, new: Quantity, kept: StoredTensors | None, role: tuple[Role, ...]
    ) -> Any:
        work = Workload("decode", B=batch, S=new, C=context)
        return _cost(model, work, gpu, cache, kept, role)

    verification = cost(spec, several, stored, MODEL)
    module = cost(_one_module(spec, modules), one, None, MTP)
    drafting = _each(lambda name: derive("N*module", _UNITS[name], N=draft, module=module[name]))
    step = _each(
        lambda name: derive(
            "verification + drafting",
            _UNITS[name],
            verification=verification[name],
            drafting=drafting[name],
        )
    )
    accepted = derive("tokens_per_step(a, N)", "tokens", a=acceptance, N=draft)
    ours = _per_token(step, batch, accepted)
    plain = _per_token(cost(spec, one, stored, MODEL), batch, one)
    return {
        "draft": draft,
        "acceptance": acceptance,
        "modules": modules,
        "parameters": mtp,
        "tokens_per_step": accepted,
        "verification": verification,
        "drafting": drafting,
        "step": step,
        "per_token": ours,
        "per_token_without": plain,
        "speedup": {
            bound: derive("without/speculating", "", without=plain[bound], speculating=ours[bound])
            for bound in _BOUNDS
        },
    }


def _each(make: Any) -> dict[str, Quantity]:
    return {name: make(name) for name in _UNITS}


def _modules(spec: ModelSpec) -> Quantity | None:
    """MTP modules, each of one decoder layer, or None where the model has none."""
    counts = [(g.name, layer_count(g)) for g in spec.groups if g.role == "mtp" and g.is_layer]
    return total(counts, "modules") if counts else None


def _one_module(spec: ModelSpec, modules: Quantity) -> ModelSpec:
    """What one drafting pass runs: one module's layer (their mean), and what modules share."""
    groups = [
        replace(
            g,
            count=derive("per(layers, modules)", "layers", layers=layer_count(g), modules=modules),
        )
        if g.is_layer
        else g
        for g in spec.groups
        if g.role == "mtp"
    ]
    return replace(spec, groups=tuple(groups))


def _cost(
    spec: ModelSpec,
    work: Workload,
    gpu: Gpu,
    cache: str,
    stored: StoredTensors | None,
    roles: tuple[Role, ...],
) -> dict[str, Quantity]:
    """FLOPs, bytes and floor of one pass of the batch."""
    parts: Mapping[Any, Quantity] = forward_by_component(spec, work, roles)
    seconds = floor(spec, work, gpu, cache, stored, roles)
    moved = derive(
        "memory*bandwidth", "B", memory=seconds["memory"], bandwidth=gpu.memory_bandwidth
    )
    flops = total([(str(name), part) for name, part in parts.items()], "FLOP")
    return {"flops": flops, "bytes": moved, **{bound: seconds[bound] for bound in _BOUNDS}}


def _per_token(
    cost: Mapping[str, Quantity], batch: Quantity, tokens: Quantity
) -> dict[str, Quantity]:
    return _each(
        lambda name: derive(
            "per(step, B*tokens)",
            f"{_UNITS[name]}/token",
            step=cost[name],
            B=batch,
            tokens=tokens,
        )
    )
