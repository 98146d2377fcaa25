"""Points of a sweep through `Estimate`: one call for all that differ in numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from moeplan.arrays import is_array, np
from moeplan.cluster.hardware import Gpu
from moeplan.errors import UserError
from moeplan.estimation.estimate import Estimate
from moeplan.estimation.scenario import Scenario
from moeplan.estimation.sections import exchange
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity, Source
from moeplan.sweeping.answers import Answer, Evaluator, picked
from moeplan.sweeping.paths import look

__all__ = ["COST_PATHS", "DEFAULT_PATHS", "FLOOR_PATHS", "Estimates", "with_figures"]

DEFAULT_PATHS = (
    "params.total",
    "params.active.all",
    "flops.forward_per_token",
    "kv_cache.bytes",
    "all_to_all.forward_step.dispatch.sent",
    "all_to_all.time.forward_step.expected",
    "time.prefill.calibrated.expected",
    "time.prefill.calibrated.band",
    "time.decode.calibrated.expected",
    "time.decode.calibrated.band",
)
"""What is shown where nobody says: those of these that differ between points."""

FLOOR_PATHS = (
    "time.prefill.sequential",
    "time.decode.sequential",
    "cost.decode_dollars_per_million_tokens.sequential",
)
"""What comes with them where figures of the GPU are varied: no calibration knows such a GPU."""

COST_PATHS = (
    "cost.prefill_dollars_per_million_tokens.expected",
    "cost.decode_dollars_per_million_tokens.expected",
)
"""What comes with them where the hardware or its price is varied."""


class _Shared(NamedTuple):
    spec: ModelSpec
    settings: Mapping[str, Any]
    gpu: Gpu | None


class Estimates(Evaluator):
    """The estimate at each point, by paths of its JSON document."""

    chunk = 8192

    def prepare(self, shared: Mapping[str, Any]) -> _Shared:
        """The model with its config changed, the words of the scenario, the GPU if changed."""
        settings = self.of_room(shared, "setting")
        figures = any(known.room == "gpu" for known in self.asked.inputs.values())
        return _Shared(self.spec(shared), settings, self.asked.gpu(shared) if figures else None)

    def evaluate(self, prepared: _Shared, points: Any, numbers: Mapping[str, Any]) -> Answer:
        """The paths at points; those that no exchange could have are refused by name."""
        given = {**prepared.settings, **self.of_room(numbers, "setting")}
        figures = self.of_room(numbers, "gpu")
        if prepared.gpu is not None:
            given["gpu"] = with_figures(prepared.gpu, figures)
        result = Estimate(prepared.spec, Scenario.of(**given))
        good, reasons = self._exchanges(prepared, points, numbers, result)
        columns = {path: look(result, path, points.size) for path in self.asked.show}
        if reasons:
            columns = {path: picked(found, good) for path, found in columns.items()}
        return Answer(points[good] if reasons else points, columns, reasons)

    def _exchanges(
        self, prepared: _Shared, points: Any, numbers: Mapping[str, Any], result: Estimate
    ) -> tuple[Any, dict[int, str]]:
        """Which points have an expert-parallel group that can be, and why others have not."""
        section = result.tree["all_to_all"]
        good = np.ones(points.size, dtype=bool)
        if section is None or not is_array(section["expected_gpus"].value):
            return good, {}
        good &= np.isfinite(section["expected_gpus"].value)
        settings = self.of_room(numbers, "setting")
        said: dict[tuple[Any, ...], str] = {}
        names: list[str] = [n for n in ("ep", "node") if n in settings]
        reasons = {}
        for i in np.flatnonzero(~good):
            pair = tuple(int(settings[n][i]) for n in names)
            if pair not in said:
                said[pair] = _why(result, dict(zip(names, pair, strict=True)))
            reasons[int(points[i])] = said[pair]
        return good, reasons


def _why(result: Estimate, numbers: Mapping[str, int]) -> str:
    """What a single exchange with these numbers is refused for."""
    try:
        exchange(result.spec, Scenario.of(**numbers), result.gpu)
    except UserError as problem:
        return str(problem)
    return "no such exchange"


def with_figures(device: Gpu, figures: Mapping[str, Any]) -> Gpu:
    """A GPU with other figures, by key (`memory_bandwidth`, `peak.bf16`); numbers or arrays.

    One with other rates is nobody's GPU: no calibration knows it.
    """
    changed: dict[str, Any] = {"peaks": dict(device.peaks)}
    for key, value in figures.items():
        kind, _, fmt = key.partition(".")
        source = Source("user", f"gpu.{key}")
        unit = "FLOP/s" if kind == "peak" else "B" if kind == "memory_bytes" else "B/s"
        if kind == "peak":
            changed["peaks"][fmt] = Quantity.given(value, unit, f"peak_{fmt}", source)
        else:
            changed[kind] = Quantity.given(value, unit, kind, source)
    if "memory_bytes" in figures:
        changed["memory_reported"] = None
    if set(figures) - {"memory_bytes"}:
        changed["vendor"] = ""
    return replace(device, **changed)
