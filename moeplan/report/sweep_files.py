"""A sweep in files: CSV and Parquet a stretch of points at a time, JSON with all of them.

All have the same values: SI units, nothing where there is none.
"""

from __future__ import annotations

import csv
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from moeplan._version import __version__
from moeplan.report.sweep_parquet import ParquetTable
from moeplan.report.targets import STDOUT, Part, writing
from moeplan.sweeping import Sweep, cells

__all__ = ["CsvFile", "JsonFile", "ParquetFile", "SweepFile", "write_csv", "write_json"]

_SLICE = 4096  # rows that are plain objects at a time


class SweepFile(ABC):
    """A file that takes a sweep's stretches in order; nothing stands in its place before `keep`.

    target: its name, or `-` for standard output. part: the name of the file in the making. points:
    how many it has. Methods raise `UserError` where the system does not let it be written.
    """

    def __init__(self, option: str, target: str) -> None:
        self.option, self.target = option, target
        self.points = 0
        self._part = None if target == STDOUT else Part(Path(target))
        with writing(option, target):
            self._open()

    @property
    def part(self) -> str:
        """The name of the file in the making; `target` where it is written in its place."""
        return self.target if self._part is None else str(self._part.path)

    def add(self, found: Sweep) -> None:
        """Write the next points."""
        with writing(self.option, self.target):
            self._write(found)
        self.points += found.points

    def close(self) -> None:
        """End the file, without putting it in its place."""
        with writing(self.option, self.target):
            self._close()

    def keep(self) -> None:
        """End the file and put it in its place."""
        self.close()
        if self._part is not None:
            with writing(self.option, self.target):
                self._part.keep()

    def drop(self) -> None:
        """Leave nothing behind."""
        self.close()
        if self._part is not None:
            self._part.drop()

    @abstractmethod
    def _open(self) -> None:
        """Open the file; `OSError` where that fails."""

    @abstractmethod
    def _write(self, found: Sweep) -> None:
        """Write the next points; `OSError` where that fails."""

    @abstractmethod
    def _close(self) -> None:
        """Close the file; `OSError` where that fails."""


class _TextFile(SweepFile):
    """A file of text, or standard output."""

    file: IO[str]

    def _open(self) -> None:
        if self._part is None:
            self.file = sys.stdout
        else:
            self.file = self._part.path.open("w", newline="", encoding="utf-8")

    def _close(self) -> None:
        self.file.flush()
        if self._part is not None:
            self.file.close()


class CsvFile(_TextFile):
    """Lines under the columns' names."""

    def _write(self, found: Sweep) -> None:
        write_csv(found, self.file, head=not self.points)


class JsonFile(_TextFile):
    """One document, of one stretch that holds all points."""

    def _write(self, found: Sweep) -> None:
        write_json(found, self.file)


class ParquetFile(SweepFile):
    """Typed columns with their units; needs pyarrow."""

    def _open(self) -> None:
        assert self._part is not None
        self._part.path.open("wb").close()
        self.table = ParquetTable(self._part.path)

    def _write(self, found: Sweep) -> None:
        self.table.add(found)

    def _close(self) -> None:
        self.table.close()


def write_csv(found: Sweep, file: IO[str], *, head: bool = True) -> None:
    """Every point as a line, under the columns' names if `head`."""
    writer = csv.writer(file, lineterminator="\n")
    if head:
        writer.writerow(found.columns)
    writer.writerows(_rows(found))


def write_json(found: Sweep, file: IO[str]) -> None:
    """One document: columns with their units, and every point as an object."""
    names = list(found.columns)
    columns = [{"name": name, "unit": found.units.get(name, "")} for name in names]
    head = {"moeplan_version": __version__, "title": found.title, "columns": columns}
    file.write(json.dumps(head, indent=2)[:-2] + ',\n  "rows": [')
    for number, row in enumerate(_rows(found)):
        line = json.dumps(dict(zip(names, row, strict=True)), allow_nan=False)
        file.write(f"{',' if number else ''}\n    {line}")
    file.write("\n  ]\n}\n")


def _rows(found: Sweep) -> Iterator[tuple[Any, ...]]:
    """Points as plain values, a few at a time."""
    for start in range(0, found.points, _SLICE):
        columns = (column[start : start + _SLICE] for column in found.columns.values())
        yield from zip(*map(cells, columns), strict=True)
