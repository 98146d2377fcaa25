"""What `moeplan profile` was asked for, and what that means on the device at hand.

Importable without torch; `asked_on` looks up backends, which need it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from moeplan.errors import UserError
from moeplan.load import load_config, load_preset
from moeplan.model.ffn import MoE
from moeplan.profile.assignment import Assignment
from moeplan.profile.predict import dtype_bytes
from moeplan.profile.record import Direction
from moeplan.profile.suite import GPU_SECONDS, QUICK_SIZES, SIZES, Part, one_model, suite
from moeplan.units import parse

__all__ = [
    "Asked",
    "ProfileOptions",
    "asked_on",
    "check_built",
    "check_options",
    "device_notes",
    "place_of",
    "samples_of",
    "seconds_of",
]

QUICK_SECONDS, QUICK_PART = 40.0, 20.0  # of a model, and of each in a suite
SAMPLES, QUICK_SAMPLES = 20, 5


@dataclass(frozen=True)
class ProfileOptions:
    """What `moeplan profile` was asked for, as it was written.

    preset or config: the model, unless a suite is named. tokens: sizes with commas. out: a folder
    for records (`profiles` by default) or a .json file. budget: None for no limit. dry_run:
    only say what would run; gpu: on a card that is not at hand.
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
    samples: int | None = None
    budget: str | None = None
    note: Sequence[str] = ()
    detail: bool = False
    dry_run: bool = False
    gpu: str | None = None
    command: str = ""


def check_options(options: ProfileOptions) -> None:
    """Raise UserError for options that exclude or need each other."""
    models = [x for x in (options.preset, options.config, options.suite) if x is not None]
    if len(models) != 1:
        found = "nothing was" if not models else "several were"
        raise UserError(
            f"one thing to measure is needed and {found} given: "
            "use --preset NAME, --config PATH or --suite NAME"
        )
    if options.suite is not None and options.out is not None and options.out.suffix == ".json":
        raise UserError(f"--out {options.out}: a suite writes several records; name a folder")
    if options.suite is not None and options.routing != "uniform":
        raise UserError("--routing: a suite has its own routings; leave it out")
    if options.gpu is not None and not options.dry_run:
        raise UserError("--gpu: names a card that is not at hand, and needs --dry-run")
    if options.gpu is not None and options.device is not None:
        raise UserError("--gpu and --device exclude each other")
    if options.samples is not None and options.samples < 1:
        raise UserError(f"--samples {options.samples}: at least 1 (20 for figures worth keeping)")


class Asked(NamedTuple):
    """What the options mean on a kind of device ("cuda" or "cpu")."""

    tokens: tuple[int, ...]
    routing: Assignment
    backends: list[str]
    dtype: str
    directions: list[Direction]
    parts: list[Part]


def check_built(block: MoE, dtype: str) -> None:
    """Raise UserError where the measured layer does not build a block, without any data."""
    from moeplan.profile.bench import DTYPES
    from moeplan.profile.layer import Layer

    Layer(block, dtype=DTYPES[dtype], device="meta")


def asked_on(options: ProfileOptions, kind: str) -> Asked:
    """The options' meaning. Raises UserError for what is not known or does not fit."""
    dtype = options.dtype or ("bf16" if kind == "cuda" else "fp32")
    dtype_bytes(dtype)
    directions: list[Direction] = ["forward"]
    if options.backward:
        directions.append("forward+backward")
    tokens, backends = _tokens(options, kind), _backends(options.backend)
    routing = Assignment.parse(options.routing, options.routing_trace)
    parts = _plan(options, tokens, routing, backends, dtype, directions)
    for job in (job for part in parts for job in part.jobs):
        job.routing.check(job.tokens, int(job.block.values["E"]), int(job.block.values["k"]))
    if options.suite is None:  # a suite notes the layers that it cannot build, and goes on
        check_built(parts[0].jobs[0].block, dtype)
    return Asked(tokens, routing, backends, dtype, directions, parts)


def _plan(
    options: ProfileOptions,
    tokens: Sequence[int],
    routing: Assignment,
    backends: Sequence[str],
    dtype: str,
    directions: Sequence[Direction],
) -> list[Part]:
    if options.suite is not None:
        parts = suite(options.suite, tokens, backends, dtype, directions)
        return [replace(part, seconds=QUICK_PART) for part in parts] if options.quick else parts
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


def samples_of(options: ProfileOptions) -> int:
    """Timed passes of a case: 20, or 5 where a run is to be quick, or what was asked for."""
    if options.samples is not None:
        return options.samples
    return QUICK_SAMPLES if options.quick else SAMPLES


def seconds_of(options: ProfileOptions) -> float:
    """Seconds that the run may take, infinite without a limit."""
    if options.budget is not None:
        return float(parse(options.budget, "time", where="--budget"))
    if options.quick and options.suite is None:
        return QUICK_SECONDS
    return GPU_SECONDS if options.suite == "gpu" else math.inf


def place_of(out: Path | None) -> tuple[Path, Path | None]:
    """(folder of the records, file where one is named)."""
    if out is not None and out.suffix == ".json":
        return out.parent, out
    return out or Path("profiles"), None


def device_notes(device: str, options: ProfileOptions) -> list[str]:
    """What a reader of the record should know about the defaults that were taken."""
    if device == "cuda":
        return []
    notes = ["no GPU: measured on the CPU, in fp32 unless asked otherwise"]
    if options.tokens is None:
        notes[0] += ", at sizes smaller than a GPU's"
    return notes
