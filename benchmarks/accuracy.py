"""Hold the time models against measurements that their fits never saw; exit 1 past a gate.

    python benchmarks/accuracy.py FOLDER [--json PATH]

FOLDER holds the CSV files that docs/accuracy.md names. Each of the models of the MoE file is left
out in turn: constants and band come from the others alone. Dense GEMMs are left out by weight
shape, a fifth at a time; collectives by every other size. Beside each error stands that of the
datasheet's roofline on the same points.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from moeplan.calibration.calibrate import calibrate
from moeplan.calibration.collectives import left_out
from moeplan.calibration.errors import errors_of
from moeplan.calibration.fit import groups
from moeplan.calibration.messages import message_tables, read_messages
from moeplan.calibration.points import Points
from moeplan.calibration.predict import Predicted, predict
from moeplan.calibration.reader import read_points

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

MOE, GEMM, NCCL = "h200_moe_vllm024_bf16.csv", "h200_gemm_bf16.csv", "h200_nccl_nvlink.csv"
NARROW = 512
FOLDS = 5
COVERED = (0.85, 0.97)


@dataclass(frozen=True)
class Gate:
    """The largest mean and median error that pass; None where there is no gate."""

    mean: float
    median: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table. covered: part of the points that lie in the band."""

    subject: str
    regime: str
    points: int
    mean: float
    median: float
    p90: float
    bias: float
    covered: float | None
    floor_mean: float | None
    floor_median: float | None
    gate: Gate | None = None

    @property
    def misses(self) -> list[str]:
        """What is past its gate."""
        if self.gate is None:
            return []
        out = []
        if self.mean > self.gate.mean:
            out.append(f"mean above {self.gate.mean:.0%}")
        if self.gate.median is not None and self.median > self.gate.median:
            out.append(f"median above {self.gate.median:.0%}")
        if self.covered is not None and not COVERED[0] <= self.covered <= COVERED[1]:
            out.append(f"band holds {self.covered:.0%}, not {COVERED[0]:.0%} to {COVERED[1]:.0%}")
        return out


@dataclass(frozen=True)
class HeldOut:
    """Predictions of points by fits without them, put together in the order of the points."""

    lower: _Array
    expected: _Array
    upper: _Array
    floor: _Array
    measured: _Array

    def row(self, subject: str, regime: str, where: _Array, gate: Gate | None = None) -> Row:
        """The errors of some of the points."""
        expected, measured = self.expected[where], self.measured[where]
        inside = (self.lower[where] <= measured) & (measured <= self.upper[where])
        e = errors_of(regime, expected, measured, self.floor[where])
        return Row(
            subject, regime, e.points, e.mean, e.median, e.p90, e.bias, float(inside.mean()),
            e.floor_mean, e.floor_median, gate,
        )  # fmt: skip


