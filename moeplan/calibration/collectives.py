"""Time of a collective: tables of measured times by link tier and group size, and what lies beyond.

A table holds about ten (bytes, seconds) points. Between them the logarithm of the time is a
monotone cubic in the logarithm of the bytes (Fritsch and Carlson 1980), below the first it is the
first's, and above the last it grows by bytes over the bandwidth of the last stretch. A group size
without a table of its own lies between its neighbours' (or beyond the last) on a line in log size.

Bytes are those of NCCL's tests, for one rank: the gathered output of an all-gather, the whole
input of a reduce-scatter, the buffer of an all-reduce, the send buffer of an all-to-all with its
own part.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from moeplan.calibration.errors import LOW, UPPER, errors_of
from moeplan.errors import UserError, near_miss
from moeplan.quantity import Number

__all__ = [
    "BYTES_PER_HALF",
    "Network",
    "Table",
    "Took",
    "exchange",
    "left_out",
    "line",
    "network",
    "network_dict",
    "network_of",
    "networks",
    "read_collectives",
    "slowest_rank",
    "thinned",
]

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Origin: TypeAlias = Literal["measured", "assumed"]

FOLDER = Path(__file__).parents[1] / "data" / "calibrations"
PREFIX = "network-"
SCHEMA = 1
BYTES_PER_HALF = 2
ASSUMED_BAND = (0.7, 1.5)
ALIASES = {"alltoall": "all_to_all"}


@dataclass(frozen=True)
class Table:
    """Seconds of a collective among `gpus` GPUs on one link tier, by bytes of a rank.

    tier: nvlink, infiniband, ... origin: measured or assumed; source says by whom or why.
    """

    collective: str
    tier: str
    gpus: int
    bytes: tuple[float, ...]
    seconds: tuple[float, ...]
    origin: Origin
    source: str

    def at(self, size: Number) -> Number:
        """Seconds for `size` bytes, a number or an array."""
        x = np.log(np.asarray(self.bytes))
        y = np.log(np.asarray(self.seconds))
        asked = np.maximum(np.asarray(size, dtype=np.float64), self.bytes[0])
        inside = np.exp(_monotone(x, y, np.log(np.minimum(asked, self.bytes[-1]))))
        rate = (self.bytes[-1] - self.bytes[-2]) / (self.seconds[-1] - self.seconds[-2])
        out = inside + np.maximum(asked - self.bytes[-1], 0) / rate
        return out if np.ndim(size) else float(out)

    @property
    def bandwidth(self) -> float:
        """B/s of the last stretch: what large messages are moved at."""
        return (self.bytes[-1] - self.bytes[-2]) / (self.seconds[-1] - self.seconds[-2])


def _monotone(x: _Array, y: _Array, at: _Array) -> _Array:
    """A cubic through the points that rises where they rise; `at` lies within x."""
    if x.size == 2:
        return np.interp(at, x, y)
    h, slope = np.diff(x), np.diff(y) / np.diff(x)
    inner = np.zeros_like(x)
    same = slope[1:] * slope[:-1] > 0
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    safe_0, safe_1 = (np.where(same, s, 1.0) for s in (slope[:-1], slope[1:]))
    inner[1:-1] = np.where(same, (w1 + w2) / (w1 / safe_0 + w2 / safe_1), 0.0)
    inner[0], inner[-1] = slope[0], slope[-1]
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, x.size - 2)
    t = (at - x[i]) / h[i]
    a, b = y[i], y[i + 1]
    da, db = inner[i] * h[i], inner[i + 1] * h[i]
    out: _Array = (
        a * (1 + 2 * t) * (1 - t) ** 2 + da * t * (1 - t) ** 2
        + b * t * t * (3 - 2 * t) + db * t * t * (t - 1)
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class Took:
    """Seconds of a collective with their band; `outside` says what was not measured."""

    lower: Number
    expected: Number
    upper: Number
    origin: Origin
    source: str
    outside: str = ""


@dataclass(frozen=True)
class Network:
    """Tables of one fabric with the errors of interpolation on sizes left out.

    low, high: quantiles of measured / interpolated on those.
    """

    name: str
    tables: tuple[Table, ...]
    source: str
    date: str
    low: float = ASSUMED_BAND[0]
    high: float = ASSUMED_BAND[1]
    errors: Mapping[str, Any] | None = None

    def took(self, collective: str, gpus: int, size: Number, tier: str | None = None) -> Took:
        """Time of a collective over `size` bytes of a rank, among `gpus` GPUs.

        Raises UserError for a collective that has no table here.
        """
        tables = self._tables(collective, tier)
        if gpus < 2:
            zero = np.zeros(np.shape(size)) if np.ndim(size) else 0.0
            return Took(zero, zero, zero, "measured", "nothing is sent to oneself")
        exact = next((t for t in tables if t.gpus == gpus), None)
        if exact is not None:
            expected, used, outside = exact.at(size), exact, ""
        else:
            expected, used = _between(tables, gpus, size)
            sizes = ", ".join(str(t.gpus) for t in tables)
            outside = f"{gpus} GPUs: from tables for {sizes}"
        low, high = (self.low, self.high) if used.origin == "measured" else ASSUMED_BAND
        if outside:
            low, high = low**2, high**2
        return Took(expected * low, expected, expected * high, used.origin, used.source, outside)

    def _tables(self, collective: str, tier: str | None) -> list[Table]:
        name = ALIASES.get(collective, collective)
        found = [t for t in self.tables if t.collective == name and tier in (None, t.tier)]
        if not found:
            known = sorted({t.collective for t in self.tables})
            raise UserError(
                f"network {self.name!r} has no table of {collective!r}, only of "
                f"{', '.join(known)}{near_miss(collective, known)}"
            )
        return sorted(found, key=lambda t: t.gpus)


def _between(tables: Sequence[Table], gpus: int, size: Number) -> tuple[Number, Table]:
    """Time for a group size without a table, on a line in log size through two neighbours."""
    if len(tables) == 1:
        return tables[0].at(size), tables[0]
    place = min(max(sum(t.gpus < gpus for t in tables), 1), len(tables) - 1)
    a, b = tables[place - 1], tables[place]
    share = np.log(gpus / a.gpus) / np.log(b.gpus / a.gpus)
    low, high = np.log(a.at(size)), np.log(b.at(size))
    # a larger group than any measured one is never faster than that
    rise = high - low
    if share > 1:
        out = np.exp(high + (share - 1) * np.maximum(rise, 0))
    else:
        out = np.exp(low + share * rise)
    return (out if np.ndim(out) else float(out)), (a if share < 0.5 else b)


def line(
    collective: str, tier: str, gpus: int, latency: float, bandwidth: float, source: str
) -> Table:
    """A table of latency + bytes / bandwidth (seconds, B/s), for what nobody measured."""
    sizes = tuple(float(4**i) for i in range(5, 16))
    seconds = tuple(latency + size / bandwidth for size in sizes)
    return Table(collective, tier, gpus, sizes, seconds, "assumed", source)


def exchange(up: Number, out: Number, mode: str = "parallel") -> Number:
    """Time of a hierarchical exchange from those of its scale-up and scale-out parts.

    "parallel": both move at once and the longer counts (what DeepEP's forwarding aims at).
    "sequence": one after the other, an upper bound. Raises UserError for another mode.
    """
    if mode == "parallel":
        return np.maximum(up, out) if np.ndim(up) or np.ndim(out) else max(up, out)
    if mode == "sequence":
        return up + out
    modes = ("parallel", "sequence")
    raise UserError(f"mode {mode!r}: allowed are {', '.join(modes)}{near_miss(mode, modes)}")


def slowest_rank(size: Number, imbalance: Number) -> Number:
    """Bytes of the fullest rank, whose end all others wait for: the mean times max / mean."""
    return size * imbalance


def read_collectives(path: str | Path, tier: str, source: str) -> list[Table]:
    """Tables of a CSV file with the columns collective, num_gpus, latency_ms, and message_bytes or
    message_elements_half. Raises UserError that names the file, the line and the column."""
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read as CSV ({problem})") from None
    size_column = (
        "message_bytes" if rows and "message_bytes" in rows[0] else "message_elements_half"
    )
    scale = 1 if size_column == "message_bytes" else BYTES_PER_HALF
    grouped: dict[tuple[str, int], dict[float, float]] = {}
    for number, row in enumerate(rows, start=2):
        gpus, size, ms = (
            _positive(row, name, path, number) for name in ("num_gpus", size_column, "latency_ms")
        )
        name = ALIASES.get(row.get("collective", ""), row.get("collective", ""))
        if not name:
            raise UserError(f"{path}, line {number}, column collective: a name is needed")
        grouped.setdefault((name, int(gpus)), {})[size * scale] = ms * 1e-3
    tables = []
    for (name, gpus), points in grouped.items():
        if len(points) < 2:
            raise UserError(f"{path}: {name} among {gpus} GPUs has one size; two are needed")
        sizes = tuple(sorted(points))
        times = tuple(points[size] for size in sizes)
        tables.append(Table(name, tier, gpus, sizes, times, "measured", source))
    return tables


def _positive(row: Mapping[str, str], name: str, path: Path, number: int) -> float:
    text = row.get(name)
    if text is None:
        raise UserError(
            f"{path}, line {number}: the column {name!r} is missing{near_miss(name, row)}"
        )
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UserError(
            f"{path}, line {number}, column {name}: {text!r} is given and a number above 0 is "
            "needed"
        )
    return value


def thinned(table: Table, first: int = 0) -> Table:
    """Every other point of a table, and always its last."""
    keep = sorted({*range(first, len(table.bytes), 2), len(table.bytes) - 1})
    return Table(
        table.collective, table.tier, table.gpus,
        tuple(table.bytes[i] for i in keep), tuple(table.seconds[i] for i in keep),
        table.origin, table.source,
    )  # fmt: skip


def left_out(tables: Sequence[Table]) -> tuple[_Array, _Array, _Array]:
    """(interpolated, measured, bytes) of every size that a table of every other size lacks."""
    parts: list[tuple[_Array, _Array, _Array]] = []
    for table in tables:
        sizes, seconds = np.array(table.bytes), np.array(table.seconds)
        for first in (0, 1):
            kept = thinned(table, first)
            out = ~np.isin(sizes, kept.bytes)
            parts.append((np.asarray(kept.at(sizes[out])), seconds[out], sizes[out]))
    interpolated, measured, size = (np.concatenate(part) for part in zip(*parts, strict=True))
    return interpolated, measured, size


def network_of(name: str, tables: Sequence[Table], source: str, date: str) -> Network:
    """A network of measured tables: half of their sizes, with the errors on the other half."""
    interpolated, measured, _ = left_out(tables)
    errors = errors_of("sizes left out", interpolated, measured, measured)
    low, high = np.quantile(measured / interpolated, (LOW, UPPER))
    return Network(
        name, tuple(thinned(t) for t in tables), source, date, float(low), float(high),
        {k: v for k, v in errors.as_dict().items() if not k.startswith("floor")},
    )  # fmt: skip


def networks() -> list[str]:
    """The networks that ship, by name."""
    return sorted(p.stem.removeprefix(PREFIX) for p in FOLDER.glob(f"{PREFIX}*.json"))


@cache
def network(name: str) -> Network:
    """The network of that name. Raises UserError."""
    if name not in networks():
        raise UserError(
            f"no network {name!r}: there are {', '.join(networks())}{near_miss(name, networks())}"
        )
    data = json.loads((FOLDER / f"{PREFIX}{name}.json").read_text(encoding="utf-8"))
    if data["schema"] != SCHEMA:
        raise UserError(f"network {name!r}: schema {data['schema']} is not {SCHEMA}")
    tables = tuple(
        Table(
            t["collective"], t["tier"], t["gpus"], tuple(p[0] for p in t["points"]),
            tuple(p[1] for p in t["points"]), t["origin"], t["source"],
        )
        for t in data["tables"]
    )  # fmt: skip
    return Network(
        data["name"],
        tables,
        data["source"],
        data["date"],
        data["low"],
        data["high"],
        data["errors"],
    )


def network_dict(found: Network) -> dict[str, Any]:
    """For JSON."""
    return {
        "schema": SCHEMA,
        "name": found.name,
        "source": found.source,
        "date": found.date,
        "low": found.low,
        "high": found.high,
        "errors": found.errors,
        "tables": [
            {
                "collective": t.collective,
                "tier": t.tier,
                "gpus": t.gpus,
                "origin": t.origin,
                "source": t.source,
                "points": [[b, float(f"{s:.4g}")] for b, s in zip(t.bytes, t.seconds, strict=True)],
            }
            for t in found.tables
        ],
    }
