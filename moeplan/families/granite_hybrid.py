"""Granite with shared experts: plain, Granite 4's Mamba hybrids, and windows with sinks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moeplan.families.common import attention, layer_types, selection
from moeplan.families.granitemoe import NAMES
from moeplan.families.reader import Config, shown
from moeplan.families.stack import FULL, WINDOW, layered, scoped_attention, scopes
from moeplan.model.attention import Attention
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.model.state_space import Mamba2
from moeplan.quantity import Quantity

__all__ = ["granitemoe_swa", "granitemoehybrid", "granitemoeshared"]

MAMBA, ATTENTION = "mamba", "attention"
SHARED = NAMES._replace(shared="shared_mlp.", shared_gate_up="input_linear")
STACKED = SHARED._replace(
    router="block_sparse_moe.router",
    experts="block_sparse_moe.experts.",
    gate_up="gate_up_proj",
    down="down_proj",
    suffix="",
    shared_names=("", "", "output_linear"),
)


def _experts(c: Config, hidden: Quantity, names: ExpertNames, *, shared: int) -> MoE:
    """The experts; `shared` is the class's default width of the shared expert (0: none)."""
    experts = c.int("num_local_experts", "num_experts", symbol="E")
    wide = c.int("shared_intermediate_size", default=shared, least=0, symbol="Fs")
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("intermediate_size", symbol="F"),
        Fs=wide if wide.value else None,
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax_topk", renormalise=True),
        stacked=True,
        names=names,
    )


def granitemoeshared(c: Config) -> ModelSpec:
    """Read a Granite MoE config with a shared expert."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    bias = c.flag("attention_bias", default=False)
    mixer = attention(c, hidden, qkv_bias=bias, o_bias=bias)
    moe = _experts(c, hidden, SHARED, shared=0)
    kinds, sparse = [FULL] * layers, [True] * layers
    return layered(c, "granitemoeshared", hidden, {FULL: mixer}, kinds, moe, sparse)


def _mamba(c: Config, hidden: Quantity) -> Mamba2:
    heads = c.int("mamba_n_heads", default=128, symbol="Hm")
    inner = c.int("mamba_expand", default=2) * hidden
    _, given = c.raw("mamba_d_head", default="auto")
    width = (inner // heads).named("dm")
    if given != "auto":
        width = c.int("mamba_d_head", symbol="dm")
    if heads.value * width.value != inner.value:
        raise c.fail(
            "mamba_n_heads",
            f"is {heads.value}: heads of {width.value} do not make up {inner.value}, "
            "mamba_expand * hidden_size",
        )
    c.ignore("time_step_limit", "time_step_min", "time_step_max", "time_step_floor")
    return Mamba2(
        D=hidden,
        Hm=heads,
        dm=width,
        N=c.int("mamba_d_state", default=256, symbol="N"),
        G=c.int("mamba_n_groups", default=1, symbol="G"),
        w=c.int("mamba_d_conv", default=4, symbol="w"),
        chunk=c.int("mamba_chunk_size", default=256, symbol="chunk"),
        conv_bias=c.flag("mamba_conv_bias", default=True),
        bias=c.flag("mamba_proj_bias", default=False),
    )


def granitemoehybrid(c: Config) -> ModelSpec:
    """Read a Granite 4 config: Mamba-2 or attention in each layer, experts in all."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    if c.int("num_local_experts", least=0).value == 0:
        raise c.fail("num_local_experts", "is 0: Granite 4 without experts is not described")
    words = {
        "linear_attention": MAMBA,
        "mamba": MAMBA,
        "full_attention": ATTENTION,
        "attention": ATTENTION,
    }
    key, given = c.raw("layers_block_type", "layer_types", default=None)
    kinds = [MAMBA] * layers
    if key == "layers_block_type" and given is not None:
        if len(given) != layers or any(word not in words for word in given):
            raise c.fail(key, f"is {shown(given)}: {layers} words of {list(words)} are needed")
        kinds = [words[word] for word in given]
    elif given is not None:
        kinds = layer_types(c, layers, words, kinds)
    bias = c.flag("attention_bias", default=False)
    c.expect("normalization_function", ["rmsnorm"], "other norms are not described")
    turned = c.choice("position_embedding_type", allowed=("rope", "nope"), default="nope")
    mixers: dict[str, Block] = {MAMBA: _mamba(c, hidden)}
    if ATTENTION in kinds:
        rope = turned == "rope"
        mixers[ATTENTION] = attention(c, hidden, qkv_bias=bias, o_bias=bias, rope=rope)
    c.ignore("num_attention_heads", "num_key_value_heads")
    moe = _experts(c, hidden, SHARED, shared=1024)
    return layered(c, "granitemoehybrid", hidden, mixers, kinds, moe, [True] * layers)


def _unturned(c: Config, layers: int) -> Sequence[bool]:
    """Layers without positions: those whose entry in layer_rope_theta is 0 or null."""
    bases = c.list("layer_rope_theta", length=layers, default=None)
    return [False] * layers if bases is None else [not base for base in bases]


def granitemoe_swa(c: Config) -> ModelSpec:
    """Read a windowed Granite MoE config: sinks, three windows after each full layer."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    kinds = scopes(c, layers, full=lambda i: i % 4 == 0)
    bias = c.flag("attention_bias", default=False)
    mixers = scoped_attention(
        c,
        hidden,
        kinds,
        window=128,
        turned=(FULL, WINDOW),
        qkv_bias=bias,
        o_bias=bias,
        sinks=True,
    )
    still = _unturned(c, layers)
    for kind, mixer in list(mixers.items()):
        assert isinstance(mixer, Attention)
        mixers[f"{kind}, no rotation"] = replace(mixer, rope=False)
    kinds = [f"{kind}, no rotation" if at else kind for kind, at in zip(kinds, still, strict=True)]
    moe = _experts(c, hidden, STACKED, shared=0)
    return layered(c, "granitemoe_swa", hidden, mixers, kinds, moe, [True] * layers)
