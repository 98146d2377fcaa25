"""The tables of a check: what differs, the totals of both sides, what was left out."""

from __future__ import annotations

from moeplan.check import Check, Totals
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_bytes

__all__ = ["check_tables"]

_SIDES = {"headers": "files", "index": "index", "transformers": "transformers"}


def check_tables(c: Check) -> list[Table]:
    """The verdict, the differences, the totals."""
    tables = [Table(_verdict(c), [], notes=[f"{c.path}, {c.label}"])]
    if c.refusal is not None:
        tables[0].notes.append(f"no estimate: {c.refusal}")
    if c.differences:
        tables.append(_differences(c))
    tables.append(_totals(c))
    if c.there.dtypes:
        tables.append(_dtypes(c))
    return tables


def _verdict(c: Check) -> str:
    if c.refusal is not None:
        return "Counted without an estimate"
    if not c.differences:
        if c.by_name and c.here is not None:
            several = f"{c.by_name:,} of {c.here.tensors:,} tensors"
            return f"Nothing differs; of {several} the name alone is known"
        return "The estimate is equal, tensor by tensor"
    number = sum(d.tensors for d in c.differences)
    return f"The estimate differs in {number:,} tensor" + ("s" if number != 1 else "")


def _differences(c: Check) -> Table:
    columns = [
        Column("", "left", fixed=True),
        Column("tensor", "left"),
        Column("tensors"),
        Column("estimate", "left"),
        Column(_SIDES[c.kind], "left"),
    ]
    table = Table("Differences", columns)
    for d in c.differences:
        table.rows.append((d.kind, d.name, f"{d.tensors:,}", d.here, d.there))
        if d.hint:
            table.notes.append(f"{d.name}: {d.hint}")
    table.notes.append("{0-3}: one tensor for each of these numbers")
    return table


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _totals(c: Check) -> Table:
    there = _SIDES[c.kind]
    sides: list[tuple[str, Totals]] = [] if c.here is None else [("estimate", c.here)]
    sides.append((there, c.there))
    table = Table("Totals", [Column("", "left"), *(Column(name) for name, _ in sides)], values=[])
    assert table.values is not None
    for word, key in (("tensors", "tensors"), ("values", "values"), ("bytes", "size")):
        numbers = [getattr(side, key) for _, side in sides]
        table.rows.append((word, *(_number(n) for n in numbers)))
        table.values.append((word, *("" if n is None else n for n in numbers)))
    table.notes.append("values: numbers stored, trained or not, scales of quantised weights apart")
    table.notes += c.notes
    return table


def _dtypes(c: Check) -> Table:
    table = Table("By element type", [Column("", "left"), Column("tensors"), Column("bytes")])
    for dtype, (number, size) in sorted(c.there.dtypes.items()):
        table.rows.append((dtype, f"{number:,}", fmt_bytes(size)))
    return table
