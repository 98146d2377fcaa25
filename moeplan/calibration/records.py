"""Points from the records of `moeplan profile`, and a calibration's times for a layer's rows.

Each forward row of a case is a point of its kind: router and shared experts are dense GEMMs, the
experts' matmuls grouped ones with the rows that each expert really got, the rest is bytes in a
number of kernels. Backward rows are not fitted: a matmul's backward is two of its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moeplan.calibration.calibrate import calibrate
from moeplan.calibration.loads import loads_of_rows
from moeplan.calibration.optime import Device, device_of
from moeplan.calibration.points import Kind, Points
from moeplan.calibration.store import Calibration, calibration, names
from moeplan.cluster.hardware import gpu
from moeplan.errors import UserError
from moeplan.model.ops import Op
from moeplan.model.workload import Workload
from moeplan.quantity import Number, evaluate

if TYPE_CHECKING:
    from moeplan.profile.record import Case, OpPrediction, Record

__all__ = [
    "LayerTime",
    "ProfileTimes",
    "calibrate_records",
    "for_profile",
    "layer_times",
    "points_of_records",
]

KINDS: Mapping[str, Kind] = {
    "linear": "gemm",
    "grouped_linear": "grouped",
    "pointwise": "bytes",
    "gather": "bytes",
    "select": "bytes",
}
_WITH_LOADS = ("grouped", "cpu_matmul")
CPU_KINDS: Mapping[str, Kind] = {**KINDS, "linear": "cpu_matmul", "grouped_linear": "cpu_matmul"}
"""Which op-time model answers for a row, by its kind: on a GPU, and on a CPU."""


def _kinds(device: str) -> Mapping[str, Kind]:
    return CPU_KINDS if device == "cpu" else KINDS


def calibrate_records(
    paths: Sequence[str | Path], backend: str = "torch", name: str = ""
) -> Calibration:
    """Fit the op times of one backend to records of one device.

    Raises UserError where the records are of several devices or hold no measured case.
    """
    from moeplan.profile.store import load_record

    records = [load_record(Path(path)) for path in paths]
    devices = sorted({record.device.name for record in records})
    if len(devices) != 1:
        raise UserError(
            f"records of {len(devices)} devices were given ({', '.join(devices)}); a calibration "
            "is of one"
        )
    points = points_of_records(records, backend)
    formats = sorted({record.settings.dtype for record in records})
    if len(formats) != 1:
        raise UserError(
            f"records in {len(formats)} number formats were given ({', '.join(formats)}); a "
            "calibration is of one"
        )
    versions = {k: v for k, v in records[-1].versions.model_dump().items() if v is not None}
    source = ", ".join(record.name for record in records)
    return calibrate(
        points, backend, _rates(records[-1]), name=name, source=source, versions=versions,
        date=records[-1].updated[:10], number_format=formats[0],
    )  # fmt: skip


def points_of_records(records: Sequence[Record], backend: str) -> list[Points]:
    """The forward rows of every measured case of a backend, by kind. Raises UserError for none."""
    rows: dict[Kind, list[tuple[dict[str, float], Sequence[int], float]]] = {}
    for record in records:
        for case in record.measured():
            if case.backend == backend:
                for kind, shape, seconds in _case(record, case):
                    dense = kind == "cpu_matmul" and shape["experts"] == 1
                    counts = [int(shape["rows"])] if dense else case.rows_per_expert
                    rows.setdefault(kind, []).append((shape, counts, seconds))
    if not rows:
        raise UserError(f"no measured case of backend {backend!r} is in the records")
    return [_points(kind, found, records) for kind, found in rows.items()]


class LayerTime(NamedTuple):
    """A layer's forward pass in a record: seconds by calibration, by the record's own prediction
    at the time of the run, and as measured (the sum of its phases' medians).
    """

    subject: str
    tokens: int
    routing: str
    expected: float
    roofs: float
    measured: float


def layer_times(record: Record, times: ProfileTimes) -> list[LayerTime]:
    """Forward rows of every measured case of the calibration's backend, through the calibration."""
    out = []
    for case in record.measured():
        if case.backend != times.found.backend:
            continue
        env, ops = _block(record, case)
        sums = [0.0, 0.0, 0.0]
        for predicted, phase in case.joined():
            if phase.stage == "forward":
                seconds = times.seconds(ops[predicted.name], predicted, case.rows_per_expert, env)
                found = (predicted.expected if seconds is None else seconds, predicted.expected)
                sums = [a + b for a, b in zip(sums, (*found, phase.median), strict=True)]
        out.append(LayerTime(case.subject, case.tokens, case.routing, *sums))
    return out


def _points(
    kind: Kind,
    found: Sequence[tuple[dict[str, float], Sequence[int], float]],
    records: Sequence[Record],
) -> Points:
    columns = {
        name: np.array([shape[name] for shape, _, _ in found], dtype=np.int64)
        for name in found[0][0]
    }
    return Points(
        kind,
        columns,
        np.array([seconds for _, _, seconds in found]),
        loads_of_rows([rows for _, rows, _ in found]) if kind in _WITH_LOADS else None,
        source=", ".join(record.name for record in records),
    )


def _block(record: Record, case: Case) -> tuple[dict[str, Number], dict[str, Op]]:
    """The numbers of a case's formulas, and its rows by name."""
    from moeplan.profile.predict import block_of

    block = block_of(record.subjects[case.subject])
    work = Workload("train", B=1, S=case.tokens, C=case.tokens)
    env = {**block.environment(work), "A": sum(1 for rows in case.rows_per_expert if rows)}
    return env, {op.name: op for op in block.rows(work)}


def _case(record: Record, case: Case) -> list[tuple[Kind, dict[str, float], float]]:
    env, ops = _block(record, case)
    out = []
    for predicted, phase in case.joined():
        if phase.stage == "forward":
            op = ops[predicted.name]
            kind = _kinds(record.device.kind)[op.kind]
            shape = _shape(op, kind, predicted, env, len(case.rows_per_expert))
            out.append((kind, shape, phase.median))
    return out


def _shape(
    op: Op, kind: Kind, work: OpPrediction, env: Mapping[str, Number], experts: int
) -> dict[str, float]:
    if op.gemm is None:
        from moeplan.profile.predict import LAUNCHES

        return {"bytes": float(work.bytes), "launches": float(LAUNCHES[work.stage][op.kind])}
    m, k, n = (float(evaluate(formula, env)) for formula in op.gemm)
    if op.kind == "grouped_linear":
        return {"rows": m, "n": n, "k": k, "experts": float(experts)}
    if kind == "cpu_matmul":
        return {"rows": m, "n": n, "k": k, "experts": 1.0}
    return {"m": m, "n": n, "k": k}


def _rates(record: Record) -> Device:
    """Rates of the device: the datasheet's of a known GPU, else the roofs of the record."""
    try:
        return device_of(gpu(record.device.name))
    except UserError:
        roofs = {roof.name: roof.value for roof in record.roofs}
        if not {"gemm", "copy"} <= roofs.keys():
            raise UserError(f"record {record.name}: the roofs gemm and copy are missing") from None
    kind = record.device.kind if record.device.kind == "cpu" else "gpu"
    return Device(record.device.name, roofs["gemm"], roofs["copy"], record.device.units, kind=kind)


@dataclass(frozen=True)
class ProfileTimes:
    """Times of the measured layer's rows by a calibration."""

    found: Calibration

    @property
    def name(self) -> str:
        """What a record says the prediction was made with."""
        return self.found.name

    def seconds(
        self,
        op: Op,
        work: OpPrediction,
        rows_per_expert: Sequence[int],
        env: Mapping[str, Number] | None = None,
    ) -> float | None:
        """Expected seconds of a row, or None where there are no constants for its kind.

        env: the numbers of the row's formulas; without them a matmul's shape is not known. A
        matmul's backward is twice its forward.
        """
        kind = _kinds(self.found.device.kind).get(op.kind)
        if kind is None or kind not in self.found.fits or (op.gemm is not None and env is None):
            return None
        shape = _shape(op, kind, work, env or {}, len(rows_per_expert))
        columns: dict[str, Any] = {n: np.array([v], dtype=np.int64) for n, v in shape.items()}
        points = Points(kind, columns)
        if kind in _WITH_LOADS:
            dense = op.kind == "linear"
            counts = [int(shape["rows"])] if dense else rows_per_expert
            points = replace(points, loads=loads_of_rows([counts]))
        fit = self.found.fits[kind]
        features = fit.model.prepare(points, self.found.device)
        once = float(fit.model.seconds(features, fit.constants)[0])
        return 2 * once if op.gemm is not None and work.stage == "backward" else once


def for_profile(device: str, backend: str, dtype: str) -> ProfileTimes | None:
    """The shipped calibration of a device (as its driver names it), backend and number format."""
    try:
        wanted = gpu(device).id
    except UserError:
        wanted = device
    for name in names():
        found = calibration(name)
        if (found.device.id, found.backend, found.number_format) == (wanted, backend, dtype):
            return ProfileTimes(found)
    return None
