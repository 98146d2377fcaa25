"""A sweep as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moeplan.report.columns import NONE
from moeplan.report.tables import Column, Table
from moeplan.sweeping import Glance, Sweep
from moeplan.sweeping.glance import ROWS
from moeplan.sweeping.inputs import InputRow
from moeplan.units import fmt_bytes, fmt_count, fmt_flops, fmt_money, fmt_rate, fmt_time

__all__ = [
    "names_table",
    "sweep_tables",
    "too_large",
    "unit_shown",
    "written",
]

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


def unit_shown(found: Sweep | Glance, name: str) -> str:
    """The unit in which tables and plots write a column, as `layout` does; files have SI units."""
    unit = found.units.get(name, "")
    if found.on_cluster and unit == "B" and name.startswith("memory"):
        return "GiB"
    return "%" if found.on_cluster and name in _SHARES else unit


def too_large(found: Sweep) -> str:
    """How many legal points do not fit, in one sentence; nothing where all do."""
    return _too_large(int(found.too_large.sum()), int(found.legal.sum()))


def _too_large(many: int, of: int) -> str:
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
def sweep_tables(found: Glance, width: int | None = None) -> list[Table]:
    """The points under their inputs: one table, or several of columns that fit the width."""
    inputs = [n for n in found.inputs if n not in found.fixed]
    bands = {f"{n.removesuffix(_BAND)}.expected": n for n in found.shown if n.endswith(_BAND)}
    bands = {n: band for n, band in bands.items() if n in found.shown}
    shown = [n for n in found.shown if n not in bands.values()]
    texts = {name: _texts(found, name) for name in (*inputs, *shown)}
    for name, band in bands.items():
        texts[name] = _with_band(texts[name], found.values(band))
    if found.points > ROWS:
        for column in texts.values():
            column.insert(ROWS // 2, "…")
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
        table.rows = list(zip(*(texts[name] for name in names), strict=True))
        tables.append(table)
    tables[-1].notes += _notes(found)
    if bands:
        tables[-1].notes.append("±: half the error band of the calibrations")
    return tables


def _texts(found: Glance, name: str) -> list[str]:
    unit, given = unit_shown(found, name), name in found.inputs
    return [written(value, unit, given=given) for value in found.values(name)]


def _with_band(texts: Sequence[str], bands: Sequence[Any]) -> list[str]:
    """Expected values with half the width of their band beside them."""
    return [
        text if band is None or band != band else f"{text} ±{band:.0%}"
        for text, band in zip(texts, bands, strict=True)
    ]


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


def _notes(found: Glance) -> list[str]:
    notes: list[str] = []
    alike = [
        f"{n} {written(found.values(n)[0], found.units.get(n, ''), given=True)}"
        for n in found.fixed
    ]
    alike += [f"{p} {written(v, unit_shown(found, p))}" for p, v in found.same.items()]
    if alike:
        notes.append(f"the same at every point: {', '.join(alike)}")
    if text := _too_large(found.too_large, found.legal):
        notes.append(text)
    if found.points > ROWS:
        notes.append(f"{ROWS} of {found.points:,} points: --csv, --json and --parquet have all")
    if found.legal < found.points:
        counts = found.counts
        most = sorted(counts, key=lambda text: -counts[text])
        notes.append(f"not legal: {found.points - found.legal:,} of {found.points:,} points")
        notes += [f"  {counts[text]:,} x {text}" for text in most[:_REASONS]]
        if len(most) > _REASONS:
            others = f"{len(most) - _REASONS:,}{' or more' if found.many_texts else ''}"
            reasons = "reason" if others == "1" else "reasons"
            notes.append(f"  and {others} other {reasons}, in the files' last column")
    return notes


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
