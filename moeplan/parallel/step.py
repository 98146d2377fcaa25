"""A training step from its ranks: memory of the most loaded one, and the time of the step.

Everything here is elementwise over layouts; `moeplan.parallel.ranksums` says what a rank holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from moeplan.arrays import is_array
from moeplan.calc import add, calc, value
from moeplan.cluster.layout import Layout, Schedule
from moeplan.cluster.network import Collective, Network, strides
from moeplan.estimation.memory import Optimizer
from moeplan.parallel.costs import HIDDEN
from moeplan.parallel.jobs import TrainingJob
from moeplan.parallel.memory import MEMORY_PARTS, owned, rank_memory
from moeplan.parallel.ranksums import RankSums, argmax, take
from moeplan.parallel.schedule import bubble
from moeplan.parallel.traffic import Message, collective

__all__ = [
    "DataTime",
    "StateBytes",
    "StepInputs",
    "StepTime",
    "data_groups",
    "data_messages",
    "data_time",
    "in_flight",
    "pipeline_messages",
    "resting_bytes",
    "state_bytes",
    "step_memory",
    "step_time",
    "training_step",
]

_LINKS = ("tp", "ep", "cp")
_BUBBLE_SUMS = {"all_weights": "all_wgrad", "weights": "wgrad", "backward": "backward"}


@dataclass(frozen=True)
class StepInputs:
    """A layout's numbers (bare, arrays or quantities) and what it runs on."""

    v: dict[str, Any]
    layout: Layout
    job: TrainingJob
    net: Network
    optimizer: Optimizer
    bandwidth: Any
    hidden: Any


def training_step(given: StepInputs, sums: RankSums) -> dict[str, Any]:
    """Memory, times and bytes of a step; see the package's contract for the keys."""
    out: dict[str, Any] = {}
    groups = data_groups(given)
    step_memory(given, sums, groups, out)
    _time(given, sums, groups, out)
    return out


def data_groups(given: StepInputs) -> dict[str, Any]:
    """Sizes of the data-parallel groups, and how they lie in domains."""
    v, net = given.v, given.net
    dense = calc("cp*dp", "", cp=v["cp"], dp=v["dp"])
    at = strides(given.layout.order, {name: value(x) for name, x in v.items()})
    return {
        "dense": dense,
        "edp": v["edp"],
        "dense inside": net.inside(dense, at["dense"]),
        "edp inside": net.inside(v["edp"], at["edp"]),
        "pp inside": net.inside(v["pp"], at["pp"]),
    }


# --------------------------------------------------------------------------------------- memory
def step_memory(
    given: StepInputs, sums: RankSums, groups: dict[str, Any], out: dict[str, Any]
) -> None:
    """The parts of memory of the most loaded rank, their sum, and which rank it is."""
    at: Any = 0
    if sums.count > 1:
        state = state_bytes(given, groups)
        at = argmax([_used_bytes(given, sums, c, state) for c in range(sums.count)])
    picked = {
        name: take([sums[name, c] for c in range(sums.count)], at)
        for name in ("dense", "experts", "work", "buffer", "layer")
    }
    alive = take([in_flight(given, sums, c) for c in range(sums.count)], at)
    parts = rank_memory(
        picked["dense"],
        picked["experts"],
        alive,
        picked["work"],
        picked["buffer"],
        picked["layer"],
        zero=given.v["zero"],
        dense_group=groups["dense"],
        edp=groups["edp"],
        optimizer=given.optimizer,
        overheads=given.job.overheads,
    )
    out["memory"] = add(dict(parts), "B")
    for name in MEMORY_PARTS:
        out[f"memory_{name}"] = parts[name]
    out["stage"] = take([sums["rank", c] for c in range(sums.count)], at)


def in_flight(given: StepInputs, sums: RankSums, c: int) -> Any:
    """Bytes of activations that a deciding rank keeps for its backward passes."""
    return calc(
        "per(alive*min(m, depth), depth)",
        "B",
        alive=sums["kept", c],
        m=given.v["m"],
        depth=sums["depth", c],
    )


class StateBytes(NamedTuple):
    """Bytes a parameter on a GPU: of dense tensors, of experts, and of a layer that is whole."""

    dense: Any
    experts: Any
    whole: Any


