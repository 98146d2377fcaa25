"""Doge (SmallDoge): attention with a dynamic mask, thousands of experts of width one."""

from __future__ import annotations

import math
from dataclasses import fields

from moeplan.families.common import attention, decoder, layer_groups, selection
from moeplan.families.reader import Config
from moeplan.model.basic import GatedResidual, Norm
from moeplan.model.dynamic_mask_attention import DynamicMaskAttention
from moeplan.model.ffn import ExpertNames, Routing
from moeplan.model.ops import Block
from moeplan.model.product_key_experts import ProductKeyMoE
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity, Source

__all__ = ["doge"]

NAMES = ExpertNames(
    router="mlp.router_gate",
    experts="mlp.",
    up="down_embed",
    down="up_embed",
    shared="mlp.",
    shared_names=("gate_proj", "up_proj", "down_proj"),
)


def _mixer(c: Config, hidden: Quantity) -> DynamicMaskAttention:
    c.expect("sliding_window", [None], "windows beside the dynamic mask are not described")
    bias = c.flag("attention_bias", default=False)
    usual = attention(c, hidden, qkv_bias=bias, o_bias=bias, qk_norm="head")
    own = {f.name: getattr(usual, f.name) for f in fields(usual)}
    return DynamicMaskAttention(**own | {"W": c.int("keep_window_size", default=2048, symbol="W")})


def _experts(c: Config, hidden: Quantity) -> ProductKeyMoE:
    experts = c.int("num_experts", symbol="E")
    source = Source("config", "num_experts: whole part of its square root")
    return ProductKeyMoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=Quantity.given(
            1, symbol="F", source=Source("assumed", "an expert of Doge is one neuron")
        ),
        Fs=c.int("intermediate_size", symbol="Fs"),
        m=Quantity.given(math.isqrt(int(experts.value)), symbol="m", source=source),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax_topk", renormalise=c.flag("norm_topk_prob", default=False)),
        gated=False,
        shared_gated=True,
        shared_bias=c.flag("mlp_bias", default=False),
        stacked=True,
        down_transposed=True,
        names=NAMES,
    )


def doge(c: Config) -> ModelSpec:
    """Read a Doge config with experts; both branches have a learned vector on the residual."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    if not c.flag("is_moe", default=False):
        raise c.fail("is_moe", "is not true: the dense Doge is not described")
    mixer, moe = _mixer(c, hidden), _experts(c, hidden)

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return (
            Norm(hidden, "input_layernorm"),
            mixer,
            GatedResidual(hidden, "attention", ("input_residual",)),
            Norm(hidden, "post_attention_layernorm"),
            moe,
            GatedResidual(hidden, "routed_experts", ("post_attention_residual",)),
        )

    groups = layer_groups([("attention", "moe")] * int(layers.value), build, count=layers)
    return decoder(c, hidden, groups, name="doge")
