"""The first rows of a sweep as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from moeplan.report.tables import Column, Table
from moeplan.units import fmt_bytes, fmt_count, fmt_time

if TYPE_CHECKING:
    from moeplan.sweep import Sweep

__all__ = ["sweep_table"]

_WIDTH = 12  # characters of a line of a heading


def sweep_table(sweep: Sweep, rows: Sequence[Sequence[Any]], width: int = 120) -> Table:
    """Inputs and the metrics that a screen's width holds; below, why points have no answer."""
    names = sweep.columns[:-1]
    words = [any(isinstance(row[i], str) for row in rows) for i in range(len(names))]
    columns = [
        Column(_head(name), "left" if word else "right", fixed=True)
        for name, word in zip(names, words, strict=True)
    ]
    table = Table(f"Sweep of {sweep.setting.model}", columns)
    reasons = dict.fromkeys(row[-1] for row in rows if row[-1])
    told = {text: number for number, text in enumerate(reasons, 1)}
    empty, units = len(sweep.metrics), sweep.units
    for row in rows:
        cells = [_cell(x, units.get(name, "")) for x, name in zip(row, names, strict=False)]
        if row[-1]:
            cells[-empty:] = [f"({told[row[-1]]})", *[""] * (empty - 1)]
        table.rows.append(cells)
    table.notes = [f"({number}) {text}" for text, number in told.items()]
    _fit(table, len(names) - empty, sweep.metrics, width)
    if sweep.size > len(rows):
        table.notes.append(
            f"the first {len(rows)} of {sweep.size:,} points; --out FILE.csv holds them all"
        )
    return table


def _fit(table: Table, inputs: int, metrics: Sequence[str], width: int) -> None:
    """Leave out metrics, from the last, until the table is not wider than the screen."""
    lengths = [
        max(map(len, [*column.title.split("\n"), *(row[i] for row in table.rows)]), default=0)
        for i, column in enumerate(table.columns)
    ]
    keep = len(lengths)
    while keep > inputs + 1 and sum(lengths[:keep]) + 3 * (keep - 1) > width:
        keep -= 1
    if keep < len(lengths):
        left = ", ".join(metrics[keep - inputs :])
        table.notes.append(f"too wide for this screen, so left out: {left}")
        table.columns = table.columns[:keep]
        table.rows = [row[:keep] for row in table.rows]


def _head(name: str) -> str:
    """The end of a path over some lines: a screen is narrow, and files have the whole."""
    parts = name.split(".")
    lines = [""]
    for word in (x for part in parts[-2:] for x in part.split("_")):
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) <= _WIDTH:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(line for line in lines if line)


def _cell(value: Any, unit: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit in _WRITE:
        return _WRITE[unit](value)
    if abs(value) >= 100_000:
        return fmt_count(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


_WRITE: dict[str, Callable[[float], str]] = {"B": fmt_bytes, "s": fmt_time}
