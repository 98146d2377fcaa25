"""Mixtral (arXiv 2401.04088): every feed-forward layer is a mixture of gated experts."""

from __future__ import annotations

from moeplan.families.common import attention, decoder, layer_groups, pre_norm, selection
from moeplan.families.reader import Config
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.spec import ModelSpec

__all__ = ["mixtral"]

NAMES = ExpertNames(
    router="block_sparse_moe.gate",
    experts="block_sparse_moe.experts.{e}.",
    gate="w1",
    up="w3",
    down="w2",
)


def mixtral(c: Config) -> ModelSpec:
    """Read a Mixtral config."""
    hidden = c.int("hidden_size", symbol="D")
    experts = c.int("num_local_experts", "num_experts", symbol="E")
    window = c.optional("sliding_window", symbol="W")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("intermediate_size", symbol="F"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax", renormalise=True),
        names=NAMES,
    )
    scope = "full" if window is None else "window"
    mixer = attention(c, hidden, grouped=True, W=window, scope=scope)
    layers = c.int("num_hidden_layers", symbol="L")
    groups = layer_groups(
        [("attention", "moe")] * layers.value,
        lambda kind: pre_norm(hidden, mixer, moe),
        count=layers,
    )
    return decoder(c, hidden, groups, name="mixtral")
