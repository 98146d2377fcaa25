"""FlexOlmo (arXiv 2507.07024): norms behind attention and experts instead of before them."""

from __future__ import annotations

from moeplan.families.common import attention, selection
from moeplan.families.reader import Config
from moeplan.families.stack import FULL, layered
from moeplan.model.basic import Norm, Residual
from moeplan.model.ffn import MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["flex_olmo"]


def _post_norm(hidden: Quantity, mixer: Block, ffn: Block) -> tuple[Block, ...]:
    return (
        mixer,
        Norm(hidden, "post_attention_layernorm"),
        Residual(hidden, "attention"),
        ffn,
        Norm(hidden, "post_feedforward_layernorm"),
        Residual(hidden, "routed_experts"),
    )


def flex_olmo(c: Config) -> ModelSpec:
    """Read a FlexOlmo config: queries and keys are normalised over all heads."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    experts = c.int("num_experts", "num_local_experts", symbol="E")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("intermediate_size", symbol="F"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax", renormalise=c.flag("norm_topk_prob", default=False)),
    )
    bias = c.flag("attention_bias", default=False)
    mixer = attention(c, hidden, qkv_bias=bias, o_bias=bias, qk_norm="full")
    kinds = [FULL] * layers
    return layered(
        c, "flex_olmo", hidden, {FULL: mixer}, kinds, moe, [True] * layers, layer=_post_norm
    )
