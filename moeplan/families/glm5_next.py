"""GLM-5-Next: delta attention, every fourth layer sparse by pools of tokens, hyper-connections."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import layer_types
from moeplan.families.deepseek import layer_kinds, routed_experts, sigmoid_routing
from moeplan.families.deepseek_sparse import FULL as INDEXES
from moeplan.families.deepseek_sparse import indexer_kinds
from moeplan.families.reader import Config
from moeplan.families.stack import Layer, layered, text_part
from moeplan.model.basic import Norm
from moeplan.model.kimi_delta_attention import KimiDeltaAttention
from moeplan.model.ops import Block
from moeplan.model.residual import HyperCollapse, HyperExpand
from moeplan.model.sparse_variants import PooledSparseAttention
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["glm5_next"]

LINEAR = "Kimi delta attention"
PICKS, SHARED = "pooled sparse attention", "pooled sparse attention (shared picks)"


def _layer(streams: Quantity) -> Layer:
    """Each sub-layer reads one stream collapsed from all, and writes to all."""

    def layer(hidden: Quantity, mixer: Block, ffn: Block) -> tuple[Block, ...]:
        return (
            HyperCollapse(hidden, streams, "hc_attn"),
            Norm(hidden, "input_layernorm"),
            mixer,
            HyperExpand(hidden, streams),
            HyperCollapse(hidden, streams, "hc_ffn"),
            Norm(hidden, "post_attention_layernorm"),
            ffn,
            HyperExpand(hidden, streams),
        )

    return layer


def _delta(c: Config, hidden: Quantity) -> KimiDeltaAttention:
    """Delta attention, from `linear_attn_config` or from keys of the text part."""
    own = c.sub("linear_attn_config", required=False)
    keys = {
        "H": ("num_heads", "linear_num_heads", 64),
        "dk": ("head_dim", "linear_head_dim", 128),
        "w": ("short_conv_kernel_size", "linear_conv_kernel_dim", 4),
    }
    sizes: dict[str, Any] = {}
    for symbol, (inner, outer, default) in keys.items():
        if own is not None and inner in own:
            sizes[symbol] = own.int(inner, symbol=symbol)
            c.ignore(outer)
        else:
            sizes[symbol] = c.int(outer, default=default, symbol=symbol)
    if own is not None:
        own.ignore("gate_lower_bound", "safe_gate", "kda_layers", "full_attn_layers")
    c.ignore("linear_lower_bound")
    return KimiDeltaAttention(D=hidden, decay_dims=("H",), **sizes)


def _sparse(c: Config, hidden: Quantity, *, indexes: bool) -> PooledSparseAttention:
    nope = c.int("qk_nope_head_dim", symbol="dn")
    rope = c.int("qk_rope_head_dim", default=0, symbol="dr", least=0, most=0)
    c.expect("qk_head_dim", [nope.value + rope.value], "it is the sum of its parts")
    return PooledSparseAttention(
        D=hidden,
        H=c.int("num_attention_heads", symbol="H"),
        rq=c.int("q_lora_rank", symbol="rq"),
        rkv=c.int("kv_lora_rank", symbol="rkv"),
        dn=nope,
        dr=rope,
        dv=c.int("v_head_dim", symbol="dv"),
        Hi=c.int("index_n_heads", symbol="Hi"),
        di=c.int("index_head_dim", symbol="di"),
        ki=c.int("index_topk", symbol="ki"),
        p=c.int("index_kpool", default=16, symbol="p"),
        bias=c.flag("attention_bias", default=False),
        rope=False,
        indexes=indexes,
    )


def _kinds(c: Config, layers: int) -> list[str]:
    """Three delta layers to one sparse layer, which may take the picks of an earlier one."""
    words = {"linear_attention": LINEAR, "indexed_attention": PICKS, "full_attention": PICKS}
    kinds = layer_types(c, layers, words, [LINEAR if i % 4 != 3 else PICKS for i in range(layers)])
    picks = indexer_kinds(c, layers)
    return [
        SHARED if kind == PICKS and own != INDEXES else kind
        for kind, own in zip(kinds, picks, strict=True)
    ]


def glm5_next(c: Config) -> ModelSpec:
    """Read a GLM-5-Next config: the text part; the vision tower is not counted.

    Streams become one at the end by their mean, which has no weights.
    """
    text, how = text_part(c, ["glm5_next_text"], vision_config="vision tower")
    hidden = text.int("hidden_size", symbol="D")
    layers = int(text.int("num_hidden_layers", symbol="L").value)
    streams = text.int("hc_mult", default=4, symbol="hc")
    text.expect("index_kpool_always_select_tail", [True], "the open pool is always attended to")
    text.expect("num_nextn_predict_layers", [0], "multi-token prediction is not described here")
    text.ignore("hc_sinkhorn_iters", "swiglu_limit", "head_dim", "num_key_value_heads")
    text.ignore("rope_interleave", "indexer_rope_interleave")
    kinds = _kinds(text, layers)
    mixers: dict[str, Block] = {LINEAR: _delta(text, hidden)}
    for kind in (PICKS, SHARED):
        if kind in kinds:
            mixers[kind] = _sparse(text, hidden, indexes=kind == PICKS)
    moe = routed_experts(text, sigmoid_routing(text, groups=(1, 1), scale=2.5), shared=1)
    sparse = ["moe" in kind for kind in layer_kinds(text, layers, dense=3, typed=True)]
    return layered(
        text,
        "glm5_next",
        hidden,
        mixers,
        kinds,
        moe,
        sparse,
        layer=_layer(streams),
        text="model.language_model.",
        **how,
    )
