"""Expected times: the rows of a pass through the calibration of a GPU, each with its error band.

A calibration knows operations, not software: what a framework does between them (host launches,
scheduling) comes on top and is not in these figures. Where the GPU itself was not measured, the
constants are carried over by the ratio of datasheet rates, and the origin says `assumed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from moeplan.calibration.derived import for_gpu
from moeplan.calibration.rows import MOE_PARTS, Degrees, RowTime, row_times
from moeplan.calibration.store import Calibration
from moeplan.cluster.hardware import Gpu
from moeplan.estimation.fold import Line, Part, lines, over_groups
from moeplan.model.ffn import MoE
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Workload
from moeplan.quantity import Quantity, derive

__all__ = ["expected"]


def expected(spec: ModelSpec, work: Workload, gpu: Gpu) -> dict[str, Any] | None:
    """Lower, expected and upper seconds of a pass on one GPU; None for a user's own GPU.

    `band` is half the width in parts of the expected time. The bounds add up row by row, as if all
    errors had one sign. `outside` names the numbers of shapes beyond what was calibrated.
    """
    if not gpu.vendor:
        return None
    calibrations = for_gpu(gpu.id, _number_format(spec, gpu))
    rows = [line for line in lines(spec, work) if line.op.kind != "exchange"]
    times = row_times(rows, calibrations, Degrees(training=work.phase == "train"))
    found = [(line, time) for line, time in zip(rows, times, strict=True) if time is not None]
    lower, middle, upper = (
        _summed(found, calibrations, name) for name in ("lower", "expected", "upper")
    )
    origins = sorted({time.origin for _, time in found})
    return {
        "lower": lower,
        "expected": middle,
        "upper": upper,
        "band": derive("(upper - lower)/2/expected", "", upper=upper, lower=lower, expected=middle),
        "origin": "measured" if origins == ["measured"] else " and ".join(origins),
        "calibrations": sorted({time.calibration for _, time in found}),
        "outside": sorted({word for _, time in found for word in time.outside.split()}),
        "rows": [_row(line, time, calibrations) for line, time in found],
    }


def _number_format(spec: ModelSpec, gpu: Gpu) -> str:
    """The format of the matmuls' operands: the weights', where the GPU has that rate."""
    checkpoint = spec.checkpoint
    wanted = (checkpoint.quantised or checkpoint.base).peak
    return wanted if wanted in gpu.peaks else "bf16"


def _summed(
    found: list[tuple[Line, RowTime]], calibrations: Mapping[str, Calibration], name: str
) -> Quantity:
    parts = [
        Part(
            line.group,
            line.op.component,
            line.op.name,
            getattr(time, name),
            partial(_seconds, line, time, calibrations, name),
        )
        for line, time in found
    ]
    return over_groups(parts, "s")


def _seconds(
    line: Line, time: RowTime, calibrations: Mapping[str, Calibration], name: str
) -> Quantity:
    """A row's time, explained by the constants of the fit that gave it."""
    kind = _kind(line)
    used = calibrations[kind]
    return Quantity(
        getattr(time, name),
        "s",
        symbol=time.name,
        formula=f"{name} of the {kind} model",
        inputs=lambda: used.fits[kind].quantities(used.source),
        note=f"calibration {time.calibration}, {time.origin}",
    )


def _kind(line: Line) -> str:
    """Which model of a calibration answers for a row."""
    op = line.op
    if isinstance(line.block, MoE) and op.name in (*MOE_PARTS, "experts_up"):
        return "moe"
    if op.gemm is not None:
        return "gemm"
    return "attention" if op.kind in ("attention", "scan") else "bytes"


def _row(line: Line, time: RowTime, calibrations: Mapping[str, Calibration]) -> dict[str, Any]:
    return {
        "layer": line.group.name,
        "op": time.name,
        **{
            name: _seconds(line, time, calibrations, name)
            for name in ("lower", "expected", "upper")
        },
        "origin": time.origin,
        "calibration": time.calibration,
        "outside": time.outside,
    }
