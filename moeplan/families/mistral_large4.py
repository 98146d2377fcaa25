"""Mistral Large 4: latent attention over an indexer's picks, latents shared between layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moeplan.families.deepseek import expert_groups, layer_kinds, routed_experts
from moeplan.families.deepseek_sparse import FULL as INDEXES
from moeplan.families.deepseek_sparse import indexer_kinds
from moeplan.families.reader import Config, shown
from moeplan.families.stack import layered, text_part
from moeplan.model.basic import Norm, Residual, Table
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.latent_attention import LatentNames
from moeplan.model.ops import Block
from moeplan.model.sparse_variants import ScaledSparseAttention
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity

__all__ = ["mistral_large4"]

W123 = ("w1", "w3", "w2")
NAMES = ExpertNames(
    router="gate",
    experts="experts.{e}.",
    gate="w1",
    up="w3",
    down="w2",
    shared="shared_experts.",
)
LATENT = LatentNames(
    q="wq",
    kv_a="wkv_a_with_mqa",
    kv_a_norm="kv_a_norm",
    kv_b="wkv_b",
    o="wo",
    scaling=("ssmax_scaling.s", "ssmax_scaling.b"),
)


def _layer(hidden: Quantity, mixer: Block, ffn: Block) -> tuple[Block, ...]:
    return (
        Norm(hidden, "attention_norm"),
        mixer,
        Residual(hidden, "attention"),
        Norm(hidden, "ffn_norm"),
        ffn,
        Residual(hidden, "routed_experts" if isinstance(ffn, MoE) else "dense_ffn"),
    )


def _turned(c: Config, layers: int) -> list[bool]:
    """Which layers rotate: a 1 in no_rope_layers, or all but every fourth."""
    every = int(c.int("no_rope_layer_interval", default=4).value)
    marks = c.list("no_rope_layers", length=layers, default=None)
    if marks is None:
        return [(i + 1) % every != 0 for i in range(layers)]
    if any(mark not in (0, 1) for mark in marks):
        raise c.fail("no_rope_layers", "needs a 0 or 1 for each layer")
    return [mark == 1 for mark in marks]


def _shared(c: Config, layers: int) -> list[bool]:
    """Which layers read another layer's latents: those whose source is an earlier layer."""
    sources = c.list("kv_source_layers", length=layers, default=None)
    if sources is None:
        return [False] * layers
    places = (type(s) is int and 0 <= s <= i for i, s in enumerate(sources))
    if not all(places):
        raise c.fail("kv_source_layers", f"is {shown(sources)}: each layer's own or an earlier one")
    return [source != i for i, source in enumerate(sources)]


def _mixer(c: Config, hidden: Quantity, kind: Sequence[bool]) -> ScaledSparseAttention:
    """A layer's attention; without rotation the shared dimensions join those of each head."""
    turned, indexes, shares = kind
    nope = c.int("qk_nope_head_dim", symbol="dn")
    rope = c.int("qk_rope_head_dim", symbol="dr")
    c.expect("qk_head_dim", [nope.value + rope.value], "it is the sum of its parts")
    return ScaledSparseAttention(
        D=hidden,
        H=c.int("num_attention_heads", symbol="H"),
        rq=None,
        rkv=c.int("kv_lora_rank", symbol="rkv"),
        dn=nope if turned else (nope + rope).named("dn"),
        dr=rope if turned else 0,
        dv=c.int("v_head_dim", symbol="dv"),
        Hi=c.int("index_n_heads", symbol="Hi"),
        di=c.int("index_head_dim", symbol="di"),
        ki=c.int("index_topk", symbol="ki"),
        bias=c.flag("attention_bias", default=False),
        rope=turned,
        indexes=indexes,
        shares_kv=shares,
        scales_queries=True,
        prefix="attention.",
        names=LATENT,
    )


def _experts(c: Config) -> MoE:
    routing = Routing(
        "softmax",
        **expert_groups(c),
        group_score="top2_sum",
        renormalise=True,
        scale=c.number("routed_scaling_factor", default=1.0),
    )
    return replace(routed_experts(c, routing, shared=1), names=NAMES)


def mistral_large4(c: Config) -> ModelSpec:
    """Read a Mistral Large 4 config: the text part; the vision tower is not counted."""
    text, how = text_part(c, ["mistral_large4_text"], vision_config="vision tower and projector")
    c.ignore("image_token_index", "multimodal_projector_bias", "projector_hidden_act")
    c.ignore("spatial_merge_size", "vision_feature_layer")
    hidden = text.int("hidden_size", symbol="D")
    layers = int(text.int("num_hidden_layers", symbol="L").value)
    text.expect("layer_types", [["indexed_attention"] * layers], "every layer is sparse here")
    text.expect("num_nextn_predict_layers", [0], "multi-token prediction is not described here")
    text.expect("num_mtp_layers", [0], "multi-token prediction is not described here")
    text.ignore("head_dim", "num_key_value_heads", "rope_interleave", "indexer_rope_interleave")
    turned, shared = _turned(text, layers), _shared(text, layers)
    full = [kind == INDEXES for kind in indexer_kinds(text, layers)]
    kinds: list[str] = []
    mixers: dict[str, Block] = {}
    for kind in zip(turned, full, shared, strict=True):
        words = (
            "sparse attention",
            *(() if kind[0] else ("no rotation",)),
            *(() if kind[1] else ("shared picks",)),
            *(("shared latents",) if kind[2] else ()),
        )
        kinds.append(", ".join(words))
        mixers.setdefault(kinds[-1], _mixer(text, hidden, kind))
    sparse = ["moe" in kind for kind in layer_kinds(text, layers, dense=1, typed=True)]
    dense = None
    if not all(sparse):
        wide = text.int("intermediate_size", symbol="F")
        dense = DenseFFN(D=hidden, F=wide, prefix="feed_forward.", names=W123)
    rope = text.int("qk_rope_head_dim")
    scales = Table(N=(rope // 2).named("N"), name="lerope.alpha")
    return layered(
        text,
        "mistral_large4",
        hidden,
        mixers,
        kinds,
        _experts(text),
        sparse,
        layer=_layer,
        dense=dense,
        text="",
        embed="tok_embeddings.weight",
        head="output",
        last=[Group("rotation", (scales,))],
        **how,
    )
