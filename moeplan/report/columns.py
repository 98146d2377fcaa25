"""Things side by side: a column for each, numbers with their ratio to the first column."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from moeplan.quantity import Number
from moeplan.report.tables import Column, Table

__all__ = ["NONE", "Row", "ratio", "side_by_side"]

NONE = "–"  # where a column has no such number
COLUMN_GAP = 3  # what a drawn table puts between two columns
RATIO_WIDTH = 8  # of the longest usual ratio, " 0.0561x", so that numbers stand in line


class Row(NamedTuple):
    """A line of a comparison: its name, its number in what is compared, how that is written.

    compared: whether the ratio to the first column says something.
    """

    label: str
    pick: Callable[[Any], Any]
    write: Callable[[Any], str]
    compared: bool = True


def ratio(value: Number, reference: Number) -> str:
    """How many times the reference, to three digits: `14.4x`, `0.276x`, `1,234x`.

    Empty where there is nothing to divide by.
    """
    if not reference:
        return ""
    times = value / reference
    if times >= 999.5:
        return f"{times:,.0f}x" if times < 999_999.5 else f"{times:.1e}x"
    if 0 < times < 0.001:
        return f"{times:.0e}x"
    digits = 0 if times >= 99.95 else 1 if times >= 9.995 else 2 if times >= 0.9995 else 3
    return f"{times:.{digits + (0 < times < 0.09995)}f}x"


def side_by_side(
    title: str,
    names: Sequence[str],
    rows: Sequence[Row],
    compared: Sequence[Any],
    width: int | None,
) -> list[Table]:
    """A column for each of the `compared`: one table, or several that repeat the first column.

    None is wider than `width` characters unless two columns are already. Rows without any number
    are left out. Names that are too long for their column are broken into lines.
    """
    picked = [(row, [row.pick(one) for one in compared]) for row in rows]
    kept = [(row, values) for row, values in picked if any(v is not None for v in values)]
    cells = [_cells(row, values) for row, values in kept]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    room = None if width is None else width - max(len(row.label) for row, _ in kept)
    chunks = _chunks(widths, room)
    out = []
    for number, chunk in enumerate(chunks, start=1):
        part = f", part {number} of {len(chunks)}" if len(chunks) > 1 else ""
        times = f" (x: times {names[0]})" if len(names) > 1 else ""
        heads = _heads([names[i] for i in chunk], [widths[i] for i in chunk], room)
        table = Table(f"{title}{part}{times}", [Column("", "left"), *map(Column, heads)], values=[])
        assert table.values is not None
        for (row, values), texts in zip(kept, cells, strict=True):
            table.rows.append((row.label, *(texts[i] for i in chunk)))
            bare = ("" if values[i] is None else values[i] for i in chunk)
            table.values.append((row.label, *bare))
        out.append(table)
    return out


def _cells(row: Row, values: Sequence[Any]) -> list[str]:
    """A row's cells: the number, and for all but the first its ratio to the first."""
    texts = [NONE if value is None else row.write(value) for value in values]
    if not row.compared or values[0] is None:
        return texts
    times = ["", *("" if v is None else ratio(v, values[0]) for v in values[1:])]
    return [f"{text}{t:>{RATIO_WIDTH if t else 0}}" for text, t in zip(texts, times, strict=True)]


def _chunks(widths: Sequence[int], room: int | None) -> list[list[int]]:
    """Which columns share a table: as many as the room holds, at least two, the first in each."""
    if room is None:
        return [list(range(len(widths)))]
    chunks = [[0]]
    for column in range(1, len(widths)):
        wide = sum(widths[i] + COLUMN_GAP for i in (*chunks[-1], column))
        if wide > room and len(chunks[-1]) > 1:
            chunks.append([0])
        chunks[-1].append(column)
    return chunks


def _heads(names: Sequence[str], widths: Sequence[int], room: int | None) -> list[str]:
    """The columns' names, broken into lines where the longest do not fit beside each other."""
    if room is None:
        return list(names)
    heads = list(names)
    for most in range(max(len(name) for name in names), 0, -1):
        heads = [_folded(name, max(most, w)) for name, w in zip(names, widths, strict=True)]
        wide = [
            max(w, *(len(line) for line in head.split("\n")))
            for head, w in zip(heads, widths, strict=True)
        ]
        if sum(w + COLUMN_GAP for w in wide) <= room:
            break
    return heads


def _folded(name: str, most: int) -> str:
    """A name broken after its hyphens and blanks into lines of at most `most`, where it can be."""
    lines = [""]
    for piece in re.findall(r"[^- ]*[- ]?", name):
        if lines[-1] and len(f"{lines[-1]}{piece}".rstrip()) > most:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)