def main() -> int:
    """Print the table; return 1 where something is past its gate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the CSV files lie")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    rows = []
    for row in measure(options.folder):
        rows.append(row)
        print(text(row, first=len(rows) == 1), flush=True)
    if options.json:
        found = [{**asdict(row), "misses": row.misses} for row in rows]
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    missed = [f"{row.subject}, {row.regime}: {miss}" for row in rows for miss in row.misses]
    print("\n".join(["", *missed]) if missed else "\nevery gate is met")
    return 1 if missed else 0


def measure(folder: Path) -> Iterator[Row]:
    """Every row of the table."""
    yield from moe(read_points(folder / MOE))
    yield from gemm(read_points(folder / GEMM))
    yield from nccl(folder / NCCL)


def moe(points: Points) -> Iterator[Row]:
    """Each model in turn predicted by the others."""
    group = groups(points)
    held = _held_out(points, group)
    skewed = np.char.startswith(points["distribution"], "power_law")
    tokens, sharded = points["num_tokens"], points["moe_ep_size"] > 1
    yield held.row("MoE op", "balanced", ~skewed, Gate(0.08, 0.05))
    yield held.row("MoE op", "skewed", skewed, Gate(0.12))
    for place in range(int(group.max()) + 1):
        here = group == place
        first = int(np.flatnonzero(here)[0])
        p = {n: int(points[n][first]) for n in ("hidden_size", "inter_size", "topk", "num_experts")}
        name = f"{p['num_experts']} experts {p['hidden_size']} x {p['inter_size']}, top-{p['topk']}"
        yield held.row("without it", f"{name}, balanced", here & ~skewed)
        yield held.row("without it", f"{name}, skewed", here & skewed)
    for low, high in ((0, 1), (1, 8), (8, 64), (64, 512), (512, 4096), (4096, 1 << 20)):
        here = (tokens > low) & (tokens <= high) & ~skewed
        most = int(tokens[here].max())
        yield held.row("balanced", f"{low + 1:,} to {most:,} tokens" if low else "1 token", here)
    yield held.row("balanced", "experts on one rank", ~skewed & ~sharded)
    yield held.row("balanced", "experts on 2 to 256 ranks", ~skewed & sharded)


def gemm(points: Points) -> Iterator[Row]:
    """A fifth of the weight shapes at a time predicted by the others."""
    group = groups(points)
    order = np.random.default_rng(1).permutation(int(group.max()) + 1)
    held = _held_out(points, order[group] % FOLDS)
    wide = np.minimum(points["n"], points["k"]) >= NARROW
    m = points["m"]
    yield held.row("dense GEMM", f"n, k of {NARROW} and more", wide, Gate(0.08, 0.06))
    for low, high in ((0, 64), (64, 512), (512, 2560), (2560, 1 << 20)):
        here = wide & (m > low) & (m <= high)
        yield held.row("dense GEMM", f"m {low + 1:,} to {int(m[here].max()):,}", here)
    yield held.row("dense GEMM", f"n or k below {NARROW}", ~wide)


def nccl(path: Path) -> Iterator[Row]:
    """Every other size of each table, from the rest."""
    tables = message_tables(read_messages(path), "nvlink", "")
    expected, measured, size = left_out(tables)
    low, high = _band_of_others(expected, measured)
    inside = (expected * low <= measured) & (measured <= expected * high)

    def row(regime: str, where: _Array, gate: Gate | None = None) -> Row:
        e = errors_of(regime, expected[where], measured[where], measured[where])
        return Row(
            "NCCL on NVLink", regime, e.points, e.mean, e.median, e.p90, e.bias,
            float(inside[where].mean()), None, None, gate,
        )  # fmt: skip

    yield row("sizes left out", np.ones(size.shape, dtype=bool), Gate(0.08))
    for low_, high_ in ((0, 1 << 16), (1 << 16, 1 << 22), (1 << 22, 1 << 40)):
        here = (size > low_) & (size <= high_)
        yield row(f"{_size(size[here].min())} to {_size(size[here].max())}", here)


def _band_of_others(expected: _Array, measured: _Array) -> tuple[_Array, _Array]:
    """For each point the band that the other half of the points makes."""
    half = np.arange(expected.size) % 2
    ratio = measured / expected
    quantiles = [np.quantile(ratio[half != part], (0.05, 0.95)) for part in (0, 1)]
    return (np.array([q[i] for q in quantiles])[half] for i in (0, 1))  # type: ignore[return-value]


def _held_out(points: Points, fold: _Array) -> HeldOut:
    assert points.seconds is not None
    out = np.empty((4, len(points)))
    for part in range(int(fold.max()) + 1):
        here = fold == part
        made = calibrate(points.take(~here), "left out", "h200")
        p: Predicted = predict(points.take(here), made)
        out[:, here] = p.lower, p.expected, p.upper, p.floor
    return HeldOut(out[0], out[1], out[2], out[3], points.seconds)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.0f} GiB"


def text(row: Row, first: bool) -> str:
    """A line of the table, below its head where it is the first."""
    head = f"{'':16}{'':46}{'points':>7}{'mean':>7}{'median':>8}{'p90':>7}{'bias':>7}{'in band':>9}"
    head += f"{'roofline mean / median':>25}\n"

    def percent(value: float | None, width: int) -> str:
        return f"{'' if value is None else f'{100 * value:.1f}':>{width}}"

    line = f"{row.subject:16}{row.regime:46}{row.points:>7,}" + percent(row.mean, 7)
    line += percent(row.median, 8) + percent(row.p90, 7) + percent(row.bias, 7)
    line += percent(row.covered, 9)
    if row.floor_mean is not None:
        line += percent(row.floor_mean, 17) + " /" + percent(row.floor_median, 6)
    return (head if first else "") + line + ("   MISSED" if row.misses else "")


if __name__ == "__main__":
    sys.exit(main())
