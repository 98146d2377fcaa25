"""The band around an expected time: from errors on held-out points, wider beyond their range."""

from __future__ import annotations

from typing import NamedTuple

from moeplan.arrays import anywhere, larger, log2, pick, smaller
from moeplan.calibration.optime import Features
from moeplan.calibration.points import Points, shape_columns
from moeplan.calibration.store import OpFit
from moeplan.quantity import Number

__all__ = ["PER_DOUBLING", "WIDEST", "Banded", "banded"]

PER_DOUBLING = 0.25  # how much a factor of two beyond the calibrated range widens the band
WIDEST = 4.0
_EDGE = 1e-9  # doublings by which rounding may pass the range


class Banded(NamedTuple):
    """Seconds of points. outside: for each number of the shape that is out of range, where."""

    lower: Number
    expected: Number
    upper: Number
    regime: Number
    outside: dict[str, Number]


def banded(points: Points, fit: OpFit, seconds: Number, features: Features) -> Banded:
    """Expected seconds with the band of a fit around them."""
    regime = fit.model.regime(features)
    low, high = _factors(fit, regime)
    factor, outside = _outside(points, fit)
    return Banded(seconds * low**factor, seconds, seconds * high**factor, regime, outside)


def _factors(fit: OpFit, regime: Number) -> tuple[Number, Number]:
    """Factors of the band of each point's regime."""
    low, high = 1.0, 1.0
    for place, name in enumerate(fit.model.regimes):
        own = fit.band(name)
        low = pick(regime == place, own[0], low)
        high = pick(regime == place, own[1], high)
    return low, high


def _outside(points: Points, fit: OpFit) -> tuple[Number, dict[str, Number]]:
    """Exponent on the band, and what is out of range where."""
    distance: Number = 0.0
    found = {}
    for name, column in shape_columns(points).items():
        if name not in fit.ranges:
            continue
        least, most = fit.ranges[name]
        size = larger(column, 1)
        away = larger(log2(size / most), log2(least / size))
        out = away > _EDGE
        if anywhere(out):
            found[name] = out
            distance = distance + pick(out, away, 0.0)
    return smaller(1 + PER_DOUBLING * distance, WIDEST), found
