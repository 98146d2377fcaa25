"""A Parquet file that grows: what type a column has follows from all of its values so far.

A file has its types at its beginning. Where later points need another one (a fraction in a column
of whole numbers), the rows so far are written again with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeplan.errors import UserError
from moeplan.sweeping import Sweep, cells

__all__ = ["ParquetTable", "check_pyarrow"]

_ROWS = 32768  # of a row group
_LARGEST = 2**63


def check_pyarrow() -> None:
    """`UserError` where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError(
            "--parquet needs pyarrow, which is not installed: pip install 'moeplan[parquet]', or "
            "write --csv"
        ) from None


class ParquetTable:
    """Rows of a sweep, in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.schema: Any = None
        self.writer: Any = None

    def add(self, found: Sweep) -> None:
        """Write the next points."""
        for start in range(0, found.points, _ROWS):
            table = _table(found, slice(start, start + _ROWS))
            schema = table.schema if self.schema is None else _joined(self.schema, table.schema)
            if self.writer is None or schema != self.schema:
                self._begin(schema)
            self.writer.write_table(table.cast(schema, safe=False))

    def close(self) -> None:
        """Finish the file."""
        if self.writer is not None:
            self.writer.close()

    def _begin(self, schema: Any) -> None:
        """Begin the file, with the rows so far where there are some."""
        import pyarrow.parquet as pq

        self.close()
        if self.schema is None:
            self.writer = pq.ParquetWriter(self.path, schema)
        else:
            before = self.path.with_name(f"{self.path.name}.before")
            self.path.replace(before)
            self.writer = pq.ParquetWriter(self.path, schema)
            with pq.ParquetFile(before) as old:
                for group in range(old.num_row_groups):
                    self.writer.write_table(old.read_row_group(group).cast(schema, safe=False))
            before.unlink()
        self.schema = schema


def _table(found: Sweep, rows: slice) -> Any:
    """Some rows, typed, with units as metadata of the columns."""
    import pyarrow as pa

    fields, arrays = [], []
    for name, column in found.columns.items():
        array = _array(column[rows])
        unit = found.units.get(name, "")
        fields.append(pa.field(name, array.type, metadata={"unit": unit} if unit else None))
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _array(column: Any) -> Any:
    """A column with null for what is missing: whole numbers, numbers, flags or words.

    Words where it has words and numbers (a price of `rental`, and of 2).
    """
    import pyarrow as pa

    values = cells(column)
    present = [v for v in values if v is not None]
    if not present:
        return pa.nulls(len(values))
    kinds = {type(v) for v in present}
    if kinds <= {int, float}:
        whole = kinds == {int} and max(map(abs, present)) < _LARGEST
        if whole:
            return pa.array(values, pa.int64())
        return pa.array([None if v is None else float(v) for v in values])
    if len(kinds) > 1:
        return pa.array([None if v is None else str(v) for v in values])
    return pa.array(values)


def _joined(one: Any, other: Any) -> Any:
    """Types that hold the values of two schemas of the same columns."""
    import pyarrow as pa

    fields = []
    for a, b in zip(one, other, strict=True):
        kinds = [kind for kind in dict.fromkeys((a.type, b.type)) if not pa.types.is_null(kind)]
        if not kinds:
            kind = pa.null()
        elif len(kinds) == 1:
            [kind] = kinds
        else:
            numbers = set(kinds) == {pa.int64(), pa.float64()}
            kind = pa.float64() if numbers else pa.string()
        fields.append(pa.field(a.name, kind, metadata=a.metadata or b.metadata))
    return pa.schema(fields)
