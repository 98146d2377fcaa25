"""Any two or three columns of a sweep: one along, one up, one as colour."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeplan.errors import UserError, near_miss
from moeplan.report.plots.sheet import Page, brief, log_axis, look
from moeplan.report.plots.sweep_words import conditions, finding, in_words, label, value_text
from moeplan.report.style import model_style
from moeplan.report.sweep import unit_shown, written
from moeplan.sweeping import Sweep

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["draw_sweep", "plot_columns", "plot_sweep"]

_LINES = 7  # different colours of lines; more values are a scale of colours
_WORDS = 12  # different words at an axis, without writing them over each other
_LOG = 20  # largest over smallest, from which an axis is logarithmic
_NAMED = 10  # values of an input that an axis names one by one
_SCALE = "cividis"  # even for all kinds of colour vision
_TITLE = 84  # letters of a title that the sheet's width holds
_STEPS = 150  # places along an axis that are told apart
_DEEP = 4  # points at one place that larger markers can show
_NESTED = "; larger markers lie behind smaller ones"
_MANY = 100  # points of lines that leave no room for larger markers
_FEW = 60  # points that have room for large markers


def draw_sweep(found: Sweep, wanted: str, folder: str | Path) -> list[Path]:
    """Save a plot of `X,Y` or `X,Y,COLOUR` as PNG and SVG, named after its columns."""
    from moeplan.report.plots import FORMATS, save

    names = plot_columns(wanted, [n for n in found.columns if n != "reason"])
    stem = "-".join(re.sub(r"[^a-z0-9]+", "-", n.lower()).strip("-") for n in names)
    into = Path(folder)
    try:
        into.mkdir(parents=True, exist_ok=True)
        return save(plot_sweep(found, *names), into / f"{stem}.plot", FORMATS)
    except OSError as problem:
        raise UserError(f"{folder}: plots cannot be written there ({problem})") from None


def plot_columns(wanted: str, known: Sequence[str]) -> list[str]:
    """The columns that `X,Y` or `X,Y,COLOUR` names. `UserError` for other forms and names."""
    names = [name.strip() for name in wanted.split(",")]
    if len(names) not in (2, 3):
        raise UserError(f"--plot {wanted}: two or three columns are needed: X,Y or X,Y,COLOUR")
    if len(set(names)) < len(names):
        raise UserError(f"--plot {wanted}: a column is named twice, and each is needed once")
    for name in names:
        if name not in known:
            raise UserError(
                f"--plot {wanted}: no column {name!r}{near_miss(name, known)}; there are "
                f"{', '.join(known)}"
            )
    return names


def plot_sweep(found: Sweep, x: str, y: str, colour: str | None = None) -> Figure:
    """Points of a sweep as a figure; lines where there is one y for each x of a colour.

    Raises `UserError` where a column has nothing to draw.
    """
    keep = found.legal
    data = {n: _drawable(found, n, keep) for n in (x, y, colour) if n is not None}
    present = np.all([[v is not None for v in values] for values in data.values()], axis=0)
    data = {n: [v for v, good in zip(d, present, strict=True) if good] for n, d in data.items()}
    hollow = found.too_large[keep][present]
    if not data[x]:
        raise UserError(f"--plot {x},{y}: no legal point has both")
    with look():
        page = Page(8.5, 4.4, found.title)
        ax = page.figure.subplots()
        places = [_axis(found, axis, data[n], n) for axis, n in ((ax.xaxis, x), (ax.yaxis, y))]
        ax.set_xlabel(label(found, x))
        ax.set_ylabel(label(found, y))
        keys, notes = _draw(page, ax, found, places, data, colour, hollow)
        said = finding(found, data, hollow)
        return page.finish(_title(x, y, colour), said, conditions(found, data) + notes, keys)


def _title(x: str, y: str, colour: str | None) -> str:
    """What is drawn, in words; the colour is left to its legend where there is no room."""
    title = f"{in_words(y)} against {in_words(x)}"
    about = f", by {in_words(colour)}" if colour else ""
    title += about if len(title) + len(about) <= _TITLE else ""
    return title if in_words(y) == y else title[:1].upper() + title[1:]


def _drawable(found: Sweep, name: str, keep: Any) -> list[Any]:
    column = found.columns[name][keep].tolist()
    return [v if isinstance(v, str) or (v is not None and v == v) else None for v in column]


def _axis(found: Sweep, axis: Axis, values: Sequence[Any], name: str) -> list[float]:
    """Set up an axis for a column, and return where its values stand on it."""
    from matplotlib.axis import YAxis
    from matplotlib.ticker import MultipleLocator

    unit = unit_shown(found, name)

    def write(value: float) -> str:
        return brief(written(value, unit, given=name in found.inputs))

    if any(isinstance(v, (str, bool)) for v in values):
        words = list(dict.fromkeys(map(str, values)))
        if len(words) > _WORDS:
            raise UserError(f"--plot: {name} has {len(words)} words, more than an axis can show")
        axis.set_ticks(range(len(words)), words)
        axis.axes.margins(0.08)
        return [float(words.index(str(v))) for v in values]
    least, most = min(values), max(values)
    few = sorted(set(values))
    if least > 0 and (most >= _LOG * least or (name in found.inputs and _geometric(few))):
        log_axis(axis, values, write, margin=1.25, most=6)
        if name in found.inputs and len(few) <= _NAMED:
            axis.set_ticks(few, [write(v) for v in few])
    elif name in found.inputs and len(few) <= _NAMED and _spread(few):
        axis.set_ticks(few, [write(v) for v in few])
    else:
        axis.set_major_formatter(lambda value, _: write(value))
        if isinstance(axis, YAxis) and 0 < least <= most / 2:
            axis.axes.set_ylim(0, most * 1.06)
        if unit == "GiB":
            axis.set_major_locator(MultipleLocator(_round_step(most / 2**30) * 2**30))
    return list(map(float, values))


def _round_step(most: float) -> float:
    """1, 2 or 5 times a power of ten, of which up to seven reach `most`."""
    ten = 10.0 ** math.floor(math.log10(most / 7)) if most > 0 else 1.0
    return next(ten * step for step in (1, 2, 5, 10, 20) if ten * step * 7 >= most)


def _geometric(values: Sequence[float]) -> bool:
    """Whether each value is the same number of times the one before."""
    steps = np.diff(np.log(values))
    return len(values) > 2 and bool(np.allclose(steps, steps[0]))


def _spread(values: Sequence[float]) -> bool:
    """Whether names at these places would not lie on each other."""
    steps = np.diff(values)
    return len(values) < 3 or bool(steps.min() * 12 >= values[-1] - values[0])


def _draw(
    page: Page,
    ax: Axes,
    found: Sweep,
    places: Sequence[Sequence[float]],
    data: dict[str, list[Any]],
    colour: str | None,
    hollow: Any,
) -> tuple[list[Artist], str]:
    """Lines and points; returns what the legend shows, and what is to be said of them."""
    x, y = places
    along = next(iter(data))
    lines = along in found.inputs and not any(isinstance(v, (str, bool)) for v in data[along])
    if colour is None:
        _series(ax, x, y, 0, "", lines, hollow)
        return [], ""
    shades = data[colour]
    kinds = list(dict.fromkeys(shades))
    if all(isinstance(v, (int, float)) for v in kinds):
        kinds = sorted(kinds)
    at = list(zip(_cells(x, ax.get_xscale()), _cells(y, ax.get_yscale()), strict=True))
    if len(kinds) <= _LINES or any(isinstance(v, (str, bool)) for v in kinds):
        members = [[j for j, s in enumerate(shades) if s == kind] for kind in kinds]
        names = [value_text(found, colour, kind) for kind in kinds]
        return _several(ax, (x, y, at), _together(members, x, y, hollow), names, lines, hollow)
    ranks = _ranks(at, hollow)
    nested, many = max(ranks) <= _DEEP, sum(map(bool, ranks))
    _scale(page, ax, found, (x, y, shades), colour, hollow, ranks if nested else None)
    front = ", those that fit in front" if hollow.any() else ""
    note = f"{_NESTED}{front}" if nested else f"; {many:,} lie behind others"
    return [], note if many else ""


def _several(
    ax: Axes,
    columns: tuple[Sequence[float], Sequence[float], Sequence[Any]],
    groups: Sequence[list[tuple[int, list[int]]]],
    names: Sequence[str],
    lines: bool,
    hollow: Any,
) -> tuple[list[Artist], str]:
    """A series for each group of kinds that have the same points, named after all of them."""
    x, y, at = columns
    behind = _covered([[at[j] for j in group[0][1]] for group in groups])
    if len(x) > _MANY:  # no room for larger markers
        behind = [[0] * len(own) for own in behind]
    out: list[Artist] = []
    for i, (group, covered) in enumerate(zip(groups, behind, strict=True)):
        own = group[0][1]
        first, *others = [names[kind] for kind, _ in group]
        start = first.rpartition(" ")[0] + " "
        name = ", ".join([first, *(other.removeprefix(start) for other in others)])
        _behind(ax, [(x[j], y[j], n, hollow[j]) for j, n in zip(own, covered, strict=True)], i)
        out += _series(ax, [x[j] for j in own], [y[j] for j in own], i, name, lines, hollow[own])
    return out, _NESTED if any(map(any, behind)) else ""


def _covered(series: Sequence[Sequence[Any]]) -> list[list[int]]:
    """For each point of each series, how many later series have a point at its place."""
    out = []
    for i, own in enumerate(series):
        later = [set(other) for other in series[i + 1 :]]
        out.append([sum(place in other for other in later) for place in own])
    return out


def _together(
    members: Sequence[list[int]], x: Sequence[float], y: Sequence[float], hollow: Any
) -> list[list[tuple[int, list[int]]]]:
    """Series with their places, those that have the same points as one: they would hide others."""
    groups: dict[Any, list[tuple[int, list[int]]]] = {}
    for i, own in enumerate(members):
        key = tuple(sorted((x[j], y[j], bool(hollow[j])) for j in own))
        groups.setdefault(key, []).append((i, own))
    return list(groups.values())


def _cells(values: Sequence[float], scale: str) -> list[int]:
    """Places on an axis, in steps that a reader can tell apart."""
    known = np.log(values) if scale == "log" else np.asarray(values, dtype=float)
    span = float(known.max() - known.min()) or 1.0
    return [round(v) for v in ((known - known.min()) / span * _STEPS).tolist()]


def _behind(ax: Axes, points: Sequence[tuple[float, float, int, bool]], index: int) -> None:
    """Larger markers at (x, y) where so many series lie on a series' own; hollow or not."""
    style = model_style(index)
    for many, left in sorted({(many, bool(left)) for *_, many, left in points if many}):
        some = [(x, y) for x, y, *look in points if look == [many, left]]
        ax.plot(
            *zip(*some, strict=True), color=style.colour, marker=style.marker, linestyle="",
            markerfacecolor="white" if left else style.colour,
            markersize=5.5 + 4.5 * many, gid="behind", zorder=2.9 - 0.1 * many,
        )  # fmt: skip


