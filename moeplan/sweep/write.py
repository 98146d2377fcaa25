"""Files of a sweep: CSV, JSON and Parquet, written table by table so that memory stays bounded."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

import numpy as np

from moeplan.errors import UserError, near_miss

__all__ = ["FORMATS", "CsvFile", "JsonFile", "Writer", "rows", "writer"]

FORMATS = ("csv", "json", "parquet")
_EXACT = 2.0**53  # below, a float64 holds every whole number


def plain_column(values: Any) -> list[Any]:
    """Plain values of a column: whole numbers as such, None where there is none."""
    array = np.asarray(values)
    if array.dtype.kind in "bU":
        return list(array.tolist())
    if array.dtype.kind == "O":
        return [x if x != "" else None for x in array.tolist()]
    floats = array.astype(np.float64)
    with np.errstate(invalid="ignore"):
        whole = np.isfinite(floats) & (np.floor(floats) == floats) & (np.abs(floats) < _EXACT)
    return [
        int(x) if w else x if np.isfinite(x) else None
        for x, w in zip(floats.tolist(), whole.tolist(), strict=True)
    ]


def rows(table: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The rows of a table as plain values."""
    return zip(*(plain_column(x) for x in table.values()), strict=True)


class Writer(Protocol):
    """A file that takes tables, and is whole once it is left."""

    def __enter__(self) -> Writer: ...

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...  # fmt: skip

    def write(self, table: dict[str, Any]) -> None:
        """Append a table; all have the same columns."""


class _Text:
    """A text file or an open stream."""

    def __init__(self, target: Path | TextIO, columns: Sequence[str]) -> None:
        self.columns = list(columns)
        self._own = isinstance(target, Path)
        self.file: TextIO = _opened(target) if isinstance(target, Path) else target

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            self.file.close()


class CsvFile(_Text):
    """Comma-separated values; an empty field where there is no number."""

    def __init__(self, target: Path | TextIO, columns: Sequence[str]) -> None:
        super().__init__(target, columns)
        self._csv = csv.writer(self.file, lineterminator="\n")
        self._csv.writerow(self.columns)

    def write(self, table: dict[str, Any]) -> None:
        """Append a table."""
        self._csv.writerows(rows({name: table[name] for name in self.columns}))


class JsonFile(_Text):
    """A list of objects; null where there is no number."""

    def __init__(self, target: Path | TextIO, columns: Sequence[str]) -> None:
        super().__init__(target, columns)
        self._before = "[\n"

    def write(self, table: dict[str, Any]) -> None:
        """Append a table."""
        for row in rows({name: table[name] for name in self.columns}):
            entry = dict(zip(self.columns, row, strict=True))
            self.file.write(self._before + json.dumps(entry, allow_nan=False))
            self._before = ",\n"

    def __exit__(self, *raised: object) -> None:
        self.file.write("[]\n" if self._before == "[\n" else "\n]\n")
        super().__exit__(*raised)


class ParquetFile:
    """Apache Parquet, one row group for each table; null where there is no number."""

    def __init__(self, target: Path, columns: Sequence[str]) -> None:
        try:
            import pyarrow as arrow
            from pyarrow import parquet
        except ImportError:
            raise UserError(
                f"{target}: Parquet needs pyarrow, which is not installed: "
                "pip install 'moeplan[parquet]', or write .csv or .json"
            ) from None
        _opened(target).close()
        self._arrow, self._parquet = arrow, parquet
        self._target, self.columns = target, list(columns)
        self._file: Any = None

    def __enter__(self) -> ParquetFile:
        return self

    def write(self, table: dict[str, Any]) -> None:
        """Append a table."""
        arrow = self._arrow
        arrays = {}
        for name in self.columns:
            values = np.asarray(table[name])
            if values.dtype.kind in "OU":
                arrays[name] = arrow.array(plain_column(values), type=arrow.string())
            elif values.dtype.kind == "b":
                arrays[name] = arrow.array(values)
            else:
                arrays[name] = arrow.array(values.astype(np.float64), from_pandas=True)
        made = arrow.table(arrays)
        if self._file is None:
            self._file = self._parquet.ParquetWriter(self._target, made.schema)
        self._file.write_table(made.cast(self._file.schema))

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _opened(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8", newline="")
    except OSError as problem:
        raise UserError(f"{path}: cannot be written ({problem})") from None


def writer(path: Path, columns: Sequence[str]) -> Any:
    """The file of that name's ending. `UserError` for one that is not known or not possible."""
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise UserError(
            f"--out {path}: the ending says the format, and is one of "
            f"{', '.join(f'.{x}' for x in FORMATS)}{near_miss(kind, FORMATS)}"
        )
    made: dict[str, Any] = {"csv": CsvFile, "json": JsonFile, "parquet": ParquetFile}
    return made[kind](path, columns)


def first_rows(tables: Iterable[dict[str, Any]], most: int) -> list[tuple[Any, ...]]:
    """The first rows, for a screen."""
    out: list[tuple[Any, ...]] = []
    for table in tables:
        out += list(rows(table))[: most - len(out)]
        if len(out) >= most:
            break
    return out
