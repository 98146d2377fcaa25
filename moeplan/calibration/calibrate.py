"""From points to a calibration: the fit, its errors on points left out, the range of the shapes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

import numpy as np

from moeplan.calibration.errors import errors_by_regime
from moeplan.calibration.fit import fit, held_out
from moeplan.calibration.optime import Device, device_of
from moeplan.calibration.points import Points, shape_columns
from moeplan.calibration.store import MODELS, Calibration, OpFit
from moeplan.cluster.hardware import gpu
from moeplan.errors import UserError

__all__ = ["calibrate", "fit_points", "shape_ranges"]


def calibrate(
    points: Points | Sequence[Points],
    backend: str,
    device: str | Device,
    *,
    name: str = "",
    source: str = "",
    versions: Mapping[str, str] | None = None,
    date: str = "",
    number_format: str = "bf16",
) -> Calibration:
    """Fit every kind of op that the points hold, and judge each fit on points it did not see.

    device: a GPU's name or path, as `--gpu` takes it, or rates of a device of the caller's own.
    The fit is the same on every run with the same points. Raises UserError where the points are
    too few or carry no measured times.
    """
    sets = [points] if isinstance(points, Points) else list(points)
    if not sets:
        raise UserError("a calibration needs points: a CSV file or records of `moeplan profile`")
    rates = device if isinstance(device, Device) else device_of(gpu(device))
    return Calibration(
        name=name or f"{rates.id}-{backend}",
        device=rates,
        backend=backend,
        fits={kind.kind: fit_points(kind, rates) for kind in sets},
        source=source or "; ".join(dict.fromkeys(s.source for s in sets if s.source)),
        date=date or dt.datetime.now(dt.UTC).date().isoformat(),
        versions=versions or {},
        number_format=number_format,
    )


def fit_points(points: Points, device: Device) -> OpFit:
    """The fit of one kind of points, with its errors by regime on points left out."""
    model = MODELS[points.kind]
    found = fit(model, points, device)
    features = model.prepare(points, device)
    expected, how = held_out(model, points, device)
    measured = points.seconds
    assert measured is not None  # `fit` has refused points without times
    wanted = int(model.fitted(features).sum())
    return OpFit(
        kind=points.kind,
        constants=found.constants,
        origin="measured",
        points=wanted if wanted >= 2 * len(model.constants) else len(points),
        judged=len(points),
        held_out=how,
        silent=found.silent,
        ranges=shape_ranges(points),
        errors=tuple(
            errors_by_regime(
                np.array(model.regimes)[model.regime(features)],
                expected,
                measured,
                model.floor(features, device),
            )
        ),
    )


def shape_ranges(points: Points) -> dict[str, tuple[float, float]]:
    """Least and largest of each number of the shapes; widths are those after tensor parallelism."""
    return {n: (float(c.min()), float(c.max())) for n, c in shape_columns(points).items()}
