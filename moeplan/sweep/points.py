"""Answers of the points of a sweep: one evaluation for all that arrays can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any

import numpy as np

from moeplan.arrays import is_array
from moeplan.cluster.hardware import Cluster, Gpu, cluster, gpu
from moeplan.cluster.layout import NUMBERS, Layout
from moeplan.errors import UserError, near_miss
from moeplan.estimation.estimate import Estimate
from moeplan.estimation.scenario import DEFAULTS, Scenario
from moeplan.families import read_config
from moeplan.load import config_data, load_model, looks_like_path
from moeplan.model.ffn import MoE
from moeplan.model.spec import ModelSpec
from moeplan.parallel import (
    BINDS,
    SERVING_BINDS,
    ServingJob,
    ServingPlan,
    TrainingJob,
    TrainingPlan,
)
from moeplan.parallel.job_values import job_of
from moeplan.presets import preset
from moeplan.quantity import Quantity, Source, evaluate
from moeplan.sweep.inputs import Input, config_key

__all__ = ["Answer", "Setting", "answer", "first_answer", "metric_units"]

Answer = tuple[dict[str, Any], Any]
"""Columns by metric (arrays or lists of one length), and a reason for each point ("" if none)."""


@dataclass(frozen=True)
class Setting:
    """What does not vary: the model, and for layouts the cluster, the degrees and the job."""

    model: str
    target: str
    scenario: tuple[tuple[str, Any], ...] = ()
    cluster: str = ""
    degrees: str = ""
    job: tuple[tuple[str, Any], ...] = ()


def answer(setting: Setting, metrics: Sequence[str], given: Mapping[Input, Any], n: int) -> Answer:
    """The metrics of n points. given: inputs with a number or word, or an array of n.

    Raises `UserError` where nothing of it can be answered.
    """
    spec = _spec(setting.model, given)
    if setting.target == "estimate":
        return _estimates(setting, spec, metrics, given, n)
    return _layouts(setting, spec, metrics, given, n)


# ------------------------------------------------------------------------------------ inputs
def _spec(model: str, given: Mapping[Input, Any]) -> ModelSpec:
    """The model with keys of its config changed, read as any config is."""
    changed = {i: x for i, x in given.items() if i.place == "config"}
    spec = load_model(model)
    if not changed:
        return spec
    config = config_data(model)[1] if looks_like_path(model) else preset(model).config
    config = deepcopy(config)
    here: Any
    for i, x in changed.items():
        ours = i.name == i.key  # a name of ours, not config.KEY
        path = config_key(spec, config, i.key) if ours else i.key
        *outer, last = path.split(".")
        here = config
        for part in outer:
            here = here.get(part) if isinstance(here, dict) else {}
        if not isinstance(here, dict) or last not in here:
            raise UserError(
                f"--vary config.{i.key}: the model's config has no such key"
                f"{near_miss(last, here or config)}"
            )
        here[last] = _whole(x)
    return read_config(config, model, origin=f"{model}, varied")


def _whole(x: Any) -> Any:
    """A plain number, whole where it is one."""
    if isinstance(x, (str, bool)):
        return x
    x = float(x)
    return int(x) if x.is_integer() else x


def _varied_gpu(device: Gpu, given: Mapping[Input, Any]) -> Gpu:
    figures = {i.key: x for i, x in given.items() if i.place == "gpu"}

    def made(name: str, unit: str) -> Quantity:
        return Quantity.given(figures[name], unit, name, Source("user", f"--vary {name}"))

    if "memory" in figures:
        device = replace(device, memory_bytes=made("memory", "B"), memory_reported=None)
    if "memory_bandwidth" in figures:
        device = replace(device, memory_bandwidth=made("memory_bandwidth", "B/s"))
    if "peak" in figures:
        times = figures["peak"] / device.peak("bf16").value
        peaks = {
            name: Quantity.given(q.value * times, q.unit, q.symbol, Source("user", "--vary peak"))
            for name, q in device.peaks.items()
        }
        device = replace(device, peaks=peaks)
    return device


def _varied_cluster(name: str, given: Mapping[Input, Any]) -> Cluster:
    named = next((x for i, x in given.items() if i.place == "cluster"), name)
    found = cluster(str(named))
    figures = {i.key: x for i, x in given.items() if i.place == "gpu"}
    if not figures:
        return found
    found = replace(found, gpu=_varied_gpu(found.gpu, given))
    for side in ("scale_up", "scale_out"):
        if f"{side}_bandwidth" in figures:
            source = Source("user", f"--vary {side}_bandwidth")
            value = Quantity.given(figures[f"{side}_bandwidth"], "B/s", side, source)
            found = replace(found, **{f"{side}_bandwidth": value, f"{side}_effective": None})  # type: ignore[arg-type]
    return found


# --------------------------------------------------------------------------------- estimates
def _estimates(
    setting: Setting, spec: ModelSpec, metrics: Sequence[str], given: Mapping[Input, Any], n: int
) -> Answer:
    symbols = {i.key: x for i, x in given.items() if i.place == "symbol"}
    if symbols and spec.moe is None:
        raise UserError(f"--vary {next(iter(symbols))}: {spec.name} has no experts")
    scenario = dict(setting.scenario) | {
        i.key: x for i, x in given.items() if i.place == "scenario"
    }
    reasons = _reasons(spec, symbols, scenario, n)
    at = np.flatnonzero(reasons == "")
    if not at.size:
        return {name: np.full(n, np.nan) for name in metrics}, reasons
    found = _estimate(spec, symbols, scenario, given, at)
    columns: dict[str, Any] = {}
    for name in metrics:
        columns[name] = _column(found[name], at, n)
        if columns[name].dtype.kind == "f":
            empty = np.zeros(n, dtype=bool)
            empty[at] = ~np.isfinite(columns[name][at])
            reasons = np.where(empty & (reasons == ""), "the routing has no answer here", reasons)
    return columns, reasons


def _estimate(
    spec: ModelSpec, symbols: Mapping[str, Any], scenario: Mapping[str, Any],
    given: Mapping[Input, Any], at: Any,
) -> Estimate:  # fmt: skip
    """One estimate of the points that can be answered."""
    picked = {name: x[at] if is_array(x) else x for name, x in symbols.items()}
    if picked:
        spec = spec.vary(MoE, **picked)
    words = {name: x[at] if is_array(x) else x for name, x in scenario.items()}
    hardware = {i: x[at] if is_array(x) else x for i, x in given.items() if i.place == "gpu"}
    if hardware:
        words["gpu"] = _varied_gpu(gpu(words.get("gpu", DEFAULTS["gpu"].value)), hardware)
    with np.errstate(all="ignore"):
        return Estimate(spec, Scenario.of(**words))


def _column(found: Any, at: Any, n: int) -> Any:
    """A metric at all points; what is not a number or a word is refused."""
    value = found.value if isinstance(found, Quantity) else found
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], str)):
        out = np.full(n, "", dtype=object)
        out[at] = value
        return out
    if value is None:
        value = np.nan
    out = np.full(n, np.nan)
    out[at] = value
    return out


def _reasons(
    spec: ModelSpec, symbols: Mapping[str, Any], scenario: Mapping[str, Any], n: int
) -> Any:
    """Why a point has no answer, "" where it has one."""
    moe = spec.moe
    rows: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    if moe is not None:
        values = {name: moe.values[name] for name in ("E", "k", "F")} | dict(symbols)
        values["groups"] = moe.routing.groups
    values |= {name: x for name, x in scenario.items() if not isinstance(x, str)}
    names = {"E": "experts", "k": "top_k", "F": "width", "Fs": "shared_width"}
    for name in values:
        if name not in ("imbalance", "acceptance", "groups", "price", "draft"):
            text = f"{names.get(name, name)}={{{name}}} must be a whole number of at least 1"
            rows.append((f"({name} % 1 == 0) & ({name} >= 1)", text))
    if "imbalance" in values:
        rows.append(("imbalance >= 1", "imbalance={imbalance} must be at least 1"))
    if moe is not None:
        rows.append(("k <= E", "top_k={k} is above the {E} experts"))
        rows.append(("E % groups == 0", "the {groups} groups of the router do not divide {E} "
                     "experts"))  # fmt: skip
        if "ep" in values:
            values.setdefault("node", DEFAULTS["node"].value)
            rows.append(("E % ep == 0", "ep={ep} does not divide the {E} experts"))
            rows.append(("(ep % node)*(node % ep) == 0", "ep={ep} and node={node} do not fit"))
    return _texts(rows, values, n)


def _texts(rows: Sequence[tuple[str, str]], values: Mapping[str, Any], n: int) -> Any:
    """The message of every row that does not hold, joined, at each point."""
    out = np.full(n, "", dtype=object)
    with np.errstate(all="ignore"):
        for formula, message in rows:
            bad = np.broadcast_to(~np.asarray(evaluate(formula, values), dtype=bool), (n,))
            if bad.any():
                text = _messages(message, values, np.flatnonzero(bad), n)
                out[bad] = np.where(out[bad] == "", text, out[bad] + "; " + text)
    return out


def _messages(message: str, values: Mapping[str, Any], at: Any, n: int) -> Any:
    """A message with the numbers of each point; each different one is written once."""
    names = list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(message) if name))
    if not names:
        return np.full(at.size, message, dtype=object)
    numbers = np.stack(
        [np.broadcast_to(np.asarray(values[x], np.float64), (n,))[at] for x in names], axis=1
    )
    different, which = np.unique(numbers, axis=0, return_inverse=True)
    texts = np.full(len(different), "", dtype=object)
    for i, row in enumerate(different):
        texts[i] = message.format(**{x: f"{v:.10g}" for x, v in zip(names, row, strict=True)})
    return texts[which.ravel()]


# ----------------------------------------------------------------------------------- layouts
def _layouts(
    setting: Setting, spec: ModelSpec, metrics: Sequence[str], given: Mapping[Input, Any], n: int
) -> Answer:
    symbols = {i.key: _whole(x) for i, x in given.items() if i.place == "symbol"}
    if symbols:
        if spec.moe is None:
            raise UserError(f"--vary {next(iter(symbols))}: {spec.name} has no experts")
        why = _reasons(spec, symbols, {}, 1)[0]
        if why:
            raise UserError(why)
        spec = spec.vary(MoE, **symbols)
    machine = _varied_cluster(setting.cluster, given)
    plan = _plan(setting, spec, machine, given)
    layout = _layout(setting, machine, given, n)
    found = plan.evaluate(layout)
    rows = [(r.holds, r.message) for r in plan.rules(layout)]
    reasons = _texts(rows, {**layout.values, **plan.facts()}, n)
    named = BINDS if setting.target == "training" else SERVING_BINDS
    columns = {}
    for name in metrics:
        if name not in found:
            raise KeyError(name)
        column = np.broadcast_to(np.asarray(found[name]), (n,))
        if name == "binds":
            good = np.isfinite(column.astype(np.float64)) & (reasons == "")
            words = np.full(n, "", dtype=object)
            words[good] = np.asarray(named, dtype=object)[column[good].astype(np.int64)]
            column = words
        columns[name] = column
    return columns, reasons


def _plan(
    setting: Setting, spec: ModelSpec, machine: Cluster, given: Mapping[Input, Any]
) -> TrainingPlan | ServingPlan:
    fields = dict(setting.job) | {
        i.key: x if isinstance(x, str) else _whole(x) for i, x in given.items() if i.place == "job"
    }
    training = setting.target == "training"
    job = job_of(fields, training=training, where=lambda name: f"--vary {name}")
    if isinstance(job, TrainingJob):
        return TrainingPlan(spec, machine, job)
    assert isinstance(job, ServingJob)
    return ServingPlan(spec, machine, job)


def _layout(setting: Setting, machine: Cluster, given: Mapping[Input, Any], n: int) -> Layout:
    """The layouts as one: degrees are arrays, dp is what the others leave of the GPUs."""
    base = Layout.parse(setting.degrees)
    said = {part.partition("=")[0].strip() for part in setting.degrees.split(",")}
    said |= {"batch"} if said & {"gbs", "global_batch"} else set()
    varied = {i.key: x for i, x in given.items() if i.place == "layout"}
    words = {name: x for name, x in varied.items() if name not in NUMBERS}
    numbers = {
        name: np.broadcast_to(np.asarray(varied.get(name, getattr(base, name)), np.float64), (n,))
        for name in NUMBERS
    }
    known = said | set(varied)
    if "dp" not in known:
        with np.errstate(all="ignore"):
            others = numbers["tp"] * numbers["cp"] * numbers["pp"]
            numbers["dp"] = machine.gpus.value / others
    if "batch" not in known:
        numbers["batch"] = numbers["microbatch"] * numbers["dp"] * numbers["pp"]
    if words:
        text = ",".join(f"{name}={_word(x)}" for name, x in words.items())
        kinds = Layout.parse(text)
        base = replace(base, **{name: getattr(kinds, name) for name in words})
        if "recompute" in words and ":" in str(words["recompute"]):
            base = replace(base, selective=kinds.selective)
    return base.at(numbers)


def _word(x: Any) -> str:
    return x if isinstance(x, str) else str(_whole(x))


def first_answer(setting: Setting, metrics: Sequence[str]) -> list[str]:
    """The names of all metrics of a layout sweep; for estimates, checks that each path is there."""
    spec = load_model(setting.model)
    if setting.target == "estimate":
        found = Estimate(spec, Scenario.of(**dict(setting.scenario)))
        for name in metrics:
            leaf = found[name]
            leaf = leaf.value if isinstance(leaf, Quantity) else leaf
            if (leaf is not None and not isinstance(leaf, (int, float, str))) or leaf is True:
                below = ", ".join(leaf) if isinstance(leaf, Mapping) else "no single number"
                raise UserError(f"--table {name} is no single number: it holds {below}")
        return list(metrics)
    plan = _plan(setting, spec, cluster(setting.cluster), {})
    keys = list(plan.evaluate(Layout(), 1))  # one GPU has every key, whether it fits or not
    Layout.parse(setting.degrees)
    for name in metrics:
        if name not in keys:
            raise UserError(
                f"--table {name} is not known{near_miss(name, keys)}: there are "
                f"{', '.join(sorted(keys))}"
            )
    return keys


def metric_units(setting: Setting, metrics: Sequence[str]) -> dict[str, str]:
    """Units of metrics of the estimate, where they have one."""
    found = Estimate(load_model(setting.model), Scenario.of(**dict(setting.scenario)))
    leaves = {name: found[name] for name in metrics}
    return {name: q.unit for name, q in leaves.items() if isinstance(q, Quantity) and q.unit}
