"""A sweep as tables for a terminal, and as CSV, JSON or Parquet with every point."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from moeplan._version import __version__
from moeplan.errors import UserError
from moeplan.report.columns import NONE
from moeplan.report.tables import Column, Table
from moeplan.sweeping import Sweep, cells
from moeplan.sweeping.inputs import InputRow
from moeplan.units import fmt_bytes, fmt_count, fmt_flops, fmt_money, fmt_rate, fmt_time

__all__ = [
    "names_table",
    "sweep_tables",
    "too_large",
    "unit_shown",
    "write_csv",
    "write_json",
    "write_parquet",
    "written",
]

_ROWS = 40  # of a terminal's table; files have all
_REASONS = 5
_BAND = ".band"  # beside an expected value, it is written with it
_HEAD = 14  # characters of a heading's line, where a dot allows it
_GAP = 3  # what a drawn table puts between two columns

_WRITE: Mapping[str, Callable[[float], str]] = {
    "B": fmt_bytes,
    "GiB": lambda x: fmt_bytes(x, binary=True),
    "B/s": fmt_rate,
    "FLOP": fmt_flops,
    "FLOP/token": fmt_flops,
    "%": lambda x: f"{x:.1%}",
    "FLOP/s": lambda x: fmt_rate(x, "FLOP"),
    "s": fmt_time,
    "$": lambda x: f"${x:.3g}" if 0.001 <= abs(x) < 1 else fmt_money(x),
    "$/h": lambda x: fmt_money(x, per="h"),
}

_SHARES = ("mfu", "mfu_full", "prefill_share")  # keys of layouts that are shares of one


def unit_shown(found: Sweep, name: str) -> str:
    """The unit in which tables and plots write a column, as `layout` does; files have SI units."""
    unit = found.units.get(name, "")
    if found.on_cluster and unit == "B" and name.startswith("memory"):
        return "GiB"
    return "%" if found.on_cluster and name in _SHARES else unit


def too_large(found: Sweep) -> str:
    """How many legal points do not fit, in one sentence; nothing where all do."""
    many, of = int(found.too_large.sum()), int(found.legal.sum())
    if not many:
        return ""
    verb = "does" if many == 1 else "do"
    return f"{many:,} of {of:,} point{'s' * (of > 1)} {verb} not fit the GPU's memory"


def written(value: Any, unit: str, *, given: bool = False) -> str:
    """A value as tables and plots write it; `given`: an input, written out in full."""
    if value is None or value != value:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return str(value)
    if unit in _WRITE:
        return _WRITE[unit](value)
    whole = float(value).is_integer()
    if whole and (given or abs(value) < 10_000):
        return f"{int(value):,}"
    if given:
        return f"{value:,.6g}"
    if abs(value) >= 1000:
        return fmt_count(value)
    return f"{value:.4g}"


# ---------------------------------------------------------------------------------- terminal
def sweep_tables(found: Sweep, width: int | None = None) -> list[Table]:
    """The points under their inputs: one table, or several of columns that fit the width."""
    rows = _picked(found.points)
    fixed = [n for n in found.inputs if _constant(found.columns[n])] if found.points > 1 else []
    inputs = [n for n in found.inputs if n not in fixed]
    bands = {f"{n.removesuffix(_BAND)}.expected": n for n in found.shown if n.endswith(_BAND)}
    bands = {n: band for n, band in bands.items() if n in found.shown}
    shown = [n for n in found.shown if n not in bands.values()]
    texts = {name: _texts(found, name, rows) for name in (*inputs, *shown)}
    for name, band in bands.items():
        texts[name] = _with_band(texts[name], found.columns[band], rows)
    heads = {name: _heading(name) for name in texts}
    wide = {name: _width([*heads[name].split("\n"), *texts[name]]) for name in texts}
    count = f"{found.points:,} point{'s' if found.points != 1 else ''}"
    tables = []
    axes = [n for n in inputs if n in found.axes]
    parts = _parts((inputs, axes), shown, wide, width)
    for number, part in enumerate(parts, start=1):
        names = [*(inputs if number == 1 else axes), *part]
        some = f", part {number} of {len(parts)}" if len(parts) > 1 else ""
        title = f"{found.title}: {count}{some}"
        table = Table(title, [Column(heads[name]) for name in names])
        table.rows = [tuple(texts[name][i] for name in names) for i in range(len(rows))]
        tables.append(table)
    tables[-1].notes += _notes(found, fixed)
    if bands:
        tables[-1].notes.append("±: half the error band of the calibrations")
    return tables


def _picked(points: int) -> list[int | None]:
    """Points to show: all, or the first and the last with a gap (None) between."""
    if points <= _ROWS:
        return list(range(points))
    half = _ROWS // 2
    return [*range(half), None, *range(points - half, points)]


def _texts(found: Sweep, name: str, rows: Sequence[int | None]) -> list[str]:
    column, unit = found.columns[name], unit_shown(found, name)
    given = name in found.inputs
    out = []
    for row in rows:
        if row is None:
            out.append("…")
            continue
        value: Any = column[row]
        value = value.item() if hasattr(value, "item") else value
        out.append(written(value, unit, given=given))
    return out


def _with_band(texts: Sequence[str], band: Any, rows: Sequence[int | None]) -> list[str]:
    """Expected values with half the width of their band beside them."""
    return [
        text if row is None or band[row] is None or band[row] != band[row]
        else f"{text} ±{band[row]:.0%}"
        for text, row in zip(texts, rows, strict=True)
    ]  # fmt: skip


def _heading(name: str) -> str:
    """A path in short lines: broken after dots and underscores."""
    lines = [""]
    for piece in name.replace(".", ".\0").replace("_", "_\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(piece) > _HEAD:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _width(texts: Sequence[str]) -> int:
    return max((len(text) for text in texts), default=0)


def _parts(
    inputs: tuple[Sequence[str], Sequence[str]],
    shown: Sequence[str],
    wide: Mapping[str, int],
    width: int | None,
) -> list[list[str]]:
    """Which shown columns share a table: as many as fit, one at least.

    inputs: what stands before them in the first table, and in those that follow.
    """
    if width is None or not shown:
        return [list(shown)]
    first, later = (sum(wide[name] + _GAP for name in names) for names in inputs)
    parts: list[list[str]] = [[]]
    for name in shown:
        taken = first if len(parts) == 1 else later
        used = taken + sum(wide[n] + _GAP for n in (*parts[-1], name)) - _GAP
        if used > width and parts[-1]:
            parts.append([])
        parts[-1].append(name)
    return parts


def _constant(column: Any) -> bool:
    return bool((column == column[0]).all())


def _notes(found: Sweep, fixed: Sequence[str]) -> list[str]:
    notes: list[str] = []
    alike = [
        f"{n} {written(found.columns[n].tolist()[0], found.units.get(n, ''), given=True)}"
        for n in fixed
    ]
    alike += [f"{p} {written(v, unit_shown(found, p))}" for p, v in found.same.items()]
    if alike:
        notes.append(f"the same at every point: {', '.join(alike)}")
    if text := too_large(found):
        notes.append(text)
    if found.points > _ROWS:
        notes.append(f"{_ROWS} of {found.points:,} points: --csv, --json and --parquet have all")
    reasons = [text for text in found.columns["reason"].tolist() if text]
    if reasons:
        counts: dict[str, int] = {}
        for text in map(_first_of, reasons):
            counts[text] = counts.get(text, 0) + 1
        most = sorted(counts, key=lambda text: -counts[text])
        notes.append(f"not legal: {len(reasons):,} of {found.points:,} points")
        notes += [f"  {counts[text]:,} x {text}" for text in most[:_REASONS]]
        if len(most) > _REASONS:
            notes.append(f"  and {len(most) - _REASONS} other reasons, in the files' last column")
    return notes


def _first_of(reason: str) -> str:
    """The first rule that is broken, where there are several."""
    first, more, _ = reason.partition("; ")
    return f"{first}; and more" if more else first


def names_table(rows: Sequence[InputRow], title: str) -> Table:
    """What can be varied: its name, its value here, what it is, and a shape's config key."""
    columns = [Column("input", "left", fixed=True), Column("here"), Column("is", "left")]
    table = Table(title, columns, values=[])
    assert table.values is not None
    for row in rows:
        text = "" if row.value is None else written(row.value, row.unit, given=True)
        about = f"{row.about} ({row.key})" if row.key else row.about
        table.rows.append((row.name, text, about))
        table.values.append((row.name, "" if row.value is None else row.value, about))
    return table


