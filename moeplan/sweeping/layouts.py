"""Points of a sweep through a layout: degrees as arrays, rules as masks with their messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from moeplan.arrays import np
from moeplan.cluster.hardware import Cluster, cluster
from moeplan.cluster.layout import NUMBERS, Layout, quiet
from moeplan.errors import near_miss
from moeplan.estimation.estimate import Estimate
from moeplan.estimation.scenario import Scenario
from moeplan.parallel import BINDS, SERVING_BINDS, ServingPlan, TrainingPlan
from moeplan.parallel.job_values import job_of
from moeplan.quantity import Quantity, Source, evaluate
from moeplan.sweeping.answers import Answer, Evaluator, Found
from moeplan.sweeping.estimates import with_figures
from moeplan.sweeping.paths import look

__all__ = ["DEFAULT_KEYS", "Layouts"]

DEFAULT_KEYS = {
    "train": ("gpus", "fits", "memory", "step", "mfu", "tokens_per_second_per_gpu", "binds"),
    "serve": ("gpus", "fits", "batch", "ttft", "tpot", "output_tokens_per_second_per_gpu",
              "dollars_per_million_output", "binds"),
}  # fmt: skip
"""What is shown where nobody says."""

_OF_THE_MODEL = ("model.", "params.")  # paths of an estimate that no workload changes
_UNITS = (
    ("step_flops", "FLOP"), ("memory", "B"), ("sent", "B"), ("dollars", "$"), ("gpu_hours", "h"),
    ("energy", "J"), ("time", "s"), ("step", "s"), ("seconds", "s"), ("ttft", "s"), ("tpot", "s"),
    ("prefill_seconds", "s"),
)  # fmt: skip


class _Shared(NamedTuple):
    plan: TrainingPlan | ServingPlan
    kinds: Layout
    gpus: int
    model: Mapping[str, Found]


class Layouts(Evaluator):
    """The answer of a layout at each point, by the keys of `moeplan.parallel`."""

    chunk = 32768

    @cached_property
    def _of_model(self) -> tuple[str, ...]:
        return tuple(path for path in self.asked.show if path.startswith(_OF_THE_MODEL))

    def prepare(self, shared: Mapping[str, Any]) -> _Shared:
        """A plan for the group's model, cluster and job, and the kinds of its layouts."""
        training = self.asked.mode == "train"
        spec, machine = self.spec(shared), self._machine(shared)
        names = {known.key: n for n, known in self.asked.inputs.items() if known.room == "job"}
        job: Any = job_of(
            self.of_room(shared, "job"), training=training, where=lambda key: names.get(key, key)
        )
        plan = TrainingPlan(spec, machine, job) if training else ServingPlan(spec, machine, job)
        kinds = self.of_room(shared, "layout")
        text = ",".join(f"{n}={v}" for n, v in kinds.items() if n not in NUMBERS)
        model: dict[str, Found] = {}
        if self._of_model:
            result = Estimate(spec, Scenario())
            model = {path: look(result, path, 1) for path in self._of_model}
        return _Shared(plan, Layout.parse(text), int(machine.gpus.value), model)

    def _machine(self, shared: Mapping[str, Any]) -> Cluster:
        machine = cluster(self.asked.machine(shared))
        figures = self.of_room(shared, "gpu")
        if not figures:
            return machine
        given: dict[str, Any] = {
            n: Quantity.given(figures[n], "B/s", n, Source("user", f"gpu.{n}"))
            for n in ("scale_up_bandwidth", "nic_bandwidth")
            if n in figures
        }
        device = with_figures(machine.gpu, {n: v for n, v in figures.items() if n not in given})
        changed: dict[str, Any] = {"gpu": replace(device, **given)}
        for name, link in (("scale_up_bandwidth", "scale_up"), ("nic_bandwidth", "scale_out")):
            if name in given:
                changed |= {f"{link}_bandwidth": given[name], f"{link}_effective": None}
        return replace(machine, **changed)

    def evaluate(self, prepared: _Shared, points: Any, numbers: Mapping[str, Any]) -> Answer:
        """The keys at points; what breaks rules has their messages."""
        layout = self._layout(prepared, self.of_room(numbers, "layout"), points.size)
        out = prepared.plan.evaluate(layout, np.full(points.size, float(prepared.gpus)))
        good = np.asarray(out["legal"])
        reasons = self._broken(prepared, layout, points, ~good)
        columns = {**prepared.model}
        for key in self.asked.show:
            if key not in columns:
                columns[key] = self._column(key, out, good)
        return Answer(points[good], columns, reasons)

    def _layout(self, prepared: _Shared, given: Mapping[str, Any], size: int) -> Layout:
        """Layouts as arrays; dp is what others leave of the GPUs, and batch fills the stages."""
        v: dict[str, Any] = {
            n: np.broadcast_to(np.asarray(given.get(n, 1), np.float64), (size,)) for n in NUMBERS
        }
        with quiet(True):
            if "dp" not in given:
                v["dp"] = np.maximum(1, prepared.gpus // (v["tp"] * v["cp"] * v["pp"]))
            if "batch" not in given:
                v["batch"] = v["microbatch"] * v["dp"] * v["pp"]
        return prepared.kinds.at(v)

    def _column(self, key: str, out: Mapping[str, Any], good: Any) -> Found:
        if key not in out and not good.any():
            return Found(None)
        if key not in out or key == "legal":
            known = [name for name in out if name != "legal"]
            missing = (
                f"no column {key!r}{near_miss(key, known)}: a layout has {', '.join(known)}, and "
                "of the model params.PATH and model.PATH"
            )
            return Found(None, missing=missing)
        value = np.asarray(out[key])[good]
        if key == "binds":
            words = BINDS if self.asked.mode == "train" else SERVING_BINDS
            return Found([words[i] if i >= 0 else None for i in value.astype(int)])
        return Found(value, _unit(key))

    def _broken(self, prepared: _Shared, layout: Layout, points: Any, bad: Any) -> dict[int, str]:
        """Every rule that a point breaks, in one sentence each."""
        at = np.flatnonzero(bad)
        if not at.size:
            return {}
        plan = prepared.plan
        values = {**layout.values, **plan.facts(float(prepared.gpus))}
        said: dict[int, list[str]] = {int(i): [] for i in at}
        with quiet(True):
            for rule in plan.rules(layout):
                holds = np.broadcast_to(np.asarray(evaluate(rule.holds, values)), bad.shape)
                for i in np.flatnonzero(bad & ~holds.astype(bool)):
                    here = {n: _plain(v, int(i)) for n, v in values.items()}
                    said[int(i)].append(rule.said(here))
        return {int(points[i]): "; ".join(lines) or "not legal" for i, lines in said.items()}


def _plain(value: Any, at: int) -> Any:
    number = (
        float(np.broadcast_to(value, (at + 1,))[at]) if np.ndim(value) == 0 else float(value[at])
    )
    return int(number) if number.is_integer() else number


def _unit(key: str) -> str:
    if "tokens_per_second" in key:
        return "tokens/s"
    if "requests_per_second" in key:
        return "requests/s"
    return next((unit for start, unit in _UNITS if key.startswith(start)), "")
