"""Plots of records: prediction and measurement, time by op, roofline, rows per expert, speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeplan.errors import UserError
from moeplan.profile.plot_look import (
    RecordSheet,
    count_of,
    handle,
    measured_cases,
    op_look,
    patch,
)
from moeplan.profile.record import Case, Record, quantile
from moeplan.profile.validate import errors_of, layer_points, op_points
from moeplan.report.plots.sheet import brief, log_axis, look
from moeplan.report.style import INK, model_style
from moeplan.units import fmt_flops, fmt_rate, fmt_time

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
        cases = measured_cases(records)[:24]
        sheet = RecordSheet(records, 10, 4.2)
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
                va="bottom", size=7.5, annotation_clip=False, rotation=90 if len(cases) > 10 else 0,
            )  # fmt: skip
        ax.axhline(1, color=INK, linewidth=0.8)
        ax.set_xticks(range(len(cases)), [_tick(case, cases) for case in cases])
        ax.set_ylabel("share of the measured time of all ops")
        ax.set_ylim(0, max(1.12, 1.1 * ax.get_ylim()[1]))
        ax.grid(False, axis="x")
        return sheet.finish(
            "Time by op: measured (left) beside predicted (right, pale)",
            _longest(cases),
            "Bars of a case are shares of the time that its ops took; the layer's own time stands "
            "above. In cases with a backward pass each op appears twice, forward below.",
            [patch(name, op_look(name)) for name in names],
        )


def _tick(case: Case, cases: Sequence[Case]) -> str:
    lines = [f"{case.tokens:,}", "fwd" if case.direction == "forward" else "fwd+bwd"]
    if len({c.subject for c in cases}) > 1:
        lines.append(case.subject.partition("-")[0])
    if len({c.routing for c in cases}) > 1:
        lines.append(case.routing)
    return "\n".join(lines)


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
            f"{best[0].floor / best[1].median:.0%} of it. Roofs: "
            + "; ".join(f"{fmt_rate(p, 'FLOP')}, {fmt_rate(r)}" for p, r in dict.fromkeys(roofs))
            + ".",
            "Lines: GEMM roof, and bandwidth roof times FLOPs a byte. Hollow: backward. Bytes are "
            "those that the op has to move, with the experts that got a row.",
            keys,
        )


def _intensity(value: float) -> str:
    return f"{value:g}"


def _roof_line(record: Record) -> tuple[float, float]:
    """(FLOP/s, B/s): the roofs that predictions are held against."""
    values = {roof.name: roof.value for roof in record.current_roofs()}
    return values["gemm"], max(values["copy"], values["reduce"])


# ------------------------------------------------------------------------ rows per expert
def plot_rows(records: Sequence[Record]) -> Figure:
    """Rows of each expert, the busiest first, for each size and routing."""
    with look():
        sheet = RecordSheet(records, 8, 3.8)
        ax = sheet.figure.subplots()
        shown: dict[tuple[str, int, str], Case] = {}
        for case in measured_cases(records):
            shown.setdefault((case.subject, case.tokens, case.routing), case)
        cases = list(shown.values())[-10:]
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


# -------------------------------------------------------------------- speed against tokens
def plot_speed(records: Sequence[Record]) -> Figure:
    """Tokens a second against tokens in a pass: floor, prediction and measurement."""
    with look():
        sheet = RecordSheet(records, 9, 3.9)
        axes = sheet.figure.subplots(1, 2, sharey=True)
        cases, keys = measured_cases(records), list[Any]()
        speeds: list[float] = []
        subjects = list(dict.fromkeys(case.subject for case in cases))
        for ax, direction in zip(axes, ("forward", "forward+backward"), strict=True):
            ax.set_title(direction.replace("+", " + "))
            for number, subject in enumerate(subjects):
                for line in _lines(records, subject, direction):
                    speeds += _speed_line(ax, line, model_style(number).colour)
            ax.set_xlabel("tokens in a pass")
        for ax in axes:
            _token_axis(ax, sorted({case.tokens for case in cases}))
        log_axis(axes[0].yaxis, speeds, lambda v: fmt_rate(v, "token"))
        axes[0].set_ylabel("speed of one layer")
        for number, subject in enumerate(subjects):
            keys.append(handle(subject, color=model_style(number).colour, linewidth=3))
        keys += [
            handle("measured, p10 to p90", color=INK, marker="o", linestyle="-"),
            handle("predicted", color=INK, linestyle="--"),
            handle("floor at the measured roofs", color=INK, linestyle=":"),
        ]
        return sheet.finish(
            "Speed of one layer against the tokens of a pass",
            _fastest(cases),
            "One MoE layer alone, without attention and the rest of the model.",
            keys,
        )


def _lines(records: Sequence[Record], subject: str, direction: str) -> list[list[Case]]:
    """Cases by rising tokens, apart for each record, routing, backend and dtype."""
    lines: dict[tuple[Any, ...], list[Case]] = {}
    for number, record in enumerate(records):
        for case in record.measured():
            if (case.subject, case.direction) == (subject, direction):
                lines.setdefault((number, *case.key[2:5]), []).append(case)
    return [sorted(line, key=lambda c: c.tokens) for line in lines.values()]


def _token_axis(ax: Axes, tokens: Sequence[int]) -> None:
    """A logarithmic axis with the measured sizes as its ticks."""
    from matplotlib.ticker import FixedLocator

    log_axis(ax.xaxis, tokens, lambda value: f"{value:,.0f}")
    ax.xaxis.set_major_locator(FixedLocator(tokens))


def _speed_line(ax: Axes, cases: Sequence[Case], colour: str) -> list[float]:
    """Draw one line of each kind; return all speeds."""
    x = [case.tokens for case in cases]
    y, low, high, expected, floor = ([] for _ in range(5))
    for case in cases:
        assert case.measured is not None
        assert case.prediction is not None
        samples = case.measured.layer.samples
        y.append(case.tokens / case.measured.layer.median)
        low.append(y[-1] - case.tokens / quantile(samples, 0.9))
        high.append(case.tokens / quantile(samples, 0.1) - y[-1])
        expected.append(case.tokens / case.prediction.expected)
        floor.append(case.tokens / case.prediction.floor)
    ax.errorbar(x, y, (low, high), color=colour, marker="o", capsize=2, linewidth=1.6)
    ax.plot(x, expected, "--", color=colour)
    ax.plot(x, floor, ":", color=colour)
    return [*y, *(a - b for a, b in zip(y, low, strict=True)), *expected, *floor]


def _fastest(cases: Sequence[Case]) -> str:
    best = max(cases, key=lambda c: _reached(c))
    flops = sum(op.flops for op in best.prediction.ops) if best.prediction else 0
    return (
        f"Most FLOP/s: {brief(fmt_rate(_reached(best), 'FLOP'))} in {best.label} "
        f"({brief(fmt_flops(flops))} a pass)."
    )


def _reached(case: Case) -> float:
    assert case.prediction is not None
    assert case.measured is not None
    return sum(op.flops for op in case.prediction.ops) / case.measured.layer.median


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
