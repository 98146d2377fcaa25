"""Curves over one setting.

Cache and FLOPs against context, all-to-all bytes against expert parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moeplan.estimation.estimate import Estimate
from moeplan.estimation.flops import forward
from moeplan.estimation.memory import kv_cache
from moeplan.estimation.scenario import Scenario
from moeplan.estimation.sections import exchange
from moeplan.model.workload import Workload
from moeplan.quantity import plain
from moeplan.report.compare import per_token
from moeplan.report.plots.sheet import Sheet, brief, few, log_axis, look, used
from moeplan.report.style import INK, model_style
from moeplan.units import fmt_bytes, fmt_flops

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CONTEXTS",
    "cache_curve",
    "decode_curve",
    "exchange_curve",
    "plot_all_to_all",
    "plot_context",
    "plot_kv_cache",
]

CONTEXTS = (1024, 1024 * 1024)  # first and last context of a plot against it, in tokens
_STEPS = 8  # points per doubling: a window's corner then looks like one


class Curve(NamedTuple):
    """Points of a curve: x, and y (for an exchange: in the node, and to other nodes)."""

    x: Any
    y: Any
    far: Any = None


# --------------------------------------------------------------------------------- cache
def cache_curve(e: Estimate) -> Curve:
    """Bytes of the batch's cache at each context, in one call of the fold with an array.

    The points include the estimate's own context and the model's own maximum, where they lie
    between the ends.
    """
    contexts = _contexts(e)
    stored, batch = e.tree["kv_cache"]["format"], e.scenario["batch"]
    found = kv_cache(e.spec, stored, batch, contexts)["bytes"].value
    return Curve(contexts, np.broadcast_to(np.asarray(found, dtype=np.float64), contexts.shape))


def _contexts(e: Estimate) -> Any:
    first, last = CONTEXTS
    doublings = int(np.log2(last / first))
    grid = np.round(first * 2.0 ** (np.arange(doublings * _STEPS + 1) / _STEPS))
    own = [plain(e.scenario["context"]), _most(e)]
    extra = [float(x) for x in own if x is not None and first <= x <= last]
    return np.unique(np.concatenate([grid, extra]))


def _most(e: Estimate) -> Any:
    """The longest context that the model's config names, or None."""
    return None if e.spec.max_context is None else plain(e.spec.max_context)


def plot_kv_cache(estimates: Sequence[Estimate]) -> Figure:
    """Cache of the batch against context, both logarithmic, against one GPU's memory."""
    with look():
        sheet = Sheet(estimates, 8.5, 4.6)
        ax = sheet.figure.subplots()
        lines = []
        for index, (name, e) in enumerate(zip(sheet.names, estimates, strict=True)):
            lines.append(_line(ax, name, e, cache_curve(e), index, len(estimates)))
        _context_axes(ax, fmt_bytes)
        ax.set_ylabel(f"cache of batch {used(estimates, 'batch')} (bytes)")
        _memory_lines(ax, estimates)
        if any(line is not None for line in _beyond(estimates)):
            lines.append(_beyond_key())
        return sheet.finish(
            "KV cache and state against context",
            _growth(sheet.names, estimates),
            f"Cache in {used(estimates, 'cache')}, batch {used(estimates, 'batch')}; windows, "
            "shared keys and values, and fixed states as each model has them.",
            lines,
        )


def _context_axes(ax: Axes, write: Callable[[float], str]) -> None:
    """Both axes logarithmic, context in powers of two."""
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlim(CONTEXTS[0], CONTEXTS[1])
    ax.xaxis.set_major_formatter(_tokens)
    ax.yaxis.set_major_formatter(lambda y, _: brief(write(y)))
    ax.set_xlabel("context (tokens of a sequence)")


