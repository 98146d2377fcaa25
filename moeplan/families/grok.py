"""Grok-1 (xAI's JAX release, in the tensor names of its PyTorch ports)."""

from __future__ import annotations

from moeplan.families.common import attention, decoder, layer_groups, selection
from moeplan.families.reader import Config
from moeplan.model.basic import Norm, Residual
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.spec import ModelSpec

__all__ = ["grok_1"]

SCALE = ".scale"
NAMES = ExpertNames(
    router="moe_block.gate",
    experts="moe_block.experts.{e}.",
    gate="linear",
    up="linear_v",
    down="linear_1",
)


def grok_1(c: Config) -> ModelSpec:
    """Read a Grok-1 config: norms before and after attention and experts, one embedding table."""
    hidden = c.int("hidden_size", symbol="D")
    experts = c.int("num_local_experts", "num_experts", symbol="E")
    c.ignore("max_attn_value", "embedding_multiplier_scale", "output_multiplier_scale")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("intermediate_size", symbol="F"),
        activation=c.choice("hidden_act", allowed=("gelu", "gelu_new"), default="gelu"),
        routing=Routing("softmax"),
        names=NAMES,
    )
    mixer = attention(c, hidden, prefix="attn.")
    blocks = (
        Norm(hidden, "pre_attn_norm", suffix=SCALE),
        mixer,
        Norm(hidden, "post_attn_norm", suffix=SCALE),
        Residual(hidden, "attention"),
        Norm(hidden, "pre_moe_norm", suffix=SCALE),
        moe,
        Norm(hidden, "post_moe_norm", suffix=SCALE),
        Residual(hidden, "routed_experts"),
    )
    layers = c.int("num_hidden_layers", symbol="L")
    groups = layer_groups(
        [("attention", "moe")] * int(layers.value), lambda kind: blocks, count=layers
    )
    return decoder(c, hidden, groups, name="grok-1", tied_default=True, norm_suffix=SCALE)
