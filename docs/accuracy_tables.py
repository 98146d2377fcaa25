"""Tables of docs/accuracy.md: what ships, its constants, and what the benchmarks last measured.

The benchmarks need measurements that are no part of the project, so their results are kept in
benchmarks/results and the tables are made from those; a test compares them with a new run.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from generated import ROOT, section, table
from moeplan.calibration.collectives import network, networks
from moeplan.calibration.store import Calibration, calibration, names

__all__: list[str] = []

RESULTS = ROOT / "benchmarks" / "results"
SCALES: tuple[tuple[str, float], ...] = (
    ("T", 1e12),
    ("G", 1e9),
    ("M", 1e6),
    ("k", 1e3),
    ("", 1.0),
    ("m", 1e-3),
    ("µ", 1e-6),
)
SCALES += (("n", 1e-9), ("p", 1e-12))


def _shipped() -> list[Calibration]:
    return [calibration(name) for name in names()]


def _figure(value: float, unit: str) -> str:
    if not unit:
        return f"{value:.3g}"
    if unit in ("s", "B", "B/s", "FLOP/s"):
        prefix, size = next(((p, s) for p, s in SCALES if abs(value) >= s), SCALES[-1])
        return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _results(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return rows


@section("accuracy-held-out")
def held_out() -> str:
    """Return the errors on points that the fits did not see, in percent."""
    rows = []
    for row in _results("accuracy"):
        gate = row["gate"] or {"mean": None, "median": None}
        limits = " / ".join(f"{100 * g:.0f}" for g in (gate["mean"], gate["median"]) if g)
        floor = "" if row["floor_mean"] is None else _percent(row["floor_mean"])
        if floor:
            floor += f" / {_percent(row['floor_median'])}"
        name = row["regime"] if row["gate"] is None else f"**{row['subject']}, {row['regime']}**"
        numbers = [_percent(row[key]) for key in ("mean", "median", "p90", "bias", "covered")]
        missed = "; ".join(row["misses"])
        rows.append([name, f"{row['points']:,}", *numbers, floor, limits, missed or "–"])
    header = ["held out", "points", "mean", "median", "p90", "bias", "in band"]
    return table([*header, "roofline", "gate", "missed"], rows)


@section("accuracy-calibrations")
def calibrations() -> str:
    """Return the calibrations that ship, a row for each kind of op."""
    rows = [
        [
            f"`{found.name}`", kind, found.device.id, found.backend, fit.origin,
            f"{fit.points:,}" if fit.points else "–", found.date,
            fit.note or f"{found.source}; {fit.held_out}",
        ]
        for found in _shipped()
        for kind, fit in found.fits.items()
    ]  # fmt: skip
    header = ["calibration", "kind", "GPU", "backend", "origin", "points", "fitted", "from"]
    return table(header, rows)


@section("accuracy-constants")
def constants() -> str:
    """Return every shipped constant with its unit and meaning."""
    rows = []
    for found in _shipped():
        for kind, fit in found.fits.items():
            known = fit.model.constants
            for name, value in fit.constants.items():
                meaning = known[name].meaning
                rows.append([kind, f"`{name}`", _figure(value, known[name].unit), meaning])
    return table(["kind", "constant", "value", "meaning"], rows)


@section("accuracy-networks")
def network_tables() -> str:
    """Return the tables of collectives, their small-message time and large-message bandwidth."""
    rows = []
    for name in networks():
        for t in network(name).tables:
            bandwidth = _figure(t.bandwidth, "B/s")
            first = _figure(t.seconds[0], "s")
            rows.append(
                [
                    name,
                    t.collective,
                    t.tier,
                    str(t.gpus),
                    str(len(t.bytes)),
                    first,
                    bandwidth,
                    t.origin,
                ]
            )
    header = ["network", "collective", "tier", "GPUs", "sizes", "smallest", "largest", "origin"]
    return table(header, rows)


@section("accuracy-whole-model")
def whole_model() -> str:
    """Return published and predicted speeds, tokens a second and GPU."""
    rows = []
    for row in _results("whole_model"):
        error = "used for the factor" if row["error"] is None else f"{100 * row['error']:+.0f} %"
        numbers = [f"{row[key]:,.0f}" for key in ("published", "predicted", "with_factor")]
        rows.append([f"{row['stack']}: {row['what']}", *numbers, error])
    return table(["run", "published", "ops alone", "with the factor", "error"], rows)


@section("accuracy-factors")
def factors() -> str:
    """Return the software factor of each stack, and the errors on the rows that did not make it."""
    found = _results("whole_model")
    rows = []
    for stack in dict.fromkeys(row["stack"] for row in found):
        own = [row for row in found if row["stack"] == stack]
        errors = np.abs([row["error"] for row in own if row["error"] is not None])
        numbers = [f"{100 * x:.0f} %" for x in (errors.mean(), np.median(errors), errors.max())]
        rows.append([stack, f"{own[0]['factor']:.2f}", str(errors.size), *numbers])
    return table(["stack", "factor", "other rows", "mean error", "median", "largest"], rows)
