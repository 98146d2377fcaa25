"""GLM-4.5 to 4.7 (arXiv 2508.06471): DeepSeek-V3's experts behind grouped-query attention.

The small GLM-4.7-Flash has multi-latent attention instead.
"""

from __future__ import annotations

from dataclasses import replace

from moeplan.families.common import attention
from moeplan.families.deepseek import latent_attention, moe_model, routed_experts, sigmoid_routing
from moeplan.families.reader import Config
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity, Source

__all__ = ["glm4_moe", "glm4_moe_lite"]

ROTATED = "partial_rotary_factor"


def _rotated(c: Config, head: int) -> Quantity:
    """dr: the rotated dimensions of a head, half of them unless the file says otherwise."""
    rope = c.sub("rope_parameters", required=False)
    if rope is not None:
        rope.ignore(*rope.data)
    place = rope if rope is not None and ROTATED in rope else c
    factor = place.number(ROTATED, default=0.5)
    if not 0 < factor <= 1:
        raise place.fail(ROTATED, f"is {factor}: it must be above 0 and at most 1")
    source = Source("config", f"{place.prefix}{ROTATED} of head_dim")
    if ROTATED not in place:
        source = Source("assumed", f"{ROTATED} is absent: half of head_dim, the family's default")
    return Quantity.given(int(head * factor), symbol="dr", source=source)


def glm4_moe(c: Config) -> ModelSpec:
    """Read a GLM-4.5 or GLM-4.6 config; only q, k and v have biases."""
    mixer = attention(
        c,
        c.int("hidden_size", symbol="D"),
        grouped=True,
        qkv_bias=c.flag("attention_bias", default=False),
        qk_norm="head" if c.flag("use_qk_norm", default=False) else "none",
    )
    mixer = replace(mixer, dr=_rotated(c, mixer.values["dh"]))
    routing = sigmoid_routing(c, groups=(1, 1), scale=1.0)
    return moe_model(c, "glm4_moe", mixer, routed_experts(c, routing, shared=1), dense=1, mtp=1)


def glm4_moe_lite(c: Config) -> ModelSpec:
    """Read a GLM-4.7-Flash config: multi-latent attention, one dense layer."""
    c.ignore("rope_interleave")
    routing = sigmoid_routing(c, groups=(1, 1), scale=1.8)
    moe = routed_experts(c, routing, shared=1)
    return moe_model(c, "glm4_moe_lite", latent_attention(c), moe, dense=1, mtp=1, typed=True)
