"""Plan files: commented TOML, read with errors by file and key.

The writer is here and not a library: it writes scalars and flat lists under a comment for each
key, which tomli-w cannot (no comments) and for which tomlkit's document model is much code.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeplan.cluster.layout import Layout
from moeplan.errors import UserError, near_miss
from moeplan.parallel.job_values import job_of
from moeplan.plan.chosen import Chosen

__all__ = ["VERSION", "read_plan", "write_plan"]

VERSION = 1
_HEAD = """\
# A plan of moeplan: one model on one layout of a cluster.
#   moeplan estimate --plan FILE        what it costs
#   moeplan export ENGINE --plan FILE   its launch arguments
# Every value may be edited; a key left out has its default. Numbers are in SI units, or quoted
# with a unit, such as "14.8T", "50 ms" or "2 GB".
"""

Amount = int | float | str


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Layout(_Table):
    tp: int = Field(1, description="tensor parallel: heads and FFN widths are divided")
    pp: int = Field(1, description="pipeline parallel: layers are divided")
    vpp: int = Field(1, description="chunks of layers on each pipeline rank (interleaving)")
    dp: int = Field(1, description="data parallel: sequences are divided")
    cp: int = Field(1, description="context parallel: a sequence's tokens are divided")
    ep: int = Field(1, description="expert parallel: experts are divided")
    etp: int = Field(1, description="expert tensor parallel: an expert's width is divided")
    zero: int = Field(1, description="0: nothing, 1: optimizer, 2: gradients, 3: weights divided")
    microbatch: int = Field(1, description="sequences of a microbatch on a data-parallel rank")
    batch: int | None = Field(None, description="sequences of a step on all GPUs")
    sp: bool = Field(True, description="sequence parallelism beside tp")
    schedule: str = Field("1f1b", description="1f1b, interleaved, zero-bubble or dualpipe")
    recompute: str = Field("none", description="none, selective or full")
    selective: list[str] = Field(
        default_factory=lambda: list(Layout().selective),
        description="what selective recomputation drops",
    )
    overlap: str = Field("usual", description="none, usual, all-to-all or dualpipe")
    order: str = Field("tp-cp-ep-dp-pp", description="ranks, fastest varying degree first")
    split: str | list[int] = Field(
        "even", description="layers of the stages: even, full, balanced, or a list"
    )


class _Overheads(_Table):
    dispatch: str | None = Field(None, description="format of rows sent to experts")
    combine: str | None = Field(None, description="format of rows sent back")
    imbalance: Amount | None = Field(None, description="load of the fullest GPU over the mean")
    stack: str | None = Field(None, description="how ops are timed: calibrated, datasheet, ...")
    price: Amount | None = Field(None, description='"$2/h", or a kind of price')
    framework: Amount | None = Field(None, description="bytes of context, libraries, buffers")
    fragmentation: Amount | None = Field(None, description="share that the allocator loses")


class _Training(_Overheads):
    sequence: Amount | None = Field(None, description="tokens of a sequence")
    tokens: Amount | None = Field(None, description="tokens of the whole run, for its bill")
    optimizer: str | None = Field(None, description="training state, such as adamw-fp32")
    precision: str | None = Field(None, description="matmuls with weights: bf16 or fp8")
    kept: str | None = Field(None, description="activations kept: bf16 or fp8")
    policy: str | None = Field(None, description="sent once: copies, per-gpu or per-node")
    mtp: bool | None = Field(None, description="train the MTP modules too")
    account: str | None = Field(None, description="conventions of counting memory")
    power: Amount | None = Field(None, description="all-in watts of a GPU")


class _Serving(_Overheads):
    input: Amount | None = Field(None, description="input tokens of a request")
    output: Amount | None = Field(None, description="output tokens of a request")
    cached: Amount | None = Field(None, description="share of the input that is cached")
    batch: Amount | None = Field(None, description="sequences decoded together; else most that fit")
    prefill_batch: Amount | None = Field(None, description="requests prefilled together")
    tpot: Amount | None = Field(None, description="seconds per output token to meet")
    disaggregated: bool | None = Field(None, description="prefill has GPUs of its own")
    draft: Amount | None = Field(None, description="tokens drafted ahead by MTP")
    acceptance: Amount | None = Field(None, description="share of them accepted")
    weights: str | None = Field(None, description="format; else the checkpoint's own")
    cache: str | None = Field(None, description="format of the key-value cache")
    decode_policy: str | None = Field(None, description="sent once when decoding")
    prefill_policy: str | None = Field(None, description="sent once in prefill")
    overlap: Amount | None = Field(None, description="share of the exchange under compute")
    queueing: Amount | None = Field(None, description="TTFT over the prefill's own time")


class _Plan(_Table):
    moeplan_plan: int = Field(description="version of this file's form")
    model: str = Field(description="a preset, or the path of a config.json")
    cluster: str = Field(description="<gpu>x<count>, or the name of a machine")
    instances: int = Field(1, description="instances of the layout")
    prefill_instances: int = Field(0, description="instances of the prefill layout")
    layout: _Layout
    training: _Training | None = None
    serving: _Serving | None = None
    prefill: _Layout | None = None


# ---------------------------------------------------------------------------------- reading
def read_plan(path: Path) -> Chosen:
    """The plan in a file. `UserError` with file and key for anything that is not as it must be."""
    data = _tables(path)
    _check_version(data.get("moeplan_plan"), path)
    try:
        plan = _Plan.model_validate(data)
    except ValidationError as problem:
        raise UserError(f"{path}: {_sentence(problem)}") from None
    if (plan.training is None) == (plan.serving is None):
        given = "neither is" if plan.training is None else "both are"
        raise UserError(f"{path}: one of [training] and [serving] is needed, and {given} there")
    table = plan.training or plan.serving
    kind = "training" if plan.training is not None else "serving"
    assert table is not None
    given_values = {name: x for name, x in table.model_dump().items() if x is not None}
    job = job_of(
        given_values, training=kind == "training", where=lambda name: f"{path}: {kind}.{name}"
    )
    try:
        return Chosen(
            plan.model,
            plan.cluster,
            _layout(plan.layout, f"{path}: layout"),
            job,
            None if plan.prefill is None else _layout(plan.prefill, f"{path}: prefill"),
            plan.instances,
            plan.prefill_instances,
        )
    except UserError as problem:
        raise UserError(_at(path, problem)) from None


def _at(path: Path, problem: UserError) -> str:
    said = str(problem)
    return said if said.startswith(f"{path}:") else f"{path}: {said}"


def _layout(table: _Layout, where: str) -> Layout:
    given = table.model_dump()
    for name in ("split", "selective"):
        if isinstance(given[name], list):
            given[name] = tuple(given[name])
    try:
        return Layout(**given)
    except UserError as problem:
        said = str(problem).removeprefix("layout: ")
        raise UserError(f"{where}: {said}") from None


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such plan file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read as text ({problem})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise UserError(f"{path}: not valid TOML ({problem})") from None


def _check_version(version: Any, path: Path) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(
            f"{path}: moeplan_plan is {version!r}; a plan file states the version of its form, "
            f"moeplan_plan = {VERSION}"
        )
    if version > VERSION:
        raise UserError(
            f"{path}: moeplan_plan = {version} is a newer form, and this moeplan reads up to "
            f"{VERSION}; install a newer moeplan to read it"
        )


def _sentence(problem: ValidationError) -> str:
    """The first error, with its key and a near miss."""
    first = problem.errors()[0]
    loc = [str(part) for part in first["loc"] if part not in ("int", "float", "str")]
    where = ".".join(part for part in loc if not part.startswith(("list[", "union")))
    if first["type"] == "extra_forbidden":
        known = _keys(first["loc"][:-1])
        name = str(first["loc"][-1])
        return f"unknown key {where!r}{near_miss(name, known)}; known are {', '.join(known)}"
    if first["type"] == "missing":
        return f"{where} is missing"
    wanted = {e["msg"].removeprefix("Input should be ") for e in problem.errors()
              if e["loc"][: len(loc)] == first["loc"][: len(loc)]}  # fmt: skip
    return f"{where} is {first['input']!r}, and must be {' or '.join(sorted(wanted))}"


def _keys(loc: tuple[int | str, ...]) -> list[str]:
    table: type[BaseModel] = _Plan
    for part in loc:
        table = _TABLES[str(part)]
    return list(table.model_fields)


_TABLES: dict[str, type[_Table]] = {
    "layout": _Layout,
    "training": _Training,
    "serving": _Serving,
    "prefill": _Layout,
}


# ---------------------------------------------------------------------------------- writing
def check_writable(path: Path) -> None:
    """Refuse a plan file that cannot be written, before anything is searched."""
    folder = path.parent
    if path.is_dir():
        raise UserError(f"--save {path} is a folder, and must be a file such as plan.toml")
    if not folder.is_dir():
        raise UserError(f"--save {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--save {path}: nothing may be written in the folder {folder}")


def write_plan(document: Mapping[str, Any], path: Path) -> None:
    """Write a plan file of `Chosen.document`, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(_text(document), encoding="utf-8")
        beside.replace(path)
    except OSError as problem:
        why = problem.strerror or type(problem).__name__
        raise UserError(f"{path}: cannot be written ({why.lower()})") from None
    except UnicodeEncodeError as problem:
        raise UserError(f"{path}: cannot be written ({problem})") from None
    finally:
        beside.unlink(missing_ok=True)


def _text(document: Mapping[str, Any]) -> str:
    top = {"moeplan_plan": VERSION}
    top |= {name: x for name, x in document.items() if not isinstance(x, Mapping)}
    lines = [_HEAD, *_lines(_Plan, top)]
    for name, table in document.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{name}]", *_lines(_TABLES[name], table)]
    return "\n".join(lines) + "\n"


def _lines(table: type[_Table], values: Mapping[str, Any]) -> list[str]:
    """Keys in the order of the form, with comments in one column; absent ones as comments."""
    shown, about = [], []
    for name, field in table.model_fields.items():
        if name in _TABLES or (table is _Plan and name not in values):
            continue
        shown.append(f"{name} = {_value(values[name])}" if name in values else f"# {name} =")
        about.append(field.description)
    width = min(40, max(len(line) for line in shown))
    return [f"{line:<{width}}  # {why}" for line, why in zip(shown, about, strict=True)]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)  # whole numbers, and floats to the last bit
