"""gpt-oss (arXiv 2508.10925): alternating windows, attention sinks, experts with biases."""

from __future__ import annotations

from moeplan.families.common import (
    attention,
    decoder,
    layer_groups,
    layer_types,
    pre_norm,
    selection,
)
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["experts", "gpt_oss", "sink_attention"]

FULL, WINDOW = "full attention", "sliding attention"
NAMES = ExpertNames(
    router="mlp.router",
    experts="mlp.experts.",
    gate_up="gate_up_proj",
    suffix="",
    bias_suffix="_bias",
)


def sink_attention(c: Config, hidden: Quantity, window: Quantity | None) -> Attention:
    """Grouped-query attention with a learned sink per head, over a window or over everything."""
    bias = c.flag("attention_bias", default=True)
    return attention(
        c,
        hidden,
        grouped=True,
        head_dim=64,
        qkv_bias=bias,
        o_bias=bias,
        sinks=True,
        W=window,
        scope="full" if window is None else "window",
    )


def experts(c: Config, hidden: Quantity) -> MoE:
    """Experts with biases, stacked; the router softmaxes over the chosen ones."""
    count = c.int("num_local_experts", "num_experts", symbol="E")
    c.ignore("swiglu_alpha")
    return MoE(
        D=hidden,
        E=count,
        k=selection(c, count, "num_experts_per_tok", "experts_per_token"),
        F=c.int("intermediate_size", symbol="F"),
        activation="clamped_swiglu",
        routing=Routing("softmax_topk", renormalise=True),
        router_bias=True,
        expert_bias=True,
        stacked=True,
        transposed=True,
        names=NAMES,
    )


def gpt_oss(c: Config) -> ModelSpec:
    """Read a gpt-oss config; by default layers alternate, windowed first."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    c.expect("hidden_act", ["silu"], "the gate of this family's clamped SwiGLU")
    moe = experts(c, hidden)
    spaced = [FULL if i % 2 else WINDOW for i in range(int(layers.value))]
    words = {"sliding_attention": WINDOW, "full_attention": FULL}
    kinds = layer_types(c, int(layers.value), words, spaced)
    mixers = {FULL: sink_attention(c, hidden, None)}
    if WINDOW in kinds:
        mixers[WINDOW] = sink_attention(c, hidden, c.int("sliding_window", symbol="W"))
    c.ignore("sliding_window")
    groups = layer_groups(
        [(kind, "moe") for kind in kinds],
        lambda kind: pre_norm(hidden, mixers[kind[0]], moe),
        count=layers,
    )
    return decoder(c, hidden, groups, name="gpt_oss")
