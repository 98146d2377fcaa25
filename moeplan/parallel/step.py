"""A training step from its pieces: the deciding ranks, their memory, and the step's time.

Everything here is elementwise over layouts. `Looked` holds, for each piece and deciding rank, the
numbers that tables gave; a rank's figure is a sum over pieces of how often it holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moeplan.arrays import is_array, np
from moeplan.calc import add, calc, value
from moeplan.cluster.layout import Layout
from moeplan.cluster.network import Network, strides
from moeplan.estimation.memory import Optimizer
from moeplan.parallel.jobs import TrainingJob
from moeplan.parallel.memory import MEMORY_PARTS, owned, rank_memory
from moeplan.parallel.schedule import bubble
from moeplan.parallel.table import HIDDEN

__all__ = ["Looked", "StepInputs", "training_step"]

_LINKS = ("tp", "ep", "cp")


@dataclass(frozen=True)
class Looked:
    """Tables looked up for some layouts.

    column(name, piece): a number of COLUMNS. held, alive: by deciding rank, then piece (None where
    no layout has any). depth, rank: by deciding rank. count: of each piece in the whole model.
    """

    column: Callable[[str, int], Any]
    held: Sequence[Sequence[Any]]
    alive: Sequence[Sequence[Any]]
    depth: Sequence[Any]
    rank: Sequence[Any]
    count: Sequence[Any]
    names: Sequence[str]

    def over(self, vector: Sequence[Any], name: str, unit: str) -> Any:
        """Sum over pieces of a vector's number times a column."""
        parts = {}
        for k, times in enumerate(vector):
            if times is not None:
                each = self.column(name, k)
                parts[f"{self.names[k]}"] = calc("times*each", unit, times=times, each=each)
        return add(parts, unit)

    def largest(self, vector: Sequence[Any], name: str, unit: str) -> Any:
        """The largest of a column among the pieces that a rank holds."""
        parts = [
            calc("min(1, times)*each", unit, times=times, each=self.column(name, k))
            for k, times in enumerate(vector)
            if times is not None
        ]
        return _maximum(parts, unit)


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


def _maximum(parts: list[Any], unit: str) -> Any:
    if not parts:
        return 0
    names = [f"x{i}" for i in range(1, len(parts) + 1)]
    if len(parts) == 1:
        return parts[0]
    return calc(f"max({', '.join(names)})", unit, **dict(zip(names, parts, strict=True)))


def _argmax(parts: list[Any]) -> Any:
    """Which of the parts is the largest (the first of equal ones)."""
    bare = [value(p) for p in parts]
    if any(is_array(p) for p in bare):
        best, at = bare[0], np.zeros(np.broadcast(*bare).shape, dtype=np.int64)
        for i, part in enumerate(bare[1:], 1):
            more = part > best
            at = np.where(more, i, at)
            best = np.where(more, part, best)
        return at
    return bare.index(max(bare))


def _take(parts: Sequence[Any], at: Any) -> Any:
    """The part at an index, elementwise."""
    if not is_array(at):
        return parts[at]
    out = parts[0]
    for i, part in enumerate(parts[1:], 1):
        out = np.where(at == i, part, out)
    return out


def training_step(given: StepInputs, looked: Looked) -> dict[str, Any]:
    """Memory, times and bytes of a step; see the package's contract for the keys."""
    out: dict[str, Any] = {}
    groups = _groups(given)
    ranks = range(len(looked.held))
    state = [
        (looked.over(looked.held[c], "dense", "parameters"),
         looked.over(looked.held[c], "experts", "parameters"))
        for c in ranks
    ]  # fmt: skip
    _memory(given, looked, groups, state, out)
    _time(given, looked, groups, state, out)
    return out