def _ranks(at: Sequence[Any], hollow: Any) -> list[int]:
    """How many points lie before each one at its place; those that fit come before the others."""
    seen: dict[Any, int] = {}
    out = [0] * len(at)
    for i in np.argsort(hollow, kind="stable").tolist():
        out[i] = seen.get(at[i], 0)
        seen[at[i]] = out[i] + 1
    return out


def _scale(
    page: Page,
    ax: Axes,
    found: Sweep,
    columns: Any,
    colour: str,
    hollow: Any,
    ranks: Sequence[int] | None,
) -> None:
    """Points coloured on a scale, larger by their rank behind others; hollow ones have a white
    middle."""
    from matplotlib.colors import LogNorm, Normalize

    x, y, shades = (np.asarray(column, dtype=float) for column in columns)
    least, most = shades.min(), shades.max()
    norm = LogNorm if least > 0 and most >= _LOG * least else Normalize
    size = 60 if len(x) <= _FEW else 18
    deep = np.zeros(len(x)) if ranks is None else np.asarray(ranks)
    order = (
        np.lexsort((~hollow, -deep)) if ranks is not None else np.argsort(~hollow, kind="stable")
    )
    points = ax.scatter(
        x[order], y[order], c=shades[order], cmap=_SCALE, norm=norm(least, most),
        s=size * (1 + 0.7 * deep[order]) ** 2, zorder=3, gid="points",
    )  # fmt: skip
    bar = page.figure.colorbar(points, ax=ax, label=label(found, colour))
    unit = unit_shown(found, colour)
    bar.ax.yaxis.set_major_formatter(lambda v, _: brief(written(v, unit)))
    open_ = hollow & (deep == 0)
    if open_.any():
        ax.scatter(x[open_], y[open_], c="white", s=size / 4, zorder=4, gid="too-large")


def _series(
    ax: Axes,
    x: Sequence[float],
    y: Sequence[float],
    index: int,
    label: str,
    lines: bool,
    hollow: Any,
) -> list[Artist]:
    """A line through the points where it is asked for and x has one y each, else points alone.

    hollow: which points do not fit; their markers are not filled.
    """
    style = model_style(index)
    order = np.argsort(x, kind="stable")
    line = lines and len(set(x)) == len(x) > 1
    drawn = ax.plot(
        np.asarray(x)[order],
        np.asarray(y)[order],
        color=style.colour,
        marker=style.marker,
        linestyle=style.dashes if line else "",
        markersize=5.5 if len(x) <= _MANY else 3,
        label=label,
        gid="points",
        zorder=3,
    )
    if hollow.any():
        ax.plot(
            np.asarray(x)[hollow],
            np.asarray(y)[hollow],
            color=style.colour,
            marker=style.marker,
            markerfacecolor="white",
            linestyle="",
            markersize=5.5 if len(x) <= _MANY else 3,
            gid="too-large",
            zorder=3,
        )
    return list(drawn)
