"""Records of measurements: what was run, on what, what was expected and what came out.

`SCHEMA` numbers the layout of the file and `METHOD` the way of measuring, apart from each other: a
file of an older schema is upgraded while it is read, while figures of two methods are not to be
mixed. Times are seconds, sizes bytes. Raw samples are kept; medians and quantiles are derived.
Nothing here needs torch; `store` reads and writes the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "METHOD",
    "SCHEMA",
    "Case",
    "CaseState",
    "Check",
    "Clocks",
    "Device",
    "Direction",
    "Measurement",
    "OpPrediction",
    "Phase",
    "Prediction",
    "Record",
    "Roof",
    "RunState",
    "Settings",
    "Stage",
    "Subject",
    "Timing",
    "Versions",
    "now",
    "quantile",
]

SCHEMA = 3
METHOD = 1

Stage: TypeAlias = Literal["forward", "backward"]
Direction: TypeAlias = Literal["forward", "forward+backward"]
CaseState: TypeAlias = Literal[
    "running", "measured", "skipped", "out of memory", "out of time", "failed"
]
RunState: TypeAlias = Literal["running", "finished", "interrupted", "device lost", "out of time"]


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def quantile(samples: Sequence[float], q: float) -> float:
    """The q-quantile of samples, between neighbours in proportion."""
    return float(np.quantile(np.asarray(samples, dtype=np.float64), q))


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Clocks(_Model):
    """What a device says about itself at one moment; `source` says who was asked.

    throttle: reasons why clocks are held down, in the driver's words.
    """

    source: str
    clock_mhz: float | None = None
    memory_mhz: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    throttle: list[str] = []
    load: float | None = None


class Device(_Model):
    """The device as its driver names it.

    cache_bytes: the last cache before memory (L2 of a GPU). units: multiprocessors, or threads
    that torch uses on a CPU.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int
    cache_bytes: int
    cache_source: str
    units: int
    capability: str = ""
    clocks: Clocks


class Versions(_Model):
    """Software that the figures depend on; None where it is absent."""

    moeplan: str
    python: str
    torch: str
    triton: str | None = None
    cuda: str | None = None
    driver: str | None = None


class Settings(_Model):
    """What the run was asked for: with the subjects and versions, all it takes to run it again."""

    command: str = ""
    tokens: list[int]
    routing: str
    trace: str | None = None
    backends: list[str]
    dtype: str
    directions: list[Direction]
    seed: int
    samples: int
    quick: bool = False
    suite: str = ""
    budget_s: float | None = None


class Roof(_Model):
    """A rate or time that this device reached in this run.

    amount: FLOPs or bytes of one sample (none for a time). value: the median of amount / sample,
    or of the samples themselves. measured: when; a resumed run measures its roofs anew.
    """

    name: str
    unit: Literal["FLOP/s", "B/s", "s"]
    value: float
    amount: float | None = None
    samples: list[float] = Field(min_length=1)
    measured: str = ""
    note: str = ""


class Check(_Model):
    """A backend held against the fp32 reference before it is timed: relative L2 errors.

    tolerance: of the output; gradient_tolerance: of each gradient.
    """

    subject: str
    backend: str
    dtype: str
    tokens: int
    sizes: str
    output_error: float
    gradient_errors: dict[str, float] = {}
    tolerance: float
    gradient_tolerance: float
    passed: bool


class Subject(_Model):
    """The MoE block that is run: its numbers by symbol, its kinds and its routing rule."""

    source: str
    symbols: dict[str, float | int]
    kinds: dict[str, Any]
    routing: dict[str, Any]
    parameters: int


class OpPrediction(_Model):
    """A row of the block in one stage: its work, the time each roof allows, and the time expected.

    compute, memory, launch: seconds at the measured roofs. expected: the prediction.
    """

    name: str
    stage: Stage
    flops: int
    bytes: int
    compute: float
    memory: float
    launch: float
    expected: float

    @property
    def floor(self) -> float:
        """The time below which the roofs do not let the row go."""
        return max(self.compute, self.memory)

    @property
    def bound(self) -> str:
        """What takes longest: compute, memory or launch."""
        times = {"compute": self.compute, "memory": self.memory, "launch": self.launch}
        return max(times, key=lambda name: times[name])


class Prediction(_Model):
    """What was expected before the run, and by which method; peak_bytes is the memory's."""

    made: str
    method: str
    note: str = ""
    ops: list[OpPrediction]
    expected: float
    peak_bytes: int

    @property
    def floor(self) -> float:
        """The rows' floors one after the other."""
        return sum(op.floor for op in self.ops)


