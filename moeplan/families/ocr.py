"""DeepSeek-OCR-2 and Unlimited-OCR: DeepSeekMoE's decoder behind an image encoder."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import attention, layer_types, selection
from moeplan.families.deepseek import expert_groups, layer_kinds
from moeplan.families.reader import Config
from moeplan.families.stack import FULL, layered, text_part
from moeplan.model.ffn import MoE, Routing
from moeplan.model.spec import ModelSpec

__all__ = ["deepseek_ocr2", "unlimited_ocr"]

TEXT = "model.language_model."


def _text(c: Config, name: str, **how: Any) -> ModelSpec:
    """Multi-head attention, softmax scores, shared experts, one dense layer."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    experts = c.int("n_routed_experts", "num_local_experts", symbol="E")
    width = c.int("moe_intermediate_size", symbol="F")
    shared = c.int("n_shared_experts", default=2, symbol="shared")
    method = c.choice("topk_method", allowed=("greedy", "group_limited_greedy"), default="greedy")
    groups = expert_groups(c) if method == "group_limited_greedy" else {}
    c.ignore("n_group", "topk_group")
    c.expect("mlp_bias", [False], "feed-forward biases are not described")
    c.expect("norm_topk_prob", [False], "this family's weights keep their scores")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=width,
        Fs=(shared * width).named("Fs"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax", **groups, scale=c.number("routed_scaling_factor", default=1.0)),
    )
    bias = c.flag("attention_bias", default=False)
    mixer = attention(c, hidden, qkv_bias=bias, o_bias=bias)
    sparse = ["moe" in kind for kind in layer_kinds(c, layers, dense=1, typed=True)]
    how = {"text": TEXT, **how}
    return layered(c, name, hidden, {FULL: mixer}, [FULL] * layers, moe, sparse, **how)


def deepseek_ocr2(c: Config) -> ModelSpec:
    """Read a DeepSeek-OCR-2 config: the text part; the image encoders are not counted."""
    text, how = text_part(c, ["deepseek_ocr2_text"], vision_config="image encoders and projector")
    return _text(text, "deepseek_ocr2", **how)


def unlimited_ocr(c: Config) -> ModelSpec:
    """Read an Unlimited-OCR config: the text part; the image encoders are not counted.

    A generated token sees the whole prompt and a window of what was generated; the window is left
    out, so attention and cache are upper bounds for long outputs.
    """
    text, how = text_part(c, ["unlimited_ocr_text"], vision_config="image encoders and projector")
    layers = int(text.int("num_hidden_layers", symbol="L").value)
    words = {"reference_sliding_attention": FULL, "full_attention": FULL}
    layer_types(text, layers, words, [FULL] * layers)
    text.ignore("sliding_window")
    text.note("the window over generated tokens is left out: attention is an upper bound")
    return _text(text, "unlimited_ocr", **how)
