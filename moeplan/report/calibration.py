"""The errors of a calibration, by regime."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moeplan.calibration.errors import Errors
from moeplan.report.tables import Column, Table

__all__ = ["errors_table"]


def errors_table(errors: Sequence[Errors], name: str) -> Table:
    """Mean, median, p90 and bias in percent, beside the datasheet roofline's."""
    titles = ("points", "mean", "median", "p90", "bias", "roofline mean", "median")
    table = Table(
        f"Errors of {name}, in percent", [Column("regime", "left"), *(Column(t) for t in titles)]
    )
    for row in errors:
        figures = (row.mean, row.median, row.p90, row.bias, row.floor_mean, row.floor_median)
        shown = ("" if math.isnan(x) else f"{100 * x:.1f}" for x in figures)
        table.rows.append((row.regime, f"{row.points:,}", *shown))
    return table
