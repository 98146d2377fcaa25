"""Calibrations: fitted constants with their device, backend, origin and errors, kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from moeplan.calibration.cpu import CpuMatmul
from moeplan.calibration.errors import ALL, Errors
from moeplan.calibration.gemm import DenseGemm
from moeplan.calibration.moe import FusedMoE, GroupedGemm
from moeplan.calibration.optime import Device, OpModel
from moeplan.calibration.simple import Attention, Bytes
from moeplan.errors import UserError, near_miss
from moeplan.quantity import Quantity, Source

__all__ = [
    "MODELS",
    "SCHEMA",
    "TITLES",
    "Calibration",
    "OpFit",
    "bias_sentence",
    "calibration",
    "names",
    "save",
]

SCHEMA = 1
FOLDER = Path(__file__).parents[1] / "data" / "calibrations"
Origin: TypeAlias = Literal["measured", "assumed"]

TITLES = {
    "moe": "fused MoE ops",
    "gemm": "dense GEMMs",
    "grouped": "grouped GEMMs",
    "bytes": "element-wise ops",
    "attention": "attention",
    "cpu_matmul": "matmuls on a CPU",
}
"""What points of each kind are, in words."""

MODELS: Mapping[str, OpModel] = {
    model.kind: model
    for model in (FusedMoE(), DenseGemm(), GroupedGemm(), Bytes(), Attention(), CpuMatmul())
}
"""The op-time model of each kind of points."""


@dataclass(frozen=True)
class OpFit:
    """The constants of one kind of op.

    origin: measured, or assumed (with the reason in `note`). points: how many the fit used.
    judged: how many the errors are of. silent: constants that the points said nothing about.
    ranges: of each column, the least and the largest value. errors: by regime, on points that
    the fit did not see. widen: factor on the band for an origin that is not a measurement.
    """

    kind: str
    constants: Mapping[str, float]
    origin: Origin
    points: int = 0
    judged: int = 0
    held_out: str = ""
    silent: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    errors: tuple[Errors, ...] = ()
    widen: float = 1.0
    note: str = ""

    @property
    def model(self) -> OpModel:
        """The op-time model that the constants belong to."""
        return MODELS[self.kind]

    def band(self, regime: str) -> tuple[float, float]:
        """(low, high): factors on the expected time, those of all points for another regime."""
        by_name = {e.regime: e for e in self.errors}
        found = by_name.get(regime, by_name.get(ALL))
        low, high = (0.7, 1.5) if found is None else (min(found.low, 1.0), max(found.high, 1.0))
        return low**self.widen, high**self.widen

    def quantities(self, source: str) -> dict[str, Quantity]:
        """The constants with unit, meaning and origin, for explanations."""
        where = Source(self.origin, self.note or source)
        known = self.model.constants
        return {
            name: Quantity.given(value, known[name].unit, name, where, known[name].meaning)
            for name, value in self.constants.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON: each constant with its unit and meaning."""
        known = self.model.constants
        return {
            "origin": self.origin,
            "note": self.note,
            "constants": {
                name: {
                    "value": float(f"{value:.6g}"),
                    "unit": known[name].unit,
                    "meaning": known[name].meaning,
                }
                for name, value in self.constants.items()
            },
            "silent": list(self.silent),
            "points": self.points,
            "judged": self.judged,
            "held_out": self.held_out,
            "ranges": {name: list(pair) for name, pair in self.ranges.items()},
            "widen": self.widen,
            "errors": [e.as_dict() for e in self.errors],
        }


@dataclass(frozen=True)
class Calibration:
    """What is known of the op times of one backend on one device.

    device: its id and the rates that the constants go with. backend: whose kernels. versions:
    software that was measured. date: of the fit. source: of the points. number_format: of operands.
    """

    name: str
    device: Device
    backend: str
    fits: Mapping[str, OpFit]
    source: str
    date: str
    versions: Mapping[str, str] = field(default_factory=dict)
    number_format: str = "bf16"

    def fit_of(self, kind: str) -> OpFit:
        """The constants of a kind of op. Raises UserError where there are none."""
        if kind not in self.fits:
            raise UserError(
                f"calibration {self.name!r} has no constants for points of kind {kind!r}, only for "
                f"{', '.join(self.fits)}"
            )
        return self.fits[kind]

    def renamed(self, name: str) -> Calibration:
        """The same under another name."""
        return replace(self, name=name)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "device": asdict(self.device),
            "backend": self.backend,
            "number_format": self.number_format,
            "versions": dict(self.versions),
            "date": self.date,
            "source": self.source,
            "fits": {kind: fit.as_dict() for kind, fit in self.fits.items()},
        }


def names() -> list[str]:
    """The calibrations that ship, by name."""
    return sorted(
        path.stem for path in FOLDER.glob("*.json") if not path.stem.startswith("network-")
    )


@cache
def calibration(name: str) -> Calibration:
    """The calibration of that name, or of a JSON file named by its path. Raises UserError."""
    if name.endswith(".json"):
        return _read(Path(name))
    if name not in names():
        raise UserError(
            f"no calibration {name!r}: there are {', '.join(names())}, and the path of a JSON file "
            f"that `moeplan calibrate` wrote{near_miss(name, names())}"
        )
    return _read(FOLDER / f"{name}.json")


def bias_sentence() -> str:
    """What to expect of a roofline where there is no calibration: its error where there is one."""
    parts = []
    for name in names():
        found = calibration(name)
        for kind, fit in found.fits.items():
            if fit.errors and fit.origin == "measured" and found.device.kind == "gpu":
                off = f"{fit.errors[-1].floor_median:.0%}"
                parts.append(f"{off} in the median on {TITLES[kind]} ({name})")
    return "No calibration: the datasheet's roofline is too fast; it was off by " + ", ".join(parts)


def save(found: Calibration, path: str | Path) -> None:
    """Write a calibration as JSON, whole or not at all."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_text(json.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as problem:
        raise UserError(f"{path}: cannot be written ({problem.strerror})") from None


def _read(path: Path) -> Calibration:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as problem:
        raise UserError(f"{path}: not a calibration ({problem})") from None
    version = data.get("schema") if isinstance(data, dict) else None
    if version != SCHEMA:
        raise UserError(f"{path}: schema is {version!r}, and this moeplan reads {SCHEMA}")
    try:
        return _calibration(data)
    except (KeyError, TypeError, ValueError) as problem:
        raise UserError(f"{path}: not a complete calibration ({problem!r})") from None


def _calibration(data: Mapping[str, Any]) -> Calibration:
    return Calibration(
        name=data["name"],
        device=Device(**data["device"]),
        backend=data["backend"],
        fits={kind: _fit(kind, row) for kind, row in data["fits"].items()},
        source=data["source"],
        date=data["date"],
        versions=data["versions"],
        number_format=data["number_format"],
    )


def _fit(kind: str, row: Mapping[str, Any]) -> OpFit:
    constants = {name: float(entry["value"]) for name, entry in row["constants"].items()}
    needed = MODELS[kind].constants.keys()
    if constants.keys() != needed:
        raise ValueError(f"constants of {kind}: {sorted(constants.keys() ^ needed)}")
    return OpFit(
        kind=kind,
        constants=constants,
        origin=row["origin"],
        points=row["points"],
        judged=row["judged"],
        held_out=row["held_out"],
        silent=tuple(row["silent"]),
        ranges={name: (pair[0], pair[1]) for name, pair in row["ranges"].items()},
        errors=tuple(Errors(**entry) for entry in row["errors"]),
        widen=row["widen"],
        note=row["note"],
    )
