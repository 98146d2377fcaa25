"""Errors of predictions against measurements: figures, by regime, and the band they make."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from moeplan.arrays import np

if TYPE_CHECKING:
    from numpy import ndarray

__all__ = ["ALL", "LOW", "UPPER", "Errors", "errors_by_regime", "errors_of"]

_Array: TypeAlias = "ndarray[Any, Any]"

ALL = "all"
LOW, UPPER = 0.05, 0.95
"""Quantiles of measured / expected on held-out points between which the band lies."""


@dataclass(frozen=True)
class Errors:
    """Relative errors of one regime.

    mean, median, p90: of |expected / measured − 1|. bias: mean of expected / measured − 1. low,
    high: the quantiles LOW and UPPER of measured / expected. floor_mean, floor_median: as the
    first two, for the datasheet's roofline in the place of the expected time.
    """

    regime: str
    points: int
    mean: float
    median: float
    p90: float
    bias: float
    low: float
    high: float
    floor_mean: float
    floor_median: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON, rounded to what is meant."""
        return {
            key: round(value, 5) if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }


def errors_of(regime: str, expected: _Array, measured: _Array, floor: _Array) -> Errors:
    """Errors of one set of points; all three are seconds."""
    error = expected / measured - 1
    of_floor = np.abs(floor / measured - 1)
    low, high = np.quantile(measured / expected, (LOW, UPPER))
    return Errors(
        regime=regime,
        points=error.size,
        mean=float(np.abs(error).mean()),
        median=float(np.median(np.abs(error))),
        p90=float(np.quantile(np.abs(error), 0.9)),
        bias=float(error.mean()),
        low=float(low),
        high=float(high),
        floor_mean=float(of_floor.mean()),
        floor_median=float(np.median(of_floor)),
    )


def errors_by_regime(
    regimes: _Array, expected: _Array, measured: _Array, floor: _Array
) -> list[Errors]:
    """Errors of each regime in the order of its first point, and of all of them together last."""
    _, first = np.unique(regimes, return_index=True)
    names = [str(regimes[place]) for place in sorted(first)]
    out = [
        errors_of(name, *(values[regimes == name] for values in (expected, measured, floor)))
        for name in names
    ]
    return [*out, errors_of(ALL, expected, measured, floor)]
