"""What a plan would run, in which order, and how long that is thought to take.

The time of a case is not its passes alone: on a GPU it also holds the warm-up, the profiler's
start and end, the capture of graphs, and, for the first case of a layer, building and checking it.
The constants for that are assumptions until a GPU has been measured: `OVERHEADS` says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from moeplan.cluster.hardware import gpu
from moeplan.errors import UserError
from moeplan.profile.backends import backend_named
from moeplan.profile.bench import MOST_GRAPHS, turns_needed
from moeplan.profile.memory import PeakMemory, peak_memory
from moeplan.profile.options import check_built
from moeplan.profile.predict import Shape, calibration_for, dtype_bytes, predict
from moeplan.profile.record import Prediction, Roof
from moeplan.profile.suite import Job, Part
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_bytes, fmt_time

__all__ = [
    "KEEP_FREE",
    "Machine",
    "Step",
    "case_seconds",
    "datasheet",
    "memory_of",
    "needed_bytes",
    "prediction_of",
    "schedule",
    "schedule_tables",
]

KEEP_FREE = 0.95  # of the free bytes that a case may take


class _Overheads(NamedTuple):
    """Seconds beside the passes: of a run, of a layer, of a case. slower: passes over prediction.

    extra: passes beside the two of each sample.
    """

    start: float
    layer: float
    case: float
    slower: float
    extra: int


OVERHEADS = {
    # 0.5 s warm-up, 0.5 s for the profiler and clocks; 4 s to compile and check a layer's kernels;
    # each sample once more under the profiler and as a graph, and three passes for each capture
    "cuda": _Overheads(20.0, 4.0, 1.0, 1.3, 24 + 3 * MOST_GRAPHS),
    "cpu": _Overheads(2.0, 0.5, 0.1, 2.0, 4),
}


class Machine(NamedTuple):
    """The device that a schedule is for. free: bytes a case may use. kernels: with Triton."""

    name: str
    kind: str
    roofs: Sequence[Roof]
    free: int
    cache_bytes: int
    kernels: bool


class Step(NamedTuple):
    """A case of the plan: seconds it is thought to take, from `start` on, and bytes it needs.

    expected: seconds of one pass. why: the reason why it would not run, or empty.
    """

    part: Part
    job: Job
    expected: float
    needed: int
    start: float
    seconds: float
    why: str


def datasheet(name: str, dtype: str) -> Machine:
    """A GPU that is not at hand: roofs as assumed shares of its datasheet. Raises UserError."""
    card = gpu(name)
    peak, stream = float(card.peak(dtype).value), float(card.memory_bandwidth.value)
    roofs = [
        _assumed("gemm", "FLOP/s", 0.8 * peak), _assumed("copy", "B/s", 0.88 * stream),
        _assumed("reduce", "B/s", 0.9 * stream), _assumed("launch", "s", 2.5e-6),
    ]  # fmt: skip
    cache = 50 << 20 if card.l2_bytes is None else int(card.l2_bytes.value)
    free = int(0.98 * float(card.memory_bytes.value))  # the driver and the context keep some
    return Machine(card.name, "cuda", roofs, free, cache, kernels=True)


def _assumed(name: str, unit: Literal["FLOP/s", "B/s", "s"], value: float) -> Roof:
    return Roof(name=name, unit=unit, value=value, samples=[1.0], note="assumed")


# ----------------------------------------------------------------------------------- one case
def memory_of(job: Job, *, kernels: bool) -> PeakMemory:
    """Predicted memory of a case."""
    return peak_memory(
        job.block,
        job.tokens,
        backward=job.direction == "forward+backward",
        element=dtype_bytes(job.dtype),
        kernels=kernels,
    )


def needed_bytes(memory: PeakMemory, prediction: Prediction, cache_bytes: int) -> int:
    """Bytes of a case with all its copies: layers and inputs in turn over the caches."""
    touched = sum(op.bytes for op in prediction.ops)
    turns = turns_needed(int(memory.weights), touched, cache_bytes)
    copies = (turns.layers - 1) * memory.weights + (turns.passes - 1) * memory.input
    return int(memory.peak + copies)


def prediction_of(
    job: Job, rows: Sequence[int], memory: PeakMemory, roofs: Sequence[Roof], device: str
) -> Prediction:
    """The prediction of a case on a device, by its calibration where there is one."""
    together = backend_named(job.backend).together
    shape = Shape(job.block, job.tokens, rows, job.dtype, job.direction, job.backend, together)
    calibration = calibration_for(device, job.backend, job.dtype)
    return predict(shape, roofs, int(memory.peak), calibration)


def case_seconds(expected: float, samples: int, kind: str) -> float:
    """Seconds of a case: its passes at the predicted time, and what surrounds them."""
    beside = OVERHEADS[kind]
    passes = (4 if kind == "cuda" else 2) * samples + beside.extra
    return beside.case + passes * expected * beside.slower


def _usual_rows(job: Job) -> list[int]:
    """A histogram with the expected number of experts in use; nothing is drawn."""
    k, E = (int(job.block.values[name]) for name in ("k", "E"))
    used = E if k == E else round(E * (1 - (1 - k / E) ** job.tokens))
    used = max(used, k)
    return [1] * used + [0] * (E - used)


# ---------------------------------------------------------------------------------- whole plan
def schedule(
    parts: Sequence[Part], machine: Machine, samples: int, budget: float = math.inf
) -> list[Step]:
    """Every case of a plan in its order. budget: seconds after which no case begins."""
    clock, layer = OVERHEADS[machine.kind].start, ("", "", "")
    out: list[Step] = []
    refused: dict[str, bool] = {}
    for part in parts:
        ends = min(budget, clock + part.seconds) if part.seconds is not None else budget
        for job in part.jobs:
            memory = memory_of(job, kernels=machine.kernels)
            made = prediction_of(job, _usual_rows(job), memory, machine.roofs, machine.name)
            needed, seconds, why = needed_bytes(memory, made, machine.cache_bytes), 0.0, ""
            if job.subject not in refused:
                refused[job.subject] = _refused(job)
            if refused[job.subject]:
                why = "not built"
            elif needed > KEEP_FREE * machine.free:
                why = "does not fit"
            elif clock + (lasting := _lasting(job, made, layer, samples, machine.kind)) > ends:
                why = "no time left"
            else:
                seconds, layer = lasting, (job.subject, job.backend, job.dtype)
            out.append(Step(part, job, made.expected, needed, clock, seconds, why))
            clock += seconds
    return out


def _refused(job: Job) -> bool:
    """Whether the measured layer does not build the block, or its matmuls not its widths."""
    try:
        check_built(job.block, job.dtype)
    except UserError:
        return True
    return False


def _lasting(
    job: Job, made: Prediction, before: tuple[str, str, str], samples: int, kind: str
) -> float:
    building = before != (job.subject, job.backend, job.dtype)
    return case_seconds(made.expected, samples, kind) + building * OVERHEADS[kind].layer


def schedule_tables(
    steps: Sequence[Step], machine: Machine, budget: float, *, detail: bool = False
) -> list[Table]:
    """The plan in short, a line for each part; `detail` adds a line for each case."""
    table = Table(
        f"What would run on {machine.name}",
        [Column("part", "left", fixed=True), Column("how", "left"), Column("cases"),
         Column("memory"), Column("from"), Column("takes")],
    )  # fmt: skip
    for part in dict.fromkeys(step.part for step in steps):
        own = [step for step in steps if step.part is part]
        ran = [step for step in own if not step.why]
        cases = str(len(ran)) if len(ran) == len(own) else f"{len(ran)} of {len(own)}"
        table.rows.append(
            (
                part.name,
                ", ".join(_each(own, what) for what in (_direction, _routing, _backend)),
                cases,
                fmt_bytes(max(s.needed for s in ran) if ran else min(s.needed for s in own)),
                _minutes(own[0].start),
                _minutes(sum(step.seconds for step in own)),
            )
        )
    end = max((step.start + step.seconds for step in steps), default=0.0)
    ran = [step for step in steps if not step.why]
    table.total = ("all", "", str(len(ran)), "", "", _minutes(end))
    table.notes = _notes(steps, machine, budget)
    return [table, _cases(steps)] if detail else [table]


def _notes(steps: Sequence[Step], machine: Machine, budget: float) -> list[str]:
    notes = ["minutes and seconds, as predicted; nothing has been measured"]
    if all(roof.note == "assumed" for roof in machine.roofs):
        notes.append("roofs: assumed shares of the datasheet (80 % of the peak, 90 % of bandwidth)")
    if not math.isinf(budget):
        notes.append(f"ends after {_minutes(budget)} in any case; what is left can be resumed")
    for why in ("not built", "does not fit", "no time left"):
        left = [step for step in steps if step.why == why]
        if left:
            large = why == "does not fit"
            named = ", ".join(
                f"{s.job.subject} {s.job.tokens:,}" + f" (needs {fmt_bytes(s.needed)})" * large
                for s in left[:4]
            )
            more = f" and {len(left) - 4} more" if len(left) > 4 else ""
            free = f"; {fmt_bytes(KEEP_FREE * machine.free)} can be used here" * large
            notes.append(f"{why}: {named}{more}{free}")
    return notes


def _cases(steps: Sequence[Step]) -> Table:
    table = Table(
        "Its cases in order",
        [Column("case", "left"), Column("layer"), Column("memory"), Column("from"),
         Column("takes")],
    )  # fmt: skip
    for step in steps:
        job = step.job
        name = f"{job.subject}, {job.tokens:,}, {_direction(job)}, {_routing(job)}, {_backend(job)}"
        last = step.why or _minutes(step.seconds)
        times = (fmt_time(step.expected), fmt_bytes(step.needed), _minutes(step.start), last)
        table.rows.append((name, *times))
    return table


def _each(steps: Sequence[Step], what: Callable[[Job], str]) -> str:
    return " and ".join(dict.fromkeys(what(step.job) for step in steps))


def _direction(job: Job) -> str:
    return "fwd" if job.direction == "forward" else "fwd+bwd"


def _routing(job: Job) -> str:
    return job.routing.text


def _backend(job: Job) -> str:
    return job.backend


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"
