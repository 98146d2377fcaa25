"""Parameters: totals, active under three definitions, MTP modules and buffers apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from moeplan.estimation.fold import (
    MODEL,
    MTP,
    Part,
    Tensor,
    by_component,
    group_label,
    layer_count,
    over_rows,
    tensors,
)
from moeplan.model.ffn import MoE
from moeplan.model.ops import Component
from moeplan.model.spec import ModelSpec, Role
from moeplan.quantity import Number, Quantity, total

__all__ = ["active", "active_range", "count", "parameters"]

UNIT = "parameters"


class _Fold(NamedTuple):
    """What is counted of a tensor: its number, and the formula that explains it."""

    number: Callable[[Tensor], Number]
    formula: Callable[[Tensor], str]

    def part(self, t: Tensor) -> Part:
        explain = lambda: t.quantity(self.formula(t), UNIT)  # noqa: E731 - made only when asked
        return Part(t.group, t.weight.component, t.weight.name, self.number(t), explain)


_ALL = _Fold(lambda t: t.size.elements, lambda t: t.weight.elements)
_ACTIVE = _Fold(lambda t: t.size.active, lambda t: t.weight.active_elements)


def _components(
    spec: ModelSpec,
    fold: _Fold,
    roles: tuple[Role, ...] = MODEL,
    *,
    buffers: bool = False,
) -> dict[Component, Quantity]:
    return by_component(
        (fold.part(t) for t in tensors(spec, roles) if t.weight.buffer is buffers),
        UNIT,
    )


def count(spec: ModelSpec) -> Any:
    """Total parameters as a bare number or array: trained tensors, each once, MTP left out."""
    return sum(t.group.number * t.size.elements for t in tensors(spec) if not t.weight.buffer)


def active(
    spec: ModelSpec, components: dict[Component, Quantity] | None = None
) -> dict[str, Quantity]:
    """Active parameters of one token, under each definition in use.

    all: every tensor that a token touches, the whole embedding table included.
    without_input_embedding: without the table that is only looked up (a tied table is also the
    output head's matrix, so it stays). without_embeddings: without input table and output head.
    """
    if components is None:
        components = _components(spec, _ACTIVE)
    return {
        "all": _sum(components),
        "without_input_embedding": _sum(components, () if spec.tied else ("embedding",)),
        "without_embeddings": _sum(components, ("embedding", "head")),
    }


def active_range(spec: ModelSpec) -> dict[str, dict[str, Quantity]] | None:
    """Active parameters at the fewest and the most experts that may compute a token.

    Only models with zero-computation experts have a range (`MoE.Z`); others give None. Each end
    holds the definitions of `active`; that function itself gives the expected number.
    """
    if all(block.Z is None for _, block in spec.blocks(MoE, mtp=True)):
        return None

    def at(real: Callable[[MoE], Number]) -> ModelSpec:
        groups = (
            replace(
                group,
                blocks=tuple(
                    replace(block, r=real(block))
                    if isinstance(block, MoE) and block.Z is not None
                    else block
                    for block in group.blocks
                ),
            )
            for group in spec.groups
        )
        return replace(spec, groups=tuple(groups))

    none = Quantity(0, "experts", symbol="r", formula="0", note="no expert with weights is drawn")
    return {"fewest": active(at(lambda moe: none)), "most": active(at(lambda moe: moe.k))}


def _sum(components: dict[Component, Quantity], without: tuple[str, ...] = ()) -> Quantity:
    return total([(c, q) for c, q in components.items() if c not in without], UNIT)


def parameters(spec: ModelSpec) -> dict[str, Any]:
    """The parameters section of an estimate; see `active` for the definitions."""
    components = _components(spec, _ALL)
    activated = _components(spec, _ACTIVE)
    buffers = _components(spec, _ALL, buffers=True)
    mtp, mtp_active = _components(spec, _ALL, MTP), _components(spec, _ACTIVE, MTP)
    return {
        "total": _sum(components),
        "active": {**active(spec, activated), "by_component": dict(activated)},
        "active_range": active_range(spec),
        "mtp": _sum(mtp),
        "mtp_active": _sum(mtp_active),
        "mtp_active_with_shared": total(
            [("mtp_active", _sum(mtp_active)), *_shared(spec).items()], UNIT
        ),
        "buffers": _sum(buffers),
        "by_component": dict(components),
        "by_layer": _by_layer(spec),
    }


def _shared(spec: ModelSpec) -> dict[str, Quantity]:
    """The model's own tensors that MTP modules compute with too (embedding, head), each once."""
    return {
        weight.tied: Tensor(group, block, weight).quantity(weight.elements, UNIT)
        for group in spec.groups
        if group.role == "mtp"
        for block in group.blocks
        for weight in block.tensors
        if weight.tied is not None
    }


def _by_layer(spec: ModelSpec) -> list[dict[str, Any]]:
    """What one layer of each kind holds."""
    out = []
    for group in spec.groups:
        own = ModelSpec(spec.name, spec.family, (group,))
        totals = _per_layer(own, _ALL)
        if group.is_layer and totals:
            out.append(
                {
                    "name": group_label(group),
                    "role": group.role,
                    "layers": layer_count(group),
                    "total": _sum(totals),
                    "active": _sum(_per_layer(own, _ACTIVE)),
                    "by_component": dict(totals),
                }
            )
    return out


def _per_layer(spec: ModelSpec, fold: _Fold) -> dict[Component, Quantity]:
    rows: dict[Component, list[Part]] = {}
    for t in tensors(spec, ("model", "encoder", "mtp")):
        if not t.weight.buffer:
            rows.setdefault(t.weight.component, []).append(fold.part(t))
    return {component: over_rows(parts, UNIT) for component, parts in rows.items()}
