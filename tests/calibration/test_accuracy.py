"""The gates of the accuracy benchmark, on models and shapes that the fits did not see."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import accuracy
from moeplan.calibration.predict import coverage, predict
from moeplan.calibration.reader import read_points
from moeplan.calibration.store import calibration


@pytest.mark.slow
@pytest.mark.parametrize("part", ["moe", "gemm", "nccl"])
def test_held_out_errors_are_within_their_gates(shared, root, part):
    data = shared / "data"
    rows = {
        "moe": lambda: accuracy.moe(read_points(data / accuracy.MOE)),
        "gemm": lambda: accuracy.gemm(read_points(data / accuracy.GEMM)),
        "nccl": lambda: accuracy.nccl(data / accuracy.NCCL),
    }[part]()
    rows = list(rows)
    gated = [row for row in rows if row.gate is not None]
    assert gated
    kept = json.loads((root / "benchmarks" / "results" / "accuracy.json").read_text())
    for row in rows:
        same = [k for k in kept if (k["subject"], k["regime"]) == (row.subject, row.regime)]
        assert [k["points"] for k in same] == [row.points]
        assert same[0]["mean"] == pytest.approx(row.mean, abs=2e-3)  # docs/accuracy.md shows these
    for row in gated:
        assert row.misses == [], row
        if row.floor_mean is not None:
            assert row.floor_mean > 3 * row.mean


def test_the_shipped_calibration_is_in_its_band_on_what_it_was_fitted_to(shared):
    points = read_points(shared / "data" / accuracy.MOE)
    some = points.take(np.arange(0, len(points), 7))
    found = predict(some, calibration("h200-vllm-triton"))
    assert coverage(found, some.seconds) > 0.85
    *_, every = found.errors(some.seconds)
    assert every.mean < 0.08


def test_a_row_past_its_gate_is_a_miss():
    gate = accuracy.Gate(0.08, 0.05)
    good = accuracy.Row("a", "b", 9, 0.07, 0.04, 0.1, 0.0, 0.9, 0.4, 0.3, gate)
    assert good.misses == []
    bad = accuracy.Row("a", "b", 9, 0.09, 0.06, 0.1, 0.0, 0.99, 0.4, 0.3, gate)
    assert len(bad.misses) == 3
    assert "MISSED" in accuracy.text(bad, first=False)
