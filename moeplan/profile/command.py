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
from moeplan.load import load_config, load_preset
from moeplan.profile import require_torch
from moeplan.profile.assignment import Assignment
from moeplan.profile.predict import dtype_bytes
from moeplan.profile.record import Direction, Record, Settings
from moeplan.profile.suite import GPU_SECONDS, QUICK_SIZES, SIZES, Part, one_model, suite
from moeplan.profile.validate import GATES, Band, Validation, validate
from moeplan.profile.view import record_tables
from moeplan.profile.view_errors import error_tables
from moeplan.report.tables import Table
from moeplan.units import parse

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

QUICK_SECONDS = 40.0
SAMPLES = 20
INTERRUPTED = 130  # what a shell shows for a command that the user has stopped


@dataclass(frozen=True)
class ProfileOptions:
    """What `moeplan profile` was asked for, as it was written.

    preset or config: the model, unless a suite is named. tokens: sizes with commas. out: a folder
    for records (`profiles` by default) or a .json file. budget: seconds, None for no limit.
    """

    preset: str | None = None
    config: Path | None = None
    device: str | None = None
    backend: str = "torch"
    dtype: str | None = None
    tokens: str | None = None
    routing: str = "uniform"
    routing_trace: Path | None = None
    backward: bool = True
    quick: bool = False
    suite: str | None = None
    out: Path | None = None
    resume: bool = False
    seed: int = 0
    samples: int = SAMPLES
    budget: str | None = None
    note: Sequence[str] = ()
    detail: bool = False
    command: str = ""


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

    console: where a progress bar may be drawn. Exit codes: 0; 1 where a device was lost; 130 where
    the user has stopped the run. Raises UserError for what cannot be run at all.
    """
    _check(options)
    require_torch()
    started = time.monotonic()
    runner, parts = _prepared(options, started)
    with _bar(runner, console), _terminated_as_interrupt():
        sentence, code = _guarded(runner, parts)
    records = list(runner.records.values())
    tables = [t for record in records for t in record_tables(record, detail=options.detail)]
    document = [{"path": str(runner.paths[record.name]), **summary(record)} for record in records]
    return Outcome(list(runner.paths.values()), tables, document, sentence, code)


def _check(options: ProfileOptions) -> None:
    """Raise UserError for options that exclude or need each other."""
    models = [x for x in (options.preset, options.config, options.suite) if x is not None]
    if len(models) != 1:
        found = "nothing" if not models else "several"
        raise UserError(
            f"one thing to measure is needed and {found} was given: "
            "use --preset NAME, --config PATH or --suite NAME"
        )
    if options.suite is not None and options.out is not None and options.out.suffix == ".json":
        raise UserError(f"--out {options.out}: a suite writes several records; name a folder")
    if options.suite is not None and options.routing != "uniform":
        raise UserError("--routing: a suite has its own routings; leave it out")
    if options.samples < 1:
        raise UserError(f"--samples {options.samples}: at least 1 (20 for figures worth keeping)")


def _prepared(options: ProfileOptions, started: float) -> tuple[Runner, list[Part]]:
    """The runner and its plan, from the options and the device at hand."""
    import torch

    from moeplan.profile import device, roofs
    from moeplan.profile.runner import Runner

    where = device.pick(options.device)
    dtype = options.dtype or ("bf16" if where.type == "cuda" else "fp32")
    dtype_bytes(dtype)
    directions: list[Direction] = ["forward"]
    if options.backward:
        directions.append("forward+backward")
    tokens, backends = _tokens(options, where.type), _backends(options.backend)
    routing = Assignment.parse(options.routing, options.routing_trace)
    parts = _plan(options, tokens, routing, backends, dtype, directions)
    for job in (job for part in parts for job in part.jobs):
        job.routing.check(job.tokens, int(job.block.values["E"]), int(job.block.values["k"]))
    seconds = _budget(options)
    settings = Settings(
        command=options.command,
        tokens=list(tokens),
        routing=routing.text,
        trace=None if options.routing_trace is None else str(options.routing_trace),
        backends=backends,
        dtype=dtype,
        directions=directions,
        seed=options.seed,
        samples=options.samples,
        quick=options.quick,
        suite=options.suite or "",
        budget_s=None if math.isinf(seconds) else seconds,
    )
    folder, file = _place(options.out)
    torch.manual_seed(options.seed)
    runner = Runner(
        where=where,
        facts=device.describe(where),
        versions=device.versions(where),
        settings=settings,
        folder=folder,
        file=file,
        resume=options.resume,
        notes=[*options.note, *_device_notes(where.type, options)],
        deadline=started + seconds,
        measure_roofs=lambda: roofs.measure_roofs(where, dtype, quick=options.quick),
    )
    return runner, parts


def _plan(
    options: ProfileOptions,
    tokens: Sequence[int],
    routing: Assignment,
    backends: Sequence[str],
    dtype: str,
    directions: Sequence[Direction],
) -> list[Part]:
    if options.suite is not None:
        return suite(options.suite, tokens, backends, dtype, directions)
    if options.preset is not None:
        spec = load_preset(options.preset)
    else:
        assert options.config is not None
        spec = load_config(options.config)
    return [one_model(spec, tokens, routing, backends, dtype, directions)]


def _tokens(options: ProfileOptions, device: str) -> tuple[int, ...]:
    if options.tokens is None:
        return (QUICK_SIZES if options.quick else SIZES)[device]
    sizes = [parse(text, "count", where="--tokens") for text in options.tokens.split(",")]
    if min(sizes) < 1:
        raise UserError(f"--tokens {options.tokens!r}: a pass has at least one token")
    return tuple(int(size) for size in dict.fromkeys(sizes))


def _backends(text: str) -> list[str]:
    from moeplan.profile.backends import backend_named, backends

    if text == "all":
        return [backend.name for backend in backends() if backend.missing() is None]
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        missing = backend_named(name).missing()
        if missing is not None:
            raise UserError(f"--backend {name}: {missing}")
    return names


def _budget(options: ProfileOptions) -> float:
    """Seconds that the run may take, infinite without a limit."""
    if options.budget is not None:
        return float(parse(options.budget, "time", where="--budget"))
    if options.quick:
        return QUICK_SECONDS
    return GPU_SECONDS if options.suite == "gpu" else math.inf


def _place(out: Path | None) -> tuple[Path, Path | None]:
    """(folder of the records, file where one is named)."""
    if out is not None and out.suffix == ".json":
        return out.parent, out
    return out or Path("profiles"), None


def _device_notes(device: str, options: ProfileOptions) -> list[str]:
    if device == "cuda":
        return []
    notes = ["no GPU: measured on the CPU, in fp32 unless asked otherwise"]
    if options.tokens is None:
        notes[0] += ", at sizes smaller than a GPU's"
    return notes


def _guarded(runner: Runner, parts: Sequence[Part]) -> tuple[str, int]:
    """Run, and put into a sentence how it ended."""
    from moeplan.profile.runner import DeviceLost

    try:
        runner.run(parts)
    except (KeyboardInterrupt, DeviceLost) as problem:
        stopped = isinstance(problem, KeyboardInterrupt)
        why = "stopped" if stopped else f"the device was lost ({problem})"
        kept = sum(len(record.finished_keys()) for record in runner.records.values())
        where = ", ".join(str(path) for path in runner.paths.values())
        sentence = f"{why}: {kept} measured cases are kept in {where}; --resume goes on from there"
        return sentence, INTERRUPTED if stopped else 1
    return f"written: {', '.join(str(path) for path in runner.paths.values())}", 0


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
