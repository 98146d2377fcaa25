"""Stacked bars: FLOPs of a token by component, memory by part against the GPU's capacity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from moeplan.estimation.estimate import Estimate
from moeplan.report.plots.sheet import Sheet, few, look, used
from moeplan.report.style import INK, PART_STYLES
from moeplan.units import fmt_bytes, fmt_flops

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

__all__ = ["flops_parts", "memory_parts", "plot_flops", "plot_memory", "training_parts"]

Parts = Mapping[str, float]
_TRAINING = ("weights", "gradients", "main_parameters", "moments")


def flops_parts(e: Estimate) -> dict[str, float]:
    """FLOPs of one token's forward pass by component, at the scenario's context."""
    return {name: part.value for name, part in e.tree["flops"]["by_component"].items()}


def memory_parts(e: Estimate) -> dict[str, float]:
    """Bytes that serving holds: weights as stored by component, and the cache of the batch."""
    weights = {n: part.value for n, part in e.tree["memory"]["weights_by_component"].items()}
    return {**weights, "kv_cache": e.tree["kv_cache"]["bytes"].value}


def training_parts(e: Estimate) -> dict[str, float]:
    """Bytes of the training state: weights, gradients, main parameters, moments."""
    return {name: e.tree["memory"]["training"][name].value for name in _TRAINING}


def plot_flops(estimates: Sequence[Estimate]) -> Figure:
    """FLOPs of a token's forward pass by component, in all and as shares, a bar for each model."""
    with look():
        sheet = Sheet(estimates, 10, _height(len(estimates)))
        left, right = sheet.figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        parts = [flops_parts(e) for e in estimates]
        _, word = _sums(left, sheet.names, parts, "FLOP", fmt_flops)
        left.set_xlabel(f"forward FLOPs per token ({word})")
        _shares(right, sheet.names, parts)
        right.set_xlabel("share of the model's FLOPs (%)")
        return sheet.finish(
            "Forward FLOPs per token by component",
            _largest(sheet.names, parts),
            f"Context {used(estimates, 'context')} tokens, {used(estimates, 'attention')} "
            "attention, mean over the sequence; 2 FLOPs a multiply-add; norms and activations are "
            "not counted.",
            _keys(parts),
        )


def plot_memory(estimates: Sequence[Estimate]) -> Figure:
    """Memory of serving and of training state by part, against the capacity of whole GPUs."""
    with look():
        sheet = Sheet(estimates, 10, _height(len(estimates)) + 0.3)
        left, right = sheet.figure.subplots(1, 2, sharey=True)
        serving = [memory_parts(e) for e in estimates]
        training = [training_parts(e) for e in estimates]
        for ax, parts, what in (
            (left, serving, "serving: weights and cache"),
            (right, training, "training state"),
        ):
            unit, word = _sums(ax, sheet.names, parts, "B", fmt_bytes)
            ax.set_xlabel(f"{what} ({word})")
            _capacity(ax, estimates, unit, word)
        return sheet.finish(
            "Memory by part, against the GPU's capacity",
            _fits(sheet.names, estimates),
            f"Cache of batch {used(estimates, 'batch')} x {used(estimates, 'context')} tokens in "
            f"{used(estimates, 'cache')}; weights as stored; training state "
            f"{used(estimates, 'optimizer')} of all parameters, undivided, without activations. "
            "Dashed: what whole GPUs hold.",
            _keys(serving + training),
        )


def _sums(
    ax: Axes, names: Sequence[str], parts: Sequence[Parts], unit: str, write: Callable[[float], str]
) -> tuple[float, str]:
    """Stacked bars with their sums at the ends; returns the axis's unit as a number and a word."""
    sums = [sum(p.values()) for p in parts]
    size, word = _scale(max(sums), unit)
    _stack(ax, names, [{k: v / size for k, v in p.items()} for p in parts])
    _end_labels(ax, [s / size for s in sums], [write(s) for s in sums])
    return size, word


def _height(bars: int) -> float:
    return 1.0 + 0.42 * bars


def _scale(most: float, unit: str) -> tuple[float, str]:
    """A power of 1000 that suits the largest value, with the unit's name."""
    step = 0
    while step < 8 and most >= 1000 ** (step + 1):
        step += 1
    return float(1000**step), f"{' kMGTPEZ'[step].strip()}{unit}"


