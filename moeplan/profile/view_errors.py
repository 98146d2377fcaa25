"""Tables of the errors of predictions, and the verdict."""

from __future__ import annotations

from moeplan.profile.validate import SHARE, Errors, Validation
from moeplan.profile.view import percent
from moeplan.report.tables import Column, Table

__all__ = ["error_tables"]


def error_tables(found: Validation) -> list[Table]:
    """Errors per op and per layer, and the verdict."""
    columns = [Column("", "left"), Column("points"), Column("mean"), Column("median"),
               Column("p90"), Column("bias")]  # fmt: skip
    ops = Table("Ops: error of the prediction (predicted/measured − 1)", columns)
    for (name, stage), errors in found.ops.items():
        label = name if stage == "forward" else f"{name} bwd"
        ops.rows.append((label, *_cells(errors)))
    ops.total = ("all ops", *_cells(found.all_ops))
    if found.left_out:
        ops.notes.append(
            f"{found.left_out} points below {SHARE:.0%} of their layer count in the layer alone"
        )
    layers = Table("Layers", columns)
    for subject, errors in found.layers.items():
        layers.rows.append((subject, *_cells(errors)))
    layers.total = ("all layers", *_cells(found.whole))
    if found.peak is not None:
        layers.notes.append(
            f"peak memory: mean error {found.peak.mean:.2%}, bias {found.peak.bias:+.2%} "
            f"over {found.peak.points} cases"
        )
    layers.notes.append(f"spread of samples within a case, p10 to p90: {found.spread:.0%} (median)")
    if found.between is not None:
        layers.notes.append(f"spread of medians between runs: {found.between:.0%} (median)")
    devices = ", ".join(dict.fromkeys(record.device.name for record in found.records))
    cases = (case for record in found.records for case in record.measured())
    methods = dict.fromkeys(case.prediction.method for case in cases if case.prediction)
    verdict = Table(
        "Verdict",
        [],
        notes=[
            f"{len(found.records)} record{'s' if len(found.records) != 1 else ''} on {devices}; "
            f"predictions: {', '.join(methods)}",
            *(f"PAST THE BAND: {breach}" for breach in found.breaches),
        ],
    )
    if not found.breaches:
        verdict.notes.append("all figures keep the band")
    return [ops, layers, verdict]


def _cells(errors: Errors) -> tuple[str, ...]:
    return (
        str(errors.points),
        percent(errors.mean),
        percent(errors.median),
        percent(errors.p90),
        percent(errors.bias, signed=True),
    )
