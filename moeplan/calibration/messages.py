"""Messages of a CSV file and their expected times: NCCL's collectives, DeepEP's exchanges.

A file of collectives has the columns collective, num_gpus, and message_elements_half (of two bytes)
or message_bytes, with latency_ms where times were measured. One of exchanges has num_token,
hidden_size, num_topk and num_experts (and node_num), with dispatch_transmit_us and
combine_transmit_us; it holds two messages a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from moeplan.calibration.collectives import ALIASES, BYTES_PER_HALF, Table, network
from moeplan.calibration.errors import Errors, errors_by_regime
from moeplan.calibration.fabric import GROUP, fabric_of
from moeplan.calibration.reader import column_of_numbers, read_rows, refuse
from moeplan.cluster.hardware import Gpu
from moeplan.errors import UserError, near_miss
from moeplan.model.routing import expected_distinct

__all__ = ["Messages", "is_of_messages", "message_tables", "predict_messages", "read_messages"]

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
COLLECTIVES = ("collective", "num_gpus")
SIZES = {"message_bytes": 1, "message_elements_half": BYTES_PER_HALF}
EXCHANGES = ("num_token", "hidden_size", "num_topk", "num_experts")
ROW_BYTES = {"dispatch": 1, "combine": 2}  # of an element: fp8 there, bf16 back
SMALL, LARGE = 1 << 16, 1 << 22


@dataclass(frozen=True)
class Messages:
    """Messages of one network's tables.

    name: of the network. operation: of each. bytes: of a rank, as its tables count them. columns:
    of the file, a line for each message. seconds: as measured, where the file says so.
    """

    name: str
    operation: _Array
    gpus: _Array
    bytes: _Array
    columns: Mapping[str, _Array]
    seconds: _Array | None
    source: str

    def __len__(self) -> int:
        return len(self.bytes)


def is_of_messages(path: Path) -> bool:
    """Whether a file holds messages and no points of ops. Raises UserError where it is no CSV."""
    header = set(read_rows(path)[0])
    return set(COLLECTIVES) <= header or {"num_token", "num_topk"} <= header


def read_messages(path: str | Path) -> Messages:
    """The messages of a file. Raises UserError that names the file, the line and the column."""
    path = Path(path)
    header, rows = read_rows(path)
    lines = np.array([number for number, _ in rows])
    texts = {name: [row[i].strip() for _, row in rows] for i, name in enumerate(header)}

    def numbers(name: str, what: str = "a number above 0") -> _Array:
        if name not in texts:
            raise UserError(
                f"{path}, line 1: the column {name!r} is missing{near_miss(name, header)}"
            )
        found = column_of_numbers(name, texts[name], lines, path)
        refuse(found <= 0, name, texts[name], lines, path, what)
        return found

    columns = {name: np.array(column) for name, column in texts.items()}
    if set(COLLECTIVES) <= set(header):
        return _collectives(path, columns, numbers)
    return _exchanges(path, columns, numbers)


def _collectives(path: Path, columns: dict[str, _Array], numbers: Any) -> Messages:
    size = next((name for name in SIZES if name in columns), "message_elements_half")
    operation = np.array([ALIASES.get(name, name) for name in columns["collective"].tolist()])
    seconds = numbers("latency_ms") * 1e-3 if "latency_ms" in columns else None
    kept = {name: column for name, column in columns.items() if name != "latency_ms"}
    sent = numbers(size) * SIZES[size]
    return Messages("h200-nccl", operation, numbers("num_gpus"), sent, kept, seconds, str(path))


def _exchanges(path: Path, columns: dict[str, _Array], numbers: Any) -> Messages:
    tokens, hidden, top_k, experts = (numbers(name) for name in EXCHANGES)
    nodes = numbers("node_num") if "node_num" in columns else np.ones(tokens.size)
    gpus = GROUP * nodes
    places = np.where(nodes > 1, nodes, GROUP)
    shapes, at = np.unique(np.stack([experts, top_k, places]), axis=1, return_inverse=True)
    distinct = np.array([
        float(expected_distinct(int(e), int(k), int(n))) for e, k, n in shapes.T
    ])[at.ravel()]  # fmt: skip
    measured = {name: f"{name}_transmit_us" for name in ROW_BYTES}
    known = all(column in columns for column in measured.values())
    kept = {n: c for n, c in columns.items() if n not in measured.values()}
    sent = [tokens * distinct * hidden * size for size in ROW_BYTES.values()]
    seconds = [numbers(column) * 1e-6 for column in measured.values()] if known else []
    return Messages(
        "h200-deepep",
        np.repeat(list(ROW_BYTES), tokens.size),
        np.tile(gpus, 2),
        np.concatenate(sent),
        {**{name: np.tile(column, 2) for name, column in kept.items()},
         "operation": np.repeat(list(ROW_BYTES), tokens.size)},
        np.concatenate(seconds) if known else None,
        str(path),
    )  # fmt: skip


def predict_messages(found: Messages, gpu: Gpu) -> tuple[dict[str, _Array], list[Errors]]:
    """Columns lower_ms, expected_ms, upper_ms, band, outside and origin, and errors by regime where
    times were measured. Raises UserError for an operation without a table.
    """
    fabric = fabric_of(gpu)
    if fabric is None:
        raise UserError(f"no collectives were measured for {gpu.name}, nor for links like its own")
    tables = network(found.name)
    low, expected, high = (np.empty(len(found)) for _ in range(3))
    outside = np.full(len(found), "" if fabric.measured else "gpu", dtype=object)
    for operation, gpus in sorted({*zip(found.operation, found.gpus.tolist(), strict=True)}):
        here = (found.operation == operation) & (found.gpus == gpus)
        tier = "nvlink" if gpus <= GROUP else None
        took = tables.took(operation, int(gpus), found.bytes[here] * fabric.ratio, tier)
        wider = 1.0 if fabric.measured else 2.0
        expected[here] = took.expected
        low[here] = took.expected * (took.lower / took.expected) ** wider
        high[here] = took.expected * (took.upper / took.expected) ** wider
        if took.outside:
            outside[here] = "num_gpus"
    band = np.round((high - low) / 2 / expected, 4)
    columns = {
        "lower_ms": 1e3 * low, "expected_ms": 1e3 * expected, "upper_ms": 1e3 * high,
        "band": band, "outside": outside.astype(str),
        "origin": np.full(len(found), "measured" if fabric.measured else "assumed"),
    }  # fmt: skip
    if found.seconds is None:
        return columns, []
    columns["measured_ms"] = 1e3 * found.seconds
    size = np.select([found.bytes <= SMALL, found.bytes <= LARGE], ["up to 64 KiB", "up to 4 MiB"],
                     "above 4 MiB")  # fmt: skip
    regimes = np.char.add(np.char.add(found.operation.astype(str), ", "), size)
    return columns, errors_by_regime(regimes, expected, found.seconds, _line(found, gpu))


def _line(found: Messages, gpu: Gpu) -> _Array:
    """Bytes that leave a GPU over its links in full: what a datasheet allows."""
    assert gpu.scale_up_bandwidth is not None
    times = np.where(found.operation == "all_reduce", 2.0, 1.0)
    leaving = found.bytes * (found.gpus - 1) / found.gpus
    out: _Array = times * leaving / float(gpu.scale_up_bandwidth.value)
    return out


def message_tables(found: Messages, tier: str, source: str) -> list[Table]:
    """Tables of measured messages. Raises UserError without times, or for a single size."""
    if found.seconds is None:
        raise UserError(f"{found.source}: a table needs measured times")
    tables = []
    for operation, gpus in sorted({*zip(found.operation, found.gpus.tolist(), strict=True)}):
        here = np.flatnonzero((found.operation == operation) & (found.gpus == gpus))
        points = dict(zip(found.bytes[here].tolist(), found.seconds[here].tolist(), strict=True))
        if len(points) < 2:
            raise UserError(
                f"{found.source}: {operation} among {gpus:g} GPUs has one size; two are needed"
            )
        sizes = tuple(sorted(points))
        times = tuple(points[size] for size in sizes)
        tables.append(Table(str(operation), tier, int(gpus), sizes, times, "measured", source))
    return tables