def _line(ax: Axes, name: str, e: Estimate, curve: Curve, index: int, models: int) -> Artist:
    """A model's curve: whole up to its own maximum context, thin beyond."""
    style, most = model_style(index), _most(e)
    end = len(curve.x) if most is None else max(1, int(np.searchsorted(curve.x, most, "right")))
    # markers of different models stand at different places, so that equal curves both show
    every = (index * 2 * _STEPS // max(1, models), 2 * _STEPS)
    (line,) = ax.plot(
        curve.x[:end],
        curve.y[:end],
        color=style.colour,
        linestyle=style.dashes,
        marker=style.marker,
        markevery=every,
        label=name,
        gid=f"model {index}",
    )
    if end < len(curve.x):
        ax.plot(
            curve.x[end - 1 :],
            curve.y[end - 1 :],
            color=style.colour,
            linestyle=style.dashes,
            marker=style.marker,
            markersize=3,
            markevery=every,
            linewidth=0.7,
            gid=f"beyond {index}",
        )
    return line


def _beyond(estimates: Sequence[Estimate]) -> list[Any]:
    """Each model's own maximum context where that is below the plot's end."""
    mosts = [_most(e) for e in estimates]
    return [most if most is not None and most < CONTEXTS[1] else None for most in mosts]


def _beyond_key() -> Artist:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=INK, linewidth=0.7, label="thin: beyond the config's maximum")


def _tokens(x: float, _: Any = None) -> str:
    """Tokens in powers of two: 4K, 128K, 1M."""
    if x >= 1024 * 1024:
        return f"{x / 1024**2:g}M"
    return f"{x / 1024:g}K" if x >= 1024 else f"{x:g}"


def _memory_lines(ax: Axes, estimates: Sequence[Estimate]) -> None:
    """One line a GPU: its memory, where the curves come near it."""
    low, high = ax.get_ylim()
    every = {e.gpu.id: e.gpu.memory_bytes.value for e in estimates}
    near = sorted((held, gpu) for gpu, held in every.items() if held <= high * 3)
    for place, (held, gpu) in enumerate(near):
        ax.axhline(held, color=INK, linestyle=(0, (4, 2)), linewidth=1, gid=f"memory {gpu}")
        # names stand one after the other: GPUs of like memory have lines close together
        ax.annotate(
            f"memory of one {gpu}: {brief(fmt_bytes(held))}",
            (0.01 + 0.36 * (place % 3), held),
            (0, 3),
            xycoords=ax.get_yaxis_transform(),
            textcoords="offset points",
            size=8,
            color=INK,
        )
    ax.set_ylim(low, max(high, ax.get_ylim()[1]))


def _growth(names: Sequence[str], estimates: Sequence[Estimate]) -> str:
    """What a token adds, and what it adds once windows are full."""
    found = []
    for name, e in zip(names, estimates, strict=True):
        cache = e.tree["kv_cache"]
        now, later = (cache[k].value for k in ("bytes_per_token", "bytes_per_token_beyond_windows"))
        text = f"{name} {fmt_bytes(now)}"
        found.append((now, text if now == later else f"{text} ({fmt_bytes(later)} beyond windows)"))
    return f"A token adds: {few(found)}."


# -------------------------------------------------------------------------- FLOPs of decoding
def decode_curve(e: Estimate) -> Curve:
    """FLOPs of a decoded token at each context, in one call of the fold with an array."""
    contexts = _contexts(e)
    work = Workload("decode", B=1, S=1, C=contexts, mask=e.scenario["attention"])
    found = np.asarray(forward(e.spec, work), dtype=np.float64)
    return Curve(contexts, np.broadcast_to(found, contexts.shape))


def plot_context(estimates: Sequence[Estimate]) -> Figure:
    """FLOPs of a decoded token against context, both logarithmic."""
    with look():
        sheet = Sheet(estimates, 8.5, 4.6)
        ax = sheet.figure.subplots()
        curves = [decode_curve(e) for e in estimates]
        lines = [
            _line(ax, name, e, curve, index, len(estimates))
            for index, (name, e, curve) in enumerate(
                zip(sheet.names, estimates, curves, strict=True)
            )
        ]
        _context_axes(ax, fmt_flops)
        # a model that hardly grows must not look as if it did: two decades at least
        least, most = (float(f([f(c.y) for c in curves])) for f in (np.min, np.max))
        spare = max(1.3, (100 * least / most) ** 0.5)
        log_axis(ax.yaxis, [least, most], fmt_flops, margin=spare, most=6)
        ax.set_ylabel("forward FLOPs of a decoded token")
        if any(line is not None for line in _beyond(estimates)):
            lines.append(_beyond_key())
        return sheet.finish(
            "FLOPs of a decoded token against context",
            _dearer(sheet.names, curves),
            "One sequence, one new token; attention over all keys that a layer's window, chunk or "
            "selection leaves, recurrent layers by their state.",
            lines,
        )


