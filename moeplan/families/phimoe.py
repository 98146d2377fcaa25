"""Phi-3.5-MoE (arXiv 2404.14219) and its pruned Phi-mini and Phi-tiny (2506.18349)."""

from __future__ import annotations

from moeplan.families.common import attention, decoder, layer_groups, pre_norm, selection
from moeplan.families.mixtral import NAMES
from moeplan.families.reader import Config
from moeplan.model.ffn import MoE, Routing
from moeplan.model.spec import ModelSpec

__all__ = ["phimoe"]


def phimoe(c: Config) -> ModelSpec:
    """Read a Phi-MoE config: layer norms with shift, SparseMixer routing to two experts."""
    hidden = c.int("hidden_size", symbol="D")
    experts = c.int("num_local_experts", "num_experts", symbol="E")
    chosen = selection(c, experts, "num_experts_per_tok")
    if chosen.value != 2:
        raise c.fail("num_experts_per_tok", f"is {chosen.value}: SparseMixer chooses 2 experts")
    moe = MoE(
        D=hidden,
        E=experts,
        k=chosen,
        F=c.int("intermediate_size", symbol="F"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("sparsemixer"),
        names=NAMES,
    )
    bias = c.flag("attention_bias", default=False)
    window = c.optional("sliding_window", symbol="W")
    mixer = attention(
        c,
        hidden,
        grouped=True,
        qkv_bias=bias,
        o_bias=bias,
        W=window,
        scope="full" if window is None else "window",
    )
    layers = c.int("num_hidden_layers", symbol="L")
    groups = layer_groups(
        [("attention", "moe")] * int(layers.value),
        lambda kind: pre_norm(hidden, mixer, moe, bias=True),
        count=layers,
    )
    head_bias = c.flag("lm_head_bias", default=False)
    return decoder(c, hidden, groups, name="phimoe", head_bias=head_bias, norm_bias=True)
