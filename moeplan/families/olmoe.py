"""OLMoE (arXiv 2409.02060): many small experts, queries and keys normalised over all heads."""

from __future__ import annotations

from moeplan.families.common import attention, decoder, layer_groups, pre_norm, selection
from moeplan.families.reader import Config
from moeplan.model.ffn import MoE, Routing
from moeplan.model.spec import ModelSpec

__all__ = ["olmoe"]


def olmoe(c: Config) -> ModelSpec:
    """Read an OLMoE config."""
    hidden = c.int("hidden_size", symbol="D")
    experts = c.int("num_experts", "num_local_experts", symbol="E")
    bias = c.flag("attention_bias", default=False)
    mixer = attention(c, hidden, qkv_bias=bias, o_bias=bias, qk_norm="full")
    width, heads = mixer.values["dh"], mixer.values["H"]
    if width * heads != hidden.value:
        raise c.fail("head_dim", f"is {width}: this family's heads share hidden_size evenly")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("intermediate_size", symbol="F"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax", renormalise=c.flag("norm_topk_prob", default=False)),
    )
    layers = c.int("num_hidden_layers", symbol="L")
    groups = layer_groups(
        [("attention", "moe")] * int(layers.value),
        lambda kind: pre_norm(hidden, mixer, moe),
        count=layers,
    )
    return decoder(c, hidden, groups, name="olmoe")
