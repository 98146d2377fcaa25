"""Cohere's Command with experts: attention and feed-forward side by side behind one norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeplan.families.common import attention, selection
from moeplan.families.reader import Config
from moeplan.families.stack import (
    FULL,
    WINDOW,
    dense_first,
    layered,
    scoped_attention,
    scopes,
    sparse_words,
)
from moeplan.model.basic import Norm, Residual
from moeplan.model.ffn import DenseFFN, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["cohere2_moe"]


def _parallel(hidden: Quantity, mixer: Block, ffn: Block) -> tuple[Block, ...]:
    """Both branches read the same normalised state; their outputs are added to the stream."""
    return (
        Norm(hidden, "input_layernorm"),
        mixer,
        ffn,
        Residual(hidden, "attention"),
        Residual(hidden, "routed_experts" if isinstance(ffn, MoE) else "dense_ffn"),
    )


def _experts(c: Config, hidden: Quantity) -> MoE:
    experts = c.int("num_experts", symbol="E")
    width = c.int("intermediate_size", symbol="F")
    shared = c.int("num_shared_experts", default=0, least=0, symbol="shared")
    score = c.choice("expert_selection_fn", allowed=("softmax", "sigmoid"), default="softmax")
    renormalise = c.flag("norm_topk_prob", default=True)
    c.ignore("shared_expert_combination_strategy", "logit_scale")
    softmax = score == "softmax"
    routing = Routing("softmax_topk" if softmax else "sigmoid", renormalise=softmax or renormalise)
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=width,
        Fs=(shared * width).named("Fs") if shared.value else None,
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=routing,
    )


def _scopes(c: Config, layers: int) -> list[str]:
    """Three windows to one full layer; a dense prefix has a pattern of its own."""
    first = int(c.int("first_k_dense_replace", default=0, least=0, most=layers).value)
    before = int(c.int("prefix_dense_sliding_window_pattern", default=1).value)
    every = int(c.int("sliding_window_pattern", default=4).value)

    def full(i: int) -> bool:
        return (i + 1) % before == 0 if i < first else (i - first + 1) % every == 0

    return scopes(c, layers, full=full)


TURNED = "full attention, rotated"


def _mixers(c: Config, hidden: Quantity, kinds: Sequence[str]) -> dict[str, Block]:
    bias = c.flag("attention_bias", default=False)
    how: dict[str, Any] = {"head_dim": 128, "qkv_bias": bias, "o_bias": bias}
    mixers = scoped_attention(c, hidden, kinds, window=4096, turned=(WINDOW,), **how)
    mixers[TURNED] = attention(c, hidden, **how)
    return mixers


def cohere2_moe(c: Config) -> ModelSpec:
    """Read a Cohere2-MoE config; windowed layers rotate, and dense ones may."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    kinds = _scopes(c, layers)
    sparse = sparse_words(c, layers, lambda: dense_first(c, layers, "first_k_dense_replace", 0))
    mixers = _mixers(c, hidden, kinds)
    if c.int("prefix_dense_sliding_window_pattern", default=1).value == 1:
        kinds = [
            TURNED if kind == FULL and not moe else kind
            for kind, moe in zip(kinds, sparse, strict=True)
        ]
    moe, dense = _experts(c, hidden), None
    if not all(sparse):
        wide = c.int("prefix_dense_intermediate_size", default=moe.F, symbol="F")
        dense = DenseFFN(D=hidden, F=wide)
    c.ignore("prefix_dense_intermediate_size")
    return layered(
        c,
        "cohere2_moe",
        hidden,
        mixers,
        kinds,
        moe,
        sparse,
        layer=_parallel,
        dense=dense,
        tied_default=True,
    )
