"""Arcee's Trinity (AFMoE): gated attention, three windows to one full layer, four norms a layer."""

from __future__ import annotations

from moeplan.families.common import selection
from moeplan.families.reader import Config
from moeplan.families.stack import (
    WINDOW,
    dense_first,
    layered,
    sandwich,
    scoped_attention,
    scopes,
)
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.spec import ModelSpec

__all__ = ["afmoe"]

NAMES = ExpertNames(router="mlp.router.gate", selection_bias="mlp.expert_bias")
NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_mlp_layernorm",
    "post_mlp_layernorm",
)


def afmoe(c: Config) -> ModelSpec:
    """Read an AFMoE config; only windowed layers rotate queries and keys."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    experts = c.int("num_experts", symbol="E")
    width = c.int("moe_intermediate_size", symbol="F")
    shared = c.int("num_shared_experts", default=2, symbol="shared")
    c.expect("score_func", ["sigmoid"], "this family scores with a sigmoid")
    c.expect("route_norm", [True], "this family's chosen weights sum to one")
    for key in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups"):
        c.expect(key, [1], "this family selects among all experts")
    c.ignore("mup_enabled", "load_balance_coeff", "use_grouped_mm")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=width,
        Fs=(shared * width).named("Fs"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing(
            "sigmoid",
            selection_bias=True,
            renormalise=True,
            scale=c.number("route_scale", default=1.0),
        ),
        names=NAMES,
    )
    every = int(c.int("global_attn_every_n_layers", default=4).value)
    kinds = scopes(c, layers, full=lambda i: (i + 1) % every == 0)
    bias = c.flag("attention_bias", default=False)
    mixers = scoped_attention(
        c,
        hidden,
        kinds,
        window=1024,
        turned=(WINDOW,),
        head_dim=128,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="head",
        own_gate="full",
    )
    sparse = dense_first(c, layers, "num_dense_layers", 1)
    return layered(c, "afmoe", hidden, mixers, kinds, moe, sparse, layer=sandwich(NORMS))
