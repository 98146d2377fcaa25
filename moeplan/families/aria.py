"""Aria (arXiv 2410.05993): stacked experts beside shared ones, in a vision-language model."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import attention, selection
from moeplan.families.reader import Config
from moeplan.families.stack import FULL, layered, text_part
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.spec import ModelSpec

__all__ = ["aria", "aria_text"]

NAMES = ExpertNames(
    router="mlp.router",
    experts="mlp.experts.",
    gate_up="fc1",
    down="fc2",
    shared_names=("gate_proj", "up_proj", "down_proj"),
)


def _text(c: Config, name: str, at: str, **how: Any) -> ModelSpec:
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    experts = c.int("moe_num_experts", symbol="E")
    width = c.int("intermediate_size", "moe_intermediate_size", symbol="F")
    shared = c.int("moe_num_shared_experts", default=2, symbol="shared")
    c.expect("mlp_bias", [False], "biases of the shared experts are not described")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "moe_topk"),
        F=width,
        Fs=(shared * width).named("Fs"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax_topk", renormalise=True),
        stacked=True,
        transposed=True,
        names=NAMES,
    )
    bias = c.flag("attention_bias", default=False)
    mixer = attention(c, hidden, qkv_bias=bias, o_bias=bias)
    kinds, sparse = [FULL] * layers, [True] * layers
    how = {"text": f"{at}model.", "head": f"{at}lm_head", **how}
    return layered(c, name, hidden, {FULL: mixer}, kinds, moe, sparse, **how)


def aria_text(c: Config) -> ModelSpec:
    """Read the text part of Aria as a model of its own."""
    return _text(c, "aria_text", "")


def aria(c: Config) -> ModelSpec:
    """Read an Aria config: the text part; the vision tower and its projector are not counted."""
    c.ignore("vision_feature_layer", "projector_patch_to_query_dict", "ignore_index")
    c.ignore("max_value_projector_patch_to_query_dict", "image_token_index")
    words = ("aria_text", "aria_moe_lm")
    text, how = text_part(c, words, vision_config="vision tower and projector")
    return _text(text, "aria", "language_model.", **how)
