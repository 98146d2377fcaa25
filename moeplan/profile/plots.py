"""Plots of records: prediction and measurement, time by op, roofline, rows per expert, speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moeplan.errors import UserError
from moeplan.profile.plot_look import (
    RecordSheet,
    count_of,
    handle,
    measured_cases,
    numbered,
    op_look,
    patch,
)
from moeplan.profile.plot_speed import plot_speed
from moeplan.profile.predict import Rates
from moeplan.profile.record import Case, Record
from moeplan.profile.validate import errors_of, layer_points, op_points
from moeplan.report.plots.sheet import brief, log_axis, look
from moeplan.report.style import INK, model_style
from moeplan.units import fmt_rate, fmt_time

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PLOTS",
    "draw_all",
    "plot_errors",
    "plot_ops",
    "plot_roofline",
    "plot_rows",
    "plot_speed",
]

MOST_BARS, MOST_LINES = 24, 10  # cases that one plot has room for
BANDS = (0.1, 0.3)  # of the prediction, shaded around equality


# -------------------------------------------------------------- predicted against measured
def plot_errors(records: Sequence[Record]) -> Figure:
    """Predicted against measured seconds of layers and of ops, with bands around equality."""
    with look():
        sheet = RecordSheet(records, 9, 4.6)
        left, right = sheet.figure.subplots(1, 2)
        layers, ops = layer_points(records), op_points(records)
        subjects = list(dict.fromkeys(point.case.subject for point in layers))
        keys: list[Artist] = []
        for number, subject in enumerate(subjects):
            style = model_style(number)
            for direction, face in (("forward", style.colour), ("forward+backward", "white")):
                here = [
                    p for p in layers
                    if p.case.subject == subject and p.case.direction == direction
                ]  # fmt: skip
                left.plot(
                    [p.measured for p in here], [p.predicted for p in here], style.marker,
                    color=style.colour, markerfacecolor=face, gid=f"layers {subject} {direction}",
                )  # fmt: skip
            keys.append(handle(subject, color=style.colour, marker=style.marker, linestyle=""))
        for name in dict.fromkeys(point.name for point in ops):
            how = op_look(name)
            for stage, face in (("forward", how.colour), ("backward", "white")):
                here_ops = [p for p in ops if p.name == name and p.stage == stage]
                right.plot(
                    [p.measured for p in here_ops], [p.predicted for p in here_ops], how.marker,
                    color=INK, markerfacecolor=face, markeredgewidth=0.6, gid=f"ops {name} {stage}",
                )  # fmt: skip
            keys.append(
                handle(name, color=INK, markerfacecolor=how.colour, marker=how.marker, linestyle="")
            )
        for ax, points, title in ((left, layers, "layers"), (right, ops, "ops")):
            values = [v for p in points for v in (p.predicted, p.measured)]
            _equal_axes(ax, values)
            ax.set_title(title)
        left.set_ylabel("predicted")
        found = errors_of((p.predicted for p in layers), (p.measured for p in layers))
        return sheet.finish(
            "Predicted against measured time",
            f"{found.points} layers: mean error {found.mean:.0%}, median {found.median:.0%}, p90 "
            f"{found.p90:.0%}, bias {found.bias:+.0%}.",
            "Shaded: within 10 % and 30 % of equality. Hollow: with the backward pass (layers), of "
            "the backward pass (ops). Predictions were made before the run. Ops below 1 % of their "
            "layer are left out.",
            keys,
        )


def _equal_axes(ax: Axes, values: Sequence[float]) -> None:
    """Logarithmic axes of one range, the line of equality and the bands around it."""
    log_axis(ax.xaxis, values, fmt_time)
    log_axis(ax.yaxis, values, fmt_time)
    low, high = ax.get_xlim()
    ax.plot([low, high], [low, high], color=INK, linewidth=0.9, zorder=1)
    for band in BANDS:
        below, above = ([end * (1 + sign * band) for end in (low, high)] for sign in (-1, 1))
        ax.fill_between(
            [low, high], below, above, color="#0072B2", alpha=0.12, linewidth=0, zorder=0
        )
    ax.set_aspect("equal")
    ax.set_xlabel("measured")


# ---------------------------------------------------------------------------- time by op
def plot_ops(records: Sequence[Record]) -> Figure:
    """Time by op of each case, measured beside predicted, as shares of the measured time."""
    with look():
        every = measured_cases(records)
        cases = every[:MOST_BARS]
        many = len(cases) > 10
        sheet = RecordSheet(records, 10, 5.6 if many else 4.2)
        ax = sheet.figure.subplots()
        names: dict[str, None] = {}
        for place, case in enumerate(cases):
            joined, top = case.joined(), 1.0
            whole = sum(phase.median for _, phase in joined)
            for offset, pick in ((-0.2, 0), (0.2, 1)):
                start = 0.0
                for op, phase in joined:
                    names[op.name] = None
                    how = op_look(op.name)
                    share = (phase.median if pick == 0 else op.expected) / whole
                    ax.bar(
                        place + offset, share, 0.36, bottom=start, color=how.colour,
                        hatch=how.hatch, edgecolor="#222222", linewidth=0.3,
                        alpha=1.0 if pick == 0 else 0.6, gid=f"{place} {op.name} {op.stage} {pick}",
                    )  # fmt: skip
                    start += share
                top = max(top, start)
            assert case.measured is not None
            ax.annotate(
                brief(fmt_time(case.measured.layer.median)), (place, top + 0.02), ha="center",
                va="bottom", size=7.5, annotation_clip=False, rotation=90 if many else 0,
            )  # fmt: skip
        ax.axhline(1, color=INK, linewidth=0.8)
        ticks = [_tick(case, cases, ", " if many else "\n") for case in cases]
        ax.set_xticks(
            range(len(cases)), ticks, rotation=90 if many else 0, size=7 if many else None
        )
        ax.set_ylabel("share of the measured time of all ops")
        ax.set_ylim(0, max(1.12, 1.1 * ax.get_ylim()[1]))
        ax.grid(False, axis="x")
        return sheet.finish(
            "Time by op: measured (left) beside predicted (right, pale)",
            _longest(cases),
            "Bars of a case are shares of the time that its ops took; the layer's own time stands "
            "above. In cases with a backward pass each op appears twice, forward below."
            + _first(cases, every),
            [patch(name, op_look(name)) for name in names],
        )


def _tick(case: Case, cases: Sequence[Case], between: str) -> str:
    """What tells a case from the others: tokens and pass, and what varies beside them."""
    parts = [f"{case.tokens:,}", "fwd" if case.direction == "forward" else "fwd+bwd"]
    for what in ("subject", "routing", "backend"):
        if len({getattr(c, what) for c in cases}) > 1:
            parts.append(getattr(case, what))
    return between.join(parts)


def _first(cases: Sequence[Case], every: Sequence[Case]) -> str:
    return "" if len(cases) == len(every) else f" The first {len(cases)} of {len(every)} cases."


def _longest(cases: Sequence[Case]) -> str:
    """The op that takes most of the time of all cases."""
    times: dict[str, float] = {}
    for case in cases:
        for op, phase in case.joined():
            times[op.name] = times.get(op.name, 0.0) + phase.median
    name = max(times, key=lambda n: times[n])
    return f"Longest in all cases together: {name}, {times[name] / sum(times.values()):.0%} of it."


# ------------------------------------------------------------------------------- roofline
def plot_roofline(records: Sequence[Record]) -> Figure:
    """FLOP/s that matmuls reached, over their FLOPs a byte, under the measured roofs."""
    with look():
        sheet = RecordSheet(records, 8, 4.4)
        ax = sheet.figure.subplots()
        points = [
            (op, phase, op.flops / op.bytes, op.flops / phase.median)
            for case in measured_cases(records)
            for op, phase in case.joined()
            if op.flops and phase.median > 0
        ]
        for name in dict.fromkeys(op.name for op, *_ in points):
            how = op_look(name)
            for stage, face in (("forward", how.colour), ("backward", "white")):
                here = [(x, y) for op, _, x, y in points if (op.name, op.stage) == (name, stage)]
                ax.plot(
                    [x for x, _ in here], [y for _, y in here], how.marker, color=INK,
                    markerfacecolor=face, markeredgewidth=0.6, gid=f"{name} {stage}",
                )  # fmt: skip
        roofs = [_roof_line(record) for record in records]
        xs, ys = [x for *_, x, _ in points], [y for *_, y in points]
        log_axis(ax.xaxis, [*xs, *(peak / rate for peak, rate in roofs)], _intensity, most=6)
        log_axis(ax.yaxis, [*ys, *(peak for peak, _ in roofs)], lambda v: fmt_rate(v, "FLOP"))
        low, high = ax.get_xlim()
        for peak, rate in dict.fromkeys(roofs):
            ax.plot([low, peak / rate, high], [low * rate, peak, peak], color=INK, linewidth=1.1)
        for peak, numbers in _near(roofs).items() if len(roofs) > 1 else ():
            ax.annotate(
                numbers, (high, peak), xytext=(-3, 3), textcoords="offset points", ha="right",
                fontsize=7, color=INK,
            )  # fmt: skip
        ax.set_xlabel("FLOPs a byte")
        ax.set_ylabel("FLOP/s reached")
        best = max(points, key=lambda p: p[0].floor / p[1].median)
        keys = [
            handle(n, color=INK, markerfacecolor=op_look(n).colour, marker=op_look(n).marker,
                    linestyle="")
            for n in dict.fromkeys(op.name for op, *_ in points)
        ]  # fmt: skip
        return sheet.finish(
            "Matmuls under the roofs measured in the same run",
            f"Nearest to its roof: {best[0].name} ({best[0].stage}), "
            f"{best[0].floor / best[1].median:.0%} of it." + _said(roofs),
            "Lines: GEMM roof, and bandwidth roof times FLOPs a byte. Hollow: backward. Bytes are "
            "those that the op has to move, with the experts that got a row." + numbered(records),
            keys,
        )


def _near(roofs: Sequence[tuple[float, float]]) -> dict[float, str]:
    """The numbers of the records at each height of a roof; heights within 10 % share one label."""
    out: dict[float, list[int]] = {}
    for number, (peak, _) in enumerate(roofs, 1):
        at = next((known for known in out if abs(peak / known - 1) < 0.1), peak)
        out.setdefault(at, []).append(number)
    return {peak: ", ".join(map(str, numbers)) for peak, numbers in out.items()}


def _said(roofs: Sequence[tuple[float, float]]) -> str:
    if len(roofs) > 1:
        return ""
    return f" Roofs: {fmt_rate(roofs[0][0], 'FLOP')}, {fmt_rate(roofs[0][1])}."


def _intensity(value: float) -> str:
    return f"{value:g}"


def _roof_line(record: Record) -> tuple[float, float]:
    """(FLOP/s, B/s): the roofs that predictions are held against."""
    return Rates.of(record.current_roofs())[:2]


# ------------------------------------------------------------------------ rows per expert
def plot_rows(records: Sequence[Record]) -> Figure:
    """Rows of each expert, the busiest first, for each size and routing."""
    with look():
        sheet = RecordSheet(records, 8, 3.8)
        ax = sheet.figure.subplots()
        shown: dict[tuple[str, int, str], Case] = {}
        for case in measured_cases(records):
            shown.setdefault((case.subject, case.tokens, case.routing), case)
        cases = list(shown.values())[-MOST_LINES:]
        keys, found = [], []
        for number, case in enumerate(cases):
            style, rows = model_style(number), sorted(case.rows_per_expert, reverse=True)
            label = ", ".join(
                [
                    *([case.subject] if len({c.subject for c in cases}) > 1 else []),
                    count_of(case.tokens, "token"),
                    case.routing,
                ]
            )
            (line,) = ax.plot(
                range(1, len(rows) + 1), rows, drawstyle="steps-mid", color=style.colour,
                linestyle=style.dashes, label=label, gid=f"rows {number}",
            )  # fmt: skip
            keys.append(line)
            mean = sum(rows) / len(rows)
            found.append(f"{rows[0] / mean:.1f}x at {label}")
        most = max(max(case.rows_per_expert) for case in cases)
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(0, most * 1.5)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.set_xlabel("experts, the busiest first")
        ax.set_ylabel("rows")
        return sheet.finish(
            "Rows per expert",
            f"Busiest expert over the mean: {'; '.join(found[:4])}.",
            "As drawn for the run and counted by the layer; predictions use this histogram. Linear "
            "below one row, logarithmic above.",
            keys,
        )


PLOTS: dict[str, Callable[[Sequence[Record]], Figure]] = {
    "predicted_measured": plot_errors,
    "roofline": plot_roofline,
    "speed": plot_speed,
    "time_by_op": plot_ops,
    "rows_per_expert": plot_rows,
}
_EACH = ("time_by_op", "rows_per_expert")  # drawn for each record on its own


def draw_all(records: Sequence[Record], folder: Path) -> list[Path]:
    """Save every plot as PNG; records without a measured case are left out.

    Raises UserError where the folder cannot be written or nothing has been measured.
    """
    shown = [record for record in records if any(record.measured())]
    if not shown:
        raise UserError("no case has been measured: there is nothing to draw")
    sheets: list[tuple[str, str, list[Record]]] = []
    for name in PLOTS:
        if name in _EACH and len(shown) > 1:
            sheets += [(name, f"{name}-{n}-{r.name}", [r]) for n, r in enumerate(shown, 1)]
        else:
            sheets.append((name, name, shown))
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, stem, drawn in sheets:
            file = folder / f"{stem}.png"
            PLOTS[name](drawn).savefig(file, dpi=150, metadata={"Software": None})
            files.append(file)
    except OSError as problem:
        raise UserError(f"{folder}: plots cannot be written there ({problem})") from None
    return files
