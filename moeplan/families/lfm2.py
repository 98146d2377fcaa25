"""LFM2-MoE (arXiv 2511.23404): short convolutions, grouped-query attention in a few layers."""

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
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.short_convolution import ShortConvolution
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["lfm2_moe"]

CONV, ATTENTION = "short convolution", "attention"
NAMES = ExpertNames(
    router="feed_forward.gate",
    experts="feed_forward.experts.{e}.",
    gate="w1",
    up="w3",
    down="w2",
    selection_bias="feed_forward.expert_bias",
)


def _moe(c: Config, hidden: Quantity) -> MoE:
    experts = c.int("num_experts", "num_local_experts", symbol="E")
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("moe_intermediate_size", symbol="F"),
        routing=Routing(
            "sigmoid",
            selection_bias=c.flag("use_expert_bias", default=True),
            renormalise=c.flag("norm_topk_prob", default=True),
            scale=c.number("routed_scaling_factor", default=1.0),
        ),
        names=NAMES,
    )


def lfm2_moe(c: Config) -> ModelSpec:
    """Read an LFM2-MoE config; the first num_dense_layers have a dense feed-forward layer."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    count = int(layers.value)
    kinds = layer_types(c, count, {"conv": CONV, "full_attention": ATTENTION}, ())
    if not kinds:
        raise c.fail("layer_types", "is missing: it says which layers have attention")
    mixers: dict[str, Block] = {
        ATTENTION: attention(
            c,
            hidden,
            grouped=True,
            qk_norm="head",
            names=("q_proj", "k_proj", "v_proj", "out_proj"),
            norm_names=("q_layernorm", "k_layernorm"),
        ),
        CONV: ShortConvolution(
            D=hidden,
            w=c.int("conv_L_cache", default=3, symbol="w"),
            bias=c.flag("conv_bias", default=False),
        ),
    }
    dense = DenseFFN(
        D=hidden,
        F=c.int("intermediate_size", symbol="F"),
        prefix="feed_forward.",
        names=("w1", "w3", "w2"),
    )
    moe = _moe(c, hidden)
    first = int(c.int("num_dense_layers", default=2, least=0).value)

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        ffn = moe if kind[1] == "moe" else dense
        return pre_norm(hidden, mixers[kind[0]], ffn, ("operator_norm", "ffn_norm"))

    groups = layer_groups(
        [(kind, "dense" if i < first else "moe") for i, kind in enumerate(kinds)],
        build,
        count=layers,
    )
    tied = c.flag("tie_embedding", "tie_word_embeddings", default=True)
    return decoder(
        c,
        hidden,
        groups,
        name="lfm2_moe",
        tied_default=tied,
        norm="model.embedding_norm",
    )
