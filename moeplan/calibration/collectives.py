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

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from moeplan.arrays import larger, log2, np, pick, smaller, stretch
from moeplan.calibration.errors import LOW, UPPER, errors_of
from moeplan.errors import UserError, near_miss
from moeplan.quantity import Number

if TYPE_CHECKING:
    from numpy import ndarray

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
    "slowest_rank",
    "thinned",
]

_Array: TypeAlias = "ndarray[Any, Any]"
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
        last = self.bytes[-1]
        x = log2(larger(smaller(size, last), self.bytes[0]))
        start, width, a, b, c, d = stretch(self._pieces, x)
        t = (x - start) / width
        return 2 ** (a + t * (b + t * (c + t * d))) + larger(size - last, 0.0) / self.bandwidth

    @cached_property
    def _pieces(self) -> list[tuple[float, ...]]:
        """Cubics in log2 that rise where the points rise: (start, width, four coefficients)."""
        x = [math.log2(size) for size in self.bytes]
        y = [math.log2(seconds) for seconds in self.seconds]
        h = [b - a for a, b in pairwise(x)]
        slope = [(b - a) / w for (a, b), w in zip(pairwise(y), h, strict=True)]
        at = [slope[0], *(_inner(*pair) for pair in _pairs(h, slope)), slope[-1]]
        out: list[tuple[float, ...]] = []
        for i, w in enumerate(h):
            rise, da, db = y[i + 1] - y[i], at[i] * w, at[i + 1] * w
            out.append((x[i], w, y[i], da, 3 * rise - 2 * da - db, da + db - 2 * rise))
        return out

    @property
    def bandwidth(self) -> float:
        """B/s of the last stretch: what large messages are moved at."""
        return (self.bytes[-1] - self.bytes[-2]) / (self.seconds[-1] - self.seconds[-2])


def _pairs(h: list[float], slope: list[float]) -> list[tuple[float, float, float, float]]:
    return [(h[i], h[i + 1], slope[i], slope[i + 1]) for i in range(len(h) - 1)]


def _inner(h0: float, h1: float, before: float, after: float) -> float:
    """Slope at a point between two stretches: none at a turn, else their harmonic mean."""
    if before * after <= 0:
        return 0.0
    w0, w1 = 2 * h1 + h0, h1 + 2 * h0
    return (w0 + w1) / (w0 / before + w1 / after)


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
            zero = 0.0 * size
            return Took(zero, zero, zero, "measured", "nothing is sent to oneself")
        expected = self.seconds(collective, gpus, size, tier)
        used = min(tables, key=lambda t: abs(math.log(gpus / t.gpus)))
        outside = ""
        if used.gpus != gpus:
            outside = f"{gpus} GPUs: from tables for {', '.join(str(t.gpus) for t in tables)}"
        low, high = (self.low, self.high) if used.origin == "measured" else ASSUMED_BAND
        if outside:
            low, high = low**2, high**2
        return Took(expected * low, expected, expected * high, used.origin, used.source, outside)

    def seconds(
        self, collective: str, gpus: Number, size: Number, tier: str | None = None
    ) -> Number:
        """Expected seconds; group sizes may be an array too.

        A group size without a table lies on a line in log size through its neighbours; beyond the
        last table a larger group is never faster.
        """
        tables = self._tables(collective, tier)
        y = [log2(table.at(size)) for table in tables]
        n = log2(larger(gpus, 2.0))
        out = y[0]
        for i in range(len(tables) - 1):
            start, end = math.log2(tables[i].gpus), math.log2(tables[i + 1].gpus)
            share = (n - start) / (end - start)
            rise = y[i + 1] - y[i]
            if i == len(tables) - 2:
                inside = smaller(share, 1.0)
                there = y[i] + inside * rise + (share - inside) * larger(rise, 0.0)
            else:
                there = y[i] + share * rise
            out = pick(share > 0, there, out) if i else there
        return pick(gpus > 1, 2**out, 0.0 * size)

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
        return larger(up, out)
    if mode == "sequence":
        return up + out
    modes = ("parallel", "sequence")
    raise UserError(f"mode {mode!r}: allowed are {', '.join(modes)}{near_miss(mode, modes)}")


def slowest_rank(size: Number, imbalance: Number) -> Number:
    """Bytes of the fullest rank, whose end all others wait for: the mean times max / mean."""
    return size * imbalance


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
    """A network of measured tables, with the errors of tables of every other size on the rest."""
    interpolated, measured, _ = left_out(tables)
    errors = errors_of("sizes left out", interpolated, measured, measured)
    low, high = np.quantile(measured / interpolated, (LOW, UPPER))
    return Network(
        name, tuple(tables), source, date, float(low), float(high),
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
