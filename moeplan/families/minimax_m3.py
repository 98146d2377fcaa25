"""MiniMax-M3: block-sparse attention with an indexer, sigmoid routing, one shared expert."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import attention, layer_types, selection
from moeplan.families.reader import Config
from moeplan.families.stack import FULL, layered, sparse_words, text_part
from moeplan.model.attention import Attention
from moeplan.model.block_sparse_attention import BlockSparseAttention
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["minimax_m3_vl"]

SPARSE = "block-sparse attention"
NAMES = ExpertNames(
    router="block_sparse_moe.gate",
    experts="block_sparse_moe.experts.{e}.",
    gate="w1",
    up="w3",
    down="w2",
    shared="block_sparse_moe.shared_experts.",
    shared_names=("gate_proj", "up_proj", "down_proj"),
    selection_bias="block_sparse_moe.e_score_correction_bias",
)
LEGACY = {
    "index_n_heads": ("sparse_num_index_heads", 4, "Hi"),
    "index_head_dim": ("sparse_index_dim", 128, "di"),
    "index_block_size": ("sparse_block_size", 128, "bi"),
    "index_topk_blocks": ("sparse_topk_blocks", 16, "kb"),
}


def _marks(c: Config, key: str, layers: int) -> list[bool] | None:
    """A 0 or 1 for each layer."""
    marks = c.list(key, length=layers, default=None)
    if marks is not None and any(mark not in (0, 1) for mark in marks):
        raise c.fail(key, "needs a 0 or 1 for each layer")
    return None if marks is None else [mark == 1 for mark in marks]


def _kinds(c: Config, own: Config | None, layers: int) -> list[str]:
    """layer_types, or the marks of sparse_attention_config, or full attention everywhere."""
    words = {"full_attention": FULL, "minimax_m3_sparse": SPARSE}
    marks = None if own is None else _marks(own, "sparse_attention_freq", layers)
    default = [SPARSE if here else FULL for here in marks or [False] * layers]
    return layer_types(c, layers, words, default)


def _sparse(c: Config, own: Config | None, full: Attention) -> BlockSparseAttention:
    sizes: dict[str, Any] = {}
    for key, (legacy, default, symbol) in LEGACY.items():
        if own is not None and legacy in own:
            sizes[symbol] = own.int(legacy, symbol=symbol)
            c.ignore(key)
        else:
            sizes[symbol] = c.int(key, default=default, symbol=symbol)
    return BlockSparseAttention(
        D=full.D,
        H=full.H,
        G=full.G,
        dh=full.dh,
        dv=full.dv,
        dr=full.dr,
        qk_norm=full.qk_norm,
        **sizes,
    )


def _experts(c: Config, hidden: Quantity) -> MoE:
    experts = c.int("num_local_experts", "num_experts", symbol="E")
    c.expect("scoring_func", ["sigmoid"], "this family scores with a sigmoid")
    c.expect("use_routing_bias", [True], "this family selects experts with a bias")
    c.expect("n_shared_experts", [1], "this family has one shared expert")
    c.ignore("swiglu_alpha", "swiglu_limit")
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("intermediate_size", symbol="F"),
        Fs=c.int("shared_intermediate_size", default=3072, symbol="Fs"),
        activation=c.choice("hidden_act", allowed=("silu", "swigluoai"), default="silu"),
        routing=Routing(
            "sigmoid",
            selection_bias=True,
            renormalise=True,
            scale=c.number("routed_scaling_factor", default=2.0),
        ),
        names=NAMES,
    )


def _text(c: Config, name: str, at: str, **how: Any) -> ModelSpec:
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    own = c.sub("sparse_attention_config", required=False)
    if own is not None:
        own.ignore("sparse_local_block", "sparse_init_block", "use_sparse_attention")
        own.ignore("sparse_score_type", "sparse_disable_index_value")
    c.ignore("index_local_blocks", "use_gemma_norm", "router_jitter_noise")
    c.expect("use_qk_norm", [True], "this family normalises queries and keys")
    c.expect("qk_norm_type", ["per_head"], "each head's queries and keys are normalised")
    c.expect("attention_output_gate", [False], "output gates are not described")
    if c.optional("num_mtp_modules") is not None:
        c.note("the multi-token-prediction modules that the file names are not counted")
    c.ignore("num_nextn_predict_layers")
    turned = c.int("rotary_dim", default=64, symbol="dr")
    full = attention(c, hidden, grouped=True, head_dim=128, qk_norm="head", dr=turned)
    kinds = _kinds(c, own, layers)
    mixers: dict[str, Block] = {FULL: full}
    if SPARSE in kinds:
        mixers[SPARSE] = _sparse(c, own, full)
    c.ignore(*LEGACY)
    marks = _marks(c, "moe_layer_freq", layers)
    sparse = sparse_words(c, layers, [True] * layers if marks is None else marks)
    dense = None
    if not all(sparse):
        wide = c.int("dense_intermediate_size", default=12288, symbol="F")
        dense = DenseFFN(D=hidden, F=wide)
    c.ignore("dense_intermediate_size", "projector_hidden_size")
    how = {"text": f"{at}model.", "head": f"{at}lm_head", **how}
    moe = _experts(c, hidden)
    return layered(c, name, hidden, mixers, kinds, moe, sparse, dense=dense, **how)


def minimax_m3_vl(c: Config) -> ModelSpec:
    """Read a MiniMax-M3 config: the text part; the vision tower is not counted."""
    text, how = text_part(
        c, ["minimax_m3_vl_text", "minimax_m2"], vision_config="vision tower and projector"
    )
    c.ignore("projector_hidden_size", "merged_hidden_size", "img_token_compression_config")
    c.ignore("image_seq_length", "image_grid_pinpoints", "process_image_mode")
    c.ignore("vision_feature_layer", "vision_feature_select_strategy", "multimodal_projector_bias")
    c.ignore("projector_hidden_act")
    return _text(text, "minimax_m3_vl", "language_model.", **how)
