"""Errors of the predictions in records, per op and per layer, and whether they keep a stated band.

An error is predicted/measured − 1: negative where the prediction was too fast. Predictions are
those that were made before each run. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moeplan.errors import UserError
from moeplan.profile.predict import JUDGED
from moeplan.profile.record import Case, Record, Stage, quantile
from moeplan.profile.store import find_records, load_record

__all__ = [
    "GATES",
    "Band",
    "Errors",
    "LayerPoint",
    "OpPoint",
    "Validation",
    "errors_of",
    "layer_points",
    "op_points",
    "validate",
]

SHARE = 0.01
"""Ops below this share of their layer's time count in the layer alone: their error is noise."""


@dataclass(frozen=True)
class Band:
    """The largest errors that pass; None is not checked. peak: of predicted peak memory."""

    layer_mean: float | None = 0.10
    layer_median: float | None = 0.06
    layer_p90: float | None = 0.20
    layer_bias: float | None = 0.03
    op_mean: float | None = 0.08
    peak: float | None = 0.02


GATES = Band()
"""What a calibrated prediction has to keep on cases that it was not fitted on."""


class OpPoint(NamedTuple):
    """An op of a case: seconds predicted and measured, its floor, and its share of the layer."""

    device: str
    case: Case
    name: str
    stage: Stage
    predicted: float
    measured: float
    floor: float
    bound: str
    share: float


class LayerPoint(NamedTuple):
    """A case: seconds predicted and measured, its floor, and the spread of its samples."""

    device: str
    case: Case
    predicted: float
    measured: float
    floor: float
    spread: float


class Errors(NamedTuple):
    """Relative errors of points: mean, median and p90 of their sizes, and the signed mean."""

    points: int
    mean: float
    median: float
    p90: float
    bias: float


def errors_of(predicted: Iterable[float], measured: Iterable[float]) -> Errors:
    """Error statistics of pairs. Raises ValueError where there is none."""
    pairs = list(zip(predicted, measured, strict=True))
    if not pairs:
        raise ValueError("no points")
    signed = np.array([p / m - 1 for p, m in pairs])
    size = np.abs(signed)
    return Errors(
        len(pairs),
        float(size.mean()),
        float(np.median(size)),
        float(np.quantile(size, 0.9)),
        float(signed.mean()),
    )


def layer_points(records: Iterable[Record]) -> list[LayerPoint]:
    """Every measured case of the records that is to be judged."""
    out = []
    for record in records:
        for case in _judged(record):
            assert case.prediction is not None
            assert case.measured is not None
            timing = case.measured.layer
            wide = quantile(timing.samples, 0.9) - quantile(timing.samples, 0.1)
            out.append(
                LayerPoint(
                    record.device.name,
                    case,
                    case.prediction.expected,
                    timing.median,
                    case.prediction.floor,
                    wide / timing.median,
                )
            )
    return out


def op_points(records: Iterable[Record], share: float = SHARE) -> list[OpPoint]:
    """Every op of every measured case that took at least `share` of the ops' time together."""
    out = []
    for record in records:
        for case in _judged(record):
            joined = case.joined()
            whole = sum(phase.median for _, phase in joined)
            for op, phase in joined:
                measured = phase.median
                if measured <= 0 or measured < share * whole:
                    continue
                out.append(
                    OpPoint(
                        record.device.name, case, op.name, op.stage, op.expected, measured,
                        op.floor, op.bound, measured / whole,
                    )
                )  # fmt: skip
    return out


def _judged(record: Record) -> Iterator[Case]:
    """Measured cases of the backends that predictions are made for."""
    return (case for case in record.measured() if case.backend in JUDGED)


class Validation(NamedTuple):
    """Error statistics of records, and what passed its band.

    ops: (op, stage) to errors; layers: subject to errors; whole: of all layers, all_ops: of all
    ops. peak: of predicted peak memory against the measured, None where none was measured.
    spread: median spread of the samples of a case, p10 to p90 over the median. between: the same
    for medians of equal cases in different records, None where none repeats.
    """

    records: list[Record]
    paths: list[Path]
    ops: dict[tuple[str, Stage], Errors]
    all_ops: Errors
    layers: dict[str, Errors]
    whole: Errors
    peak: Errors | None
    spread: float
    between: float | None
    left_out: int
    breaches: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {
            "records": [str(path) for path in self.paths],
            "ops": [
                {"op": name, "stage": stage, **errors._asdict()}
                for (name, stage), errors in self.ops.items()
            ],
            "all_ops": self.all_ops._asdict(),
            "layers": [{"subject": name, **e._asdict()} for name, e in self.layers.items()],
            "all_layers": self.whole._asdict(),
            "peak_memory": None if self.peak is None else self.peak._asdict(),
            "spread_within_runs": self.spread,
            "spread_between_runs": self.between,
            "ops_left_out": self.left_out,
            "breaches": self.breaches,
        }


