"""Times of points by a calibration: lower, expected, upper, and which shapes are out of range."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from moeplan.calibration.band import banded
from moeplan.calibration.errors import Errors, errors_by_regime
from moeplan.calibration.points import Points
from moeplan.calibration.store import Calibration

__all__ = [
    "OUTPUT_COLUMNS",
    "Predicted",
    "coverage",
    "form_of",
    "predict",
    "write_columns",
    "write_predicted",
]

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

CHUNK = 8192  # points at a time: the arrays of all tile choices then stay small

OUTPUT_COLUMNS = ("lower_ms", "expected_ms", "upper_ms", "band", "outside", "origin")
"""What a prediction adds to the columns of its points. band: half the width of the band in parts of
the expected time. outside: numbers of the shape that lie outside of what was calibrated. origin:
measured, or assumed where the calibration is carried over from another GPU or number format."""


MEASURED = "measured_ms"


@dataclass(frozen=True)
class Predicted:
    """Seconds of each point.

    floor: what the datasheet allows. outside: names of the numbers out of range, joined by spaces.
    origin: of the calibration's constants, for all points.
    """

    lower: _Array
    expected: _Array
    upper: _Array
    floor: _Array
    regimes: _Array
    outside: _Array
    origin: str

    @property
    def band(self) -> _Array:
        """Half the width of the band in parts of the expected time."""
        half: _Array = (self.upper - self.lower) / 2 / self.expected
        return half

    def errors(self, measured: _Array) -> list[Errors]:
        """Errors by regime against measured seconds."""
        return errors_by_regime(self.regimes, self.expected, measured, self.floor)


def predict(points: Points, found: Calibration) -> Predicted:
    """Lower, expected and upper seconds of every point.

    The band is that of the calibration's errors on held-out points of the same regime; it is wider
    where a shape lies outside of the calibrated range. Raises UserError where the calibration has
    no constants for the points' kind.
    """
    fit = found.fit_of(points.kind)
    pieces: list[dict[str, _Array]] = []
    for start in range(0, len(points), CHUNK):
        here = points.take(np.arange(start, min(start + CHUNK, len(points))))
        features = fit.model.prepare(here, found.device)
        seconds = fit.model.seconds(features, fit.constants)
        made = banded(here, fit, seconds, features)
        pieces.append(
            {
                "lower": made.lower,
                "expected": made.expected,
                "upper": made.upper,
                "floor": fit.model.floor(features, found.device),
                "regimes": np.array(fit.model.regimes)[made.regime],
                "outside": _names(made.outside, len(here)),
            }
        )
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return Predicted(**joined, origin=fit.origin)


def _names(outside: dict[str, _Array], count: int) -> _Array:
    """What is out of range at each point, joined by spaces."""
    names = np.full(count, "", dtype=object)
    for name, where in outside.items():
        names[where] += f" {name}"
    return np.char.strip(names.astype(str))


def coverage(predicted: Predicted, measured: _Array) -> float:
    """The part of the measured times that lies in the band."""
    inside = (predicted.lower <= measured) & (measured <= predicted.upper)
    return float(inside.mean())


def write_predicted(points: Points, predicted: Predicted, file: IO[str], form: str) -> None:
    """Write one row a point, the file's columns and OUTPUT_COLUMNS, as ``csv`` or ``json``."""
    header = [*points.columns, *_kept(points), *OUTPUT_COLUMNS]
    if points.seconds is not None:
        header.append(MEASURED)
    write_columns(dict(zip(header, _columns(points, predicted), strict=True)), file, form)


def write_columns(columns: Mapping[str, list[Any]], file: IO[str], form: str) -> None:
    """Write columns of one length as ``csv`` or ``json``, numbers in six digits."""
    rows = zip(*map(_shown, columns.values()), strict=True)
    if form == "json":
        json.dump([dict(zip(columns, row, strict=True)) for row in rows], file, indent=1)
        file.write("\n")
    else:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _shown(column: list[Any]) -> list[Any]:
    floats = bool(column) and isinstance(column[0], float)
    return [float(f"{value:.6g}") for value in column] if floats else column


def _columns(points: Points, predicted: Predicted) -> list[list[Any]]:
    def ms(seconds: _Array) -> list[float]:
        return (1e3 * seconds).tolist()  # type: ignore[no-any-return]

    columns: list[list[Any]] = [column.tolist() for column in points.columns.values()]
    columns += [points.extra[name].tolist() for name in _kept(points)]
    columns += [ms(predicted.lower), ms(predicted.expected), ms(predicted.upper)]
    columns += [np.round(predicted.band, 4).tolist(), predicted.outside.tolist()]
    columns.append([predicted.origin] * len(points))
    if points.seconds is not None:
        columns.append(ms(points.seconds))
    return columns


def _kept(points: Points) -> list[str]:
    """Other columns of the file, without those that a prediction writes itself."""
    return [name for name in points.extra if name not in (*OUTPUT_COLUMNS, MEASURED)]


def form_of(path: str | Path) -> str:
    """``json`` for a path that ends so, else ``csv``."""
    return "json" if Path(path).suffix.lower() == ".json" else "csv"
