"""Flint and Kolibri: many small experts behind windows of 513 tokens, full layers unrotated."""

from __future__ import annotations

from moeplan.families.common import selection
from moeplan.families.qwen import sparse_layers
from moeplan.families.reader import Config
from moeplan.families.stack import (
    FULL,
    WINDOW,
    layered,
    sandwich,
    scoped_attention,
    scopes,
    unbounded,
)
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["flint", "kolibri1"]

FLINT = ExpertNames(shared="mlp.shared_expert.")
KOLIBRI = ExpertNames(selection_bias="moe.router.expert_bias")
NORMS = ("input_layernorm", "post_attn_norm", "post_attention_layernorm", "post_ffn_norm")


def _experts(c: Config, hidden: Quantity, routing: Routing, names: ExpertNames) -> MoE:
    experts = c.int("num_experts", "num_local_experts", symbol="E")
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("moe_intermediate_size", symbol="F"),
        Fs=c.int("shared_expert_intermediate_size", symbol="Fs"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=routing,
        names=names,
    )


def flint(c: Config) -> ModelSpec:
    """Read a Flint config: attention sinks, sigmoid scores, two dense layers."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    routing = Routing("sigmoid", renormalise=c.flag("norm_topk_prob", default=True))
    kinds = scopes(c, layers, full=lambda i: i < 2 or i % 4 == 1 or i == layers - 1)
    bias = c.flag("attention_bias", default=False)
    mixers = scoped_attention(
        c,
        hidden,
        kinds,
        window=513,
        turned=(WINDOW,),
        grouped=True,
        head_dim=128,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="head",
        sinks=True,
        sinks_name="softmax_offset",
    )
    sparse = sparse_layers(c, layers)
    if "mlp_only_layers" not in c:
        sparse = [here and i > 1 for i, here in enumerate(sparse)]
    moe = _experts(c, hidden, routing, FLINT)
    return layered(c, "flint", hidden, mixers, kinds, moe, sparse)


def kolibri1(c: Config) -> ModelSpec:
    """Read a Kolibri config: four norms a layer, a selection bias, four windows to a full layer."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    routing = Routing(
        "sigmoid",
        selection_bias=True,
        renormalise=c.flag("norm_topk_prob", default=False),
    )
    kinds = scopes(c, layers, full=lambda i: (i + 1) % 5 == 0)
    turned = (FULL,) if unbounded(c) else (WINDOW,)  # without windows, full layers rotate
    mixers = scoped_attention(
        c,
        hidden,
        kinds,
        window=513,
        turned=turned,
        grouped=True,
        head_dim=128,
        qk_norm="head",
    )
    moe = _experts(c, hidden, routing, KOLIBRI)
    return layered(
        c, "kolibri1", hidden, mixers, kinds, moe, [True] * layers, layer=sandwich(NORMS)
    )
