"""Qwen3-Next and Qwen3.5-MoE: three gated delta rule layers to one of gated full attention."""

from __future__ import annotations

from typing import Any, Literal

from moeplan.families.common import (
    attention,
    decoder,
    layer_groups,
    layer_types,
    pre_norm,
    rotated,
)
from moeplan.families.mtp import mtp_stack, released_modules
from moeplan.families.qwen import shared_expert_moe, sparse_layers
from moeplan.families.reader import Config
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE
from moeplan.model.linear_attention import GatedDeltaNet
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity

__all__ = ["STACKED", "delta_net", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next"]

LINEAR, FULL = "linear attention", "full attention"
TEXT = "model.language_model."
EMBED = f"{TEXT}embed_tokens.weight"
STACKED = ExpertNames(
    experts="mlp.experts.",
    gate_up="gate_up_proj",
    suffix="",
    shared="mlp.shared_expert.",
)


def delta_net(c: Config, hidden: Quantity, layout: Literal["paired", "split"]) -> GatedDeltaNet:
    """The gated delta rule from Qwen3-Next's keys; layout: of the checkpoint's projections."""
    keys = c.int("linear_num_key_heads", default=16, symbol="Hk")
    values = c.int("linear_num_value_heads", default=32, symbol="Hv")
    if values.value % keys.value:
        raise c.fail(
            "linear_num_key_heads",
            f"is {keys.value}: it must divide linear_num_value_heads ({values.value})",
        )
    return GatedDeltaNet(
        D=hidden,
        Hk=keys,
        Hv=values,
        dk=c.int("linear_key_head_dim", default=128, symbol="dk"),
        dv=c.int("linear_value_head_dim", default=128, symbol="dv"),
        w=c.int("linear_conv_kernel_dim", default=4, symbol="w"),
        layout=layout,
    )


def _mixer_kinds(c: Config, layers: int) -> list[str]:
    """The mixer of each layer; layer_types and full_attention_interval must agree."""
    every = int(c.int("full_attention_interval", default=4).value)
    spaced = [FULL if (i + 1) % every == 0 else LINEAR for i in range(layers)]
    words = {"linear_attention": LINEAR, "full_attention": FULL}
    kinds = layer_types(c, layers, words, spaced)
    if "full_attention_interval" in c and kinds != spaced:
        raise c.fail("full_attention_interval", f"is {every}, which layer_types contradicts")
    return kinds


def _mixers(c: Config, hidden: Quantity, layout: Literal["paired", "split"]) -> dict[str, Block]:
    bias = c.flag("attention_bias", default=False)
    c.expect("attn_output_gate", [True], "this family's attention has an output gate")
    full = attention(
        c,
        hidden,
        grouped=True,
        head_dim=256,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="head",
        gate=True,
    )
    full = rotated(c, full, 0.25)
    return {FULL: full, LINEAR: delta_net(c, hidden, layout)}


def qwen3_next(c: Config) -> ModelSpec:
    """Read a Qwen3-Next config; the released checkpoints' MTP module is in no file's keys."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    count = int(layers.value)
    c.expect("use_sliding_window", [False], "this family has no sliding windows")
    mixers = _mixers(c, hidden, "paired")
    renormalise = c.flag("norm_topk_prob", default=True)
    moe = shared_expert_moe(c, hidden, renormalise=renormalise)
    sparse = sparse_layers(c, count)
    ffns: dict[str, Block] = {"moe": moe}
    if not all(sparse):
        ffns["dense"] = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"))
    c.ignore("intermediate_size")

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return pre_norm(hidden, mixers[kind[0]], ffns[kind[1]])

    mixer_kinds = _mixer_kinds(c, count)
    kinds = [(m, "moe" if s else "dense") for m, s in zip(mixer_kinds, sparse, strict=True)]
    modules = released_modules(c, 1)
    mtp = mtp_stack(c, hidden, build((FULL, "moe")), modules)
    groups = layer_groups(kinds, build, count=layers)
    return decoder(c, hidden, groups, name="qwen3_next", mtp=mtp)


def _qwen3_5(c: Config, outer: Config, **how: Any) -> ModelSpec:
    """The text model; alone or in a wrapper, checkpoints keep it under model.language_model."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    c.expect("mlp_only_layers", [[]], "every layer of this family holds experts")
    c.expect("decoder_sparse_step", [1], "every layer of this family holds experts")
    c.expect("norm_topk_prob", [True], "this family's chosen weights sum to one")
    c.expect("mamba_ssm_dtype", ["float32"], "the recurrent state is described in fp32")
    c.expect(
        "mtp_use_dedicated_embeddings", [False], "MTP embeddings of their own are not described"
    )
    c.ignore("intermediate_size")
    mixers = _mixers(c, hidden, "split")
    moe = shared_expert_moe(c, hidden, renormalise=True, names=STACKED, stacked=True)

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return pre_norm(hidden, mixers[kind[0]], moe)

    kinds = [(kind, "moe") for kind in _mixer_kinds(c, int(layers.value))]
    modules = c.optional("mtp_num_hidden_layers", symbol="modules")
    mtp: list[Group] = []
    if modules is not None:
        single: MoE = shared_expert_moe(c, hidden, renormalise=True)  # not stacked in MTP layers
        tied = any(x.flag("tie_word_embeddings", default=False) for x in (c, outer))
        layer = pre_norm(hidden, mixers[FULL], single)
        mtp = mtp_stack(c, hidden, layer, modules, embedding=EMBED, tied=tied)
    return decoder(
        c,
        hidden,
        layer_groups(kinds, build, prefix=f"{TEXT}layers.{{i}}.", count=layers),
        embed=EMBED,
        norm=f"{TEXT}norm",
        mtp=mtp,
        wrapper=outer,
        **how,
    )


def qwen3_5_moe_text(c: Config) -> ModelSpec:
    """Read the text part of Qwen3.5-MoE as a model of its own."""
    return _qwen3_5(c, c, name="qwen3_5_moe_text")


def qwen3_5_moe(c: Config) -> ModelSpec:
    """Read a Qwen3.5-MoE config: the text part; the vision tower is not counted."""
    text = c.sub("text_config")
    assert text is not None
    text.expect("model_type", ["qwen3_5_moe_text"], "the text part is of another family")
    c.ignore("vision_config")
    return _qwen3_5(
        text,
        c,
        name="qwen3_5_moe",
        not_counted=("vision tower (vision_config)",),
    )
