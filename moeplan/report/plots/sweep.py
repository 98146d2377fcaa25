"""A sweep's plot: one column against another, with a third as colour or as lines."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeplan._version import __version__
from moeplan.errors import UserError
from moeplan.report.plots import FORMATS, save_figure
from moeplan.report.plots.sheet import brief, look
from moeplan.report.style import INK, model_style
from moeplan.units import fmt_bytes, fmt_count, fmt_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_sweep", "plot_sweep"]

_LINES = 8  # different values of the third column that are lines; more are a scale of colours
_WIDE = 20  # last over first from which an axis is logarithmic


def plot_sweep(
    table: dict[str, Any],
    names: Sequence[str],
    title: str,
    about: str,
    units: Mapping[str, str] | None = None,
) -> Figure:
    """x, y and, if named, the third column. Points without a number are left out.

    units: of columns that have one, for their ticks ("B" bytes, "s" seconds).
    """
    from matplotlib.figure import Figure

    columns = [np.asarray(table[name]) for name in names]
    good = np.ones(len(columns[0]), dtype=bool)
    for name, column in zip(names[:2], columns, strict=False):
        if column.dtype.kind not in "fib":
            raise UserError(f"--plot {name}: it is words, an axis needs numbers")
    for column in columns:
        good &= np.isfinite(column) if column.dtype.kind == "f" else column != ""
    if not good.any():
        raise UserError(f"--plot {','.join(names)}: no point has a number in all of them")
    shown = [column[good] for column in columns]
    with look():
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        axes = figure.subplots()
        if len(shown) == 3:
            _third(figure, axes, shown, names[2])
        else:
            _line(axes, shown[0], shown[1], 0, "")
        for axis, column, name in (
            (axes.xaxis, shown[0], names[0]),
            (axes.yaxis, shown[1], names[1]),
        ):
            unit = (units or {}).get(name, "")
            _scaled(axis, column, _WRITE.get(unit, _short))
            axis.set_label_text(name if unit in _WRITE or not unit else f"{name} ({unit})")
        figure.suptitle(title, x=0.02, ha="left", weight="bold", size=11)
        left_out = int((~good).sum())
        foot = about + (f" · {left_out:,} points without an answer left out" if left_out else "")
        foot = f"{foot} · moeplan {__version__}"
        figure.supxlabel(
            "\n".join(textwrap.wrap(foot, 104)), x=0.02, ha="left", size=7.5, color=INK
        )
    return figure


def _third(figure: Figure, axes: Axes, shown: list[Any], name: str) -> None:
    x, y, third = shown
    values = np.unique(third)
    if len(values) <= _LINES:
        for i, value in enumerate(values):
            mine = third == value
            text = value if isinstance(value, str) else fmt_count(float(value))
            _line(axes, x[mine], y[mine], i, f"{name} = {text}")
        axes.legend()
        return
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, NullFormatter

    wide = third.min() > 0 and third.max() / third.min() > _WIDE
    dots = axes.scatter(x, y, c=third, s=14, cmap="cividis", norm=LogNorm() if wide else None)
    bar = figure.colorbar(dots, ax=axes, label=name)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _short(v)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())


def _line(axes: Axes, x: Any, y: Any, index: int, label: str) -> None:
    """Points, joined where each x has one y."""
    style = model_style(index)
    order = np.argsort(x, kind="stable")
    single = len(np.unique(x)) == len(x)
    axes.plot(
        x[order], y[order], color=style.colour, marker=style.marker,
        linestyle=style.dashes if single else "none", label=label or None,
        markersize=5.5 if len(x) < 200 else 2.5,
    )  # fmt: skip


def _scaled(axis: Any, values: Any, write: Callable[[float], str]) -> None:
    """A logarithmic axis where values are spread widely; ticks in the field's short form."""
    from matplotlib.axis import XAxis
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    low, high = float(values.min()), float(values.max())
    logarithmic = low > 0 and high / low > _WIDE
    if logarithmic:
        (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log")
        axis.set_minor_formatter(NullFormatter())
    if isinstance(axis, XAxis) and len(np.unique(values)) <= 9:
        axis.set_ticks(np.unique(values))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: write(v)))


def _short(value: float) -> str:
    """1.5k, 64, 0.02, 3e-05."""
    return brief(fmt_count(value)).replace(" ", "") if abs(value) >= 1000 else f"{value:.3g}"


_WRITE: Mapping[str, Callable[[float], str]] = {
    "B": lambda x: brief(fmt_bytes(x)) if x else "0",
    "s": lambda x: brief(fmt_time(x)) if x else "0",
}


def draw_sweep(
    table: dict[str, Any],
    names: Sequence[str],
    stem: Path,
    title: str,
    about: str,
    units: Mapping[str, str] | None = None,
) -> list[Path]:
    """Save the plot as PNG and SVG beside each other, and return the files."""
    figure = plot_sweep(table, names, title, about, units)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        return save_figure(figure, stem, FORMATS)
    except OSError as problem:
        raise UserError(f"{stem}: the plot cannot be written there ({problem})") from None