def validate(places: Sequence[Path], band: Band = GATES) -> Validation:
    """Read the records at the places and hold their predictions against their measurements.

    Raises UserError where there is no record, or none with a measured case.
    """
    paths = find_records(places)
    records = [load_record(path) for path in paths]
    layers = layer_points(records)
    if not layers:
        judged = " or ".join(JUDGED)
        raise UserError(
            f"{', '.join(map(str, places))}: no case of the backend {judged} has been measured"
        )
    points, every = op_points(records), op_points(records, share=0)
    whole, all_ops = _errors(layers), _errors(points)
    by_op = {
        key: _errors([p for p in points if (p.name, p.stage) == key])
        for key in dict.fromkeys((p.name, p.stage) for p in every)
        if any((p.name, p.stage) == key for p in points)
    }
    by_subject = {
        name: _errors([p for p in layers if p.case.subject == name])
        for name in dict.fromkeys(p.case.subject for p in layers)
    }
    peak = _peak_errors(layers)
    return Validation(
        records,
        paths,
        by_op,
        all_ops,
        by_subject,
        whole,
        peak,
        float(np.median([p.spread for p in layers])),
        _between(layers),
        len(every) - len(points),
        _breaches(band, whole, all_ops, layers),
    )


def _errors(points: Sequence[OpPoint] | Sequence[LayerPoint]) -> Errors:
    return errors_of((p.predicted for p in points), (p.measured for p in points))


def _peaks(layers: Sequence[LayerPoint]) -> list[tuple[LayerPoint, int, int]]:
    """(point, predicted bytes, measured bytes) of the cases whose memory was counted."""
    out = []
    for point in layers:
        prediction, measured = point.case.prediction, point.case.measured
        assert prediction is not None
        assert measured is not None
        if measured.peak_bytes is not None:
            out.append((point, prediction.peak_bytes, measured.peak_bytes))
    return out


def _peak_errors(layers: Sequence[LayerPoint]) -> Errors | None:
    peaks = _peaks(layers)
    return errors_of((p for _, p, _ in peaks), (m for _, _, m in peaks)) if peaks else None


def _between(layers: Sequence[LayerPoint]) -> float | None:
    """(max − min)/median of a case's medians in the records that repeat it; the median of these."""
    repeated: dict[tuple[Any, ...], list[float]] = {}
    for point in layers:
        repeated.setdefault((point.device, *point.case.key), []).append(point.measured)
    spreads = [
        (max(times) - min(times)) / quantile(times, 0.5)
        for times in repeated.values()
        if len(times) > 1
    ]
    return quantile(spreads, 0.5) if spreads else None


_WORDS = {
    "layer_mean": "mean error of layers",
    "layer_median": "median error of layers",
    "layer_p90": "p90 error of layers",
    "layer_bias": "bias of layers",
    "op_mean": "mean error of ops",
    "peak": "largest error of peak memory",
}


def _breaches(
    band: Band, whole: Errors, all_ops: Errors, layers: Sequence[LayerPoint]
) -> list[str]:
    """A sentence for each figure outside its band."""
    peaks = [abs(predicted / measured - 1) for _, predicted, measured in _peaks(layers)]
    found = {
        "layer_mean": whole.mean,
        "layer_median": whole.median,
        "layer_p90": whole.p90,
        "layer_bias": abs(whole.bias),
        "op_mean": all_ops.mean,
        "peak": max(peaks, default=0.0),
    }
    out = []
    for field in fields(band):
        limit = getattr(band, field.name)
        if limit is not None and found[field.name] > limit:
            out.append(f"{_WORDS[field.name]} {found[field.name]:.1%}, past {limit:.1%}")
    return out
