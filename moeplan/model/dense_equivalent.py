"""The dense model beside an MoE: the same layers with one FFN in the place of each MoE block.

Hidden size, layers, attention, embeddings and the dense layers that the model already has stay as
they are. The new FFN has one width everywhere, chosen so that the exchanged blocks hold as many
parameters as one token touched in them ("active"), or as many as they held ("total"). Everything
else is equal in both models, so the two agree in every definition of active parameters at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from moeplan.errors import UserError, near_miss
from moeplan.model.basic import Residual
from moeplan.model.ffn import DenseFFN, MoE
from moeplan.model.ops import Block, Weight
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity, compile_formula, derive, evaluate, total

__all__ = ["Match", "dense_equivalent"]

Match: TypeAlias = Literal["active", "total"]
"""What the dense model has as much of as the MoE: active or total parameters."""

UNIT = "parameters"


def dense_equivalent(spec: ModelSpec, match: Match) -> ModelSpec | None:
    """The dense model of equal active or total size, or None where `spec` has no MoE block.

    Its parameters differ from the wanted number by at most half of what one unit of FFN width
    holds (3·D per exchanged layer where the FFN is gated). The width is a quantity that explains
    itself. Tensors are named like the experts' whose place they take, so that a quantised
    checkpoint stores them in the experts' format. Raises UserError for another `match`.
    """
    if match not in get_args(Match):
        allowed, hint = " or ".join(get_args(Match)), near_miss(match, get_args(Match))
        raise UserError(f"match is {match!r}: it must be {allowed}{hint}")
    if spec.moe is None:
        return None
    width = _width(spec, match)
    return replace(
        spec,
        name=f"{spec.name} (dense, equal {match})",
        title=f"dense model with the {match} parameters of {spec.title or spec.name}",
        groups=tuple(_exchanged(group, width) for group in spec.groups),
    )


def _width(spec: ModelSpec, match: Match) -> Quantity:
    """F: the wanted parameters over those of one unit of width, to the nearest whole unit."""

    def held(weight: Weight) -> str:
        return weight.active_elements if match == "active" else weight.elements

    moes = list(spec.blocks(MoE))
    empty = [(group, _dense(moe, 0)) for group, moe in moes]
    unit = [(group, _dense(moe, 1)) for group, moe in moes]
    rest = _held(empty, lambda weight: weight.elements)
    return derive(
        "max(1, ceil(ceil_div(2*(wanted - rest) - per_unit, 2*per_unit)))",
        symbol="F",
        note=f"FFN width of the dense model of equal {match} size, nearest whole unit",
        wanted=_held(moes, held),
        rest=rest,
        per_unit=derive("one - rest", UNIT, one=_held(unit, lambda w: w.elements), rest=rest),
    )


def _held(places: Sequence[tuple[Group, Block]], held: Callable[[Weight], str]) -> Quantity:
    """Trained parameters of blocks in all their layers."""
    return total([(group.name, _block(group, block, held)) for group, block in places], UNIT)


def _block(group: Group, block: Block, held: Callable[[Weight], str]) -> Quantity:
    counted = [w for w in block.weights() if not w.buffer and w.tied is None]
    text = " + ".join(held(weight) for weight in counted)
    one = Quantity(
        evaluate(text, block.values),
        UNIT,
        formula=text,
        inputs=lambda: {name: block.symbols[name] for name in compile_formula(text)[1]},
    )
    return derive("layers*one", UNIT, layers=group.quantity, one=one)


def _dense(moe: MoE, width: Quantity | int) -> DenseFFN:
    """The FFN in an MoE block's place, with its activation, biases and tensor names."""
    names = moe.names
    return DenseFFN(
        D=moe.D,
        F=width,
        gated=moe.gated,
        bias=moe.expert_bias,
        activation=moe.activation,
        prefix=names.experts.replace("{e}", "0"),
        names=(names.gate, names.up, names.down),
    )


def _exchanged(group: Group, width: Quantity) -> Group:
    """The group with its MoE blocks exchanged; groups without one are returned as they are."""
    if not any(isinstance(block, MoE) for block in group.blocks):
        return group
    words = ["dense" if word == "moe" else word for word in group.name.split(" + ")]
    blocks = tuple(_exchange(block, width) for block in group.blocks)
    return replace(group, name=" + ".join(words), blocks=blocks)


def _exchange(block: Block, width: Quantity) -> Block:
    if isinstance(block, MoE):
        return _dense(block, width)
    if isinstance(block, Residual) and block.component == "routed_experts":
        return replace(block, component="dense_ffn")
    return block
