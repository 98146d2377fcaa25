"""Snowflake Arctic: a dense residual feed-forward layer beside the experts of every layer."""

from __future__ import annotations

from moeplan.families.common import attention, decoder, layer_groups, pre_norm, selection
from moeplan.families.mixtral import NAMES
from moeplan.families.reader import Config
from moeplan.model.basic import Norm, Residual
from moeplan.model.ffn import DenseFFN, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec

__all__ = ["arctic"]

DENSE_NAMES = ("w1", "w3", "w2")


def arctic(c: Config) -> ModelSpec:
    """Read an Arctic config; the experts read the layer's input, beside attention and residual.

    The residual feed-forward layer is as wide as the model; the experts have intermediate_size.
    """
    hidden = c.int("hidden_size", symbol="D")
    experts = c.int("num_local_experts", symbol="E")
    width = c.int("intermediate_size", symbol="F")
    parallel = c.flag("parallel_attn_mlp_res", default=False)
    c.expect("use_residual", [parallel], "it must agree with parallel_attn_mlp_res")
    c.ignore("enable_expert_tensor_parallelism", "quantization")
    c.expect("sliding_window", [0], "windows are not described for this family")
    activation = c.choice("hidden_act", allowed=("silu",), default="silu")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=width,
        activation=activation,
        routing=Routing("softmax", renormalise=True),
        names=NAMES,
    )
    residual = DenseFFN(
        D=hidden,
        F=hidden.named("F"),
        activation=activation,
        prefix="residual_mlp.",
        names=DENSE_NAMES,
    )
    dense = DenseFFN(
        D=hidden,
        F=width,
        activation=activation,
        prefix="block_sparse_moe.mlp.",
        names=DENSE_NAMES,
    )
    mixer = attention(c, hidden, grouped=True)
    every = int(c.int("moe_layer_frequency", default=2).value)
    layers = c.int("num_hidden_layers", symbol="L")

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        if kind[-1] == "dense" or not parallel:
            return pre_norm(hidden, mixer, dense if kind[-1] == "dense" else moe)
        return (
            Norm(hidden, "input_layernorm"),
            mixer,
            Residual(hidden, "attention"),
            Norm(hidden, "residual_layernorm"),
            residual,
            Residual(hidden, "dense_ffn"),
            Norm(hidden, "post_attention_layernorm"),
            moe,
            Residual(hidden, "routed_experts"),
        )

    sparse = ("attention", "dense residual", "moe") if parallel else ("attention", "moe")
    kinds: list[tuple[str, ...]] = [
        ("attention", "dense") if (i + 1) % every else sparse for i in range(int(layers.value))
    ]
    return decoder(c, hidden, layer_groups(kinds, build, count=layers), name="arctic")
