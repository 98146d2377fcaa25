"""Run the jobs of a plan one after the other, and keep the record of each whole on disk.

After every case the record is written. What goes wrong in a case is noted in it and the run goes
on; an interruption or a lost device ends the run with everything measured so far kept.
"""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from moeplan.errors import UserError
from moeplan.profile import bench, checks, device, store
from moeplan.profile.assignment import Ids, rows_per_expert
from moeplan.profile.failures import DeviceLost, is_device_lost, is_out_of_memory
from moeplan.profile.functions import uses_kernels
from moeplan.profile.layer import Layer
from moeplan.profile.memory import PeakMemory
from moeplan.profile.predict import subject_of
from moeplan.profile.record import (
    Case,
    Device,
    Measurement,
    Record,
    Roof,
    Settings,
    Versions,
    now,
)
from moeplan.profile.schedule import (
    KEEP_FREE,
    Machine,
    memory_of,
    needed_bytes,
    prediction_of,
    schedule,
)
from moeplan.profile.suite import Job, Part
from moeplan.units import fmt_bytes

__all__ = ["Runner"]

_FULL_CHECK_TOKENS = 32


def _is_less(one: Job, other: Job) -> bool:
    """Whether a case takes at most as long as another: the same, with fewer tokens or a direction
    that does no more."""
    same = (one.subject, one.backend, one.dtype) == (other.subject, other.backend, other.dtype)
    directions = one.direction == "forward" or other.direction == one.direction
    return same and directions and one.tokens <= other.tokens


