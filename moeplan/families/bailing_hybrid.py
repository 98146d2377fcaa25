"""Ling's hybrids: five layers of Kimi delta attention to one of gated latent attention."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import layer_types, selection
from moeplan.families.reader import Config
from moeplan.families.stack import dense_first, layered, sparse_words
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.kimi_delta_attention import KimiDeltaAttention
from moeplan.model.latent_attention import LatentAttention, LatentNames
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["bailing_hybrid"]

LINEAR, FULL = "Kimi delta attention", "latent attention"
EMBED = "model.word_embeddings.weight"
NAMES = ExpertNames(selection_bias="mlp.gate.expert_bias")


def _groups(c: Config, experts: Quantity) -> dict[str, Any]:
    groups = c.int("num_expert_group", "n_group", default=8)
    limit = c.int("topk_group", default=4)
    if experts.value % groups.value or limit.value > groups.value:
        problem = f"is {groups.value}: it must divide the experts and hold topk_group"
        raise c.fail("num_expert_group", problem)
    return {"groups": int(groups.value), "group_limit": int(limit.value)}


def _experts(c: Config, hidden: Quantity) -> MoE:
    experts = c.int("num_experts", "num_local_experts", symbol="E")
    width = c.int("moe_intermediate_size", symbol="F")
    shared = c.int("num_shared_experts", "n_shared_experts", default=1, symbol="shared")
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok", "num_experts_per_token"),
        F=width,
        Fs=(shared * width).named("Fs"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing(
            "sigmoid",
            selection_bias=True,
            **_groups(c, experts),
            group_score="top2_sum",
            renormalise=c.flag("norm_topk_prob", "moe_renormalize", default=True),
            scale=c.number("routed_scaling_factor", default=2.5),
        ),
        names=NAMES,
    )


def _mixers(c: Config, hidden: Quantity) -> dict[str, Block]:
    """Delta attention has as many heads as latent attention; head_dim is its heads' width."""
    heads = c.int("num_attention_heads", symbol="H")
    wide: dict[str, Any] = {"default": 128, "symbol": "dk"}
    delta = KimiDeltaAttention(
        D=hidden,
        H=heads,
        dk=c.int("linear_head_dim" if "linear_head_dim" in c else "head_dim", **wide),
        w=c.int("short_conv_kernel_size", "linear_conv_kernel_dim", default=4, symbol="w"),
        low_rank=False,
        decay_dims=("H",),
        output="dense",
        prefix="attention.",
    )
    c.ignore("head_dim")  # a file that names both means the rotated part by it
    c.expect("linear_num_heads", [heads.value], "all mixers have num_attention_heads heads")
    c.expect("num_key_value_heads", [heads.value], "all heads share one latent")
    latent = LatentAttention(
        D=hidden,
        H=heads,
        rq=None,
        rkv=c.int("kv_lora_rank", symbol="rkv"),
        dn=c.int("qk_nope_head_dim", symbol="dn"),
        dr=c.int("qk_rope_head_dim", symbol="dr"),
        dv=c.int("v_head_dim", symbol="dv"),
        bias=c.flag("attention_bias", default=False),
        own_gate="head",
        prefix="attention.",
        names=LatentNames(o="dense"),
    )
    c.expect("qk_head_dim", [latent.values["dn"] + latent.values["dr"]], "it is the parts' sum")
    return {LINEAR: delta, FULL: latent}


def bailing_hybrid(c: Config) -> ModelSpec:
    """Read a hybrid Ling config: the first layers dense, every sixth with latent attention."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    every = int(c.int("layer_group_size", default=6).value)
    words = {"linear_attention": LINEAR, "full_attention": FULL}
    spaced = [LINEAR if (i + 1) % every else FULL for i in range(layers)]
    kinds = layer_types(c, layers, words, spaced)
    modules = c.int("num_nextn_predict_layers", "num_mtp_layers", default=1, least=0)
    if modules.value:
        c.note(f"the {modules.value} multi-token-prediction layers are not counted")
    c.ignore("kda_safe_gate", "kda_lower_bound", "mtp_loss_scaling_factor", "rope_interleave")
    sparse = sparse_words(c, layers, lambda: dense_first(c, layers, "first_k_dense_replace", 2))
    moe, mixers = _experts(c, hidden), _mixers(c, hidden)
    return layered(c, "bailing_hybrid", hidden, mixers, kinds, moe, sparse, embed=EMBED)
