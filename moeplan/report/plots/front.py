"""The front of a plan: memory against time, or a user's speed against a GPU's output."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeplan._version import __version__
from moeplan.errors import UserError
from moeplan.plan.options import requests_of
from moeplan.report.plan_serving_tables import decodes
from moeplan.report.plan_tables import degrees, kind
from moeplan.report.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_front", "plot_front"]

_COLOURS = {"1f1b": "#0072B2", "interleaved": "#E69F00", "zero-bubble": "#009E73",
            "dualpipe": "#CC79A7"}  # fmt: skip
_MARKERS = {"1f1b": "o", "interleaved": "s", "zero-bubble": "^", "dualpipe": "D"}
_SPREAD = 25  # times the best step beyond which a point would only stretch the axis
_LABELS = 4

Answer = Mapping[str, Any]


def draw_front(a: Answer, folder: str | Path) -> list[Path]:
    """Save the front as PNG, SVG and CSV, and return the files; none where there is no front."""
    into, points = Path(folder), a["front"]
    if not points:
        return []
    from moeplan.report.plots import FORMATS, save

    stem = into / ("plan_train" if a["kind"] == "training plan" else "plan_serve")
    try:
        into.mkdir(parents=True, exist_ok=True)
        files = save(plot_front(a), stem, FORMATS)
        with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(points[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(points)
    except OSError as problem:
        raise UserError(f"{folder}: plots cannot be written there ({problem})") from None
    return [*files, stem.with_suffix(".csv")]


def plot_front(a: Answer) -> Figure:
    """The front as a figure."""
    from moeplan.report.plots.sheet import look

    with look():
        return _training(a) if a["kind"] == "training plan" else _serving(a)


def _sheet() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.2))
    ax = figure.add_axes((0.09, 0.2, 0.88, 0.62))
    return figure, ax


def _texts(figure: Figure, title: str, finding: str, conditions: str) -> None:
    import textwrap

    figure.text(0.015, 0.98, title, va="top", weight="bold", size=11.5)
    said = "\n".join(textwrap.wrap(finding, 125))
    figure.text(0.015, 0.935, said, va="top", size=8.5, color=INK, linespacing=1.3)
    foot = "\n".join(textwrap.wrap(f"{conditions} · moeplan {__version__}", 140))
    figure.text(0.015, 0.085, foot, va="top", size=7.5, color=INK, linespacing=1.3)


# ------------------------------------------------------------------------------------- training
def _training(a: Answer) -> Figure:
    figure, ax = _sheet()
    points = a["front"]
    least = min(p["step"] for p in points)
    shown = [p for p in points if p["step"] <= _SPREAD * least]
    sizes = [p["memory"] / 2**30 for p in shown]
    steps = [p["step"] for p in shown]
    ax.step(sizes, steps, where="post", color="#999999", linewidth=1, zorder=1)
    for schedule in dict.fromkeys(p["schedule"] for p in shown):
        mine = [i for i, p in enumerate(shown) if p["schedule"] == schedule]
        ax.scatter(
            [sizes[i] for i in mine], [steps[i] for i in mine], s=30, zorder=3,
            color=_COLOURS[schedule], marker=_MARKERS[schedule], label=schedule,
        )  # fmt: skip
    ax.set_yscale("log")
    _plain_ticks(ax, steps)
    capacity = a["cluster"]["memory"] / 2**30
    ax.axvline(capacity, color=INK, linestyle=(0, (4, 2)), linewidth=1)
    ax.text(
        capacity, 1.01, f"{a['cluster']['gpu']}: {capacity:.1f} GiB", ha="center", va="bottom",
        transform=ax.get_xaxis_transform(), size=8, color=INK,
    )  # fmt: skip
    ax.set_xlabel("memory of the most loaded GPU (GiB)")
    ax.set_ylabel("seconds of a step")
    ax.set_xlim(0, max(*sizes, capacity) * 1.06)
    _name(ax, [(sizes[i], steps[i], degrees(shown[i])) for i in _spread(shown)])
    ax.legend(loc="upper right", title="schedule", title_fontsize=8.5, frameon=True,
              edgecolor="none", framealpha=1)  # fmt: skip
    best = a["best"][0] if a["best"] else None
    said = "Nothing fits." if best is None else (
        f"Fastest that fits: {degrees(best)}, {kind(best)}: {best['step']:.3g} s a step, "
        f"{best['memory'] / 2**30:.1f} GiB, MFU {best['mfu']:.1%}."
    )  # fmt: skip
    left = len(points) - len(shown)
    more = f"; {left} slower than {_SPREAD} times the best are left out" if left else ""
    _texts(
        figure, f"{a['model']} on {a['cluster']['gpus']:,} x {a['cluster']['gpu']}: memory "
        "against time", said,
        f"Each point is a layout that none of {a['space']['legal']:,} legal ones beats in both"
        f"{more}. Steps of {a['batch']:,} sequences of {a['job']['sequence']:,} tokens.",
    )  # fmt: skip
    return figure


def _spread(points: Sequence[Mapping[str, Any]]) -> list[int]:
    """A few points to name: the best that fits, the ends, and some between."""
    fits = [i for i, p in enumerate(points) if p["fits"]]
    chosen = {0, len(points) - 1, *(fits[-1:])}
    step = max(1, len(points) // _LABELS)
    chosen |= set(range(0, len(points), step))
    return sorted(chosen)


def _name(ax: Axes, named: Sequence[tuple[float, float, str]]) -> None:
    """Names at points, above and to the right, where they do not lie on each other."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    from moeplan.report.plots.sheet import renderer

    draw = renderer(figure)
    taken: list[Any] = []
    for x, y, text in named:
        label = ax.annotate(
            text, (x, y), (6, 7), textcoords="offset points", size=7, color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
        box = label.get_window_extent(draw)
        if box.x1 > ax.get_window_extent(draw).x1:
            label.set(ha="right", position=(-6, 7))
            box = label.get_window_extent(draw)
        if any(box.overlaps(other) for other in taken):
            label.remove()
        else:
            taken.append(box)


def _plain_ticks(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis of seconds with round numbers."""
    from moeplan.report.plots.sheet import log_axis

    log_axis(ax.yaxis, values, lambda y: f"{y:g} s", margin=1.25, most=8)


# -------------------------------------------------------------------------------------- serving
def _serving(a: Answer) -> Figure:
    figure, ax = _sheet()
    points = a["front"]
    users = [p["tokens_per_second_per_user"] for p in points]
    rates = [p["output_tokens_per_second_per_gpu"] for p in points]
    ax.plot(users, rates, color="#999999", linewidth=1, zorder=1)
    for meets, colour, marker, label in (
        (True, "#0072B2", "o", "meets TPOT"),
        (False, "#D55E00", "X", "slower than TPOT"),
    ):
        mine = [i for i, p in enumerate(points) if p["meets"] is meets]
        if mine:
            ax.scatter([users[i] for i in mine], [rates[i] for i in mine], s=30, zorder=3,
                       color=colour, marker=marker, label=label)  # fmt: skip
    want, best = a["demand"], a["best"][0] if a["best"] else None
    if best is not None:
        at = 1 / best["tpot"], best["output_tokens_per_second_per_gpu"]
        ax.scatter(*at, s=190, marker="*", color="#009E73", zorder=4, edgecolors="white",
                   label=f"the answer: {best['gpus']:,} GPUs at the load")  # fmt: skip
    limit = want["tpot"]
    if limit:
        ax.axvline(1 / limit, color=INK, linestyle=(0, (4, 2)), linewidth=1)
        ax.text(1 / limit, 1.01, f"TPOT {limit * 1e3:g} ms", ha="center", va="bottom", size=8,
                transform=ax.get_xaxis_transform(), color=INK)  # fmt: skip
    ax.set_xlabel("output tokens per second of a user (1/TPOT)")
    ax.set_ylabel("output tokens per second and GPU")
    ax.set_xlim(0, max(users) * 1.08)
    ax.set_ylim(0, max(rates) * 1.12)
    step = max(1, len(points) // (2 * _LABELS))
    _name(ax, [(users[i], rates[i], f"{decodes(points[i])}, batch {points[i]['batch']:,}")
               for i in range(0, len(points), step)])  # fmt: skip
    ax.legend(loc="upper right", frameon=True, edgecolor="none", framealpha=1)
    ways = " or ".join(a["space"]["modes"]).replace("disaggregated", "disaggregated (disagg.)")
    said = "No layout carries the requests." if best is None else (
        f"For {requests_of(want['requests_per_second'])}: {best['gpus']:,} GPUs, {best['mode']}, "
        f"TTFT {best['ttft']:.3g} s, TPOT {best['tpot'] * 1e3:.3g} ms."
    )  # fmt: skip
    _texts(
        figure, f"{a['model']} on {a['cluster']['gpu']}: a user's speed against a GPU's output",
        said,
        "Each point is a layout and batch that none beats in both, whatever the requests; the "
        "answer has whole instances at the requests that were asked for. "
        f"{ways.capitalize()}, {want['input']:,} tokens in, {want['output']:,} out"
        + (f", TTFT within {want['ttft']:g} s" if want["ttft"] else "") + ".",
    )  # fmt: skip
    return figure
