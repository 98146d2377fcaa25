"""The GPU's roofline with the operations of prefill and decoding on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from moeplan.cluster.hardware import Gpu
from moeplan.estimation.estimate import Estimate
from moeplan.model.ops import COMPONENTS
from moeplan.report.plots.sheet import Sheet, brief, few, log_axis, look, used
from moeplan.report.style import COMPONENT_STYLES, INK
from moeplan.units import fmt_rate

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Point", "plot_roofline", "roof_points"]

PHASES = ("prefill", "decode")
_ACROSS = 4  # panels side by side
_EDGE = "#222222"


@dataclass(frozen=True)
class Point:
    """An operation in all layers: FLOPs per byte, FLOP/s at the roof, peak of its format.

    share: of the seconds of its phase's row-by-row floor. memory_bound: whether bytes decide.
    """

    op: str
    component: str
    intensity: float
    attainable: float
    peak: float
    share: float
    memory_bound: bool


_Phases: TypeAlias = Mapping[str, Sequence[Point]]


def roof_points(e: Estimate, phase: str) -> list[Point]:
    """The operations of a phase that have FLOPs; those of equal name are taken together."""
    sums: dict[tuple[str, str], list[float]] = {}
    whole = 0.0
    for row in e[f"time.{phase}.rows"]:
        layers = row["layers"].value
        numbers = [layers * row[k].value for k in ("flops", "bytes", "compute", "memory", "lower")]
        whole += numbers[-1]
        if numbers[0]:
            name = row["component"], row["op"]
            known = sums.get(name, [0.0] * len(numbers))
            sums[name] = [a + b for a, b in zip(known, numbers, strict=True)]
    return [
        Point(
            op,
            component,
            intensity=flops / moved,
            attainable=flops / lower,
            peak=flops / compute,
            share=lower / whole,
            memory_bound=memory > compute,
        )
        for (component, op), (flops, moved, compute, memory, lower) in sums.items()
    ]


def plot_roofline(estimates: Sequence[Estimate]) -> Figure:
    """A panel for each model: the roof above, below it the same operations by component."""
    with look():
        deep = math.ceil(len(estimates) / _ACROSS)
        across = math.ceil(len(estimates) / deep)
        sheet = Sheet(estimates, 2.4 + 2.7 * max(2, across), 4.7 * deep)
        axes = sheet.figure.subplots(
            2 * deep, across, squeeze=False, sharex=True, sharey="row", height_ratios=(5, 3) * deep
        )
        points = [{phase: roof_points(e, phase) for phase in PHASES} for e in estimates]
        every = [p for phases in points for found in phases.values() for p in found]
        seen = [c for c in COMPONENTS if any(p.component == c for p in every)]
        for place in range(deep * across):
            row, column = 2 * (place // across), place % across
            if place >= len(estimates):
                axes[row, column].remove()
                axes[row + 1, column].remove()
                continue
            _limits(axes[row, column], every)
            _roof(axes[row, column], points[place], estimates[place].gpu)
            axes[row, column].set_title(sheet.names[place])
            _strip(axes[row + 1, column], points[place], seen)
            axes[row + 1, column].set_xlabel("FLOPs per byte moved")
            axes[row + 1, column].tick_params(labelbottom=True)
            if column == 0:
                axes[row, 0].set_ylabel("attainable FLOP/s")
        return sheet.finish(
            "Operations on the GPU's roofline, prefill and decoding",
            _bound(sheet.names, points),
            f"Batch {used(estimates, 'batch')}, context {used(estimates, 'context')} tokens; "
            f"weights as stored, cache in {used(estimates, 'cache')}; datasheet rates. Marker "
            "area: share of the phase's floor. Operations without FLOPs (norms, look-ups, "
            "permutation) are not drawn.",
            _keys(seen),
        )


def _limits(ax: Axes, points: Sequence[Point]) -> None:
    log_axis(ax.xaxis, [p.intensity for p in points], lambda x: f"{x:,g}", margin=2.5, most=5)
    heights = [*(p.attainable for p in points), *(p.peak for p in points)]
    log_axis(ax.yaxis, heights, lambda y: fmt_rate(y, "FLOP"), margin=2.5, most=6)


def _roof(ax: Axes, phases: _Phases, gpu: Gpu) -> None:
    """The roof of each number format in use, and the operations at the height it allows them."""
    left, right = ax.get_xlim()
    bandwidth = gpu.memory_bandwidth.value
    peaks = sorted({_format(gpu, p.peak) for found in phases.values() for p in found})
    top = max(peak for peak, _ in peaks)
    roof: dict[str, Any] = {"color": INK, "linewidth": 1.2}
    ax.plot([left, top / bandwidth], [left * bandwidth, top], gid="bandwidth", **roof)
    for peak, name in peaks:
        ridge = peak / bandwidth
        ax.plot([ridge, right], [peak, peak], gid=f"peak {name}", **roof)
        ax.plot([left, ridge], [peak, peak], color=INK, linewidth=0.7, linestyle=":")
        text = f"{name} {peak / 1e12:,.4g} TFLOP/s"
        ax.annotate(text, (left, peak), (3, 2), textcoords="offset points", size=7.5)
    text = f"{gpu.id}\n{brief(fmt_rate(bandwidth))}"
    ax.text(0.98, 0.04, text, transform=ax.transAxes, ha="right", va="bottom", size=7.5, color=INK)
    for phase, found in phases.items():
        for point in found:
            _mark(ax, point.attainable, point, phase)


def _format(gpu: Gpu, peak: float) -> tuple[float, str]:
    """The GPU's peak that a row ran at, with the first number format that has it."""
    name, nearest = min(gpu.peaks.items(), key=lambda item: abs(item[1].value - peak))
    return nearest.value, {"tf32": "fp32 as tf32"}.get(name, name)


