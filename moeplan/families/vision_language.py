"""Vision-language models whose text part is a known kind: Qwen3-VL, Qwen3-Omni, GLM-4.5V, Mistral.

Their vision and audio towers are not counted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moeplan.families.common import attention, rotated, selection
from moeplan.families.deepseek import (
    expert_groups,
    latent_attention,
    layer_kinds,
    routed_experts,
    sigmoid_routing,
)
from moeplan.families.qwen import sparse_layers
from moeplan.families.reader import Config
from moeplan.families.stack import FULL, layered, text_part
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.spec import ModelSpec

__all__ = [
    "glm4v_moe",
    "mistral3",
    "mistral4",
    "qwen3_omni_moe",
    "qwen3_omni_moe_thinker",
    "qwen3_vl_moe",
]

STACKED = ExpertNames(experts="mlp.experts.", gate_up="gate_up_proj", suffix="")
TEXT = "model.language_model."


def _qwen3(c: Config, name: str, names: ExpertNames, **how: Any) -> ModelSpec:
    """Qwen3's experts and attention; chosen weights sum to one unless the file says otherwise."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    experts = c.int("num_experts", "num_local_experts", symbol="E")
    stacked = names is STACKED
    c.expect("use_sliding_window", [False], "windows are not described here")
    c.expect("shared_expert_intermediate_size", [0], "this family has no shared expert")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("moe_intermediate_size", symbol="F"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax", renormalise=c.flag("norm_topk_prob", default=True)),
        stacked=stacked,
        transposed=stacked,
        names=names,
    )
    bias = c.flag("attention_bias", default=False)
    mixer = attention(c, hidden, grouped=True, qkv_bias=bias, o_bias=bias, qk_norm="head")
    c.ignore("sliding_window", "max_window_layers", "use_qk_norm")
    return layered(
        c, name, hidden, {FULL: mixer}, [FULL] * layers, moe, sparse_layers(c, layers), **how
    )


def qwen3_vl_moe(c: Config) -> ModelSpec:
    """Read a Qwen3-VL-MoE config; released experts are stacked, [in, out]."""
    text, how = text_part(c, ["qwen3_vl_moe_text"], vision_config="vision tower")
    return _qwen3(text, "qwen3_vl_moe", STACKED, text=TEXT, **how)


def _thinker(c: Config, thinker: Config, name: str) -> ModelSpec:
    towers = {"vision_config": "vision tower", "audio_config": "audio tower"}
    text, how = text_part(thinker, ["qwen3_omni_moe_text"], **towers)
    thinker.ignore("position_id_per_seconds", "seconds_per_chunk")
    thinker.expect("model_type", ["qwen3_omni_moe_thinker"], "the thinker is of another family")
    left = list(how["not_counted"])
    for key, what in (("talker_config", "talker"), ("code2wav_config", "waveform decoder")):
        if key in c:
            left.append(f"{what} ({key})")
        c.ignore(key)
    how |= {"wrapper": c, "not_counted": tuple(left), "head": "thinker.lm_head"}
    return _qwen3(text, name, ExpertNames(), text="thinker.model.", **how)


def qwen3_omni_moe_thinker(c: Config) -> ModelSpec:
    """Read the thinker of Qwen3-Omni as a model of its own."""
    return _thinker(c, c, "qwen3_omni_moe_thinker")


def qwen3_omni_moe(c: Config) -> ModelSpec:
    """Read a Qwen3-Omni config: the thinker's text part; talker and towers are not counted."""
    thinker = c.sub("thinker_config")
    assert thinker is not None
    c.ignore("enable_audio_output")
    return _thinker(c, thinker, "qwen3_omni_moe")


def glm4v_moe(c: Config) -> ModelSpec:
    """Read a GLM-4.5V or GLM-4.6V config: GLM-4.5's text part; only q, k and v have biases."""
    text, how = text_part(c, ["glm4v_moe_text"], vision_config="vision tower")
    hidden = text.int("hidden_size", symbol="D")
    layers = int(text.int("num_hidden_layers", symbol="L").value)
    text.expect("use_qk_norm", [False], "this family does not normalise queries and keys")
    text.expect("num_nextn_predict_layers", [0], "this family has no multi-token prediction")
    routing = sigmoid_routing(text, groups=(1, 1), scale=1.0)
    bias = text.flag("attention_bias", default=True)
    mixer = rotated(text, attention(text, hidden, grouped=True, qkv_bias=bias), 0.5)
    sparse = ["moe" in kind for kind in layer_kinds(text, layers, dense=1)]
    moe = routed_experts(text, routing, shared=1)
    return layered(
        text, "glm4v_moe", hidden, {FULL: mixer}, [FULL] * layers, moe, sparse, text=TEXT, **how
    )


def _mistral4(c: Config, name: str, **how: Any) -> ModelSpec:
    """Multi-latent attention, softmax-routed experts, stacked."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    direct = "q_lora_rank" not in c.data
    mixer = latent_attention(c, LatentAttention)
    if direct:  # this class's default, not DeepSeek's
        mixer = replace(mixer, rq=c.int("q_lora_rank", default=1024, symbol="rq"))
    c.ignore("rope_interleave")
    routing = Routing(
        "softmax",
        **expert_groups(c),
        group_score="top2_sum",
        renormalise=c.flag("norm_topk_prob", default=True),
        scale=c.number("routed_scaling_factor", default=1.0),
    )
    moe = replace(routed_experts(c, routing, shared=1), stacked=True, names=STACKED)
    sparse = ["moe" in kind for kind in layer_kinds(c, layers, dense=0)]
    return layered(c, name, hidden, {FULL: mixer}, [FULL] * layers, moe, sparse, **how)


def mistral4(c: Config) -> ModelSpec:
    """Read the text part of Mistral Small 4 as a model of its own."""
    return _mistral4(c, "mistral4")


def mistral3(c: Config) -> ModelSpec:
    """Read a Mistral config with a vision tower; its text part must have experts (mistral4)."""
    text, how = text_part(c, ["mistral4"], vision_config="vision tower and projector")
    c.ignore("image_token_index", "multimodal_projector_bias", "projector_hidden_act")
    c.ignore("spatial_merge_size", "vision_feature_layer")
    at = "language_model."
    return _mistral4(text, "mistral3", text=f"{at}model.", head=f"{at}lm_head", **how)
