"""Granite MoE (IBM Granite 3): gate and up projections of all experts in one tensor."""

from __future__ import annotations

from moeplan.families.common import attention, decoder, layer_groups, pre_norm, selection
from moeplan.families.reader import Config
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.spec import ModelSpec

__all__ = ["granitemoe"]

NAMES = ExpertNames(
    router="block_sparse_moe.router.layer",
    experts="block_sparse_moe.",
    gate_up="input_linear",
    down="output_linear",
)


def granitemoe(c: Config) -> ModelSpec:
    """Read a Granite MoE config; its multipliers scale activations and count nothing."""
    hidden = c.int("hidden_size", symbol="D")
    experts = c.int("num_local_experts", "num_experts", symbol="E")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("intermediate_size", symbol="F"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax_topk", renormalise=True),
        stacked=True,
        names=NAMES,
    )
    bias = c.flag("attention_bias", default=False)
    mixer = attention(c, hidden, qkv_bias=bias, o_bias=bias)
    layers = c.int("num_hidden_layers", symbol="L")
    groups = layer_groups(
        [("attention", "moe")] * int(layers.value),
        lambda kind: pre_norm(hidden, mixer, moe),
        count=layers,
    )
    return decoder(c, hidden, groups, name="granitemoe")