def _groups(given: StepInputs) -> dict[str, Any]:
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
def _memory(
    given: StepInputs,
    looked: Looked,
    groups: dict[str, Any],
    state: list[tuple[Any, Any]],
    out: dict[str, Any],
) -> None:
    found = []
    for c, (dense, experts) in enumerate(state):
        in_flight = calc(
            "alive*min(m, depth)/depth",
            "B",
            alive=looked.over(looked.alive[c], "kept", "B"),
            m=given.v["m"],
            depth=looked.depth[c],
        )
        held = looked.held[c]
        layer = 0
        if np.any(value(given.v["zero"]) >= 3):
            layer = calc(
                "dense + experts",
                "parameters",
                dense=looked.largest(held, "dense", "parameters"),
                experts=looked.largest(held, "experts", "parameters"),
            )
        work = 0
        if given.layout.recompute != "none":
            work = looked.largest(held, "workspace", "B")
        parts = rank_memory(
            dense,
            experts,
            in_flight,
            work,
            looked.largest(held, "buffer", "B"),
            layer,
            zero=given.v["zero"],
            dense_group=groups["dense"],
            edp=groups["edp"],
            optimizer=given.optimizer,
            overheads=given.job.overheads,
        )
        found.append((add(dict(parts), "B"), parts))
    at = _argmax([total for total, _ in found])
    out["memory"] = _take([total for total, _ in found], at)
    for name in MEMORY_PARTS:
        out[f"memory_{name}"] = _take([parts[name] for _, parts in found], at)
    out["stage"] = _take(list(looked.rank), at)


# ----------------------------------------------------------------------------------------- time
def _time(
    given: StepInputs,
    looked: Looked,
    groups: dict[str, Any],
    state: list[tuple[Any, Any]],
    out: dict[str, Any],
) -> None:
    v, layout = given.v, given.layout
    # a DualPipe rank runs half of the microbatches through each of its two stages
    share = 0.5 if layout.schedule == "dualpipe" else 1
    shares: Any = [
        [n if n is None or share == 1 else calc("n/2", "", n=n) for n in vector]
        for vector in looked.held
    ]
    bounds = {}
    for name in ("lower", "time", "upper"):
        stages = [looked.over(vector, name, "s") for vector in shares]
        at = _argmax(stages)
        bounds[name] = (_maximum(stages, "s"), looked.over(looked.count, name, "s"), at)
    slowest, every, at = bounds["time"]
    picked = [_take([_or0(vector[k]) for vector in shares], at) for k in range(len(looked.count))]

    def of_slowest(name: str, unit: str = "s") -> Any:
        return looked.over(picked, name, unit)

    weights = of_slowest("wgrad")
    backward = of_slowest("backward")
    more = {
        "all_weights": looked.over(looked.count, "wgrad", "s"),
        "weights": weights,
        "backward": backward,
        "vpp": v["vpp"],
        "pp": v["pp"],
    }
    work = calc("m*slowest", "s", m=v["m"], slowest=slowest)
    waits = bubble(layout.schedule, all_stages=every, slowest=slowest, **more)
    for name in ("compute", "recompute", *_LINKS):
        part = of_slowest(name)
        out[f"time_{name}"] = calc("m*part", "s", m=v["m"], part=part)
    out["time_bubble"] = waits
    sends, all_sends, sent_pp = _pipeline(given, groups)
    out["time_pp"] = sends
    data, hidden, optimizer, sent_dp = _data_parallel(given, groups, state, slowest)
    out["time_dp"] = calc("data - hidden", "s", data=data, hidden=hidden)
    out["time_optimizer"] = optimizer
    tail = {"sends": sends, "data": out["time_dp"], "optimizer": optimizer}
    out["step"] = calc("work + bubble + sends + data + optimizer", "s", work=work, bubble=waits, **tail)
    low, low_every, _ = bounds["lower"]
    high, high_every, _ = bounds["upper"]
    out["step_lower"] = calc(
        "m*slowest + bubble", "s", m=v["m"], slowest=low,
        bubble=bubble(layout.schedule, all_stages=low_every, slowest=low, **more),
    )  # fmt: skip
    out["step_upper"] = calc(
        "m*slowest + bubble + sends + data + optimizer", "s", m=v["m"], slowest=high,
        bubble=bubble("1f1b" if layout.schedule != "interleaved" else "interleaved",
                      all_stages=high_every, slowest=high, **more),
        sends=all_sends, data=data, optimizer=optimizer,
    )  # fmt: skip
    for tier, name in (("up", "sent_scale_up"), ("out", "sent_scale_out")):
        out[name] = calc(
            "m*layers + pipeline + data", "B", m=v["m"], layers=of_slowest(tier, "B"),
            pipeline=sent_pp[tier], data=sent_dp[tier],
        )  # fmt: skip


