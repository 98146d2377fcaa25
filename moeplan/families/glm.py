"""GLM-4.5 to 4.7 (arXiv 2508.06471): DeepSeek-V3's experts behind grouped-query attention.

The small GLM-4.7-Flash has multi-latent attention instead.
"""

from __future__ import annotations

from moeplan.families.common import attention, rotated
from moeplan.families.deepseek import latent_attention, moe_model, routed_experts, sigmoid_routing
from moeplan.families.reader import Config
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.spec import ModelSpec

__all__ = ["glm4_moe", "glm4_moe_lite"]


def glm4_moe(c: Config) -> ModelSpec:
    """Read a GLM-4.5 or GLM-4.6 config; only q, k and v have biases."""
    mixer = attention(
        c,
        c.int("hidden_size", symbol="D"),
        grouped=True,
        qkv_bias=c.flag("attention_bias", default=False),
        qk_norm="head" if c.flag("use_qk_norm", default=False) else "none",
    )
    mixer = rotated(c, mixer, 0.5)
    routing = sigmoid_routing(c, groups=(1, 1), scale=1.0)
    return moe_model(c, "glm4_moe", mixer, routed_experts(c, routing, shared=1), dense=1, mtp=1)


def glm4_moe_lite(c: Config) -> ModelSpec:
    """Read a GLM-4.7-Flash config: multi-latent attention, one dense layer."""
    c.ignore("rope_interleave")
    routing = sigmoid_routing(c, groups=(1, 1), scale=1.8)
    moe = routed_experts(c, routing, shared=1)
    mixer = latent_attention(c, LatentAttention)
    return moe_model(c, "glm4_moe_lite", mixer, moe, dense=1, mtp=1, typed=True)
