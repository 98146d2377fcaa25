"""The plot of speed: tokens a second against tokens in a pass, floor, prediction, measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moeplan.profile.plot_look import RecordSheet, handle, measured_cases, numbered
from moeplan.profile.predict import JUDGED
from moeplan.profile.record import Case, Record, quantile
from moeplan.report.plots.sheet import brief, log_axis, look
from moeplan.report.style import INK, model_style
from moeplan.units import fmt_flops, fmt_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_speed"]


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
                lines = _lines(records, subject, direction)
                for place, (label, line) in enumerate(lines.items()):
                    speeds += _speed_line(ax, line, model_style(number).colour)
                    if len(lines) > 1:
                        _name(ax, line, label, model_style(number).colour, place)
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
            "One MoE layer alone, without attention and the rest of the model. Hollow: backends to "
            "compare with." + numbered(records),
            keys,
        )


def _lines(records: Sequence[Record], subject: str, direction: str) -> dict[str, list[Case]]:
    """Cases by rising tokens, apart for each record, routing, backend and dtype.

    Keys say which: the record's number, and in what its lines differ.
    """
    lines: dict[tuple[str, ...], list[Case]] = {}
    for number, record in enumerate(records, 1):
        for case in record.measured():
            if (case.subject, case.direction) == (subject, direction):
                lines.setdefault((str(number), *case.key[2:5]), []).append(case)
    vary = [len(set(parts)) > 1 for parts in zip(*lines, strict=True)]
    return {
        " ".join(part for part, varies in zip(key, vary, strict=True) if varies): sorted(
            line, key=lambda case: case.tokens
        )
        for key, line in lines.items()
    }


def _name(ax: Axes, line: Sequence[Case], label: str, colour: str, place: int) -> None:
    """Write beside a line's last point which it is, where a model has several."""
    last = line[-1]
    assert last.measured is not None
    ax.annotate(
        label, (last.tokens, last.tokens / last.measured.layer.median),
        xytext=(5, -10 + 8 * (place % 3)), textcoords="offset points", fontsize=7, color=colour,
        annotation_clip=False,
    )  # fmt: skip


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
    own = cases[0].backend in JUDGED
    ax.errorbar(
        x, y, (low, high), color=colour, marker="o", capsize=2, linewidth=1.6 if own else 0.8,
        markerfacecolor=colour if own else "white",
    )  # fmt: skip
    if not own:  # predictions and floors are those of the others
        return [*y, *(a - b for a, b in zip(y, low, strict=True))]
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
