"""`moeplan profile` and `moeplan validate` without their command line: options in, outcome out.

The modules that need torch are imported once it is known to be there; `run_validate` needs none.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moeplan.errors import UserError
from moeplan.profile import require_torch
from moeplan.profile.options import (
    ProfileOptions,
    asked_on,
    check_options,
    device_notes,
    place_of,
    samples_of,
    seconds_of,
)
from moeplan.profile.record import Record, Settings
from moeplan.profile.suite import Part
from moeplan.profile.validate import GATES, Band, Validation, validate
from moeplan.profile.view import record_tables
from moeplan.profile.view_errors import error_tables
from moeplan.report.tables import Table

if TYPE_CHECKING:
    from rich.console import Console

    from moeplan.profile.runner import Runner

__all__ = [
    "Outcome",
    "ProfileOptions",
    "ValidateOptions",
    "run_profile",
    "run_validate",
    "summary",
]

INTERRUPTED = 130  # what a shell shows for a command that the user has stopped


@dataclass(frozen=True)
class ValidateOptions:
    """What `moeplan validate` was asked for. band: largest mean error of layers in percent, in the
    place of the gates. plots: a folder to draw into."""

    places: Sequence[Path]
    band: float | None = None
    plots: Path | None = None


class Outcome(NamedTuple):
    """What a command has to show: files, tables, a JSON value, a sentence, and its exit code."""

    paths: list[Path]
    tables: list[Table]
    document: Any
    sentence: str
    code: int


# --------------------------------------------------------------------------------- profile
def run_profile(options: ProfileOptions, console: Console | None = None) -> Outcome:
    """Measure, and write a record for each model.

    console: where a progress bar may be drawn. Exit codes: 0; 1 where a case failed or a device was
    lost; 130 where the user has stopped the run. Raises UserError for what cannot be run at all.
    """
    check_options(options)
    require_torch()
    started = time.monotonic()
    if options.dry_run:
        return _scheduled(options)
    runner, parts = _prepared(options, started)
    with _bar(runner, console), _terminated_as_interrupt():
        sentence, code = _guarded(runner, parts)
    records = list(runner.records.values())
    tables = [t for record in records for t in record_tables(record, detail=options.detail)]
    document = [{"path": str(runner.paths[record.name]), **summary(record)} for record in records]
    return Outcome(list(runner.paths.values()), tables, document, sentence, code)


def _scheduled(options: ProfileOptions) -> Outcome:
    """What would run and how long it is thought to take; nothing is measured but roofs."""
    from moeplan.profile import device, roofs
    from moeplan.profile.functions import uses_kernels
    from moeplan.profile.schedule import Machine, datasheet, schedule, schedule_tables

    if options.gpu is not None:
        asked = asked_on(options, "cuda")
        machine = datasheet(options.gpu, asked.dtype)
    else:
        where = device.pick(options.device)
        asked, facts = asked_on(options, where.type), device.describe(where)
        made = roofs.measure_roofs(where, asked.dtype, quick=True)
        machine = Machine(
            facts.name, where.type, made, device.free_bytes(where), facts.cache_bytes,
            uses_kernels(where.type),
        )  # fmt: skip
    budget = seconds_of(options)
    steps = schedule(asked.parts, machine, samples_of(options), budget)
    document = [
        {
            "part": step.part.name, "case": list(step.job.key), "layer_s": step.expected,
            "bytes": step.needed, "from_s": step.start, "takes_s": step.seconds, "left": step.why,
        }
        for step in steps
    ]  # fmt: skip
    return Outcome([], schedule_tables(steps, machine, budget, detail=options.detail), document,
                   "", 0)  # fmt: skip


def _prepared(options: ProfileOptions, started: float) -> tuple[Runner, list[Part]]:
    """The runner and its plan, from the options and the device at hand."""
    import torch

    from moeplan.profile import device, roofs
    from moeplan.profile.runner import Runner

    where = device.pick(options.device)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # events, streams and kernels go to the current device
    asked, seconds = asked_on(options, where.type), seconds_of(options)
    settings = Settings(
        command=options.command,
        tokens=list(asked.tokens),
        routing=asked.routing.text,
        trace=None if options.routing_trace is None else str(options.routing_trace),
        backends=asked.backends,
        dtype=asked.dtype,
        directions=asked.directions,
        seed=options.seed,
        samples=samples_of(options),
        quick=options.quick,
        suite=options.suite or "",
        budget_s=None if math.isinf(seconds) else seconds,
    )
    folder, file = place_of(options.out)
    torch.manual_seed(options.seed)
    runner = Runner(
        where=where,
        facts=device.describe(where),
        versions=device.versions(where),
        settings=settings,
        folder=folder,
        file=file,
        resume=options.resume,
        notes=[*options.note, *device_notes(where.type, options), *_kernel_notes(where.type)],
        deadline=started + seconds,
        measure_roofs=lambda: roofs.measure_roofs(where, asked.dtype, quick=options.quick),
    )
    return runner, asked.parts


def _kernel_notes(kind: str) -> list[str]:
    from moeplan.profile.functions import kernels_missing

    missing = kernels_missing(kind)
    if kind != "cuda" or missing is None:
        return []
    return [f"rows run in plain torch, not as Triton kernels: {missing}"]


def _guarded(runner: Runner, parts: Sequence[Part]) -> tuple[str, int]:
    """Run, and put into a sentence how it ended."""
    from moeplan.profile.failures import DeviceLost

    try:
        runner.run(parts)
    except (KeyboardInterrupt, DeviceLost) as problem:
        stopped = isinstance(problem, KeyboardInterrupt)
        why = "stopped" if stopped else f"the device was lost ({problem})"
        kept = sum(len(record.finished_keys()) for record in runner.records.values())
        where = ", ".join(str(path) for path in runner.paths.values())
        sentence = f"{why}: {kept} measured cases are kept in {where}; --resume goes on from there"
        return sentence, INTERRUPTED if stopped else 1
    sentence = f"written: {', '.join(str(path) for path in runner.paths.values())}"
    failed = [c for r in runner.records.values() for c in r.cases if c.state == "failed"]
    if failed:
        cases = "1 case" if len(failed) == 1 else f"{len(failed)} cases"
        return f"{sentence}; {cases} failed, see the table of what was not measured", 1
    return sentence, 0


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """Let a termination signal end the run as Ctrl-C does: records are closed."""

    def stop(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: signals stay as they are
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _bar(runner: Runner, console: Console | None) -> Iterator[None]:
    """A bar of the seconds that the run is thought to take, with the time left."""
    if console is None or not console.is_terminal:
        yield
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("roofs", total=None)

        def planned(seconds: float) -> None:
            progress.update(task, total=seconds)

        def advanced(label: str, seconds: float) -> None:
            progress.update(task, description=label[:44], advance=seconds)

        runner.planned, runner.advanced = planned, advanced
        yield


def summary(record: Record) -> dict[str, Any]:
    """A record in short, for --json: its cases with medians and errors."""
    cases = []
    for case in record.cases:
        row: dict[str, Any] = {
            "subject": case.subject, "tokens": case.tokens, "routing": case.routing,
            "backend": case.backend, "dtype": case.dtype, "direction": case.direction,
            "state": case.state, "reason": case.reason,
        }  # fmt: skip
        if case.state == "measured":
            assert case.prediction is not None
            assert case.measured is not None
            time = case.measured.layer.median
            row |= {
                "predicted_s": case.prediction.expected,
                "floor_s": case.prediction.floor,
                "measured_s": time,
                "error": case.prediction.expected / time - 1,
                "clock": case.measured.clock,
                "peak_predicted_bytes": case.prediction.peak_bytes,
                "peak_measured_bytes": case.measured.peak_bytes,
                "flags": case.measured.flags,
            }
        cases.append(row)
    head = {"name": record.name, "device": record.device.name, "state": record.state}
    return {**head, "cases": cases}


# -------------------------------------------------------------------------------- validate
def run_validate(options: ValidateOptions) -> Outcome:
    """Errors of the predictions in records; exit code 1 where they are past the band.

    Raises UserError where there is nothing to judge.
    """
    band = GATES
    if options.band is not None:
        if not options.band > 0:
            raise UserError(f"--band {options.band:g}: a percentage above 0")
        band = Band(**{**dict.fromkeys(vars(GATES)), "layer_mean": options.band / 100})
    found = validate(options.places, band)
    drawn = _drawn(found, options.plots)
    code = 1 if found.breaches else 0
    document = {**found.to_dict(), "plots": [str(path) for path in drawn]}
    sentence = f"plots: {', '.join(str(path) for path in drawn)}" if drawn else ""
    return Outcome(found.paths, error_tables(found), document, sentence, code)


def _drawn(found: Validation, folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    from moeplan.profile.plots import draw_all

    return draw_all(found.records, folder)
