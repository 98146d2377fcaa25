"""Total against active parameters, a point for each model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moeplan.estimation.estimate import Estimate
from moeplan.report.plots.labelling import label_points
from moeplan.report.plots.sheet import Sheet, few, log_axis, look, renderer
from moeplan.report.style import INK, model_style
from moeplan.units import fmt_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_parameters", "sizes"]

_MARGIN = 2.0  # the axes reach this many times beyond the outermost points
_LEAST_SPAN = 4.0  # ratio of outermost points below which they reach further


def sizes(e: Estimate) -> tuple[float, float]:
    """Active (all tensors a token touches) and total parameters."""
    params = e.tree["params"]
    return params["active"]["all"].value, params["total"].value


def plot_parameters(estimates: Sequence[Estimate]) -> Figure:
    """Scatter of total against active parameters on logarithmic axes, lines of equal sparsity."""
    with look():
        sheet = Sheet(estimates, 8.5, 5.2)
        ax = sheet.figure.subplots()
        points = [sizes(e) for e in estimates]
        for index, (name, (active, total)) in enumerate(zip(sheet.names, points, strict=True)):
            style = model_style(index)
            ax.plot(
                [active], [total], linestyle="", marker=style.marker, color=style.colour,
                markersize=7 + min(5, len(points) - 1 - index),  # equal points both show
                markeredgecolor="white", label=name, gid=f"model {index}", zorder=4,
            )  # fmt: skip
        _frame(ax, points)
        figure = sheet.finish(
            "Total against active parameters",
            _shares(sheet.names, points),
            "Active: every tensor that one token touches, the embedding table included; "
            "multi-token prediction modules are in neither number. Dotted: the share of its "
            "parameters that a token touches.",
        )
        last = math.ceil(max(math.log2(total / active) for active, total in points)) + 1
        obstacles = _sparsity_lines(ax, last)
        label_points(ax, points, sheet.names, obstacles)
        return figure


def _frame(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    for axis, place in ((ax.xaxis, 0), (ax.yaxis, 1)):
        values = [point[place] for point in points]
        spare = max(1.0, math.sqrt(_LEAST_SPAN * min(values) / max(values)))
        log_axis(axis, values, fmt_count, margin=_MARGIN * spare, most=9)
    ax.set_xlabel("active parameters per token")
    ax.set_ylabel("total parameters")


def _sparsity_lines(ax: Axes, last: int) -> list[Any]:
    """Lines on which total is 1, 2, 4, ... 2**last times active, named where they leave the axes.

    Returns the boxes of the names in pixels.
    """
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    boxes = []
    for power in range(last + 1):
        times = 2**power
        if not y0 < x1 * times or not x0 * times < y1:
            continue
        dense = times == 1
        ax.plot(
            [x0, x1], [x0 * times, x1 * times], color="#888888" if not dense else INK,
            linewidth=0.7 if not dense else 1.2, linestyle=(0, (2, 2)) if not dense else "-",
            gid=f"sparsity {times}", zorder=1, scalex=False, scaley=False,
        )  # fmt: skip
        name = _line_name(ax, times)
        box = name.get_window_extent(renderer(ax))
        if ax.bbox.x0 <= box.x0 and ax.bbox.y0 <= box.y0:
            boxes.append(box)
        else:
            name.remove()
    return boxes


def _line_name(ax: Axes, times: int) -> Any:
    """The name of a line of equal sparsity just inside the axes, at its upper right end."""
    x1, y1 = ax.get_xlim()[1], ax.get_ylim()[1]
    at_top = x1 * times > y1
    place = (y1 / times, y1) if at_top else (x1, x1 * times)
    text = ax.annotate(
        "dense" if times == 1 else f"1/{times}",
        place,
        (-3, -3) if at_top else (-3, -2),
        textcoords="offset points",
        ha="right",
        va="top",
        size=8,
        color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        zorder=2,
    )
    text.set_in_layout(False)
    return text


def _shares(names: Sequence[str], points: Sequence[tuple[float, float]]) -> str:
    found = [(a / t, f"{n} {a / t:.1%}") for n, (a, t) in zip(names, points, strict=True)]
    return f"Share of its parameters that a token touches: {few(found)}."