# -------------------------------------------------------------------------------------- files
def write_csv(found: Sweep, file: IO[str]) -> None:
    """Every point as a line under the columns' names: SI units, nothing where there is none."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(found.columns)
    writer.writerows(zip(*(cells(column) for column in found.columns.values()), strict=True))


def write_json(found: Sweep, file: IO[str]) -> None:
    """One document: columns with their units, and every point as an object."""
    names = list(found.columns)
    columns = [{"name": name, "unit": found.units.get(name, "")} for name in names]
    head = {"moeplan_version": __version__, "title": found.title, "columns": columns}
    file.write(json.dumps(head, indent=2)[:-2] + ',\n  "rows": [')
    for number, row in enumerate(zip(*map(cells, found.columns.values()), strict=True)):
        line = json.dumps(dict(zip(names, row, strict=True)), allow_nan=False)
        file.write(f"{',' if number else ''}\n    {line}")
    file.write("\n  ]\n}\n")


def write_parquet(found: Sweep, file: Path) -> None:
    """Every point, typed, with units as metadata of the columns. `UserError` without pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(
            "--parquet needs pyarrow, which is not installed: pip install 'moeplan[parquet]', or "
            "write --csv"
        ) from None
    fields, arrays = [], []
    for name, column in found.columns.items():
        array = pa.array(cells(column))
        unit = found.units.get(name, "")
        fields.append(pa.field(name, array.type, metadata={"unit": unit} if unit else None))
        arrays.append(array)
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), file)