def _dearer(names: Sequence[str], curves: Sequence[Curve]) -> str:
    """How many times dearer a token is at the longest context than at the shortest."""
    found = []
    for name, curve in zip(names, curves, strict=True):
        times = float(curve.y[-1] / curve.y[0])
        found.append((times, f"{name} {times:.3g} times"))
    first, last = (_tokens(x) for x in CONTEXTS)
    return f"From {first} to {last} tokens of context a decoded token gets dearer: {few(found)}."


# ---------------------------------------------------------------------------- all-to-all
def exchange_curve(e: Estimate) -> Curve | None:
    """Bytes a token sends at each ep that divides the experts and fits the node; None if dense.

    All MoE layers of a forward pass, dispatch and combine, in one call with an array.
    """
    moe = e.spec.moe
    if moe is None:
        return None
    experts, node = int(moe.values["E"]), int(e.scenario["node"])
    fitting = [n for n in range(1, experts + 1) if n % node == 0 or node % n == 0]
    degrees = np.array([n for n in fitting if experts % n == 0], dtype=np.float64)
    section = exchange(e.spec, Scenario({**e.scenario.given, "ep": degrees}), e.gpu)
    assert section is not None
    inside, outside = (np.broadcast_to(y, degrees.shape) for y in per_token(section))
    legal = np.isfinite(inside) & np.isfinite(outside)
    return Curve(degrees[legal], inside[legal], outside[legal])


def plot_all_to_all(estimates: Sequence[Estimate]) -> Figure:
    """Bytes a token sends against expert parallelism: in the node (solid), to others (dashed)."""
    with look():
        sheet = Sheet(estimates, 9.5, 4.2)
        near, far = sheet.figure.subplots(1, 2, sharex=True, sharey=True)
        curves = [exchange_curve(e) for e in estimates]
        most = max(max(c.y.max(), c.far.max()) for c in curves if c is not None)
        unit, word = (1e6, "MB") if most >= 1e6 else (1e3, "kB")
        lines: list[Artist] = []
        for index, (name, curve) in enumerate(zip(sheet.names, curves, strict=True)):
            if curve is None:
                continue
            style = model_style(index)
            how: dict[str, Any] = {"color": style.colour, "marker": style.marker, "label": name}
            # earlier models are larger, so that an equal curve shows around a later one
            how["markersize"] = 4.5 + min(4.5, 0.9 * (len(curves) - 1 - index))
            lines += near.plot(curve.x, curve.y / unit, linestyle="-", gid=f"same {index}", **how)
            far.plot(curve.x, curve.far / unit, linestyle="--", gid=f"other {index}", **how)
        for ax, title in ((near, "inside the node (solid)"), (far, "to other nodes (dashed)")):
            _ep_axis(ax, max(float(c.x.max()) for c in curves if c is not None))
            ax.set_title(title)
        near.set_ylabel(f"sent per token, forward, all MoE layers ({word})")
        dense = [n for n, c in zip(sheet.names, curves, strict=True) if c is None]
        not_shown = f" Dense, not shown: {', '.join(dense)}." if dense else ""
        return sheet.finish(
            "All-to-all bytes per token against expert parallelism",
            _sent(sheet.names, estimates),
            f"Dispatch in {used(estimates, 'dispatch')}, combine in {used(estimates, 'combine')}; "
            f"{used(estimates, 'policy')} policy, nodes of {used(estimates, 'node')} GPUs, "
            "balanced routing; degrees that divide the experts and fit the node. Rows forwarded "
            f"inside a node for other nodes count as inside.{not_shown}",
            lines,
        )


def _ep_axis(ax: Axes, most: float) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    ax.set_xscale("log", base=2)
    last = int(np.log2(most))
    ax.xaxis.set_major_locator(FixedLocator([2**i for i in range(0, last + 1, 1 + last // 10)]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.set_xlabel("expert parallelism (GPUs that share the experts)")
    ax.set_ylim(bottom=0)


def _sent(names: Sequence[str], estimates: Sequence[Estimate]) -> str:
    """What a token sends at each estimate's own degree."""
    found = []
    for name, e in zip(names, estimates, strict=True):
        section = e.tree["all_to_all"]
        if section is not None:
            inside, outside = per_token(section)
            text = f"{name} {fmt_bytes(inside)} inside and {fmt_bytes(outside)} to other nodes"
            found.append((inside + outside, f"{text} (ep {section['ep'].value:,})"))
    return f"A token sends: {few(found)}. One GPU alone sends nothing."
