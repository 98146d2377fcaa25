"""One estimate: every section of the answer as a tree of explained quantities."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from moeplan._version import __version__
from moeplan.arrays import is_array
from moeplan.cluster.hardware import Gpu, gpu
from moeplan.errors import UserError, near_miss
from moeplan.estimation import sections
from moeplan.estimation.flops import flops
from moeplan.estimation.memory import kv_cache, stored_tensors
from moeplan.estimation.parameters import parameters
from moeplan.estimation.scenario import Scenario
from moeplan.estimation.speculation import speculation
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Later, Quantity, plain

__all__ = ["SCHEMA_VERSION", "Estimate"]

SCHEMA_VERSION = "1.1"


class Estimate:
    """What a model costs in a scenario. `tree` holds the quantities, `to_dict` the numbers."""

    def __init__(self, spec: ModelSpec, scenario: Scenario) -> None:
        self.spec = spec
        self.scenario = scenario
        device = scenario["gpu"]
        self.gpu: Gpu = device if isinstance(device, Gpu) else gpu(device)
        if "weights" in scenario.given:
            chosen = spec.checkpoint.stored_as(scenario["weights"])
            spec = self.spec = replace(spec, checkpoint=chosen)
        context, batch = scenario.quantity("context"), scenario.quantity("batch")
        params = parameters(spec)
        cache = kv_cache(spec, sections.cache_format(spec, scenario), batch, context)
        stored = stored_tensors(spec)
        time = sections.time(spec, scenario, self.gpu, stored)
        self.tree: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "moeplan_version": __version__,
            "model": sections.model(spec),
            "params": params,
            "flops": flops(spec, context, scenario["attention"]),
            "kv_cache": cache,
            "memory": sections.memory(
                spec, scenario, self.gpu, params["total"], cache["bytes"], stored
            ),
            "all_to_all": sections.exchange(spec, scenario, self.gpu),
            "time": time,
            "cost": sections.cost(scenario, self.gpu, time),
            "speculation": speculation(
                spec, scenario, self.gpu, cache["format"], stored, params["mtp"]
            ),
        }

    # --------------------------------------------------------------------------- answers
    @property
    def assumptions(self) -> list[dict[str, Any]]:
        """What was neither in the file nor said by the user, each once, in order of use."""
        seen: dict[str, dict[str, Any]] = {}
        for quantity in self._given():
            source = quantity.source
            if source is not None and source.kind == "assumed":
                entry = {
                    "symbol": quantity.symbol,
                    "value": _plain(quantity),
                    "unit": quantity.unit,
                    "why": source.where,
                }
                seen.setdefault(source.where, entry)
        out = list(seen.values())
        if self.spec.checkpoint.assumed:
            out.append(
                {"symbol": "", "value": None, "unit": "", "why": self.spec.checkpoint.source}
            )
        for why, symbol in self._timed().items():
            out.append({"symbol": symbol, "value": None, "unit": "", "why": why})
        reasons = [*self._left_open(), *self.spec.notes, *self._beyond()]
        out += [{"symbol": "", "value": None, "unit": "", "why": why} for why in reasons]
        return out

    def _timed(self) -> dict[str, str]:
        """What expected times rest on besides measurements of this GPU, once they are looked at."""
        found: dict[str, str] = {}
        for name in sections.PASSES:
            calibrated = self.tree["time"][name]["calibrated"]
            if calibrated.made and calibrated() is not None:
                found |= {x["why"]: f"times of {x['ops']}" for x in calibrated()["assumed"]}
        return found

    def _left_open(self) -> list[str]:
        """Formats and names that the user did not choose, in one line."""
        words = {name: self.scenario[name] for name in ("attention", "gpu")}
        if self.spec.checkpoint.cache is None:
            words["cache"] = self.tree["kv_cache"]["format"]
        if self.tree["all_to_all"] is not None:
            words |= {name: self.scenario[name] for name in ("dispatch", "combine", "policy")}
        left = [f"{n} {word}" for n, word in words.items() if n not in self.scenario.given]
        return [f"not given, so the defaults: {', '.join(left)}"] if left else []

    def _beyond(self) -> list[str]:
        """A context longer than the model was made for."""
        longest, context = plain(self.spec.max_context), plain(self.scenario["context"])
        if longest is None or is_array(context) or context <= longest:
            return []
        return [f"a context of {context:,} tokens is beyond the model's own {longest:,}"]

    def _given(self) -> Iterator[Quantity]:
        """Every given number that may stand behind a figure."""
        for group in self.spec.groups:
            yield from _leaves(group.quantity)
            for block in group.blocks:
                for quantity in block.symbols.values():
                    yield from _leaves(quantity)
        for name in ("context", "batch", "microbatch"):
            yield self.scenario.quantity(name)
        section = self.tree["all_to_all"]
        if section is not None:
            yield from (section[name] for name in ("tokens", "ep", "node", "imbalance"))
            took = section["time"]
            if took.made and took() is not None:  # counts once it has been looked at
                for name in ("dispatch", "combine"):
                    yield from took()[name]["upper"].assumptions()
        training = self.tree["memory"]["training"]
        yield from training["weights"].inputs.values()
        yield from (self.gpu.memory_bytes, self.gpu.memory_bandwidth, *self.gpu.peaks.values())
        if self.tree["cost"] is not None:
            yield self.tree["cost"]["dollars_per_gpu_hour"]
        if self.tree["speculation"] is not None:
            yield self.tree["speculation"]["acceptance"]

    def to_model(self) -> dict[str, Any]:
        """The model section as plain values."""
        plain: dict[str, Any] = _plain(self.tree["model"])
        return plain

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts: the JSON document."""
        out: dict[str, Any] = _plain(self.tree)
        out["assumptions"] = self.assumptions
        return out

    def to_json(self, indent: int | None = 2) -> str:
        """The JSON document as text; integers are exact."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __getitem__(self, path: str) -> Any:
        """A quantity, text or section by its dotted path, as in the JSON document."""
        if path.split(".")[0] == "assumptions":
            raise UserError(
                f"path {path!r}: assumptions are listed, not computed, so nothing stands behind "
                "them: `moeplan estimate MODEL` ends with the list, and --json has it"
            )
        here: Any = self.tree
        walked: list[str] = []
        for part in path.split("."):
            choices = _keys(here)
            if part not in choices:
                at = ".".join(walked) or "the result"
                hint = _below(here, part, walked) or near_miss(part, choices)
                allowed = ", ".join(choices) or "nothing below it"
                raise UserError(f"path {path!r}: {at} has no {part!r}{hint}; it holds {allowed}")
            here = here[int(part)] if isinstance(here, list) else here[part]
            here = here() if isinstance(here, Later) else here
            walked.append(part)
        return here


def _below(here: Any, part: str, walked: list[str]) -> str:
    """A hint where a section one level further down has what was asked for here."""
    for key, child in here.items() if isinstance(here, Mapping) and walked else ():
        found = child() if isinstance(child, Later) else child
        if isinstance(found, Mapping) and part in found:
            return f" (did you mean {'.'.join((*walked, str(key), part))!r}?)"
    return ""


def _keys(here: Any) -> list[str]:
    if isinstance(here, Mapping):
        return [str(k) for k in here]
    if isinstance(here, list):
        return [str(i) for i in range(len(here))]
    return []


def _plain(value: Any) -> Any:
    if isinstance(value, Quantity):
        return _plain(value.value)
    if isinstance(value, Later):
        return _plain(value())
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if is_array(value):
        return value.tolist()
    return value


def _leaves(quantity: Quantity) -> Iterator[Quantity]:
    if quantity.source is not None:
        yield quantity
    else:
        for below in quantity.inputs.values():
            yield from _leaves(below)
