"""Traits of an MoE op that its sizes do not tell, found in the presets that have these sizes.

Whether experts have two input matrices, and whether the router's weight multiplies their input,
changes FLOPs and bytes. A CSV file may say so in its columns; where it does not, the first preset
with the same hidden size, expert width, top-k and number of experts answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from moeplan.calibration.points import Points
from moeplan.errors import UserError
from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.presets import presets
from moeplan.quantity import plain

__all__ = ["Traits", "moe_traits", "traits_of"]

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Sizes: TypeAlias = tuple[int, int, int, int]


class Traits(NamedTuple):
    """gated: two input matrices. weight_on_input: weights multiply the input, not the output.

    source: the preset that says so, or empty where these are the usual ones.
    """

    gated: bool = True
    weight_on_input: bool = False
    source: str = ""


def moe_traits(points: Points) -> tuple[_Array, _Array]:
    """(gated, weight_on_input) of MoE points: their columns, else the presets', else the usual."""
    if "gated" in points.columns and "weight_on_input" in points.columns:
        return points["gated"], points["weight_on_input"]
    names = ("hidden_size", "inter_size", "topk", "num_experts")
    shapes, place = np.unique(np.stack([points[n] for n in names]), axis=1, return_inverse=True)
    hidden, inter, top_k, experts = shapes
    found = [
        traits_of((int(a), int(b), int(c), int(d)))
        for a, b, c, d in zip(hidden, inter, top_k, experts, strict=True)
    ]
    gated = np.array([t.gated for t in found])[place.ravel()]
    on_input = np.array([t.weight_on_input for t in found])[place.ravel()]
    return points.columns.get("gated", gated), points.columns.get("weight_on_input", on_input)


@cache
def traits_of(sizes: Sizes) -> Traits:
    """Traits of the MoE with this hidden size, expert width, top-k and number of experts."""
    for name in _candidates(sizes):
        try:
            spec = load_preset(name)
        except UserError:
            continue  # a preset that cannot be read says nothing here
        for _, block in spec.blocks(MoE):
            symbols = block.values
            width = symbols.get("Dl", symbols["D"])
            if (width, symbols["F"], symbols["k"], symbols["E"]) == sizes:
                on_input = getattr(block.routing, "weigh", "output") == "input"
                return Traits(bool(plain(block.gated)), on_input, name)
    return Traits()


def _candidates(sizes: Sizes) -> Iterator[str]:
    """Presets whose config holds each of the sizes as a value: most are ruled out unread."""
    return (name for name, numbers in _numbers_of_presets() if set(sizes) <= numbers)


@cache
def _numbers_of_presets() -> tuple[tuple[str, frozenset[int]], ...]:
    return tuple((p.name, frozenset(_numbers(p.config))) for p in presets())


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _numbers(inner)
