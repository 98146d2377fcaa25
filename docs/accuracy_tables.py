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
from moeplan.calibration.records import ProfileTimes, layer_times
from moeplan.calibration.store import Calibration, calibration, names
from moeplan.profile.store import load_record

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


def _results(name: str) -> Any:
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


@section("accuracy-cpu")
def cpu() -> str:
    """Return a layer's forward pass on a CPU by its calibration, for records that it was not fitted
    to, beside the roofs of their own runs.
    """
    times = ProfileTimes(calibration("cpu-amd-epyc-torch"))
    rows = []
    for path in sorted((ROOT / "profiles" / "cpu-amd-epyc").glob("*.json")):
        record = load_record(path)
        if record.name in times.found.source:
            continue
        for row in layer_times(record, times):
            errors = [f"{100 * (x / row.measured - 1):+.0f} %" for x in (row.expected, row.roofs)]
            threads = f"{record.device.units} thread{'s' * (record.device.units > 1)}"
            rows.append([record.name, threads, str(row.tokens), f"{1e3 * row.measured:.3g} ms",
                         *errors])  # fmt: skip
    header = ["record", "run with", "tokens", "measured", "calibrated", "roofs of the run"]
    return table(header, rows)


STACK_TITLES = {"datasheet": "roofline", "calibrated": "ops alone", "megatron-bridge": "with host"}


@section("accuracy-factors")
def factors() -> str:
    """Return the errors of training rows, by stack and by whether the stack was fitted to them."""
    rows = []
    for stack, title in STACK_TITLES.items():
        for fitted in (True, False):
            found = [r for r in _results("whole_model")["training"] if r["fitted"] is fitted]
            errors = np.abs([row[stack] for row in found])
            dense = np.abs([row[stack] for row in found if "LLAMA" in row["model"]])
            used = "fitted" if fitted and stack == "megatron-bridge" else "not seen"
            numbers = (errors.mean(), np.median(errors), errors.max(), np.median(dense))
            rows.append([f"`{stack}`, {title}", "26.x" if fitted else "25.x", used,
                         str(errors.size), *(f"{100 * x:.0f} %" for x in numbers)])  # fmt: skip
    header = ["stack", "containers", "", "rows", "mean error", "median", "largest"]
    return table([*header, "median of dense models"], rows)


@section("accuracy-training")
def training() -> str:
    """Return published and predicted training speeds, tokens a second and GPU."""
    rows = []
    for row in _results("whole_model")["training"]:
        errors = [f"{100 * row[stack]:+.0f} %" for stack in STACK_TITLES]
        what = f"{row['container']} {row['model']}, {row['gpus']}, {row['precision']}"
        span = f"{row['slow']:,.0f} to {row['fast']:,.0f}"
        over = "" if row["fits"] else "over"
        used = "fitted" if row["fitted"] else ""
        rows.append([what, f"`{row['layout']}`", f"{row['published']:,.0f}", span, *errors, used,
                     over])  # fmt: skip
    header = ["run", "layout", "published", "bounds of the ops", *STACK_TITLES.values()]
    return table([*header, "", "memory"], rows)


@section("accuracy-serving")
def serving() -> str:
    """Return published and predicted serving speeds, tokens a second and GPU."""
    rows = []
    for row in _results("whole_model")["serving"]:
        errors = [f"{100 * row[stack]:+.0f} %" for stack in ("datasheet", "calibrated", "sglang")]
        used = "fitted" if row["fitted"] else "not seen"
        what = f"{row['by']}, {row['phase']}, {row['what']}"
        rows.append([what, f"{row['published']:,.0f}", *errors, used, row["note"]])
    header = ["run", "published", "roofline", "ops alone", "with SGLang's factor", "", "note"]
    return table(header, rows)


@section("accuracy-bill")
def bill() -> str:
    """Return DeepSeek-V3's pre-training as predicted."""
    found = _results("whole_model")["bill"]
    rows = [["published", f"{found['published_hours'] / 1e6:.3f} M", "$5.328 M", "", "", ""]]
    for stack, title in STACK_TITLES.items():
        own = found[stack]
        rows.append(
            [title, f"{own['gpu_hours'] / 1e6:.3f} M", f"${own['dollars'] / 1e6:.3f} M",
             f"{own['tokens_per_second_per_gpu']:,.0f}", f"{own['memory'] / 2**30:.1f} GiB",
             f"{100 * own['error']:+.0f} %"]
        )  # fmt: skip
    return table(["", "H800-hours", "at $2/h", "token/s/GPU", "memory", "error"], rows)