def _stack(ax: Axes, names: Sequence[str], parts: Sequence[Parts]) -> None:
    """One horizontal bar a model, its parts from left to right in their usual order."""
    places = range(len(names))
    start = [0.0] * len(names)
    for key, style in PART_STYLES.items():
        widths = [float(p.get(key, 0.0)) for p in parts]
        if any(widths):
            ax.barh(
                places,
                widths,
                left=start,
                height=0.62,
                color=style.colour,
                hatch=style.hatch,
                edgecolor="#222222",
                linewidth=0.4,
                gid=key,
            )
            start = [s + w for s, w in zip(start, widths, strict=True)]
    ax.set_yticks(list(places), names)
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)


def _end_labels(ax: Axes, ends: Sequence[float], texts: Sequence[str]) -> None:
    """The sum at the end of each bar, with room for it."""
    ax.set_xlim(0, max(ends) * 1.24)
    for place, (end, text) in enumerate(zip(ends, texts, strict=True)):
        ax.annotate(
            text, (end, place), (4, 0), textcoords="offset points", va="center", size=8.5,
            zorder=5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


def _shares(ax: Axes, names: Sequence[str], parts: Sequence[Parts]) -> None:
    """The same bars as shares of each sum; parts of 7 % and more say theirs."""
    shares = [{k: 100 * v / sum(p.values()) for k, v in p.items()} for p in parts]
    _stack(ax, names, shares)
    ax.set_xlim(0, 100)
    for place, share in enumerate(shares):
        start = 0.0
        for key in PART_STYLES:
            wide = share.get(key, 0.0)
            if wide >= 7:
                ax.text(
                    start + wide / 2, place, f"{wide:.0f}", ha="center", va="center", size=8,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.9},
                )  # fmt: skip
            start += wide


def _keys(parts: Sequence[Parts]) -> list[Patch]:
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=s.colour, hatch=s.hatch, edgecolor="#222222", linewidth=0.4, label=s.label)
        for key, s in PART_STYLES.items()
        if any(p.get(key) for p in parts)
    ]


def _largest(names: Sequence[str], parts: Sequence[Parts]) -> str:
    """Which component takes most of each model's FLOPs."""
    found: dict[str, list[str]] = {}
    for name, part in zip(names, parts, strict=True):
        key = max(part, key=lambda k: part[k])
        share = part[key] / sum(part.values())
        found.setdefault(PART_STYLES[key].label, []).append(f"{name} ({share:.0%})")
    said = "; ".join(f"{part} in {', '.join(models)}" for part, models in found.items())
    return f"Largest part: {said}."


def _capacity(ax: Axes, estimates: Sequence[Estimate], unit: float, word: str) -> None:
    """Dashed lines at 1, 2, 4, ... GPUs: the last few on the axis, which have room for names."""
    held = {e.gpu.id: e.gpu.memory_bytes.value / unit for e in estimates}
    gpu, one = max(held.items(), key=lambda item: item[1])
    most = ax.get_xlim()[1]
    if one > most * 6:
        ax.text(
            1, 1.01, f"one {gpu} holds {one:,.4g} {word}: off the axis", transform=ax.transAxes,
            ha="right", va="bottom", size=8, color=INK,
        )  # fmt: skip
        return
    ax.set_xlim(0, max(most, one * 1.08))
    counts = [2**i for i in range(40) if 2**i * one <= ax.get_xlim()[1]][-3:]
    for count in counts:
        ax.axvline(count * one, color=INK, linestyle=(0, (4, 2)), linewidth=1, zorder=3)
        text = f"{count:,} {gpu}" if count == counts[-1] or count == 1 else f"{count:,}"
        ax.text(
            count * one, 1.01, text, transform=ax.get_xaxis_transform(), ha="center", va="bottom",
            size=8, color=INK,
        )  # fmt: skip


def _fits(names: Sequence[str], estimates: Sequence[Estimate]) -> str:
    """How many GPUs weights and cache need at least."""
    found = []
    for name, e in zip(names, estimates, strict=True):
        count = e.tree["memory"]["serving"]["gpus_at_least"].value
        found.append((count, f"{name} {count:,} x {e.gpu.id}"))
    return f"Weights and cache need at least: {few(found)}."
