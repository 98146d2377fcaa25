"""A fit finds the constants of a machine that was simulated tile by tile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moeplan.calibration.calibrate import calibrate
from moeplan.calibration.fit import fit, groups, held_out
from moeplan.calibration.gemm import DenseGemm
from moeplan.calibration.loads import loads_of_rows
from moeplan.calibration.moe import GroupedGemm
from moeplan.calibration.optime import Device
from moeplan.calibration.points import Points, points_of
from moeplan.calibration.predict import coverage, predict
from moeplan.calibration.simple import Bytes
from moeplan.errors import UserError
from tests.calibration.simulate import dense, grouped

MACHINE = Device("made-up", matrix=2e14, memory=1.5e12, multiprocessors=24)
RNG = np.random.default_rng(11)


def noisy(seconds, spread=0.02):
    return np.asarray(seconds) * np.exp(spread * np.random.default_rng(5).normal(size=len(seconds)))


def test_bytes_constants_are_found():
    true = {"launch": 7e-6, "bandwidth": 8e11, "half": 4e6, "shape": 0.7}
    sizes = np.geomspace(1e4, 4e9, 60).round()
    launches = np.resize([1, 2, 15], 60)
    seconds = [
        n * true["launch"] + s / true["bandwidth"] * (1 + (true["half"] / s) ** true["shape"])
        for s, n in zip(sizes, launches, strict=True)
    ]
    points = points_of("bytes", bytes=sizes, launches=launches, seconds=seconds)
    found = fit(Bytes(), points, MACHINE).constants
    for name, value in true.items():
        assert found[name] == pytest.approx(value, rel=0.03), name


def test_a_dense_gemm_machine_is_found():
    true = {
        "launch": 4e-6,
        "matrix_rate": 1.5e14,
        "tile_overhead": 1.5e-6,
        "read_bandwidth": 1.2e12,
    }
    shapes = [
        (int(m), int(n), int(k))
        for n, k in ((1024, 1024), (4096, 1024), (1024, 4096), (4096, 4096), (2048, 8192))
        for m in np.unique(np.geomspace(1, 8192, 14).round())
    ]
    seconds = noisy([dense(*shape, true, MACHINE.multiprocessors) for shape in shapes])
    m, n, k = zip(*shapes, strict=True)
    points = points_of("gemm", m=m, n=n, k=k, seconds=seconds)
    found = fit(DenseGemm(), points, MACHINE).constants
    assert found["matrix_rate"] * (1 - found["throttle"]) == pytest.approx(1.5e14, rel=0.12)
    assert found["read_bandwidth"] == pytest.approx(1.2e12, rel=0.12)
    assert found["launch"] + found["tile_overhead"] == pytest.approx(5.5e-6, rel=0.3)
    features = DenseGemm().prepare(points, MACHINE)
    error = DenseGemm().seconds(features, found) / seconds - 1
    assert np.median(np.abs(error)) < 0.05


def grouped_points() -> Points:
    true = {
        "launch": 9e-6, "tile_load_rate": 3e12, "tile_overhead": 2e-6, "read_bandwidth": 1.3e12,
    }  # fmt: skip
    rows, columns, seconds = [], {"rows": [], "n": [], "k": [], "experts": []}, []
    for experts, n, k in ((8, 4096, 1024), (64, 1024, 2048), (32, 2048, 512), (16, 1536, 4096)):
        for tokens in (8, 64, 256, 1024, 4096, 16384, 40000):
            share = np.random.default_rng(tokens).dirichlet(np.full(experts, 3.0))
            histogram = np.random.default_rng(experts).multinomial(tokens, share)
            rows.append(histogram)
            for name, value in (("rows", tokens), ("n", n), ("k", k), ("experts", experts)):
                columns[name].append(value)
            seconds.append(grouped(histogram, n, k, true, MACHINE.multiprocessors, MACHINE.matrix))
    arrays = {name: np.array(values) for name, values in columns.items()}
    return Points("grouped", arrays, noisy(seconds), loads_of_rows(rows))


def test_a_grouped_gemm_machine_is_found():
    points = grouped_points()
    found = fit(GroupedGemm(), points, MACHINE)
    assert found.silent == ()
    c = found.constants
    assert c["tile_load_rate"] == pytest.approx(3e12, rel=0.12)
    assert c["launch"] == pytest.approx(9e-6, rel=0.35)
    features = GroupedGemm().prepare(points, MACHINE)
    # the made-up machine's bandwidth does not depend on what is under way, so only both together
    # are determined: the bandwidth of a GEMM with many tiles
    reached = c["read_bandwidth"] / (1 + c["in_flight"] * features["starved"].min())
    assert reached == pytest.approx(1.3e12, rel=0.12)
    error = GroupedGemm().seconds(features, found.constants) / points.seconds - 1
    assert np.abs(error).mean() < 0.06


def test_shapes_left_out_are_predicted_and_the_band_holds_them():
    points = grouped_points()
    left = groups(points) == 2
    made = calibrate(points.take(~left), "made-up", MACHINE, date="2026-01-01")
    predicted = predict(points.take(left), made)
    measured = points.seconds[left]
    assert np.abs(predicted.expected / measured - 1).mean() < 0.12
    assert coverage(predicted, measured) >= 0.7
    assert all("n" in outside or "k" in outside for outside in predicted.outside if outside)


def test_outliers_move_little():
    points = grouped_points()
    clean = fit(GroupedGemm(), points, MACHINE).constants
    spoilt = points.seconds.copy()
    spoilt[[3, 17]] *= 5
    dirty = fit(GroupedGemm(), replace(points, seconds=spoilt), MACHINE).constants
    assert dirty["tile_overhead"] == pytest.approx(clean["tile_overhead"], rel=0.3)
    assert dirty["tile_load_rate"] == pytest.approx(clean["tile_load_rate"], rel=0.1)


def test_a_fit_gives_the_same_constants_every_time():
    points = grouped_points()
    assert fit(GroupedGemm(), points, MACHINE) == fit(GroupedGemm(), points, MACHINE)
    a, b = (held_out(GroupedGemm(), points, MACHINE) for _ in range(2))
    assert a[1] == b[1]
    assert (a[0] == b[0]).all()


def test_too_few_points_and_points_without_times_are_refused():
    few = points_of("bytes", bytes=[1e6, 1e7], launches=1, seconds=[1e-5, 1e-4])
    with pytest.raises(UserError, match="2 points"):
        fit(Bytes(), few, MACHINE)
    with pytest.raises(UserError, match="latency_ms"):
        fit(Bytes(), points_of("bytes", bytes=np.arange(1, 9), launches=1), MACHINE)
    with pytest.raises(UserError, match="needs points"):
        calibrate([], "made-up", MACHINE)
