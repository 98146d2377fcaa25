"""Reflection's Beam: gated attention with a bias per head, full layers without positions."""

from __future__ import annotations

from moeplan.families.deepseek import routed_experts, sigmoid_routing
from moeplan.families.reader import Config
from moeplan.families.stack import (
    WINDOW,
    layered,
    sandwich,
    scoped_attention,
    scopes,
    sparse_words,
    turned_kinds,
)
from moeplan.model.spec import ModelSpec

__all__ = ["beam"]

NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def beam(c: Config) -> ModelSpec:
    """Read a Beam config: five windows to one full layer, the last one full, three dense layers."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    c.expect("n_shared_experts", [0], "this family has no shared expert")
    moe = routed_experts(c, sigmoid_routing(c, groups=(8, 4), scale=2.5), shared=0)
    kinds = scopes(c, layers, full=lambda i: (i + 1) % 6 == 0 or i == layers - 1)
    bias = c.flag("attention_bias", default=False)
    mixers = scoped_attention(
        c,
        hidden,
        kinds,
        window=512,
        turned=turned_kinds(c, (WINDOW,)),
        grouped=True,
        head_dim=128,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="head",
        own_gate="full",
        gate_bias=True,
    )
    sparse = sparse_words(c, layers, [i >= 3 for i in range(layers)])
    return layered(c, "beam", hidden, mixers, kinds, moe, sparse, layer=sandwich(NORMS))