def state_bytes(given: StepInputs, groups: dict[str, Any]) -> StateBytes:
    """What ZeRO leaves of a parameter's state, where it is copied over each of the two groups."""
    zero, o = value(given.v["zero"]), given.optimizer
    each = {1: o.main + o.moments, 2: o.gradients, 3: o.weights}
    bytes_of = []
    for group in ("dense", "edp"):
        n, size = value(groups[group]), 0
        for least, bytes_ in each.items():
            size = size + bytes_ * calc(f"pick(zero >= {least}, 1/n, 1)", zero=zero, n=n)
        bytes_of.append(size)
    formula = "pick(zero >= 3, 2*weights, 0) + pick(zero >= 2, gradients, 0)"
    whole = calc(formula, zero=zero, weights=o.weights, gradients=o.gradients)
    return StateBytes(bytes_of[0], bytes_of[1], whole)


def resting_bytes(sums: RankSums, c: int, state: StateBytes) -> Any:
    """Bytes of a deciding rank besides `in_flight`, before overheads, which are in proportion."""
    dense, experts, work, buffer, layer = (
        value(sums[name, c]) for name in ("dense", "experts", "work", "buffer", "layer")
    )
    out = dense * state.dense + experts * state.experts + (work + buffer)
    return out + state.whole * layer if is_array(layer) or layer else out


def _used_bytes(given: StepInputs, sums: RankSums, c: int, state: StateBytes) -> Any:
    return resting_bytes(sums, c, state) + value(in_flight(given, sums, c))