@dataclass
class Runner:
    """The state of a run: where it measures, until when, and the records it fills.

    measure_roofs: makes the roofs, once. measure: times a case (`bench.measure`). planned,
    advanced: told the seconds that the whole is thought to take, and those done, for a bar.
    """

    where: torch.device
    facts: Device
    versions: Versions
    settings: Settings
    folder: Path
    measure_roofs: Callable[[], list[Roof]]
    file: Path | None = None
    resume: bool = False
    notes: Sequence[str] = ()
    deadline: float = math.inf
    planned: Callable[[float], None] = lambda seconds: None
    advanced: Callable[[str, float], None] = lambda label, seconds: None
    measure: Callable[..., Measurement] = bench.measure
    paths: dict[str, Path] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    _roofs: list[Roof] = field(default_factory=list)
    _layers: tuple[tuple[str, str, str], list[Layer]] | None = None
    _seconds: dict[tuple[Any, ...], float] = field(default_factory=dict)
    _left_of_job: float = 0.0

    # ------------------------------------------------------------------------ whole runs
    def run(self, parts: Sequence[Part]) -> None:
        """Measure every job of every part that has no figures yet.

        Raises KeyboardInterrupt and DeviceLost after the records say so, UserError where a record
        cannot be gone on with.
        """
        todo = [(part, self._open(part)) for part in parts]
        if not self._left(todo):
            return
        self._go_on()
        try:
            if not self._roofs:
                self._roofs = self.measure_roofs()
            for record in self.records.values():
                record.roofs += self._roofs
                self._save(record)
            self._plan(todo)
            for part, record in todo:
                self._part(part, record)
        except KeyboardInterrupt:
            self._end("interrupted", "stopped by the user")
            raise
        except DeviceLost as problem:
            self._end("device lost", str(problem))
            raise
        short = any(c.state == "out of time" for r in self.records.values() for c in r.cases)
        self._end("out of time" if short else "finished", "")

    def _left(self, todo: Sequence[tuple[Part, Record]]) -> list[Part]:
        """The parts with the cases that have no figures yet."""
        parts = []
        for part, record in todo:
            done = record.finished_keys()
            jobs = tuple(job for job in part.jobs if job.key not in done)
            if jobs:
                parts.append(replace(part, jobs=jobs))
        return parts

    def _plan(self, todo: Sequence[tuple[Part, Record]]) -> None:
        """Tell the bar what the run is thought to take."""
        budget = self.deadline - time.monotonic()
        steps = schedule(self._left(todo), self._machine(), self.settings.samples, budget)
        self._seconds = {step.job.key: step.seconds for step in steps}
        self.planned(sum(self._seconds.values()))

    def _open(self, part: Part) -> Record:
        """The record of a part: one that is open already, one to go on with, or a new one."""
        if part.name in self.records:
            return self.records[part.name]
        path = self.file
        if path is None and self.resume:
            path = store.unfinished(self.folder, self.facts, part.name)
        if path is not None and path.exists():
            if not self.resume:
                raise UserError(f"{path} exists: give --resume to go on with it, or another --out")
            record = self._resumed(path)
        else:
            path = path or store.new_path(self.folder, self.facts, part.name)
            record = Record(
                name=part.name,
                started=now(),
                updated=now(),
                device=self.facts,
                versions=self.versions,
                settings=self.settings,
                notes=[*self.notes, *part.notes],
            )
        self.records[part.name], self.paths[part.name] = record, path
        return record

    def _resumed(self, path: Path) -> Record:
        """A record to go on with. Raises UserError where its figures and new ones do not mix."""
        record = store.load_record(path)
        for what, old, new in (
            ("device", record.device.name, self.facts.name),
            ("method", record.method_version, Record.model_fields["method_version"].default),
            ("torch", record.versions.torch, self.versions.torch),
            ("moeplan", record.versions.moeplan, self.versions.moeplan),
            ("seed", record.settings.seed, self.settings.seed),
        ):
            if old != new:
                raise UserError(
                    f"{path}: cannot be resumed: it was measured with {what} {old}, and this run "
                    f"has {new}; leave out --resume to start a new record"
                )
        return record

    def _go_on(self) -> None:
        """Note in the records that are gone on with how they had ended."""
        for record in self.records.values():
            if record.cases:
                was = "killed" if record.state == "running" else record.state
                record.notes.append(f"resumed {now()}, after it was {was}; roofs measured anew")
                record.state, record.reason = "running", ""

    def _end(self, state: str, reason: str) -> None:
        for record in self.records.values():
            record.state, record.reason = state, reason  # type: ignore[assignment]
            self._save(record)

    def _save(self, record: Record) -> None:
        store.save_record(record, self.paths[record.name])

    # ------------------------------------------------------------------------- one record
    def _part(self, part: Part, record: Record) -> None:
        deadline = self.deadline
        if part.seconds is not None:
            deadline = min(deadline, time.monotonic() + part.seconds)
        too_long: list[Job] = []
        for job in part.jobs:
            if job.key in record.finished_keys():
                continue
            self._left_of_job = self._seconds[job.key]
            # what a smaller size has no time for, a larger one has not either
            smaller = next((j for j in too_long if _is_less(j, job)), None)
            case = self._case(job, record, deadline if smaller is None else -math.inf)
            if case.state == "out of time":
                too_long.append(job)
            record.put(case)
            self._save(record)
            self.advanced(case.label, self._left_of_job)

    def _case(self, job: Job, record: Record, deadline: float) -> Case:
        """Predict, check, run: a case with figures or with the reason why it has none."""
        ids = self._ids(job)
        rows = rows_per_expert(ids, int(job.block.values["E"]))
        case = Case(
            subject=job.subject,
            tokens=job.tokens,
            routing=job.routing.text,
            rows_per_expert=rows,
            backend=job.backend,
            dtype=job.dtype,
            direction=job.direction,
        )
        record.subjects.setdefault(job.subject, subject_of(job.block, job.source))
        memory = self._memory(job)
        case.prediction = prediction_of(job, rows, memory, self._roofs, self.facts.name)
        free = self._free()
        needed = needed_bytes(memory, case.prediction, self.facts.cache_bytes)
        if needed > KEEP_FREE * free:
            case.state, case.free_bytes = "skipped", free
            case.reason = f"does not fit: {fmt_bytes(needed)} predicted, {fmt_bytes(free)} free"
            return case
        late = self._too_late(case.prediction.expected, deadline)
        if late:
            case.state, case.reason = "out of time", late
            return case
        record.put(case)
        self._save(record)  # the prediction is on disk before the run
        return self._run(job, case, ids, record, deadline)

    def _too_late(self, expected: float, deadline: float) -> str:
        """Why a case does not end by the deadline, or nothing where it may."""
        left = deadline - time.monotonic()
        if math.isinf(left) and left < 0:
            return "the time budget is too short for a smaller case already"
        if left < 0:
            return "the time budget was spent before it"
        needed = expected * (2 * self.settings.samples + 2)
        if needed > left:
            return f"the time budget is too short: it is predicted to take {needed:.0f} s"
        return ""

    def _run(self, job: Job, case: Case, ids: Ids, record: Record, deadline: float) -> Case:
        assert case.prediction is not None
        touched = sum(op.bytes for op in case.prediction.ops)
        try:
            layers = self._built(job)
            if not self._checked(job, layers[0], record):
                case.state, case.reason = "skipped", "the backend's results are wrong: see checks"
                return case
            passes = bench.Passes(
                layers, ids, job.direction,
                cache_bytes=self.facts.cache_bytes, touched=touched, seed=self.settings.seed,
            )  # fmt: skip
            measured = self.measure(
                passes, self.settings.samples, tick=self._tick(job, case), deadline=deadline
            )
            if measured.layer.median < case.prediction.floor:
                measured.flags.append("above the roofs: these were taken in a slower moment")
            return Case.model_validate(
                {**case.model_dump(), "measured": measured.model_dump(), "state": "measured"}
            )
        except bench.OutOfTime as problem:
            case.state, case.reason = "out of time", f"the time budget is too short: {problem}"
        except UserError as problem:
            case.state, case.reason = "skipped", str(problem)
        except Exception as problem:  # the other cases may well run, and a GPU's time is scarce
            self._failed(problem, case)
        return case

    def _tick(self, job: Job, case: Case) -> Callable[[], None]:
        """What a timed pass tells the bar; a case never takes more of it than was planned."""
        each = self._seconds[job.key] / (2 * self.settings.samples + 4)

        def tick() -> None:
            step = min(each, self._left_of_job)
            self._left_of_job -= step
            self.advanced(case.label, step)

        return tick

    def _failed(self, problem: BaseException, case: Case) -> None:
        """Note an out-of-memory or what else went wrong, and free what is held.

        A lost device ends the run.
        """
        said = next(iter(str(problem).splitlines()), type(problem).__name__)
        if is_out_of_memory(problem):
            case.state, case.reason = "out of memory", said
        elif is_device_lost(problem) or not self._answers():
            raise DeviceLost(said) from problem
        else:
            last = traceback.extract_tb(problem.__traceback__)[-1]
            case.state = "failed"
            case.reason = f"{said} ({Path(last.filename).name}, line {last.lineno})"
        self._drop()

    def _answers(self) -> bool:
        """Whether the device still does what it is told: some errors end its context for good."""
        if self.where.type != "cuda":
            return True
        try:
            torch.cuda.synchronize(self.where)
        except RuntimeError:
            return False
        return True

    # ------------------------------------------------------------- predictions and layers
    def _ids(self, job: Job) -> Ids:
        values = job.block.values
        return job.routing.ids(
            job.tokens, int(values["E"]), int(values["k"]), self.settings.seed + job.tokens
        )

    def _memory(self, job: Job) -> PeakMemory:
        return memory_of(job, kernels=uses_kernels(self.where.type))

    def _machine(self) -> Machine:
        kernels = uses_kernels(self.where.type)
        return Machine(
            self.facts.name, self.where.type, self._roofs, self._free(), self.facts.cache_bytes,
            kernels,
        )  # fmt: skip

    def _free(self) -> int:
        """Free bytes, counting those of the layers that are there to be used or dropped."""
        held = 0
        if self._layers is not None:
            held = sum(p.nbytes for layer in self._layers[1] for p in layer.parameters())
        return device.free_bytes(self.where) + held

    def _built(self, job: Job) -> list[Layer]:
        """The job's layers, those of the last case where they are the same."""
        key = (job.subject, job.backend, job.dtype)
        if self._layers is None or self._layers[0] != key:
            if self._layers is not None:
                self._drop()
            layers = bench.make_layers(
                job.block, job.backend, job.dtype, self.where, self.settings.seed,
                self.facts.cache_bytes,
            )  # fmt: skip
            self._layers = key, layers
        return self._layers[1]

    def _drop(self) -> None:
        self._layers = None
        gc.collect()
        if self.where.type == "cuda":
            torch.cuda.empty_cache()

    def _checked(self, job: Job, layer: Layer, record: Record) -> bool:
        """Check a backend once for each subject and dtype; whether it passed."""
        done = [
            c for c in record.checks
            if (c.subject, c.backend, c.dtype) == (job.subject, job.backend, job.dtype)
        ]  # fmt: skip
        if not done:
            seed = self.settings.seed
            done = checks.check_backend(
                job.block, job.subject, job.backend, job.dtype, self.where, seed
            )
            copy = 4 * sum(p.numel() for p in layer.parameters())
            if not self.settings.quick and copy < 0.5 * device.free_bytes(self.where):
                done.append(
                    checks.check_layer(layer, job.subject, job.dtype, _FULL_CHECK_TOKENS, seed)
                )
            record.checks += done
        return all(check.passed for check in done)