def _or0(number: Any) -> Any:
    return 0 if number is None else number


def _pipeline(given: StepInputs, groups: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Seconds of sends between stages: exposed, without overlap; bytes a step by tier.

    The chain of sends that the first microbatch's forward and the last one's backward pass make is
    always waited for.
    """
    v, net = given.v, given.net
    tp = v["tp"] if given.layout.sp else 1
    size = calc(
        "2*microbatch*S*D/(cp*tp)", "B", microbatch=v["microbatch"], S=given.job.sequence,
        D=given.hidden, cp=v["cp"], tp=tp,
    )  # fmt: skip
    inside = groups["pp inside"]
    each = net.seconds("send", size, v["pp"], inside)
    hidden = HIDDEN[given.layout.overlap]["pp"]
    common = {"each": each, "m": v["m"], "vpp": v["vpp"], "pp": v["pp"]}
    chain = calc("2*(pp - 1)*each", "s", each=each, pp=v["pp"])
    free = calc("pick(pp > 1, 2*m*vpp*each, 0)", "s", **common)
    exposed = chain if hidden else calc("chain + free", "s", chain=chain, free=free)
    sent = calc("pick(pp > 1, 2*m*vpp*size, 0)", "B", pp=v["pp"], m=v["m"], vpp=v["vpp"], size=size)
    out = calc("pick(inside >= pp, 0, sent)", "B", inside=inside, pp=v["pp"], sent=sent)
    return (
        exposed,
        calc("chain + free", "s", chain=chain, free=free),
        {"out": out, "up": calc("sent - out", "B", sent=sent, out=out)},
    )


def _data_parallel(
    given: StepInputs, groups: dict[str, Any], state: list[tuple[Any, Any]], slowest: Any
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Seconds of gradients and parameters over data parallelism, how many of them are hidden,
    seconds of the optimizer, and bytes a step by tier; of the rank that takes longest.
    """
    v, o = given.v, given.optimizer
    zero, m = v["zero"], v["m"]
    reduces = calc("pick(zero >= 2, m, pick(zero >= 1, 1, 2))", "", zero=zero, m=m)
    gathers = calc("pick(zero >= 3, 2*m, pick(zero >= 1, 1, 0))", "", zero=zero, m=m)
    dense = _maximum([d for d, _ in state], "parameters")
    experts = _maximum([e for _, e in state], "parameters")
    seconds: dict[str, Any] = {}
    sent: dict[str, dict[str, Any]] = {"up": {}, "out": {}}
    for name, elements in (("dense", dense), ("edp", experts)):
        n, inside = groups[name], groups[f"{name} inside"]
        for what, op, each, times in (
            ("gradients", "reduce_scatter", o.gradients, reduces),
            ("parameters", "all_gather", o.weights, gathers),
        ):
            size = calc("each*elements", "B", each=each, elements=elements)
            one = given.net.seconds(op, size, n, inside)  # type: ignore[arg-type]
            bytes_ = given.net.sent(op, size, n)  # type: ignore[arg-type]
            key = f"{name} {what}"
            seconds[key] = calc("times*one", "s", times=times, one=one)
            sent["out"][key] = calc(
                "pick(inside >= n, 0, times*size/inside)", "B",
                inside=inside, n=n, times=times, size=bytes_,
            )  # fmt: skip
            sent["up"][key] = calc(
                "times*size - out", "B", times=times, size=bytes_, out=sent["out"][key]
            )
    data = add(seconds, "s")
    cover = calc("pick(zero >= 2, m, 1)*slowest", "s", zero=zero, m=m, slowest=slowest)
    hidden: Any = 0
    if HIDDEN[given.layout.overlap]["dp"]:
        hidden = calc("min(data, cover)", "s", data=data, cover=cover)
    kept = owned(dense, experts, zero, 1, groups["dense"], groups["edp"])
    optimizer = calc(
        "parameters*(2*state + gradients + weights)/bandwidth", "s", parameters=kept,
        state=o.main + o.moments, gradients=o.gradients, weights=o.weights,
        bandwidth=given.bandwidth,
    )  # fmt: skip
    return data, hidden, optimizer, {tier: add(parts, "B") for tier, parts in sent.items()}
