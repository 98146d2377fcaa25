"""Each MoE beside the dense models of equal active and of equal total size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from moeplan.estimation.estimate import Estimate
from moeplan.report.beside import Beside, beside_dense
from moeplan.report.columns import ratio
from moeplan.report.plots.sheet import Sheet, few, log_axis, look, short_names, used
from moeplan.units import fmt_bytes, fmt_count, fmt_flops, fmt_time

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_dense"]


class _Look(NamedTuple):
    label: str
    marker: str
    size: float
    face: str
    colour: str


_LOOKS = {  # the MoE is a large ring, so that an equal dense model shows inside it
    "moe": _Look("the MoE", "o", 12, "none", "#CC6677"),
    "active": _Look("dense model of equal active size", "^", 6, "#117733", "#117733"),
    "total": _Look("dense model of equal total size", "s", 5.5, "#332288", "#332288"),
}


class _Panel(NamedTuple):
    title: str
    pick: Callable[[Beside], float]
    write: Callable[[float], str]


def _bare_flops(value: float) -> str:
    return fmt_flops(value).removesuffix("FLOP")


def _panels(batches: tuple[int, int]) -> list[_Panel]:
    one, many = batches
    return [
        _Panel("parameters", lambda b: b.parameters, fmt_count),
        _Panel("forward FLOPs per token", lambda b: b.flops, _bare_flops),
        _Panel("weights in memory (bytes)", lambda b: b.weights, fmt_bytes),
        _Panel(f"decode step, batch {one:,} (s)", lambda b: b.decode[0], fmt_time),
        _Panel(f"decode step, batch {many:,} (s)", lambda b: b.decode[1], fmt_time),
    ]


def plot_dense(estimates: Sequence[Estimate]) -> Figure:
    """Small multiples on logarithmic axes: a row for each MoE, three markers in it."""
    with look():
        names = short_names(estimates)
        every = [(name, beside_dense(e)) for name, e in zip(names, estimates, strict=True)]
        both = [(name, found) for name, found in every if found]
        dense = ", ".join(name for name, found in every if not found)
        panels = _panels(both[0][1][0].batches)
        sheet = Sheet(estimates, 13, 1.1 + 0.4 * len(both))
        axes = sheet.figure.subplots(1, len(panels), sharey=True)
        for ax, panel in zip(axes, panels, strict=True):
            _draw(ax, panel, [found for _, found in both])
        axes[0].set_yticks(range(len(both)), [name for name, _ in both])
        axes[0].set_ylim(len(both) - 0.5, -0.5)
        return sheet.finish(
            "Each MoE beside dense models of the same layers and attention",
            _speeds(both),
            "Dense: one FFN in the place of each MoE block, as wide as makes active or total "
            "parameters equal. Decode: floor of a step on one GPU taken to hold all weights, at "
            f"{used(estimates, 'context')} tokens of context; at batch 1 an MoE reads its active "
            "experts only, a larger batch reaches ever more of them."
            + (f" Dense, not shown: {dense}." if dense else ""),
            _keys(),
        )


def _draw(ax: Axes, panel: _Panel, models: Sequence[Sequence[Beside]]) -> None:
    values = [[float(panel.pick(b)) for b in found] for found in models]
    for place, (found, row) in enumerate(zip(models, values, strict=True)):
        ax.plot([min(row), max(row)], [place, place], color="#AAAAAA", linewidth=1, zorder=1)
        for beside, value in zip(found, row, strict=True):
            style = _LOOKS[beside.kind]
            ax.plot(
                [value], [place], linestyle="", marker=style.marker, markersize=style.size,
                markerfacecolor=style.face, markeredgecolor=style.colour, markeredgewidth=1.6,
                gid=f"{beside.kind} {place}", zorder=3,
            )  # fmt: skip
    flat = [value for row in values for value in row]
    log_axis(ax.xaxis, flat, panel.write)
    ax.set_title(panel.title)
    ax.tick_params(axis="y", length=0)


def _keys() -> list[Artist]:
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [], [], linestyle="", marker=s.marker, markersize=s.size, markerfacecolor=s.face,
            markeredgecolor=s.colour, markeredgewidth=1.6, label=s.label,
        )
        for s in _LOOKS.values()
    ]  # fmt: skip


def _speeds(both: Sequence[tuple[str, list[Beside]]]) -> str:
    """How fast the dense model of equal active size decodes on one device, over the MoE."""
    found = []
    for name, (moe, active, _) in both:
        times = moe.decode[1] / active.decode[1]
        found.append((times, f"{ratio(times, 1)} {name}"))
    return (
        "Speed of the dense model of equal active size over that of the MoE, decoding at batch "
        f"{both[0][1][0].batches[1]:,} on one device: {few(found)}."
    )
