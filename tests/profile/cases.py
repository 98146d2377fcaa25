"""What the profile tests share: every kind of MoE layer among the presets, made small; errors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from moeplan.errors import UserError
from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.presets import presets
from moeplan.profile.layer import Layer

SHARED = 48  # width of the shared experts of a small block


def small(block: MoE, experts: int = 8) -> MoE:
    """The same kind of layer with few and narrow experts, its groups and top-k as they are."""
    k, E = block.values["k"], block.values["E"]
    width = 16 if block.Dl is not None else None
    shared = None if block.Fs is None else SHARED
    table = None if block.V is None else 19
    E = min(E, max(experts, 2 * block.routing.groups, 2 * k))
    return replace(block, D=32, E=E, F=32, Fs=shared, Dl=width, V=table)


def _kind(block: MoE) -> tuple[object, ...]:
    """What makes two layers run different code; numbers that are only factors do not."""
    routing = block.routing._replace(scale=min(block.routing.scale, 2.0))
    has = (block.Fs is None, block.Dl is None, block.V is None, block.gated, block.activation)
    bias = (block.router_bias, block.expert_bias, block.shared_bias, block.latent_bias)
    rest = (block.shared_gate, block.router_scales, block.values["k"] == 1)
    return (routing, *has, *bias, *rest)


def is_built(block: MoE) -> bool:
    """Whether the layer knows all that this block has; test_layer says which it does not."""
    try:
        Layer(block, device="meta")
    except UserError:
        return False
    return True


@cache
def full_size() -> dict[str, MoE]:
    """One block of each kind that the layer builds, by the first preset that has it."""
    found: dict[tuple[object, ...], tuple[str, MoE]] = {}
    for preset in presets():
        try:
            blocks = [block for _, block in load_preset(preset.name).blocks(MoE)]
        except UserError:  # a family that is not read; the families' own tests say which
            continue
        for block in {id(b): b for b in blocks}.values():
            kind = _kind(block)
            if kind not in found and is_built(block):
                found[kind] = preset.name, block
    names: dict[str, MoE] = {}
    for name, block in found.values():
        names[name if name not in names else f"{name} (2)"] = block
    return names


@cache
def kinds() -> dict[str, MoE]:
    """The same kinds, each as a small block."""
    return {name: small(block) for name, block in full_size().items()}


def relative(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted| in the L2 norm; the plain norm where wanted is zero."""
    wanted = wanted.detach().double()
    difference = torch.linalg.vector_norm(found.detach().double() - wanted)
    scale = torch.linalg.vector_norm(wanted)
    return float(difference / scale) if scale > 0 else float(difference)


def errors(layer: Layer, tokens: int, ids_TK: Tensor | None = None) -> dict[str, float]:
    """Relative errors of a layer's output ("y") and gradients against its fp32 reference.

    Both get the layer's own choice of experts: two logits that differ in their last bit may choose
    differently.
    """
    x_TD = layer.input(tokens).requires_grad_()
    ids_TK = layer.route(x_TD.detach()).ids_TK if ids_TK is None else ids_TK
    d_TD = layer.input(tokens, seed=2)
    y_TD = layer(x_TD, routing_override=ids_TK)
    y_TD.backward(d_TD)
    reference = layer.as_reference()
    wide_TD = x_TD.detach().float().requires_grad_()
    wanted_TD = reference(wide_TD, routing_override=ids_TK)
    wanted_TD.backward(d_TD.float())
    assert x_TD.grad is not None
    assert wide_TD.grad is not None
    found = {"y": relative(y_TD, wanted_TD), "x": relative(x_TD.grad, wide_TD.grad)}
    theirs = dict(reference.named_parameters())
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        wanted = theirs[name].grad
        assert wanted is not None
        found[name] = relative(parameter.grad, wanted)
    layer.zero_grad()
    return found