# ----------------------------------------------------------------------------------------- time
class DataTime(NamedTuple):
    """Seconds a step of data-parallel messages, of those that compute does not hide, and of the
    optimizer; bytes of the messages by tier.
    """

    seconds: Any
    exposed: Any
    optimizer: Any
    sent: dict[str, Any]


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step and its parts; `all_sends` before any overlap.

    bubble_inputs: what the schedule's formula takes besides stages. sent: bytes of messages between
    stages, by tier.
    """

    step: Any
    bubble: Any
    sends: Any
    all_sends: Any
    data: DataTime
    bubble_inputs: dict[str, Any]
    sent: dict[str, Any]


def step_time(
    given: StepInputs,
    sums: RankSums,
    groups: dict[str, Any],
    *,
    sent: bool = True,
    data: DataTime | None = None,
) -> StepTime:
    """The expected seconds of a step. sent: count bytes by tier too. data: `data_time` of the
    same, where it is known.
    """
    v = given.v
    slowest = sums["time"]
    more = {"vpp": v["vpp"], "pp": v["pp"]}
    if given.layout.schedule in ("zero-bubble", "dualpipe"):
        more |= {name: sums[name_] for name, name_ in _BUBBLE_SUMS.items()}
    work = calc("m*slowest", "s", m=v["m"], slowest=slowest)
    waits = bubble(given.layout.schedule, all_stages=sums["all_time"], slowest=slowest, **more)
    sends, all_sends, sent_pp = _pipeline(given, groups, sent=sent)
    if data is None:
        data = data_time(given, groups, sums, sent=sent)
    step = calc(
        "work + bubble + sends + data + optimizer", "s", work=work, bubble=waits, sends=sends,
        data=data.exposed, optimizer=data.optimizer,
    )  # fmt: skip
    return StepTime(step, waits, sends, all_sends, data, more, sent_pp)


def _time(given: StepInputs, sums: RankSums, groups: dict[str, Any], out: dict[str, Any]) -> None:
    v, layout = given.v, given.layout
    t = step_time(given, sums, groups)
    for name in ("compute", "recompute", *_LINKS):
        out[f"time_{name}"] = calc("m*part", "s", m=v["m"], part=sums[name])
    out["time_bubble"], out["time_pp"], out["time_dp"] = t.bubble, t.sends, t.data.exposed
    out["dp_seconds"] = t.data.seconds
    out["time_optimizer"], out["step"] = t.data.optimizer, t.step
    low, high = sums["lower"], sums["upper"]
    out["step_lower"] = calc(
        "m*slowest + bubble", "s", m=v["m"], slowest=low,
        bubble=bubble(layout.schedule, all_stages=sums["all_lower"], slowest=low,
                      **t.bubble_inputs),
    )  # fmt: skip
    serial: Schedule = "interleaved" if layout.schedule == "interleaved" else "1f1b"
    out["step_upper"] = calc(
        "m*slowest + bubble + sends + data + optimizer", "s", m=v["m"], slowest=high,
        bubble=bubble(serial, all_stages=sums["all_upper"], slowest=high, **t.bubble_inputs),
        sends=t.all_sends, data=t.data.seconds, optimizer=t.data.optimizer,
    )  # fmt: skip
    for tier, name in (("up", "sent_scale_up"), ("out", "sent_scale_out")):
        out[name] = calc(
            "m*layers + pipeline + data", "B", m=v["m"], layers=sums[tier],
            pipeline=t.sent[tier], data=t.data.sent[tier],
        )  # fmt: skip


def pipeline_messages(
    given: StepInputs, groups: dict[str, Any], *, tiers: bool = True
) -> list[Message]:
    """Activations to the next stage and gradients back, of all chunks and microbatches."""
    v = given.v
    size = calc(
        "2*microbatch*S*D/(cp*tp)",
        "B",
        microbatch=v["microbatch"],
        S=given.job.sequence,
        D=given.hidden,
        cp=v["cp"],
        tp=v["tp"] if given.layout.sp else 1,
    )
    times = calc("pick(pp > 1, m*vpp, 0)", "", pp=v["pp"], m=v["m"], vpp=v["vpp"])
    inside = groups["pp inside"]
    return [collective(given.net, "send", "pp", size, v["pp"], inside, times, times, tiers=tiers)]


def _pipeline(
    given: StepInputs, groups: dict[str, Any], *, sent: bool
) -> tuple[Any, Any, dict[str, Any]]:
    """Seconds of sends between stages: exposed, without overlap; bytes a step by tier.

    The chain of sends that the first microbatch's forward and the last one's backward pass make is
    always waited for.
    """
    v = given.v
    (send,) = pipeline_messages(given, groups, tiers=sent)
    chain = calc("2*(pp - 1)*each", "s", each=send.seconds, pp=v["pp"])
    free = calc("2*times*each", "s", times=send.forward, each=send.seconds)
    both = calc("chain + free", "s", chain=chain, free=free)
    exposed = chain if HIDDEN[given.layout.overlap]["pp"] else both
    by_tier = {
        tier: calc("2*times*size", "B", times=send.forward, size=getattr(send, tier))
        for tier in (("up", "out") if sent else ())
    }
    return exposed, both, by_tier


def data_messages(
    given: StepInputs, groups: dict[str, Any], sums: RankSums, *, tiers: bool = True
) -> list[Message]:
    """Gradients and parameters over data parallelism, with their times a step, of the rank that
    holds most. Without ZeRO gradients are all-reduced: reduce-scattered and gathered.
    """
    v, o = given.v, given.optimizer
    zero, m = v["zero"], v["m"]
    reduces = calc("pick(zero >= 2, m, pick(zero >= 1, 1, 2))", "", zero=zero, m=m)
    gathers = calc("pick(zero >= 3, 2*m, pick(zero >= 1, 1, 0))", "", zero=zero, m=m)
    kinds: tuple[tuple[Collective, int, Any], ...] = (
        ("reduce_scatter", o.gradients, reduces),
        ("all_gather", o.weights, gathers),
    )
    out = []
    for group, held in (("dense", "most_dense"), ("edp", "most_experts")):
        for op, each, times in kinds:
            size = calc("each*elements", "B", each=each, elements=sums[held])
            n, inside = groups[group], groups[f"{group} inside"]
            message = collective(given.net, op, group, size, n, inside, times, 0, tiers=tiers)
            out.append(message)
    return out


def data_time(given: StepInputs, groups: dict[str, Any], sums: RankSums, *, sent: bool) -> DataTime:
    """What data parallelism and the optimizer take. sent: count bytes by tier too."""
    v, o = given.v, given.optimizer
    found = {f"{x.group} {x.op}": x for x in data_messages(given, groups, sums, tiers=sent)}

    def summed(figure: str, unit: str) -> Any:
        parts = {
            name: calc("times*one", unit, times=x.forward, one=getattr(x, figure))
            for name, x in found.items()
        }
        return add(parts, unit)

    data = summed("seconds", "s")
    cover = calc(
        "pick(zero >= 2, m, 1)*slowest", "s", zero=v["zero"], m=v["m"], slowest=sums["time"]
    )
    hidden: Any = 0
    if HIDDEN[given.layout.overlap]["dp"]:
        hidden = calc("min(data, cover)", "s", data=data, cover=cover)
    dense, experts = sums["most_dense"], sums["most_experts"]
    kept = owned(dense, experts, v["zero"], 1, groups["dense"], groups["edp"])
    optimizer = calc(
        "parameters*(2*state + gradients + weights)/bandwidth",
        "s",
        parameters=kept,
        state=o.main + o.moments,
        gradients=o.gradients,
        weights=o.weights,
        bandwidth=given.bandwidth,
    )
    by_tier = {tier: summed(tier, "B") for tier in (("up", "out") if sent else ())}
    exposed = calc("data - hidden", "s", data=data, hidden=hidden)
    return DataTime(data, exposed, optimizer, by_tier)
