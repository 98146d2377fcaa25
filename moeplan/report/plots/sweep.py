"""Any two or three columns of a sweep: one along, one up, one as colour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeplan.errors import UserError, near_miss
from moeplan.report.plots.sheet import Page, brief, log_axis, look
from moeplan.report.style import model_style
from moeplan.report.sweep import too_large, unit_shown, written
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
_SCALE = "cividis"  # even for all kinds of colour vision
_LONG = 60  # letters of a heading that still stand beside another one
_SAID = {
    "step": "step time", "mfu": "model FLOP utilisation", "memory": "memory of the fullest GPU",
    "tokens_per_second": "throughput", "tokens_per_second_per_gpu": "throughput of a GPU",
    "output_tokens_per_second_per_gpu": "output tokens of a GPU",
    "time_ep": "time of the all-to-all", "time_bubble": "time of the pipeline's bubble",
    "sent_scale_up": "bytes sent inside domains", "sent_scale_out": "bytes sent between domains",
    "ttft": "time to first token", "tpot": "time per output token",
    "dollars_per_million_output": "dollars for a million output tokens",
    "tp": "tensor parallelism", "pp": "pipeline stages", "cp": "context parallelism",
    "dp": "data parallelism", "ep": "expert parallelism", "etp": "parallelism inside experts",
    "vpp": "chunks of a stage", "batch": "batch size", "microbatch": "microbatch size",
    "context": "context length", "params.total": "parameters", "kv_cache.bytes": "KV cache",
    "params.active.all": "active parameters", "flops.forward_per_token": "forward FLOPs per token",
}  # fmt: skip
"""What names of columns stand for, where a title or an axis would not say it."""


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
        ax.set_xlabel(_label(x))
        ax.set_ylabel(_label(y))
        keys = _draw(page, ax, found, places, data, colour, hollow)
        about = f", by {_said(colour)}" if colour else ""
        title = f"{_said(y)} against {_said(x)}{about}"
        title = title[:1].upper() + title[1:] if y in _SAID else title
        if len(title) > 2 * _LONG:
            title = f"{y.rsplit('.', 1)[-1]} against {_said(x)}{about}"
        said = _finding(found, data, x, y, hollow)
        return page.finish(title, said, _conditions(found, data, x, y), keys)


def _said(name: str) -> str:
    """A column in words, with its name where they are not the same."""
    return f"{_SAID[name]} ({name})" if name in _SAID else name


def _drawable(found: Sweep, name: str, keep: Any) -> list[Any]:
    column = found.columns[name][keep].tolist()
    return [v if isinstance(v, str) or (v is not None and v == v) else None for v in column]


def _axis(found: Sweep, axis: Axis, values: Sequence[Any], name: str) -> list[float]:
    """Set up an axis for a column, and return where its values stand on it."""
    from matplotlib.axis import YAxis

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
        if name in found.inputs and len(few) <= 8:
            axis.set_ticks(few, [write(v) for v in few])
    elif name in found.inputs and len(few) <= 8 and _spread(few):
        axis.set_ticks(few, [write(v) for v in few])
    else:
        axis.set_major_formatter(lambda value, _: write(value))
        if isinstance(axis, YAxis) and 0 < least <= most / 2:
            axis.axes.set_ylim(0, most * 1.06)
    return list(map(float, values))


def _geometric(values: Sequence[float]) -> bool:
    """Whether each value is the same number of times the one before."""
    steps = np.diff(np.log(values))
    return len(values) > 2 and bool(np.allclose(steps, steps[0]))


def _spread(values: Sequence[float]) -> bool:
    """Whether names at these places would not lie on each other."""
    steps = np.diff(values)
    return len(values) < 3 or bool(steps.min() * 12 >= values[-1] - values[0])


def _label(name: str) -> str:
    """A column's name, in two lines where it is long."""
    if len(name) <= 42:
        return _said(name)
    at = name.rfind(".", 0, 3 * len(name) // 4) + 1
    return f"{name[:at]}\n{name[at:]}" if at else name


def _draw(
    page: Page,
    ax: Axes,
    found: Sweep,
    places: Sequence[Sequence[float]],
    data: dict[str, list[Any]],
    colour: str | None,
    hollow: Any,
) -> list[Artist]:
    """Lines and points; returns what the legend shows."""
    x, y = places
    along, values = next(iter(data.items()))
    lines = along in found.inputs and not any(isinstance(v, (str, bool)) for v in values)
    if colour is None:
        _series(ax, x, y, 0, "", lines, hollow)
        return []
    shades = data[colour]
    kinds = list(dict.fromkeys(shades))
    if all(isinstance(v, (int, float)) for v in kinds):
        kinds = sorted(kinds)
    unit = unit_shown(found, colour)
    if len(kinds) <= _LINES or any(isinstance(v, (str, bool)) for v in kinds):
        out: list[Artist] = []
        for i, kind in enumerate(kinds):
            own = [j for j, shade in enumerate(shades) if shade == kind]
            text = f"{_short(colour)} {written(kind, unit, given=True)}"
            own_x, own_y = [x[j] for j in own], [y[j] for j in own]
            out += _series(ax, own_x, own_y, i, text, lines, hollow[own])
        return out
    _scale(page, ax, (x, y, shades), colour, unit)
    if hollow.any():
        ax.scatter(np.asarray(x)[hollow], np.asarray(y)[hollow], c="white", s=5, zorder=4)
    return []


def _scale(page: Page, ax: Axes, columns: Any, colour: str, unit: str) -> None:
    """Points coloured on a scale."""
    from matplotlib.colors import LogNorm, Normalize

    x, y, shades = columns
    least, most = min(shades), max(shades)
    norm = LogNorm if least > 0 and most >= _LOG * least else Normalize
    points = ax.scatter(
        x, y, c=shades, cmap=_SCALE, norm=norm(least, most), s=18, zorder=3, gid="points"
    )
    bar = page.figure.colorbar(points, ax=ax, label=_label(colour))
    bar.ax.yaxis.set_major_formatter(lambda v, _: brief(written(v, unit)))


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1]


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
        markersize=5.5 if len(x) <= 100 else 3,
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
            markersize=5.5 if len(x) <= 100 else 3,
            gid="too-large",
            zorder=4,
        )
    return list(drawn)


