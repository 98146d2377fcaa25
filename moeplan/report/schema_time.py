"""Times in an estimate's JSON document: the part of the published schema that has seconds."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["ExchangeTime", "Number", "Section", "Time"]

Number = int | float


class Section(BaseModel):
    """A part of the document: keys that are not named here are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Bounds(Section):
    """Seconds, with the band of what they come from."""

    lower: Number
    expected: Number
    upper: Number


class ExchangeTime(Section):
    """Seconds of dispatch and combine in one MoE layer, and of all layers, nothing hidden."""

    dispatch: Bounds
    combine: Bounds
    forward_step: Bounds
    training_step: Bounds
    origin: Literal["measured", "assumed"]
    source: str


class FloorRow(Section):
    """One operation of one layer; seconds, FLOPs, bytes."""

    layer: str
    layers: int
    op: str
    component: str
    flops: Number
    bytes: Number
    compute: Number
    memory: Number
    lower: Number
    upper: Number
    bound: Literal["compute", "memory"]


class CalibratedRow(Section):
    """Expected time of one operation of one layer, seconds."""

    layer: str
    op: str
    lower: Number
    expected: Number
    upper: Number
    origin: str
    """measured, or assumed where the constants were carried over or taken from elsewhere."""
    calibration: str
    outside: str
    """Numbers of the shape that lie beyond the calibrated range."""


class AssumedTimes(Section):
    """Ops whose times were not measured on this GPU, and what they were taken from."""

    ops: str
    why: str


class Calibrated(Section):
    """Expected time of a pass with the band of the calibration's own held-out errors, seconds."""

    lower: Number
    expected: Number
    upper: Number
    band: Number
    """Half the width in parts of the expected time."""
    tokens_per_second: Number
    measured: Number
    """Part of the expected time that comes from ops measured on this GPU."""
    origin: str
    calibrations: list[str]
    assumed: list[AssumedTimes]
    """What the rest of the time rests on."""
    outside: list[str]
    """Numbers of shapes beyond the calibrated range, with their rows: "n of router"."""
    rows: list[CalibratedRow]


class Pass(Section):
    """Floor of one pass in seconds, and tokens per second at it."""

    tokens: int
    lower_tokens_per_second: Number
    sequential_tokens_per_second: Number
    upper_tokens_per_second: Number
    lower: Number
    """Everything overlaps."""
    sequential: Number
    """Operations one after the other, each at its own roofline."""
    upper: Number
    """Nothing overlaps."""
    compute: Number
    memory: Number
    rows: list[FloorRow]
    calibrated: Calibrated | None
    """Null where no calibration knows the GPU."""


class Time(Section):
    """The datasheet's floor on one GPU, memory capacity aside."""

    kind: Literal["floor"]
    gpu: str
    peaks: dict[str, Number]
    bandwidth: Number
    prefill: Pass
    decode: Pass
    training: Pass
