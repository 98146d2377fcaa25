"""Ling (Bailing MoE, arXiv 2503.05139) and Ling 2.0: fused projections, groups of experts.

Ring-linear 2.0 (arXiv 2510.19338) has lightning attention in all but every few layers.
"""

from __future__ import annotations

from dataclasses import replace

from moeplan.families.common import attention, decoder, layer_groups, pre_norm
from moeplan.families.deepseek import expert_groups, layer_kinds, routed_experts
from moeplan.families.mtp import mtp_modules
from moeplan.families.reader import Config
from moeplan.model.ffn import DenseFFN, ExpertNames, Routing
from moeplan.model.lightning_attention import LightningAttention
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec

__all__ = ["bailing_moe", "bailing_moe_linear", "bailing_moe_v2"]

LINEAR = "lightning attention"
EMBED = "model.word_embeddings.weight"
NAMES = ExpertNames(selection_bias="mlp.gate.expert_bias")
NORMS = ("query_layernorm", "key_layernorm")


def _read(
    c: Config, routing: Routing, *, name: str, norms: bool, linear_every: int = 0
) -> ModelSpec:
    """The model; `linear_every`: only each so many-th layer has full attention (0: all have)."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    activation = c.choice("hidden_act", allowed=("silu",), default="silu")
    c.ignore("norm_head", "norm_softmax")  # the head's rows are normalised as they are used
    c.expect("use_rmsnorm", [True], "this family has RMS norms")
    c.ignore("embedding_dropout", "multi_gate", "moe_router_topk_scaling_factor", "router_dtype")
    c.expect("multi_gate", [False], "several routers are not described")
    c.expect("use_sliding_window", [False], "windows are not described for this family")
    c.ignore("sliding_window", "max_window_layers")
    mixer = attention(
        c,
        hidden,
        qkv_bias=c.flag("use_qkv_bias", default=False),
        o_bias=c.flag("use_bias", default=False),
        qk_norm="head" if norms else "none",
        prefix="attention.",
        fused="query_key_value",
        names=("", "", "", "dense"),
        norm_names=NORMS,
    )
    moe = replace(routed_experts(c, routing, shared=None), names=NAMES)
    width = c.optional("moe_shared_expert_intermediate_size", symbol="Fs")
    if width is not None and moe.Fs is not None:
        moe = replace(moe, Fs=(c.int("num_shared_experts") * width).named("Fs"))
    dense = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"), activation=activation)

    mixers: dict[str, Block] = {"attention": mixer}
    if linear_every:
        mixers[LINEAR] = LightningAttention(
            D=hidden,
            H=mixer.H,
            dh=mixer.dh,
            prefix="attention.",
            names=("query_key_value", "g_proj", "g_norm", "dense"),
            norm_names=NORMS,
        )

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return pre_norm(hidden, mixers[kind[0]], moe if "moe" in kind else dense)

    modules = c.int("num_nextn_predict_layers", default=0, symbol="modules", least=0)
    full = _full(int(layers.value), linear_every)
    kinds = [
        ("attention" if here else LINEAR, *kind[1:])
        for here, kind in zip(full, layer_kinds(c, int(layers.value), dense=0), strict=True)
    ]
    return decoder(
        c,
        hidden,
        layer_groups(kinds, build, count=layers),
        name=name,
        embed=EMBED,
        mtp=mtp_modules(
            c,
            hidden,
            build(("attention", "moe")),
            layers,
            modules,
            embedding=EMBED,
            last="final_layernorm",
        ),
    )


def _full(layers: int, every: int) -> list[bool]:
    """Which layers have full attention: the last of each group, and those behind whole groups."""
    if not every:
        return [True] * layers
    return [(i + 1) % every == 0 or i >= layers // every * every for i in range(layers)]


def bailing_moe(c: Config) -> ModelSpec:
    """Read a Ling (1.0, 1.5) config: softmax scores, shared experts.

    Some files of Ling 2.0 have this model type and the class of their own.
    """
    if "BailingMoeV2ForCausalLM" in (c.data.get("architectures") or ()):
        return bailing_moe_v2(c)
    routing = Routing("softmax", renormalise=c.flag("norm_topk_prob", default=True))
    return _read(c, routing, name="bailing_moe", norms=c.flag("use_qk_norm", default=False))


def bailing_moe_v2(c: Config) -> ModelSpec:
    """Read a Ling 2.0 config: sigmoid scores with a selection bias, normalised queries and keys."""
    return _second(c, "bailing_moe_v2")


def bailing_moe_linear(c: Config) -> ModelSpec:
    """Read a Ring-linear 2.0 config: Ling 2.0 with lightning attention in most layers."""
    every = int(c.int("layer_group_size").value)
    c.expect("linear_silu", [False], "activated queries and keys are not described")
    c.expect("linear_rope", [True], "linear attention of this family is rotated")
    c.ignore("group_norm_size", "linear_mode", "mtp_loss_scaling_factor")
    return _second(c, "bailing_moe_linear", linear_every=every)


def _second(c: Config, name: str, *, linear_every: int = 0) -> ModelSpec:
    c.expect("score_function", ["sigmoid"], "this family scores with a sigmoid")
    c.expect("moe_router_enable_expert_bias", [True], "this family selects with a bias")
    c.expect("use_qk_norm", [True], "this family normalises queries and keys")
    routing = Routing(
        "sigmoid",
        selection_bias=True,
        **expert_groups(c),
        group_score="top2_sum",
        renormalise=c.flag("norm_topk_prob", default=True),
        scale=c.number("routed_scaling_factor", default=1.0),
    )
    return _read(c, routing, name=name, norms=True, linear_every=linear_every)
