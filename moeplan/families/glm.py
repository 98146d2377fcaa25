"""GLM-4.5 and 4.6 (arXiv 2508.06471): grouped-query attention with DeepSeek-V3's experts."""

from __future__ import annotations

from moeplan.families.common import attention
from moeplan.families.deepseek import moe_model, routed_experts, sigmoid_routing
from moeplan.families.reader import Config
from moeplan.model.spec import ModelSpec

__all__ = ["glm4_moe"]


def glm4_moe(c: Config) -> ModelSpec:
    """Read a GLM-4.5 or GLM-4.6 config; only q, k and v have biases."""
    mixer = attention(
        c,
        c.int("hidden_size", symbol="D"),
        qkv_bias=c.flag("attention_bias", default=False),
        qk_norm="head" if c.flag("use_qk_norm", default=False) else "none",
    )
    routing = sigmoid_routing(c, groups=(1, 1), scale=1.0)
    return moe_model(c, "glm4_moe", mixer, routed_experts(c, routing, shared=1), dense=1, mtp=1)
