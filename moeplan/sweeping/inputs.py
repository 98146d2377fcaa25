"""What a sweep may vary, by name: where each input belongs and how its values are read.

An estimate takes shapes and config keys, the settings of `estimate`, and figures of the GPU; on a
cluster the layout's degrees and kinds and the job's fields take the settings' place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from moeplan.cluster.hardware import NUMBER_FORMATS, Gpu, gpu
from moeplan.cluster.layout import NUMBERS
from moeplan.errors import UserError, near_miss
from moeplan.estimation.scenario import DEFAULTS
from moeplan.parallel.jobs import Overheads, ServingJob, TrainingJob
from moeplan.sweeping.architecture import CONFIG, SHAPES, Architecture
from moeplan.sweeping.syntax import ValueKind

__all__ = [
    "UNITS",
    "Input",
    "InputRow",
    "Mode",
    "Room",
    "default_of",
    "figure",
    "free",
    "input_named",
    "input_rows",
    "inputs_of",
]

Mode: TypeAlias = Literal["estimate", "train", "serve"]
"""What is evaluated at each point: `estimate`, or a layout for training or serving."""

Room: TypeAlias = Literal["model", "shape", "setting", "gpu", "cluster", "layout", "job", "free"]


class Input(NamedTuple):
    """One input: the user's name, where it goes and under which key, and what its values are.

    array: numbers of it go through the formulas as one array; otherwise each is a pass of its own.
    """

    name: str
    room: Room
    key: str
    kind: ValueKind
    array: bool = False
    about: str = ""


UNITS: Mapping[ValueKind, str] = {
    "bytes": "B",
    "bandwidth": "B/s",
    "flops": "FLOP/s",
    "time": "s",
    "power": "W",
    "amount": "$/h",
}
"""What numbers of a kind are in."""

_SETTINGS: dict[str, tuple[ValueKind, bool]] = {
    **dict.fromkeys(("context", "batch", "microbatch", "tokens", "ep", "node"), ("count", True)),
    "imbalance": ("number", True),
    "acceptance": ("number", True),
    "draft": ("count", False),
    "price": ("amount", True),
    **dict.fromkeys(("attention", "weights", "cache", "dispatch"), ("word", False)),
    **dict.fromkeys(("combine", "policy", "optimizer", "gpu"), ("word", False)),
}
"""Settings of an estimate: what their values are, and whether numbers go in as arrays."""

_FIGURES: dict[str, tuple[ValueKind, str]] = {
    "memory_bytes": ("bytes", "memory of the GPU"),
    "memory_bandwidth": ("bandwidth", "memory bandwidth of the GPU"),
    **{f"peak.{fmt}": ("flops", f"dense peak in {fmt}") for fmt in NUMBER_FORMATS},
}
_LINKS: dict[str, tuple[ValueKind, str]] = {
    "scale_up_bandwidth": ("bandwidth", "bandwidth a GPU inside a domain, one way"),
    "nic_bandwidth": ("bandwidth", "bandwidth a GPU to other domains, one way"),
}
_LAYOUT_KINDS = ("schedule", "recompute", "overlap", "order", "split", "sp")
_LAYOUT_ALIASES = {"mbs": "microbatch", "gbs": "batch", "vp": "vpp"}
_SERVED = ("tp", "pp", "dp", "ep", "etp")
_JOB_ALIASES = {
    "train": {"tokens_total": "tokens"},
    "serve": {"isl": "input", "osl": "output", "hidden_exchange": "overlap"},
}
_JOB_KINDS: dict[str, ValueKind] = {
    **dict.fromkeys(("sequence", "tokens", "input", "output", "batch", "prefill_batch"), "count"),
    **dict.fromkeys(("imbalance", "acceptance", "cached", "queueing", "fragmentation"), "number"),
    **dict.fromkeys(("mtp", "disaggregated"), "flag"),
    "draft": "count",
    "framework": "bytes",
    "tpot": "time",
    "power": "power",
    "price": "amount",
}


def free(name: str) -> Input:
    """A name that only formulas use."""
    return Input(name, "free", name, "number", about="used by formulas")


def inputs_of(mode: Mode) -> Mapping[str, Input]:
    """Every input that has a name of its own in a mode (config keys are named `config:KEY`)."""
    out = [Input("model", "model", "", "word", about="a preset, or a path to a config.json")]
    out += [Input(n, "shape", n, "count", about=shape.about) for n, shape in SHAPES.items()]
    arrays = mode == "estimate"
    figures = _FIGURES if arrays else _FIGURES | _LINKS
    out += [
        Input(f"gpu.{n}", "gpu", n, kind, arrays, about) for n, (kind, about) in figures.items()
    ]
    if mode == "estimate":
        out += [
            Input(n, "setting", n, kind, array, DEFAULTS[n].about)
            for n, (kind, array) in _SETTINGS.items()
        ]
    else:
        out += _laid_out(mode)
    return {found.name: found for found in out}


def _laid_out(mode: Mode) -> list[Input]:
    """Inputs of a layout, its cluster and its job; the job's word goes first when serving."""
    job = ServingJob if mode == "serve" else TrainingJob
    names = [f.name for f in fields(job) if f.name != "overheads"]
    names += [f.name for f in fields(Overheads)]
    jobs = [Input(n, "job", n, _job_kind(n, mode), about="of the job") for n in names]
    jobs += [
        Input(alias, "job", n, _job_kind(n, mode), about=f"of the job, also {n}")
        for alias, n in _JOB_ALIASES[mode].items()
    ]
    degrees = _SERVED if mode == "serve" else NUMBERS
    layout = [Input(n, "layout", n, "count", True, "of the layout") for n in degrees]
    if mode == "train":
        layout += [
            Input(alias, "layout", n, "count", True, f"of the layout, also {n}")
            for alias, n in _LAYOUT_ALIASES.items()
        ]
        layout += [Input(n, "layout", n, "word", about="of the layout") for n in _LAYOUT_KINDS]
    cluster = [
        Input("cluster", "cluster", "cluster", "word", about="such as h100x64, or gb200-nvl72"),
        Input("gpus", "cluster", "gpus", "count", about="GPUs of the cluster"),
    ]
    first, second = (layout, jobs) if mode == "serve" else (jobs, layout)
    return [*cluster, *first, *second]


