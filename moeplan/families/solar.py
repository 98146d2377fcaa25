"""Upstage's Solar Open: DeepSeek-V3's experts in every layer behind grouped-query attention."""

from __future__ import annotations

from moeplan.families.common import attention
from moeplan.families.deepseek import routed_experts, sigmoid_routing
from moeplan.families.reader import Config
from moeplan.families.stack import FULL, layered
from moeplan.model.spec import ModelSpec

__all__ = ["solar_open"]


def solar_open(c: Config) -> ModelSpec:
    """Read a Solar Open config; only q, k and v may have biases."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    c.expect("use_qk_norm", [False], "this family does not normalise queries and keys")
    c.expect("first_k_dense_replace", [0], "every layer of this family holds experts")
    c.ignore("partial_rotary_factor")
    moe = routed_experts(c, sigmoid_routing(c, groups=(1, 1), scale=1.0), shared=1)
    bias = c.flag("attention_bias", default=False)
    mixer = attention(c, hidden, grouped=True, head_dim=128, qkv_bias=bias)
    return layered(c, "solar_open", hidden, {FULL: mixer}, [FULL] * layers, moe, [True] * layers)
