"""What a sweep is asked: models, inputs, points and columns, checked before anything runs."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from moeplan.arrays import np
from moeplan.cluster.hardware import PRICE_KINDS, Gpu, cluster, gpu
from moeplan.errors import UserError
from moeplan.estimation.scenario import DEFAULTS
from moeplan.model.spec import ModelSpec
from moeplan.sweeping.architecture import CONFIG, Architecture
from moeplan.sweeping.checks import check_value, device_named
from moeplan.sweeping.formula import Formula
from moeplan.sweeping.grid import Column, Grid, Places, product
from moeplan.sweeping.inputs import Input, Mode, default_of, figure, input_named, inputs_of
from moeplan.sweeping.syntax import axis_values, read_value

__all__ = ["MOST_POINTS", "Ask", "Group", "ask"]

MOST_POINTS = 1_000_000
"""Points of a sweep, where nobody allows more."""

_WINDOW = 131_072  # points at a time
_EACH = 256  # points of a pass in a window, where they are many passes
_CONFIG_NAME = "config."  # how a formula names a config key: a colon is no arithmetic


class Group(NamedTuple):
    """Points that differ in arrays only: what they share, by name, and which they are."""

    shared: Mapping[str, Any]
    points: Any


@dataclass
class Ask:
    """A sweep, ready to run.

    axes: what is varied. inputs and grid.columns have these names and those that are fixed or
    linked, in the user's order. given: names whose values the user wrote out; links: the formulas
    of the others.
    """

    mode: Mode
    models: Mapping[str, Architecture]
    cluster: str | None
    inputs: dict[str, Input]
    grid: Grid
    show: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    given: set[str] = field(default_factory=set)
    links: dict[str, Formula] = field(default_factory=dict)

    def architecture(self, shared: Mapping[str, Any]) -> Architecture:
        """The model of a group."""
        return (
            self.models[shared["model"]] if "model" in shared else next(iter(self.models.values()))
        )

    def gpu(self, shared: Mapping[str, Any]) -> Gpu:
        """The GPU of a group, as its datasheet has it."""
        if self.mode == "estimate":
            return gpu(shared.get("gpu", DEFAULTS["gpu"].value))
        return cluster(self.machine(shared)).gpu

    def machine(self, shared: Mapping[str, Any]) -> str:
        """The cluster of a group: the one named, with the GPUs that are varied."""
        name = str(shared.get("cluster", self.cluster))
        if "gpus" not in shared:
            return name
        return f"{device_named(name)}x{shared['gpus']}"

    @property
    def looped(self) -> list[str]:
        """Names whose values are a pass each."""
        columns = self.grid.columns
        return [
            n
            for n, known in self.inputs.items()
            if known.room != "free" and not (known.array and columns[n].numeric)
        ]

    @property
    def arrays(self) -> list[str]:
        """Names whose values go in as arrays."""
        loops = set(self.looped)
        return [n for n, known in self.inputs.items() if known.room != "free" and n not in loops]

    def groups(self, points: Any) -> list[Group]:
        """Some points by what they share, in order of their first; broken formulas left out."""
        if self.grid.reasons:
            points = points[[point not in self.grid.reasons for point in points.tolist()]]
        names = self.looped
        code = np.zeros(points.size, dtype=np.int64)
        for name in names:
            column = self.grid.columns[name]
            code = code * len(column.values) + column.at[points]
            code = np.unique(code, return_inverse=True)[1]
        order = np.argsort(code, kind="stable")
        cuts = np.flatnonzero(np.diff(code[order])) + 1
        out = []
        for members in np.split(points[order], cuts) if points.size else []:
            first = members[:1]
            shared = {n: self.grid.columns[n].take(first)[0] for n in names}
            out.append(Group(shared, members))
        return sorted(out, key=lambda group: int(group.points[0]))

    def windows(self) -> Iterator[Any]:
        """All points in order, in stretches whose groups are large enough for one pass each.

        What a sweep holds at a time is a window, so its size depends on the number of passes and
        not on that of the points.
        """
        passes = math.prod(len(self.grid.columns[name].values) for name in self.looped)
        size = max(_WINDOW, _EACH * passes)
        for start in range(0, self.grid.count, size):
            yield np.arange(start, min(start + size, self.grid.count))


def ask(
    model: str | Path | Mapping[str, Any] | ModelSpec | None,
    vary: Mapping[str, Any],
    linked: Mapping[str, Any],
    show: Sequence[str],
    machine: str | None,
    mode: Mode,
    most: int,
) -> Ask:
    """Check everything that can be checked without an evaluation. Raises `UserError`."""
    show = [path for path in dict.fromkeys(show) if path not in vary and path not in linked]
    if not vary:
        raise UserError("nothing to vary: give --vary NAME=VALUES, such as --vary experts=64,128")
    twice = [name for name in vary if name in linked]
    if twice:
        raise UserError(f"{twice[0]} has both --vary and --set; it takes one of them")
    read = {name: _linked(name, value) for name, value in linked.items()}
    formulas = {name: found for name, found in read.items() if isinstance(found, Formula)}
    used = {name for found in formulas.values() for name in found.names}
    inputs = {name: input_named(name, mode, used) for name in (*vary, *linked)}
    _apart(inputs)
    axes = {n: axis_values(f"--vary {n}", v, inputs[n].kind, most) for n, v in vary.items()}
    grid = product(axes, most)
    models = _models(model, axes.get("model"), read.get("model"))
    found = Ask(mode, models, machine, inputs, grid, tuple(show), tuple(vary), set(vary))
    base = _base(found)
    for name, value in read.items():
        if isinstance(value, Formula) and not _is_literal(linked[name], inputs[name]):
            grid.add(name, value, base)
            found.links[name] = value
            continue
        text = linked[name] if isinstance(value, Formula) else value
        one = read_value(f"--set {name}", text, inputs[name].kind)
        grid.columns[name] = Column([one], Places(1, 1))
        found.given.add(name)
    found.inputs = {name: inputs[name] for name in (*vary, *linked)}
    _check(found)
    return found


def _linked(name: str, value: Any) -> Any:
    """A formula, or the value itself where the text is none (`bf16`, `4.8 TB/s`, `128k`)."""
    if not isinstance(value, str):
        return value
    try:
        tree = ast.parse(value.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return value
    if isinstance(tree, ast.Constant | ast.List | ast.Dict):
        return value
    return Formula.of(value, f"--set {name}")


def _is_literal(text: str, known: Input) -> bool:
    """Whether a text that reads as a formula is a value of the input instead."""
    if known.kind == "json":
        return text.strip() in ("true", "false", "null")
    return known.kind in ("word", "flag") or (known.kind == "amount" and text in PRICE_KINDS)


def _apart(inputs: Mapping[str, Input]) -> None:
    """Refuse two names for one input (gbs and batch)."""
    seen: dict[tuple[str, str], str] = {}
    for name, known in inputs.items():
        other = seen.setdefault((known.room, known.key), name)
        if other != name and known.room != "free":
            raise UserError(f"{other} and {name} are the same input: give one of them")


def _models(model: Any, axis: Sequence[str] | None, one: Any) -> dict[str, Architecture]:
    if one is not None:
        raise UserError("--set model: name the model itself, or several with --vary model=A,B")
    if axis is not None:
        if model is not None:
            raise UserError("--vary model=... names the models, and another one is given beside it")
        return {name: Architecture(name) for name in axis}
    if model is None:
        raise UserError("a model is needed: a preset, a config.json, or --vary model=A,B")
    found = Architecture(model)
    return {found.name: found}


# ------------------------------------------------------------------------------- own values
def _base(found: Ask) -> Callable[[str, Grid], Column | None]:
    """The value of a name that is neither varied nor set: the model's, the GPU's, a default."""

    def each(
        grid: Grid, names: Sequence[str], pick: Callable[[Mapping[str, Any]], Any]
    ) -> Column | None:
        """A column that depends on the named ones."""
        columns = [(n, grid.columns[n]) for n in names if n in grid.columns]
        code, every = np.zeros(grid.count, dtype=np.int64), np.arange(grid.count)
        for _, column in columns:
            code = code * len(column.values) + column.at[every]
        distinct, first, at = np.unique(code, return_index=True, return_inverse=True)
        del distinct
        values = [pick({n: c.values[c.at[i]] for n, c in columns}) for i in first.tolist()]
        if any(value is None for value in values):
            return None
        return Column(values, at.astype(np.int32))

    def base(name: str, grid: Grid) -> Column | None:
        if name.startswith(_CONFIG_NAME):
            key = CONFIG + name.removeprefix(_CONFIG_NAME)
            return each(grid, ["model"], lambda s: found.architecture(s).value(key))
        known = inputs_of(found.mode).get(name)
        if known is None:
            return None
        if known.room == "shape":
            return each(grid, ["model"], lambda s: found.architecture(s).value(name))
        if known.room == "gpu":
            return each(grid, ["gpu", "cluster", "gpus"], lambda s: figure(found.gpu(s), known.key))
        value = default_of(known)
        return None if value is None else each(grid, [], lambda s: value)

    return base


# ------------------------------------------------------------------------------------ checks
def _check(found: Ask) -> None:
    """Refuse names and written values that no point could use."""
    if found.mode != "estimate" and found.cluster is None and "cluster" not in found.inputs:
        raise UserError("a layout needs --cluster, such as --cluster h100x64")
    for name, known in found.inputs.items():
        if known.room == "shape":
            _check_shape(found, name)
        elif name in found.given:
            for value in found.grid.columns[name].values:
                check_value(known, value, found.mode)
    if found.cluster is not None and "cluster" not in found.inputs:
        device_named(found.cluster) if "gpus" in found.inputs else cluster(found.cluster)
    _one_key_each(found)


def _one_key_each(found: Ask) -> None:
    """Refuse two inputs that are one key of a model's config (width and config:ffn_dim)."""
    for model in found.models.values():
        seen: dict[str, str] = {}
        for name, known in found.inputs.items():
            if known.room != "shape":
                continue
            try:
                key = name.removeprefix(CONFIG) if name.startswith(CONFIG) else model.key(name)
            except UserError:
                continue
            if seen.setdefault(key, name) != name:
                raise UserError(f"{seen[key]} and {name} are the same key of {model.name}: {key}")


def _check_shape(found: Ask, name: str) -> None:
    problems = []
    for model in found.models.values():
        try:
            if name.startswith(CONFIG):
                model.check_key(name.removeprefix(CONFIG))
            else:
                model.key(name)
        except UserError as problem:
            problems.append(problem)
    if len(problems) == len(found.models):
        raise problems[0]
