"""dots.llm1 (arXiv 2506.05767): multi-head attention with DeepSeek-V3's experts."""

from __future__ import annotations

from moeplan.families.common import attention, layer_types
from moeplan.families.deepseek import moe_model, routed_experts, sigmoid_routing
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.spec import ModelSpec

__all__ = ["dots1"]

FULL, WINDOW = "full attention", "sliding attention"


def _scopes(c: Config, layers: int) -> list[str]:
    """Full attention, or a window from max_window_layers on where sliding_window is set."""
    first = int(c.int("max_window_layers", default=62, least=0).value)
    windowed = "sliding_window" not in c.data or c.optional("sliding_window") is not None
    words = {"full_attention": FULL, "sliding_attention": WINDOW}
    spaced = [WINDOW if windowed and i >= first else FULL for i in range(layers)]
    return layer_types(c, layers, words, spaced)


def _attention(c: Config, window: bool) -> Attention:
    bias = c.flag("attention_bias", default=False)
    return attention(
        c,
        c.int("hidden_size", symbol="D"),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="head",
        W=c.int("sliding_window", default=4096, symbol="W") if window else None,
        scope="window" if window else "full",
    )


def dots1(c: Config) -> ModelSpec:
    """Read a dots.llm1 config; its layers have windows only where the file asks for them."""
    words = ("sigmoid", "noaux_tc")  # the released file names the selection in the score's place
    routing = sigmoid_routing(c, groups=(1, 1), scale=1.0, renormalise=False, words=words)
    kinds = _scopes(c, int(c.int("num_hidden_layers").value))
    mixers = {FULL: _attention(c, False)}
    if WINDOW in kinds:
        mixers[WINDOW] = _attention(c, True)
    c.ignore("sliding_window", "use_sliding_window")
    moe = routed_experts(c, routing, shared=None)
    return moe_model(c, "dots1", mixers, moe, dense=0, mixer_kinds=kinds)