class Timing(_Model):
    """One way of timing a case: seconds of a pass, or why there are none.

    passes: how many passes a sample is the mean of.
    """

    samples: list[float] = []
    passes: int = 1
    absent: str = ""

    @model_validator(mode="after")
    def _one_of_both(self) -> Timing:
        if bool(self.samples) == bool(self.absent):
            raise ValueError("a timing has samples, or says why it has none")
        return self

    @property
    def median(self) -> float:
        """The median of the samples."""
        return quantile(self.samples, 0.5)


class Phase(_Model):
    """Raw seconds of one row's scope in one stage, a sample for each timed pass."""

    name: str
    stage: Stage
    samples: list[float] = Field(min_length=1)

    @property
    def median(self) -> float:
        """The median of the samples."""
        return quantile(self.samples, 0.5)


class Measurement(_Model):
    """What a case took.

    phase_clock: what the phases were timed with. kernels, graph, eager: the sum of kernel times,
    the replay of a captured graph, and the wall clock of a plain call. peak_bytes is at most held
    at a time, as `peak_source` counts it. rotations: sets of buffers that passes took in turn.
    """

    phase_clock: Literal["kernels", "events", "wall"]
    phases: list[Phase]
    kernels: Timing
    graph: Timing
    eager: Timing
    peak_bytes: int | None
    peak_source: str
    rotations: int
    warmup: int
    before: Clocks
    after: Clocks
    flags: list[str] = []

    @property
    def clock(self) -> Literal["graph", "kernels", "eager"]:
        """The time that the layer's prediction is held against: the first there is of the three."""
        if self.graph.samples:
            return "graph"
        return "kernels" if self.kernels.samples else "eager"

    @property
    def layer(self) -> Timing:
        """The layer's time by that clock."""
        timing: Timing = getattr(self, self.clock)
        return timing


class Case(_Model):
    """One subject at one size: how it was routed, what was expected, what came out.

    reason: why it was skipped, or what ended it. free_bytes: what was free where it did not fit.
    """

    subject: str
    tokens: int
    routing: str
    rows_per_expert: list[int]
    backend: str
    dtype: str
    direction: Direction
    state: CaseState = "running"
    reason: str = ""
    free_bytes: int | None = None
    prediction: Prediction | None = None
    measured: Measurement | None = None

    @property
    def key(self) -> tuple[str, int, str, str, str, str]:
        """What tells this case from the others of a record."""
        return self.subject, self.tokens, self.routing, self.backend, self.dtype, self.direction

    @property
    def label(self) -> str:
        """The case in words."""
        subject, tokens, *rest = self.key
        return ", ".join((subject, f"{tokens:,} token{'s' if tokens != 1 else ''}", *rest))

    @model_validator(mode="after")
    def _complete(self) -> Case:
        if self.state == "measured":
            if self.prediction is None or self.measured is None:
                raise ValueError("a measured case holds its prediction and its measurement")
            self.joined()
        return self

    def joined(self) -> list[tuple[OpPrediction, Phase]]:
        """Each predicted row with its measured phase. Raises ValueError for one without partner."""
        assert self.prediction is not None
        assert self.measured is not None
        predicted = {(op.name, op.stage): op for op in self.prediction.ops}
        measured = {(phase.name, phase.stage): phase for phase in self.measured.phases}
        if predicted.keys() != measured.keys():
            alone = sorted(predicted.keys() ^ measured.keys())
            names = ", ".join(f"{name} ({stage})" for name, stage in alone)
            raise ValueError(f"predicted or measured, but not both: {names}")
        return [(op, measured[key]) for key, op in predicted.items()]


class Record(_Model):
    """A file of measurements on one device in one run (or in several, resumed)."""

    schema_version: int = SCHEMA
    method_version: int = METHOD
    name: str
    started: str
    updated: str
    state: RunState = "running"
    reason: str = ""
    device: Device
    versions: Versions
    settings: Settings
    notes: list[str] = []
    roofs: list[Roof] = []
    checks: list[Check] = []
    subjects: dict[str, Subject] = {}
    cases: list[Case] = []

    def measured(self) -> Iterator[Case]:
        """The cases with figures."""
        return (case for case in self.cases if case.state == "measured")

    def current_roofs(self) -> list[Roof]:
        """The roofs of the last run."""
        return list({roof.name: roof for roof in self.roofs}.values())

    def finished_keys(self) -> set[tuple[Any, ...]]:
        """Keys of the cases that a resumed run need not repeat: those with figures."""
        return {case.key for case in self.measured()}

    def put(self, case: Case) -> None:
        """Add a case, or replace the one with its key."""
        for place, old in enumerate(self.cases):
            if old.key == case.key:
                self.cases[place] = case
                return
        self.cases.append(case)
