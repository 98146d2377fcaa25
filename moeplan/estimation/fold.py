"""Folds over the rows: the one place that walks groups, blocks, weights and operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from moeplan.model.ops import COMPONENTS, Block, Component, Op, Size, Weight
from moeplan.model.spec import Group, ModelSpec, Role
from moeplan.model.workload import Workload
from moeplan.quantity import (
    Number,
    Quantity,
    Source,
    compile_formula,
    derive,
    evaluate,
    sum_formula,
    total,
)

__all__ = [
    "MODEL",
    "MTP",
    "Line",
    "Part",
    "Tensor",
    "by_component",
    "group_label",
    "layer_count",
    "lines",
    "over_groups",
    "over_layers",
    "over_rows",
    "summed",
    "tensors",
]

MODEL: tuple[Role, ...] = ("model", "encoder")
MTP: tuple[Role, ...] = ("mtp",)


@dataclass(slots=True, eq=False)
class Tensor:
    """A weight where it stands: its group and block."""

    group: Group
    block: Block
    weight: Weight

    @property
    def size(self) -> Size:
        """The weight's numbers in one layer."""
        return self.block.sizes[self.weight.name]

    def evaluate(self, formula: str) -> Number:
        """A formula in the block's symbols."""
        return evaluate(formula, self.block.values)

    def quantity(self, formula: str, unit: str) -> Quantity:
        """The same, explained."""
        symbols = self.block.symbols

        def inputs() -> Mapping[str, Quantity]:
            return {name: symbols[name] for name in compile_formula(formula)[1]}

        return Quantity(self.evaluate(formula), unit, formula=formula, inputs=inputs)


def tensors(spec: ModelSpec, roles: tuple[Role, ...] = MODEL) -> Iterator[Tensor]:
    """Every tensor of the groups with these roles, tied ones left out."""
    for group in spec.groups:
        if group.role in roles:
            for block in group.blocks:
                for weight in block.tensors:
                    if weight.tied is None:
                        yield Tensor(group, block, weight)


@dataclass(slots=True, eq=False)
class Line:
    """An operation where it stands, with its numbers for one layer.

    flops: of the forward pass. moved: activation elements read and written. cached: cache elements
    read. uses: copies of each weight that are read.
    """

    group: Group
    block: Block
    op: Op
    work: Workload
    env: Mapping[str, Number]
    flops: Number
    moved: Number
    cached: Number
    uses: Number

    def evaluate(self, formula: str) -> Number:
        """A formula in the block's and the workload's symbols, for one layer."""
        return evaluate(formula, self.env)

    def quantity(self, formula: str, unit: str) -> Quantity:
        """The same, explained; local symbols (P, A) are explained by their own formulas."""
        return Quantity(
            self.evaluate(formula), unit, formula=formula, inputs=lambda: self._inputs(formula)
        )

    def _inputs(self, formula: str) -> Mapping[str, Quantity]:
        return {name: self._symbol(name) for name in compile_formula(formula)[1]}

    def _symbol(self, name: str) -> Quantity:
        given: dict[str, Any] = {**self.block.symbols, **self.work.symbols}
        if name in given:
            found: Quantity = given[name]
            return found
        if name == "T":
            return derive("B*S", "tokens", symbol="T", **{k: given[k] for k in "BS"})
        return self.quantity(self.block.locals(self.work)[name], "").named(name)

    @property
    def count(self) -> Number:
        """Layers that hold this operation."""
        return self.group.number


def lines(spec: ModelSpec, work: Workload, roles: tuple[Role, ...] = MODEL) -> list[Line]:
    """Every operation of a pass. An encoder runs over the X source tokens, not in decoding."""
    source = Workload(work.phase, B=work.B, S=work.C, C=work.C, mask="full")
    if work.X is not None:
        source = Workload(work.phase, B=work.B, S=work.X, C=work.X, mask="full")
    out: list[Line] = []
    for group in spec.groups:
        if group.role not in roles or (group.role == "encoder" and work.phase == "decode"):
            continue
        here = source if group.role == "encoder" else work
        for block in group.blocks:
            env = block.environment(here)
            ops, formula = block.operations(here)
            for op, (flops, read, write, cached, uses) in zip(
                ops, evaluate(formula, env), strict=True
            ):
                out.append(Line(group, block, op, here, env, flops, read + write, cached, uses))
    return out


def layer_count(group: Group) -> Quantity:
    """The number of layers with its origin; a group that is no layer stands once."""
    found = group.quantity
    if found.source is not None or found.formula:
        return found
    if not group.is_layer:
        return Quantity(found.value, "layers", symbol="layers", formula="1", note="stands once")
    source = Source("config", f"how many of its layers are: {group.name}")
    return Quantity.given(found.value, "layers", "layers", source)


def over_layers(group: Group, per_layer: Quantity, unit: str) -> Quantity:
    """One layer's quantity times the number of equal layers."""
    if not group.is_layer:
        return per_layer
    return Quantity(
        group.number * per_layer.value,
        unit,
        formula="layers * per_layer",
        inputs=lambda: {"layers": layer_count(group), "per_layer": per_layer},
    )


class Part(NamedTuple):
    """A row of one layer, to be summed: its number now, its explanation when somebody asks."""

    group: Group
    component: Component
    name: str
    value: Number
    explain: Callable[[], Quantity]


def by_component(parts: Iterable[Part], unit: str) -> dict[Component, Quantity]:
    """Sum parts per component: over the rows of a layer, the layers, the groups.

    Components that the model does not have are left out; the order is that of COMPONENTS.
    """
    grouped: dict[Component, list[Part]] = {}
    for part in parts:
        grouped.setdefault(part.component, []).append(part)
    return {c: over_groups(grouped[c], unit) for c in COMPONENTS if c in grouped}


def over_groups(parts: list[Part], unit: str) -> Quantity:
    """Sum parts over the rows of a layer, the layers of a group, and the groups."""
    return summed(sum(part.group.number * part.value for part in parts), lambda: parts, unit)


def summed(value: Number, parts: Callable[[], list[Part]], unit: str) -> Quantity:
    """`over_groups` where the sum is known: the parts are made when somebody asks for them."""

    def inputs() -> Mapping[str, Quantity]:
        groups: dict[int, list[Part]] = {}
        for part in parts():
            groups.setdefault(id(part.group), []).append(part)
        layers = [
            (
                group_label(rows[0].group),
                over_layers(rows[0].group, over_rows(rows, unit), unit),
            )
            for rows in groups.values()
        ]
        return total(layers, unit).inputs

    return Quantity(value, unit, formula="sum over layers", inputs=inputs)


def over_rows(parts: list[Part], unit: str) -> Quantity:
    """Sum parts over the rows of one layer."""

    def inputs() -> Mapping[str, Quantity]:
        return total([(part.name, part.explain()) for part in parts], unit).inputs

    formula = sum_formula([part.name for part in parts])
    return Quantity(sum(p.value for p in parts), unit, formula=formula, inputs=inputs)


def group_label(group: Group) -> str:
    """The group's name with its layers, as tables and explanations show it."""
    if not group.is_layer or not group.indices:
        return group.name
    first, last, n = group.indices[0], group.indices[-1], len(group.indices)
    if n == 1:
        return f"{group.name} (layer {first})"
    if last - first + 1 == n:
        return f"{group.name} (layers {first}-{last})"
    return f"{group.name} ({n} of layers {first}-{last})"
