"""Points: shapes of one kind of op, many at once, with or without measured times.

This is what a fit and a prediction take, wherever the shapes come from: a CSV file
(`moeplan.calibration.reader`), the records of `moeplan profile`, or a caller's own numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from moeplan.arrays import np
from moeplan.calibration.uniform import Loads
from moeplan.errors import UserError

if TYPE_CHECKING:
    from numpy import ndarray

__all__ = ["COLUMNS", "OPTIONAL", "Kind", "Points", "points_of", "shape_columns"]

Kind: TypeAlias = Literal["moe", "gemm", "grouped", "bytes", "attention", "cpu_matmul"]
_Array: TypeAlias = "ndarray[Any, Any]"

COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "moe": (
        "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size",
        "moe_ep_size", "distribution",
    ),
    "gemm": ("m", "n", "k"),
    "grouped": ("rows", "n", "k", "experts"),
    "bytes": ("bytes", "launches"),
    "attention": ("flops", "bytes"),
    "cpu_matmul": ("rows", "n", "k", "experts"),
}  # fmt: skip
"""Columns that points of each kind have. moe: a whole MoE op on one rank of many; `num_tokens`
counts tokens of all ranks before routing, `moe_tp_size` divides `inter_size`, `moe_ep_size` the
experts. gemm: [m, k] x [k, n]. grouped, cpu_matmul: `rows` rows over `experts` matrices [k, n].
bytes: what an element-wise op, gather or selection reads and writes, in how many kernels."""

OPTIONAL: Mapping[Kind, tuple[str, ...]] = {
    "moe": ("gated", "weight_on_input", "weight_bytes"),
    "gemm": ("weight_bytes", "moved"),
    "grouped": ("distribution", "topk", "weight_bytes"),
    "bytes": (),
    "attention": (),
    "cpu_matmul": ("distribution", "topk"),
}
"""Columns that points of a kind may have. gated: two input matrices (SwiGLU and its kin), 1 or 0.
weight_on_input: the router's weight multiplies an expert's input (Llama 4). weight_bytes: of an
element of the weights as stored, 2 without it. moved: bytes of operands and result, where they are
not those of the shape."""


@dataclass(frozen=True)
class Points:
    """Shapes of one kind, one array a column; seconds are the measured times, where there are any.

    What only predicts takes plain numbers in the columns too: one shape, without numpy. loads:
    statistics of measured rows per expert, in the place of a distribution. source: where the points
    come from. lines: the line of each point in its file. extra: other columns, as they stand there.
    """

    kind: Kind
    columns: Mapping[str, Any]
    seconds: _Array | None = None
    loads: Loads | None = None
    source: str = ""
    lines: _Array | None = field(default=None, repr=False)
    extra: Mapping[str, _Array] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def take(self, where: _Array) -> Points:
        """The points at these places (indices or a mask)."""
        return replace(
            self,
            columns={name: column[where] for name, column in self.columns.items()},
            seconds=None if self.seconds is None else self.seconds[where],
            loads=None if self.loads is None else _take_loads(self.loads, where),
            lines=None if self.lines is None else self.lines[where],
            extra={name: column[where] for name, column in self.extra.items()},
        )


def _take_loads(loads: Loads, where: _Array) -> Loads:
    return Loads(
        loads.rows[where],
        loads.active[where],
        {block: tiles[where] for block, tiles in loads.tiles.items()},
        {block: tiles[where] for block, tiles in loads.all_tiles.items()},
        loads.single[where],
    )


def points_of(kind: Kind, *, seconds: Any = None, source: str = "", **columns: Any) -> Points:
    """Points from numbers or arrays that broadcast. Raises UserError for a missing column."""
    missing = [name for name in COLUMNS[kind] if name not in columns]
    if missing:
        raise UserError(f"points of kind {kind!r} need {', '.join(missing)}")
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(c)) for c in columns.values()))
    named = {name: array.ravel() for name, array in zip(columns, arrays, strict=True)}
    times = None
    if seconds is not None:
        shape = arrays[0].shape
        times = np.broadcast_to(np.asarray(seconds, dtype=np.float64), shape).ravel()
    return Points(kind, named, times, source=source)


def shape_columns(points: Points) -> dict[str, Any]:
    """The numbers that say how near a shape is to those of a fit."""
    columns = {n: c for n, c in points.columns.items() if _is_number(c)}
    if points.kind == "moe":
        columns["inter_size"] = columns["inter_size"] // columns.pop("moe_tp_size")
    return columns


def _is_number(column: Any) -> bool:
    if hasattr(column, "dtype"):
        return column.dtype.kind in "if"
    return isinstance(column, (int, float)) and not isinstance(column, bool)
