"""Dense baselines: Llama, Mistral and Qwen3."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import attention, decoder, layer_groups, pre_norm
from moeplan.families.reader import Config
from moeplan.model.ffn import DenseFFN
from moeplan.model.spec import ModelSpec

__all__ = ["llama", "mistral", "qwen3"]


def _dense(c: Config, name: str, *, mlp_bias: bool = False, **how: Any) -> ModelSpec:
    hidden = c.int("hidden_size", symbol="D")
    ffn = DenseFFN(
        D=hidden,
        F=c.int("intermediate_size", symbol="F"),
        bias=mlp_bias,
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
    )
    mixer = attention(c, hidden, **how)
    layers = c.int("num_hidden_layers", symbol="L")
    groups = layer_groups(
        [("attention", "dense")] * layers.value,
        lambda kind: pre_norm(hidden, mixer, ffn),
        count=layers,
    )
    return decoder(c, hidden, groups, name=name)


def llama(c: Config) -> ModelSpec:
    """Read a Llama config."""
    bias = c.flag("attention_bias", default=False)
    mlp_bias = c.flag("mlp_bias", default=False)
    return _dense(c, "llama", mlp_bias=mlp_bias, qkv_bias=bias, o_bias=bias)


def mistral(c: Config) -> ModelSpec:
    """Read a Mistral config; a sliding window holds for every layer."""
    window = c.optional("sliding_window", symbol="W")
    return _dense(c, "mistral", W=window, scope="window" if window is not None else "full")


def qwen3(c: Config) -> ModelSpec:
    """Read a Qwen3 config: each head's queries and keys are normalised."""
    bias = c.flag("attention_bias", default=False)
    c.expect("use_sliding_window", [False], "sliding windows of Qwen3 are not described")
    c.ignore("sliding_window", "layer_types")
    return _dense(c, "qwen3", qkv_bias=bias, o_bias=bias, qk_norm="head")
