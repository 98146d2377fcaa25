"""Seconds of a piece in a microbatch from the sums of its rows and messages.

What follows here is not in proportion to a row: messages hide under compute as far as there is
some, and an exchange that hides takes multiprocessors from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeplan.calc import add, calc
from moeplan.cluster.layout import Layout
from moeplan.parallel.costs import HIDDEN
from moeplan.parallel.optime import Stack
from moeplan.parallel.traffic import Message
from moeplan.quantity import Quantity, Source

__all__ = ["GROUPS", "WAYS", "bytes_sent", "message_seconds", "piece_times"]

GROUPS: dict[str, tuple[str, ...]] = {"tp": ("tp", "etp"), "ep": ("ep",), "cp": ("cp",)}
"""Whose messages count as tensor, expert and context parallel."""

WAYS = ("forward", "backward")

_TAKEN = Quantity.given(
    20 / 132, "", "taken", Source("assumed", "20 of 132 multiprocessors send (arXiv 2412.19437)")
)


def message_seconds(
    sent: list[Message], groups: tuple[str, ...], figure: str, way: str
) -> dict[str, Any]:
    """Seconds of the messages of some groups, one way."""
    parts = {}
    for i, message in enumerate(sent):
        times = getattr(message, way)
        if message.group in groups and not (isinstance(times, int) and times == 0):
            seconds = getattr(message, figure)
            name = f"{message.group} {message.op} {i}"
            parts[name] = calc("times*seconds", "s", times=times, seconds=seconds)
    return parts


def bytes_sent(sent: list[Message], tier: str, full: bool) -> dict[str, Any]:
    """Bytes of each message over a link tier. full: the forward pass runs twice."""
    return {
        f"{message.group} {message.op} {i}": calc(
            "(times*forward + backward)*size",
            "B",
            times=2 if full else 1,
            forward=message.forward,
            backward=message.backward,
            size=getattr(message, tier),
        )
        for i, message in enumerate(sent)
    }


def piece_times(
    sums: Mapping[str, Any], layout: Layout, stack: Stack, moes: int, *, explained: bool
) -> dict[str, Any]:
    """The seconds among COLUMNS of `moeplan.parallel.costs`.

    sums: seconds of rows by the names of `RowCost`'s fields, and of each group of GROUPS both WAYS;
    `group` is the size of the exchange's group, where there is one. moes: MoE layers in the piece.
    With `slow`, rows at the slow end of their bands, the bounds are there too.
    """
    names = ("forward", "again", "input_gradient", "weight_gradient")
    slowed = _slowdown(sums.get("group"), layout, explained)
    forward, again, inputs, wgrad = (slowed(sums[name]) for name in names)
    backward = calc("inputs + weights", "s", inputs=inputs, weights=wgrad)
    f, b = ({x: sums[f"{x} {way}"] for x in GROUPS} for way in WAYS)
    if layout.recompute == "full":  # the forward pass again, messages included
        b = {x: calc("back + again", "s", back=b[x], again=f[x]) for x in b}
    exposed = _exposed(layout, f, b, forward, calc("b + r", "s", b=backward, r=again))
    compute = calc("forward + backward", "s", forward=forward, backward=backward)
    work = calc("compute + again", "s", compute=compute, again=again)
    parts = {x: calc("f + b", "s", f=exposed[x][0], b=exposed[x][1]) for x in GROUPS}
    back = add({x: exposed[x][1] for x in GROUPS}, "s")
    out = {
        "time": calc("work + tp + ep + cp", "s", work=work, **parts),
        "backward": calc("backward + again + sent", "s", backward=backward, again=again, sent=back),
        "wgrad": wgrad,
        "compute": compute,
        "recompute": again,
        **parts,
    }
    if "slow" in sums:
        least, most = slowed(sums["fast"]), slowed(sums["slow"])
        out["lower"] = calc("max(work, sent)", "s", work=least, sent=sums["least sent"])
        out["upper"] = calc("work + sent", "s", work=most, sent=sums["most sent"])
    _wait(out, stack, moes, explained)
    return out


def _wait(n: dict[str, Any], stack: Stack, moes: int, explained: bool) -> None:
    """What a fitted stack adds to its kernels' time: gaps, and the host's part."""
    if stack.busy == 1 and not stack.host:
        return
    source = Source("assumed", f"stack {stack.name}: {stack.source}")
    busy = Quantity.given(stack.busy, "", "busy", source)
    host = Quantity.given(moes * stack.host, "s", "host", source)
    if not explained:
        busy, host = busy.value, host.value
    shares = {"compute": "1", "backward": "2/3"}
    for name in ("compute", "backward", "recompute", "wgrad"):
        more = f" + {shares[name]}*host" if name in shares else ""
        given = {"host": host} if more else {}
        n[name] = calc(f"seconds/busy{more}", "s", seconds=n[name], busy=busy, **given)
    n["time"] = add({name: n[name] for name in ("compute", "recompute", *GROUPS)}, "s")
    if "upper" in n:
        n["upper"] = calc("seconds/busy + host", "s", seconds=n["upper"], busy=busy, host=host)


def _slowdown(group: Any, layout: Layout, explained: bool) -> Any:
    """What becomes of compute beside a hidden exchange, which needs multiprocessors of its own."""
    if group is None or not HIDDEN[layout.overlap]["ep"]:
        return lambda seconds: seconds
    taken: Any = _TAKEN if explained else _TAKEN.value
    formula = "pick(n > 1, seconds/(1 - taken), seconds)"
    return lambda seconds: calc(formula, "s", n=group, seconds=seconds, taken=taken)


def _exposed(
    layout: Layout, f: dict[str, Any], b: dict[str, Any], forward: Any, backward: Any
) -> dict[str, tuple[Any, Any]]:
    """Seconds of each group's messages that compute does not cover, forward and backward."""
    hidden = HIDDEN[layout.overlap]
    if not any(hidden[x] for x in f):
        return {x: (f[x], b[x]) for x in f}
    covers = []
    joint = layout.overlap == "dualpipe"
    both = calc("forward + backward", "s", forward=forward, backward=backward)
    for side, compute in ((f, forward), (b, backward)):
        wanted = {x: side[x] for x in f if hidden[x]}
        if joint:
            wanted = {f"{x} {i}": way[x] for x in f if hidden[x] for i, way in enumerate((f, b))}
            compute = both
        covers.append(
            calc("min(1, compute/max(hidden, 1e-30))", "", compute=compute, hidden=add(wanted, "s"))
        )
    return {
        x: tuple(
            calc("seconds*(1 - cover)", "s", seconds=side[x], cover=cover) if hidden[x] else side[x]
            for side, cover in zip((f, b), covers, strict=True)
        )
        for x in f
    }
