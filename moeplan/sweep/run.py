"""A sweep: axes, formulas that link inputs, metrics; run in chunks, on one or several processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from moeplan.errors import UserError, near_miss
from moeplan.load import load_model
from moeplan.sweep.axes import Axis, Formula
from moeplan.sweep.inputs import Input, Target, base_values, input_named, inputs, unknown_input
from moeplan.sweep.points import Setting, answer, first_answer, metric_units
from moeplan.units import Kind, parse

__all__ = ["CHUNK", "DEFAULT_METRICS", "Sweep"]

CHUNK = 10_000  # points of one evaluation: their intermediate arrays take some tens of MB
_MOST = 10**9

DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "estimate": ("params.total", "params.active.all", "memory.weights",
                 "flops.forward_per_token", "time.decode.lower"),
    "training": ("fits", "memory", "step", "mfu", "tokens_per_second_per_gpu", "binds"),
    "serving": ("fits", "batch", "ttft", "tpot", "output_tokens_per_second_per_gpu", "binds"),
}  # fmt: skip
_UNITS: dict[str, Kind] = {
    "memory": "bytes",
    "framework": "bytes",
    "memory_bandwidth": "bandwidth",
    "scale_up_bandwidth": "bandwidth",
    "scale_out_bandwidth": "bandwidth",
    "peak": "flops",
    "tpot": "time",
    "power": "power",
}

Table = dict[str, Any]
"""Columns of equal length: inputs, variables, metrics, and `reason` where a point has no answer."""


@dataclass(frozen=True)
class Sweep:
    """What is swept. Points are the product of the axes; kinds vary slowest, see `columns`."""

    setting: Setting
    axes: tuple[Axis, ...]
    formulas: tuple[Formula, ...]
    metrics: tuple[str, ...]
    _last: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        model: str,
        *,
        vary: Sequence[str],
        sets: Sequence[str] = (),
        metrics: Sequence[str] = (),
        scenario: Mapping[str, Any] | None = None,
        layout: str | None = None,
        cluster: str | None = None,
        job: Mapping[str, Any] | None = None,
        training: bool = True,
    ) -> Sweep:
        """Read and check a sweep. vary, sets: as on the command line.

        Without `layout`, each point is `moeplan.api.estimate` with `scenario`; with one, it is
        `moeplan.parallel.evaluate_training` or `evaluate_serving` on `cluster` with `job` (fields
        of a job). metrics: paths of the estimate, or keys of those functions. Raises `UserError`.
        """
        target: Target = "estimate"
        if layout is not None:
            target = "training" if training else "serving"
        setting = Setting(
            model, target, tuple((scenario or {}).items()), cluster or "", layout or "",
            tuple((job or {}).items()),
        )  # fmt: skip
        axes = tuple(_with_units(Axis.parse(text)) for text in vary)
        formulas = tuple(Formula.parse(text) for text in sets)
        chosen = tuple(dict.fromkeys(metrics)) or DEFAULT_METRICS[target]
        if not metrics and target == "estimate" and load_model(model).moe is not None:
            chosen += ("all_to_all.forward_step.dispatch.busiest",)
        found = cls(setting, axes, formulas, chosen)
        found._check()
        return found

    # ----------------------------------------------------------------------------- checks
    def _check(self) -> None:
        names = [a.name for a in self.axes] + [f.name for f in self.formulas]
        twice = [n for n in dict.fromkeys(names) if names.count(n) > 1]
        if not self.axes:
            raise UserError("nothing varies: give --vary NAME=VALUES, such as --vary ep=1:64:x2")
        if twice:
            raise UserError(f"--vary and --set: {twice[0]} is given twice")
        if self.size > _MOST:
            raise UserError(f"{self.size:.2g} points are too many, the most is {_MOST:.0e}")
        target: Target = self.setting.target  # type: ignore[assignment]
        self._check_formulas()
        used = {name for f in self.formulas for name in f.names}
        for name in names:
            if input_named(name, target) is None and name not in used:
                raise unknown_input(name, target)
        self._check_words(target)
        first_answer(self.setting, self.metrics)

    def _check_formulas(self) -> None:
        base = base_values(load_model(self.setting.model))
        words = {a.name for a in self.axes if not a.numeric}
        known = dict.fromkeys([a.name for a in self.axes])
        for formula in self.formulas:
            for name in formula.names:
                if name in words:
                    raise UserError(f"--set {formula.name}: {name} is words, not numbers")
                if name not in known and name not in base:
                    raise UserError(
                        f"--set {formula.name}: {name!r} is neither varied nor set before"
                        f"{near_miss(name, [*known, *base])}"
                    )
            known[formula.name] = None

    def _check_words(self, target: Target) -> None:
        for axis in self.axes:
            where = input_named(axis.name, target)
            if where is not None and where.array and not axis.numeric:
                raise UserError(f"--vary {axis.name}: {axis.values[0]!r} is not a number")

    # ------------------------------------------------------------------------------ shape
    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(len(a.values) for a in self.axes)

    @cached_property
    def _places(self) -> dict[str, Input | None]:
        target: Target = self.setting.target  # type: ignore[assignment]
        names = [*(a.name for a in self.axes), *(f.name for f in self.formulas)]
        return {name: input_named(name, target) for name in names}

    @cached_property
    def _slow(self) -> tuple[Axis, ...]:
        """Axes of which each value is an evaluation of its own: kinds, and what leads to one."""
        needed = {n for n, i in self._places.items() if i is not None and not i.array}
        for formula in reversed(self.formulas):
            if formula.name in needed:
                needed |= set(formula.names)
        return tuple(a for a in self.axes if a.name in needed or not a.numeric)

    @cached_property
    def _fast(self) -> tuple[Axis, ...]:
        """Axes that one evaluation takes as arrays."""
        return tuple(a for a in self.axes if a not in self._slow)

    @property
    def columns(self) -> list[str]:
        """Names of the columns: axes (slow ones first), formulas, metrics, reason."""
        axes = [a.name for a in (*self._slow, *self._fast)]
        return [*axes, *(f.name for f in self.formulas), *self.metrics, "reason"]

    @property
    def units(self) -> dict[str, str]:
        """Units of the columns that have one."""
        if self.setting.target == "estimate":
            return metric_units(self.setting, self.metrics)
        ends = {"memory": "B", "sent": "B", "step": "s", "time": "s", "ttft": "s", "tpot": "s",
                "seconds": "s", "prefill_seconds": "s", "energy": "J", "dollars": "$"}  # fmt: skip
        found = {name: ends.get(name, ends.get(name.split("_")[0], "")) for name in self.metrics}
        return {name: unit for name, unit in found.items() if unit and "flops" not in name}

    @property
    def tasks(self) -> Iterator[tuple[tuple[Any, ...], int, int]]:
        """Values of the slow axes with a range of points of the fast ones."""
        inner = math.prod(len(a.values) for a in self._fast)
        for slow in product(*(a.values for a in self._slow)):
            for start in range(0, inner, CHUNK):
                yield slow, start, min(start + CHUNK, inner)

    # ------------------------------------------------------------------------------- runs
    def tables(self, workers: int = 1) -> Iterator[Table]:
        """The points as tables of at most CHUNK rows, in order, on so many processes."""
        if workers <= 1:
            yield from map(self.table, self.tasks)
            return
        with ProcessPoolExecutor(workers) as pool:
            waiting = []
            for task in self.tasks:
                waiting.append(pool.submit(self.table, task))
                if len(waiting) > 2 * workers:  # what is done is taken before more is made
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()

    def table(self, task: tuple[tuple[Any, ...], int, int]) -> Table:
        """The rows of one task."""
        slow, start, stop = task
        n = stop - start
        values: dict[str, Any] = dict(zip((a.name for a in self._slow), slow, strict=True))
        shape = tuple(len(a.values) for a in self._fast)
        places = np.unravel_index(np.arange(start, stop), shape) if shape else ()
        for axis, at in zip(self._fast, places, strict=True):
            values[axis.name] = np.asarray(axis.values, dtype=np.float64)[at]
        base = base_values(load_model(self.setting.model))
        for formula in self.formulas:
            values[formula.name] = formula({**base, **values})
        given = {i: values[name] for name, i in self._places.items() if i is not None}
        given = {i: np.broadcast_to(x, (n,)) if i.array and not isinstance(x, str) else x
                 for i, x in given.items()}  # fmt: skip
        try:
            metrics, reasons = answer(self.setting, self.metrics, given, n)
        except UserError as problem:
            metrics = {name: np.full(n, np.nan) for name in self.metrics}
            reasons = np.full(n, str(problem), dtype=object)
        table = {name: _spread(values[name], n) for name in self.columns if name in values}
        return {**table, **{name: metrics[name] for name in self.metrics}, "reason": reasons}


def _spread(value: Any, n: int) -> Any:
    if isinstance(value, str):
        return np.full(n, value, dtype=object)
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (n,))


def _with_units(axis: Axis) -> Axis:
    kind = _UNITS.get(axis.name)
    if kind is None or axis.numeric:
        return axis
    where = f"--vary {axis.name}"
    return Axis(axis.name, tuple(parse(str(x), kind, where=where) for x in axis.values))


def all_inputs(target: Target) -> list[str]:
    """Names of all inputs, for messages and pages."""
    return list(inputs(target))
