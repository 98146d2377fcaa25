"""Kimi Linear (arXiv 2510.26692): three layers of delta attention to one of latent attention."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import decoder, layer_groups, layer_types, pre_norm, selection
from moeplan.families.deepseek import latent_attention, layer_kinds
from moeplan.families.reader import Config
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.kimi_delta_attention import KimiDeltaAttention
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["kimi_linear"]

LINEAR, FULL = "Kimi delta attention", "latent attention"
NAMES = ExpertNames(
    router="block_sparse_moe.gate",
    experts="block_sparse_moe.experts.{e}.",
    gate="w1",
    up="w3",
    down="w2",
    shared="block_sparse_moe.shared_experts.",
    shared_names=("gate_proj", "up_proj", "down_proj"),
    selection_bias="block_sparse_moe.gate.e_score_correction_bias",
)


def _delta(c: Config, own: Config | None, hidden: Quantity) -> KimiDeltaAttention:
    """The mixer from `linear_attn_config`, or from keys of the outer file."""

    def size(inner: str, outer: str, default: int, symbol: str) -> Quantity:
        if own is not None and inner in own:
            return own.int(inner, symbol=symbol)
        return c.int(outer, default=default, symbol=symbol)

    return KimiDeltaAttention(
        D=hidden,
        H=size("num_heads", "linear_num_heads", 32, "H"),
        dk=size("head_dim", "linear_head_dim", 128, "dk"),
        w=size("short_conv_kernel_size", "linear_conv_kernel_dim", 4, "w"),
    )


def _scopes(c: Config, own: Config | None, layers: int) -> list[str]:
    """The mixer of each layer: lists of places from 1, words, or every fourth from the fifth."""
    words = {"linear_attention": LINEAR, "full_attention": FULL}
    spaced = [FULL if i and i % 4 == 0 else LINEAR for i in range(layers)]
    if own is None or "full_attn_layers" not in own or "layer_types" in c:
        if own is not None:
            own.ignore("full_attn_layers", "kda_layers")
        return layer_types(c, layers, words, spaced)
    full, linear = own.list("full_attn_layers"), own.list("kda_layers")
    if sorted([*full, *linear]) != list(range(1, layers + 1)):
        raise own.fail("kda_layers", f"and full_attn_layers must name each of {layers} layers once")
    return [FULL if i + 1 in full else LINEAR for i in range(layers)]


def _moe(c: Config, hidden: Quantity) -> MoE:
    experts = c.int("num_experts", "num_local_experts", symbol="E")
    width = c.int("moe_intermediate_size", symbol="F")
    shared = c.int("num_shared_experts", "n_shared_experts", default=1, symbol="shared")
    c.expect("moe_router_activation_func", ["sigmoid"], "this family scores with a sigmoid")
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_token", "num_experts_per_tok"),
        F=width,
        Fs=(shared * width).named("Fs"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing(
            "sigmoid",
            selection_bias=True,
            **_groups(c, experts),
            group_score="top2_sum",
            renormalise=c.flag("moe_renormalize", "norm_topk_prob", default=True),
            scale=c.number("routed_scaling_factor", default=2.446),
        ),
        names=NAMES,
    )


def _groups(c: Config, experts: Quantity) -> dict[str, Any]:
    c.ignore("use_grouped_topk")
    groups = c.int("num_expert_group", "n_group", default=1)
    limit = c.int("topk_group", default=1)
    if experts.value % groups.value or limit.value > groups.value:
        problem = f"is {groups.value}: it must divide the experts and hold topk_group"
        raise c.fail("num_expert_group", problem)
    return {"groups": int(groups.value), "group_limit": int(limit.value)}


def kimi_linear(c: Config) -> ModelSpec:
    """Read a Kimi Linear config; its latent attention has no rotation."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    count = int(layers.value)
    own = c.sub("linear_attn_config", required=False)
    c.ignore("mla_use_nope", "model_max_length")
    c.expect("tie_word_embeddings", [False], "a tied output is not described for this family")
    c.expect("num_nextn_predict_layers", [0], "multi-token prediction is not described here")
    mixers: dict[str, Block] = {
        LINEAR: _delta(c, own, hidden),
        FULL: latent_attention(c, LatentAttention),
    }
    moe = _moe(c, hidden)
    dense = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"))

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return pre_norm(hidden, mixers[kind[0]], moe if "moe" in kind else dense)

    kinds = [
        (scope, *ffn)
        for scope, (_, *ffn) in zip(
            _scopes(c, own, count), layer_kinds(c, count, dense=1, typed=True), strict=True
        )
    ]
    groups = layer_groups(kinds, build, count=layers)
    return decoder(c, hidden, groups, name="kimi_linear")
