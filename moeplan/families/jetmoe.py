"""JetMoe (arXiv 2404.07413): attention heads and feed-forward layers both picked by routers."""

from __future__ import annotations

from moeplan.families.common import selection
from moeplan.families.reader import Config
from moeplan.families.stack import FULL, layered
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.mixture_of_heads import MixtureOfHeads
from moeplan.model.spec import ModelSpec

__all__ = ["jetmoe"]

NAMES = ExpertNames(
    router="mlp.router.layer",
    experts="mlp.",
    gate_up="input_linear",
    down="output_linear",
    output_bias="mlp.bias",
)


def jetmoe(c: Config) -> ModelSpec:
    """Read a JetMoe config; attention experts are as many as feed-forward ones."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    experts = c.int("num_local_experts", "moe_num_experts", symbol="E")
    k = selection(c, experts, "num_experts_per_tok", "moe_top_k")
    groups = c.int("num_key_value_heads", symbol="G")
    heads = groups.value * k.value
    c.expect("num_attention_heads", [heads], "it is num_key_value_heads * num_experts_per_tok")
    c.ignore("aux_loss_coef")
    mixer = MixtureOfHeads(
        D=hidden,
        E=experts,
        k=k,
        G=groups,
        dh=c.int("kv_channels", "head_dim", default=128, symbol="dh"),
    )
    moe = MoE(
        D=hidden,
        E=experts,
        k=k,
        F=c.int("intermediate_size", "ffn_hidden_size", symbol="F"),
        activation=c.choice("activation_function", allowed=("silu",), default="silu"),
        routing=Routing("softmax_topk", renormalise=True),
        output_bias=True,
        stacked=True,
        names=NAMES,
    )
    kinds, sparse = [FULL] * layers, [True] * layers
    return layered(c, "jetmoe", hidden, {FULL: mixer}, kinds, moe, sparse, tied_default=True)
