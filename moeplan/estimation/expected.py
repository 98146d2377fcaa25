"""Expected times: the rows of a pass through the calibration of a GPU, each with its error band.

A calibration knows operations, not software: what a framework does between them (host launches,
scheduling) comes on top and is not in these figures. Where the GPU itself was not measured, the
constants are carried over by the ratio of datasheet rates, and the origin says `assumed`.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from moeplan.calibration.derived import VENDORS, of_gpu
from moeplan.calibration.rows import Calibrations, Degrees, RowTime, Stored, kind_of, row_times
from moeplan.calibration.store import TITLES
from moeplan.cluster.hardware import Gpu
from moeplan.estimation.fold import Line, Part, lines, over_groups
from moeplan.estimation.memory import StoredTensors
from moeplan.model.ops import Weight
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Workload
from moeplan.quantity import Quantity, derive

__all__ = ["expected"]


def expected(
    spec: ModelSpec, work: Workload, gpu: Gpu, stored: StoredTensors
) -> dict[str, Any] | None:
    """Lower, expected and upper seconds of a pass on one GPU; None where no calibration knows it.

    `band` is half the width in parts of the expected time. The bounds add up row by row, as if all
    errors had one sign. `measured` is the part of the expected time that comes from constants
    fitted on this GPU, `outside` names the numbers of shapes beyond what was calibrated, with their
    rows.
    """
    if gpu.vendor not in VENDORS:
        return None
    calibrations: Calibrations = cache(partial(of_gpu, gpu))
    rows = [line for line in lines(spec, work) if line.op.kind != "exchange"]
    degrees = Degrees(training=work.phase == "train")
    times = row_times(rows, calibrations, degrees, partial(_stored, stored))
    found = [(line, time) for line, time in zip(rows, times, strict=True) if time is not None]
    lower, middle, upper = (_summed(found, name) for name in ("lower", "expected", "upper"))
    tokens = derive("B*S", "tokens", B=work.symbols["B"], S=work.symbols["S"])
    return {
        "lower": lower,
        "expected": middle,
        "upper": upper,
        "band": derive("(upper - lower)/2/expected", "", upper=upper, lower=lower, expected=middle),
        "tokens_per_second": derive("tokens/seconds", "tokens/s", tokens=tokens, seconds=middle),
        "measured": _measured(found, middle),
        "origin": " and ".join(sorted({time.origin for _, time in found})),
        "calibrations": sorted({time.calibration for _, time in found}),
        "assumed": _assumed(found),
        "outside": sorted({f"{w} of {t.name}" for _, t in found for w in t.outside.split()}),
        "rows": [_row(line, time) for line, time in found],
    }


def _stored(stored: StoredTensors, row: Any, weight: Weight | None) -> Stored:
    """How a weight is stored: the format of its matmul, and bytes of an element on average."""
    if weight is None:
        return Stored()
    found = stored.get((id(row.group), id(row.block), weight.name))
    if found is None:  # tied to a tensor of another block
        return Stored()
    return Stored(found.peak, found.bytes / row.block.sizes[weight.name].elements)


def _measured(found: list[tuple[Line, RowTime]], middle: Quantity) -> Quantity:
    """The part of the time that comes from ops measured on this GPU."""
    own = [(line, time) for line, time in found if time.origin == "measured"]
    seconds = _summed(own, "expected") if own else Quantity(0, "s", formula="0", note="no op was")
    return derive("measured/expected", "", measured=seconds, expected=middle)


def _assumed(found: list[tuple[Line, RowTime]]) -> list[dict[str, str]]:
    """What times rest on that were not measured on this GPU: reasons, with the ops they are of."""
    reasons: dict[str, dict[str, None]] = {}
    for line, time in found:
        kind = kind_of(line.block, line.op)
        fit = time.used.fits[kind]
        if fit.origin == "assumed":
            reasons.setdefault(fit.note, {})[TITLES[kind]] = None
    return [{"ops": ", ".join(ops), "why": why} for why, ops in reasons.items()]


def _summed(found: list[tuple[Line, RowTime]], name: str) -> Quantity:
    parts = [
        Part(
            line.group,
            line.op.component,
            line.op.name,
            getattr(time, name),
            partial(_seconds, line, time, name),
        )
        for line, time in found
    ]
    return over_groups(parts, "s")


def _seconds(line: Line, time: RowTime, name: str) -> Quantity:
    """A row's time, explained by the constants of the fit that gave it."""
    kind = kind_of(line.block, line.op)
    return Quantity(
        getattr(time, name),
        "s",
        symbol=time.name,
        formula=f"{name} of the {kind} model",
        inputs=lambda: time.used.fits[kind].quantities(time.used.source),
        note=f"calibration {time.calibration}, {time.origin}",
    )


def _row(line: Line, time: RowTime) -> dict[str, Any]:
    return {
        "layer": line.group.name,
        "op": time.name,
        **{name: _seconds(line, time, name) for name in ("lower", "expected", "upper")},
        "origin": time.origin,
        "calibration": time.calibration,
        "outside": time.outside,
    }