def _finding(found: Sweep, data: dict[str, list[Any]], x: str, y: str, hollow: Any) -> str:
    """The least and the most, and where, of those that fit where some do; words have neither."""
    text = too_large(found)
    some = text and not hollow.all()
    values, along = (
        [v for v, left in zip(data[n], hollow, strict=True) if not (some and left)] for n in (y, x)
    )
    note = f" Hollow: {text}." if text else ""
    if any(isinstance(v, (str, bool)) for v in values):
        return f"{len(data[y]):,} points.{note}"
    said = ["Of those that fit"] if some else []
    for word, at in (("Least", int(np.argmin(values))), ("most", int(np.argmax(values)))):
        number = brief(written(values[at], unit_shown(found, y)))
        where = brief(written(along[at], unit_shown(found, x), given=x in found.inputs))
        said.append(f"{word} {number} at {_short(x)} {where}")
    if min(values) > 0:
        said.append(f"{max(values) / min(values):.3g} times")
    least = "; ".join(said).replace("fit; Least", "fit: least")
    return f"{least}.{note}"


def _conditions(found: Sweep, data: dict[str, list[Any]], x: str, y: str) -> str:
    """Points drawn, and inputs that vary without being shown apart."""
    hidden = [n for n in found.inputs if n not in data and len(set(found.columns[n].tolist())) > 1]
    alike = [n for n in hidden if _follows(found, n, data)]
    free = [n for n in hidden if n not in alike]
    out = [f"{len(data[x]):,} of {found.points:,} points"]
    if alike:
        out.append(f"{', '.join(alike)} {'go' if len(alike) > 1 else 'goes'} with them")
    if free:
        out.append(f"{', '.join(free)} {'vary' if len(free) > 1 else 'varies'} between points")
    constant = [n for n in found.inputs if n not in data and n not in hidden]
    out += [
        f"{n} {written(found.columns[n].tolist()[0], found.units.get(n, ''), given=True)}"
        for n in constant
    ]
    return "; ".join(out)


def _follows(found: Sweep, name: str, data: dict[str, list[Any]]) -> bool:
    """Whether an input has one value at each combination of the inputs that are drawn."""
    drawn = [found.columns[n].tolist() for n in data if n in found.inputs]
    if not drawn:
        return False
    seen: dict[tuple[Any, ...], Any] = {}
    places = zip(*drawn, strict=True)
    values = found.columns[name].tolist()
    return all(seen.setdefault(at, v) == v for at, v in zip(places, values, strict=True))
