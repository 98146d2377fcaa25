"""What the tables of training and of serving on one layout share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moeplan.report.tables import Column, Table
from moeplan.units import fmt_bytes, fmt_gib, fmt_time

__all__ = ["WORD", "Answer", "capacity", "gib", "listed", "ops_alone", "with_band"]

WORD = Column("", "left")
UNKNOWN = "not known"

Answer = Mapping[str, Any]


def gib(size: float) -> str:
    """Bytes in GiB, without the unit."""
    return fmt_gib(size, 2)


def capacity(a: Answer) -> str:
    """Which of a GPU's two sizes is meant: a datasheet's GB are fewer than a driver's."""
    found, printed = a["cluster"]["memory"], a["cluster"]["memory_datasheet"]
    here = f"{gib(found)} GiB are {fmt_bytes(found)}"
    if found == printed:
        return f"{here}, the datasheet's figure"
    return f"{here}, as the driver reports; the datasheet says {fmt_bytes(printed)}"


def ops_alone(a: Answer, fitted: str) -> list[str]:
    """That nothing of software is in a time, where that is so. fitted: a stack that has it."""
    if not a["stack"]["ops_alone"]:
        return []
    hint = f"; --stack {fitted} has it fitted for one stack" if a["stack"]["calibrated"] else ""
    return [f"ops alone; what software adds comes on top (docs/accuracy.md){hint}"]


def with_band(a: Answer, name: str) -> str:
    """A time with the band of the ops behind it."""
    fast, slow = a["band"][name]
    if fast is None or fast == slow:
        return fmt_time(a[name])
    return f"{fmt_time(a[name])} ({fmt_time(fast)} to {fmt_time(slow)})"


def listed(title: str, a: Answer, rows: Mapping[str, tuple[Any, Callable[[Any], str]]]) -> Table:
    """Numbers below each other; what is None is said to be unknown."""
    table = Table(title, [WORD, Column("")], values=[])
    assert table.values is not None
    for label, (number, write) in rows.items():
        table.rows.append((label, UNKNOWN if number is None else write(number)))
        table.values.append((label, "" if number is None else number))
    return table