def _job_kind(name: str, mode: Mode) -> ValueKind:
    if name == "overlap" and mode == "serve":
        return "number"
    return _JOB_KINDS.get(name, "word")


def input_named(name: str, mode: Mode, formulas: set[str]) -> Input:
    """The input of that name; one that only formulas use is free. `UserError` with near misses."""
    if name.startswith(CONFIG) and len(name) > len(CONFIG):
        return Input(name, "shape", name, "json", about="a key of the model's config")
    known = inputs_of(mode)
    if name in known:
        return known[name]
    other: Mode = "train" if mode == "estimate" else "estimate"
    if name in formulas:
        return free(name)
    if name in inputs_of(other):
        what = "a layout: add --cluster" if mode == "estimate" else "an estimate, without --cluster"
        raise UserError(f"{name} is an input of {what}")
    raise UserError(
        f"no input {name!r}{near_miss(name, [*known, *_everything()])}: `moeplan sweep MODEL "
        "--names` lists all, config:KEY is any key of the config, and a name of your own must "
        "stand in a --set formula"
    )


def _everything() -> list[str]:
    modes: tuple[Mode, ...] = ("estimate", "train", "serve")
    return [name for mode in modes for name in inputs_of(mode)]


def default_of(known: Input) -> Any:
    """An input's value where nobody gives one; None where it depends on something else."""
    if known.room == "setting":
        return DEFAULTS[known.key].value
    if known.room == "layout":
        return {"batch": None, "zero": 1}.get(known.key, 1)
    return None


class InputRow(NamedTuple):
    """An input as a list shows it; value: in force where nobody gives one; key: in the config."""

    name: str
    about: str
    value: Any = None
    unit: str = ""
    key: str = ""


def input_rows(model: str | Path | Mapping[str, Any] | None, mode: Mode) -> list[InputRow]:
    """Every input that a model has, or that any has, in a mode."""
    own = None if model is None else Architecture(model)
    rows = []
    for known in inputs_of(mode).values():
        row = InputRow(known.name, known.about, default_of(known))
        if known.room == "shape" and own is not None:
            try:
                row = row._replace(value=own.value(known.key), key=own.key(known.key))
            except UserError:
                continue
        elif known.room == "gpu" and mode == "estimate":
            found = figure(gpu(DEFAULTS["gpu"].value), known.key)
            row = row._replace(value=found, unit=UNITS[known.kind])
        rows.append(row)
    return [*rows, InputRow(f"{CONFIG}KEY", "any key that the model's family reads")]


def figure(device: Gpu, key: str) -> Any:
    """A figure of a GPU by its key (`memory_bandwidth`, `peak.bf16`), or None."""
    kind, _, fmt = key.partition(".")
    found = device.peaks.get(fmt) if kind == "peak" else getattr(device, key)
    return None if found is None else found.value