def _strip(ax: Axes, phases: _Phases, seen: Sequence[str]) -> None:
    """The operations by component, prefill above decoding, at the same intensities."""
    for phase, found in phases.items():
        for point in found:
            height = seen.index(point.component) + (-0.2 if phase == "prefill" else 0.2)
            _mark(ax, height, point, phase)
    ax.set_yticks(range(len(seen)), [COMPONENT_STYLES[c].label for c in seen])
    ax.set_ylim(len(seen) - 0.4, -0.6)


def _mark(ax: Axes, height: float, point: Point, phase: str) -> None:
    style, filled = COMPONENT_STYLES[point.component], phase == "prefill"
    ax.plot(
        [point.intensity],
        [height],
        linestyle="",
        marker=style.marker,
        markersize=math.sqrt(42 + 180 * point.share),
        markerfacecolor=style.colour if filled else "none",
        markeredgecolor=_EDGE if filled else style.colour,
        markeredgewidth=0.6 if filled else 1.2,
        zorder=3,
        gid=f"{phase} {point.op}",
    )


def _keys(seen: Sequence[str]) -> list[Artist]:
    """Components by marker and colour, phases by filling."""
    from matplotlib.lines import Line2D

    how: dict[str, Any] = {"linestyle": "", "markersize": 7, "markeredgewidth": 0.6}
    how["markeredgecolor"] = _EDGE
    styles = [COMPONENT_STYLES[c] for c in seen]
    parts = [Line2D([], [], marker=s.marker, color=s.colour, label=s.label, **how) for s in styles]
    filled = Line2D([], [], marker="o", color=INK, label="prefill (filled)", **how)
    hollow = Line2D([], [], marker="o", markerfacecolor="none", label="decode (hollow)", **how)
    return [*parts, filled, hollow]


def _bound(names: Sequence[str], points: Sequence[_Phases]) -> str:
    """Part of each phase's floor that bytes and not FLOPs decide, among the operations drawn."""
    found = []
    for name, phases in zip(names, points, strict=True):
        shares = {
            phase: sum(p.share for p in ps if p.memory_bound) / sum(p.share for p in ps)
            for phase, ps in phases.items()
        }
        text = f"{name} {shares['prefill']:.0%} of prefill, {shares['decode']:.0%} of decoding"
        found.append((shares["prefill"], text))
    return f"Time that bytes and not FLOPs decide: {few(found)}."
