"""Blocks of points give what points give one by one, and none is large."""

from __future__ import annotations

import numpy as np
import pytest

from moeplan.calibration.band import banded
from moeplan.calibration.blocks import BLOCK, in_blocks
from moeplan.calibration.derived import for_gpu
from moeplan.calibration.points import Points

GEMM = for_gpu("h200", "bf16")["gemm"]


def answer(points):
    fit = GEMM.fits["gemm"]
    features = fit.model.prepare(points, GEMM.device)
    return banded(points, fit, fit.model.seconds(features, fit.constants), features)


def shapes(m, n=4096.0):
    return Points("gemm", {"m": m, "n": n, "k": 7168.0, "weight_bytes": 2})


@pytest.mark.parametrize("wide", [False, True])
def test_blocks_are_the_points_one_by_one(wide):
    rng = np.random.default_rng(1)
    m = rng.integers(1, 3 * BLOCK, 4 * BLOCK + 5).astype(float)  # equal ones among them
    m[7] = 1e9  # beyond what is calibrated
    n = np.where(rng.random(m.size) < 0.5, 256.0, 4096.0) if wide else 4096.0
    sizes = []

    def counted(points):
        sizes.append(points["m"].size)
        return answer(points)

    found = in_blocks(shapes(m, n), counted)
    assert max(sizes) <= BLOCK
    assert (sum(sizes) < m.size) is not wide  # equal points once, where only m differs
    for i in (0, 7, BLOCK, m.size - 1):
        one = answer(shapes(m[i], n[i] if wide else n))
        for field in ("lower", "expected", "upper", "regime"):
            assert getattr(found, field)[i] == pytest.approx(getattr(one, field), rel=1e-12)
        assert {name for name, where in found.outside.items() if where[i]} == set(one.outside)


@pytest.mark.parametrize("m", [64.0, np.array([64.0, 65.0]), np.ones((2, BLOCK))])
def test_few_points_and_numbers_are_one_call(m):
    calls = []

    def counted(points):
        calls.append(points)
        return answer(points)

    in_blocks(shapes(m), counted)
    assert len(calls) == 1
