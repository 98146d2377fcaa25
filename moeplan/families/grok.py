"""Grok-1 (xAI's JAX release, in the tensor names of its PyTorch ports) and Grok-2."""

from __future__ import annotations

from moeplan.families.common import attention, decoder, layer_groups, selection
from moeplan.families.mixtral import NAMES as MIXTRAL
from moeplan.families.reader import Config, shown
from moeplan.model.basic import Norm, Residual
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec

__all__ = ["grok_1", "grok_2"]

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


def grok_2(c: Config) -> ModelSpec:
    """Read a Grok-2 config, whose model_type is that of an image captioner ("git").

    Beside the experts of each layer stands a dense layer, and the two are averaged; structure and
    names as serving engines load them. Queries and scores are capped, which is element-wise.
    """
    _, classes = c.raw("architectures")
    if classes != ["Grok1ForCausalLM"]:
        problem = f"is {shown(classes)}: a file of type 'git' is read as Grok-2 (Grok1ForCausalLM)"
        raise c.fail("architectures", problem)
    hidden = c.int("hidden_size", symbol="D")
    experts = c.int("num_local_experts", symbol="E")
    layers = c.int("num_hidden_layers", symbol="L")
    c.expect("sliding_window_size", [-1], "windows are not described for this family")
    c.expect("global_attn_every_n", [1], "windows are not described for this family")
    c.ignore("embedding_multiplier_scale", "output_multiplier_scale", "attn_temperature_len")
    c.ignore("scaling_factor", "extrapolation_factor", "attn_factor", "beta_fast", "beta_slow")
    activation = c.choice("hidden_act", allowed=("gelu",), default="gelu")
    width = "moe_intermediate_size" if "moe_intermediate_size" in c else "intermediate_size"
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int(width, symbol="F"),
        activation=activation,
        routing=Routing("softmax"),
        names=MIXTRAL,
    )
    beside: tuple[Block, ...] = ()
    if c.flag("residual_moe", default=False):
        wide = c.int("intermediate_size", symbol="F")
        beside = (DenseFFN(D=hidden, F=wide, activation=activation), Residual(hidden, "dense_ffn"))
    c.ignore("intermediate_size")
    blocks = (
        Norm(hidden, "pre_attn_norm"),
        attention(c, hidden, grouped=True),
        Norm(hidden, "post_attn_norm"),
        Residual(hidden, "attention"),
        Norm(hidden, "pre_moe_norm"),
        *beside,
        moe,
        Norm(hidden, "post_moe_norm"),
        Residual(hidden, "routed_experts"),
    )
    kinds = [("attention", *(("dense residual",) if beside else ()), "moe")] * int(layers.value)
    groups = layer_groups(kinds, lambda kind: blocks, count=layers)
    return decoder(c, hidden, groups, name="grok-2")
