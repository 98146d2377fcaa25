"""What can be varied: each input's name, where it goes, and whether arrays of it are one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from moeplan.cluster.layout import NUMBERS
from moeplan.errors import UserError, near_miss
from moeplan.estimation.scenario import DEFAULTS
from moeplan.model.spec import ModelSpec
from moeplan.parallel.jobs import ServingJob, TrainingJob
from moeplan.quantity import plain

__all__ = ["Input", "Target", "base_values", "config_key", "inputs"]

Target = Literal["estimate", "training", "serving"]
Place = Literal["symbol", "config", "scenario", "gpu", "layout", "job", "cluster"]

_SYMBOLS = {"experts": "E", "top_k": "k", "width": "F", "shared_width": "Fs"}
"""Symbols of an MoE block that take arrays."""
_CONFIG = ("layers", "hidden", "vocabulary")
_FIGURES = ("memory", "memory_bandwidth", "peak", "scale_up_bandwidth", "scale_out_bandwidth")
"""Figures of the hardware. peak: of bf16; the other formats' peaks go with it."""
_NUMBERS = ("context", "batch", "microbatch", "tokens", "ep", "node", "imbalance", "draft",
            "acceptance")  # fmt: skip
_KINDS = ("sp", "schedule", "recompute", "overlap", "order", "split")


@dataclass(frozen=True)
class Input:
    """One input. key: its name at its place. array: many values of it are one evaluation."""

    name: str
    place: Place
    key: str
    array: bool


def inputs(target: Target) -> dict[str, Input]:
    """Everything that a sweep of this kind can vary, besides `config.KEY` (any key of the file)."""
    arrays = target == "estimate"
    found = [Input(n, "symbol", key, arrays) for n, key in _SYMBOLS.items()]
    found += [Input(n, "config", n, False) for n in _CONFIG]
    if target == "estimate":
        found += [Input(n, "scenario", n, n in _NUMBERS) for n in DEFAULTS]
        found += [Input(n, "gpu", n, True) for n in _FIGURES[:3]]
        return {i.name: i for i in found}
    job = TrainingJob if target == "training" else ServingJob
    names = [f.name for f in fields(job) if f.name not in ("overheads", "overlap")]
    found += [Input(n, "layout", n, True) for n in NUMBERS]
    found += [Input(n, "layout", n, False) for n in _KINDS]
    found += [Input(n, "job", n, False) for n in (*names, "framework", "fragmentation")]
    found.append(Input("cluster", "cluster", "cluster", False))
    found += [Input(n, "gpu", n, False) for n in _FIGURES]
    return {i.name: i for i in found}


def input_named(name: str, target: Target) -> Input | None:
    """The input of that name, or None where it is a variable of the user's own."""
    if name.startswith("config."):
        return Input(name, "config", name.removeprefix("config."), False)
    return inputs(target).get(name)


def unknown_input(name: str, target: Target) -> UserError:
    """What to say of a name that is no input and that no formula uses."""
    known = inputs(target)
    return UserError(
        f"--vary {name}: no such input, and no --set uses it{near_miss(name, known)}; known are "
        f"{', '.join(known)}, and config.KEY for any key of the model's config"
    )


def base_values(spec: ModelSpec) -> dict[str, Any]:
    """The model's own numbers, which formulas may use where they are not varied."""
    out: dict[str, Any] = {"hidden": spec.hidden.value, "vocabulary": spec.vocabulary.value}
    out["layers"] = spec.layers
    if spec.moe is not None:
        for name, symbol in _SYMBOLS.items():
            found = getattr(spec.moe, symbol)
            if found is not None:
                out[name] = plain(found)
    return out


def config_key(spec: ModelSpec, config: Mapping[str, Any], name: str) -> str:
    """The key of a config that holds hidden size, layers or vocabulary, as the reader found it."""
    found = {"hidden": spec.hidden, "vocabulary": spec.vocabulary}.get(name)
    key = "num_hidden_layers"
    if found is not None:
        key = found.source.where.split()[0] if found.source is not None else ""
    if key not in config:
        raise UserError(
            f"--vary {name}: its key in this model's config is not known, use config.KEY"
        )
    return key
