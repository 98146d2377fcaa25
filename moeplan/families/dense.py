"""Dense baselines: Llama, Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import attention, decoder, layer_groups, layer_types, pre_norm
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.ffn import DenseFFN
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["llama", "mistral", "qwen2", "qwen3"]

FULL, WINDOW = "attention", "sliding attention"


def _dense(
    c: Config,
    name: str,
    hidden: Quantity,
    mixers: dict[str, Attention],
    *,
    kinds: list[str] | None = None,
    mlp_bias: bool = False,
) -> ModelSpec:
    """A dense decoder; `mixers` holds the attention of each kind, `kinds` a kind per layer."""
    ffn = DenseFFN(
        D=hidden,
        F=c.int("intermediate_size", symbol="F"),
        bias=mlp_bias,
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
    )
    layers = c.int("num_hidden_layers", symbol="L")
    groups = layer_groups(
        [(kind, "dense") for kind in kinds or [FULL] * int(layers.value)],
        lambda kind: pre_norm(hidden, mixers[kind[0]], ffn),
        count=layers,
    )
    return decoder(c, hidden, groups, name=name)


def llama(c: Config) -> ModelSpec:
    """Read a Llama config."""
    hidden = c.int("hidden_size", symbol="D")
    bias = c.flag("attention_bias", default=False)
    mlp_bias = c.flag("mlp_bias", default=False)
    mixer = attention(c, hidden, qkv_bias=bias, o_bias=bias)
    return _dense(c, "llama", hidden, {FULL: mixer}, mlp_bias=mlp_bias)


def mistral(c: Config) -> ModelSpec:
    """Read a Mistral config; a sliding window (null: none) holds for every layer."""
    hidden = c.int("hidden_size", symbol="D")
    window = c.optional("sliding_window", symbol="W")
    if "sliding_window" not in c.data:
        window = c.int("sliding_window", default=4096, symbol="W")
    scope = "window" if window is not None else "full"
    mixer = attention(c, hidden, grouped=True, W=window, scope=scope)
    return _dense(c, "mistral", hidden, {FULL: mixer})


def _qwen(c: Config, name: str, **how: Any) -> ModelSpec:
    """Qwen2 and Qwen3: with `use_sliding_window`, layers from max_window_layers on have windows."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    mixers = {FULL: attention(c, hidden, grouped=True, **how)}
    default = [FULL] * layers
    if c.flag("use_sliding_window", default=False):
        window = c.int("sliding_window", default=4096, symbol="W")
        first = int(c.int("max_window_layers", default=28, least=0).value)
        default = [WINDOW if i >= first else FULL for i in range(layers)]
        mixers[WINDOW] = attention(c, hidden, grouped=True, W=window, scope="window", **how)
    c.ignore("sliding_window", "max_window_layers")
    words = {"full_attention": FULL}
    if WINDOW in mixers:
        words["sliding_attention"] = WINDOW
    return _dense(c, name, hidden, mixers, kinds=layer_types(c, layers, words, default))


def qwen2(c: Config) -> ModelSpec:
    """Read a Qwen2 or Qwen2.5 config: queries, keys and values have biases, the output has none."""
    return _qwen(c, "qwen2", qkv_bias=True)


def qwen3(c: Config) -> ModelSpec:
    """Read a Qwen3 config: each head's queries and keys are normalised."""
    bias = c.flag("attention_bias", default=False)
    return _qwen(c, "qwen3", head_dim=128, qkv_bias=bias, o_bias=bias, qk_norm="head")
