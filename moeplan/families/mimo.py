"""MiMo-V2-Flash (arXiv 2601.02780): five layers with windows of 128 tokens to one without."""

from __future__ import annotations

from moeplan.families.common import decoder, layer_groups, layer_types, pre_norm
from moeplan.families.deepseek import routed_experts, sigmoid_routing
from moeplan.families.mtp import mtp_modules, released_modules
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.ffn import DenseFFN
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["mimo_v2_flash"]

FULL, WINDOW = "full attention", "sliding attention"


def _marks(c: Config, key: str, layers: int) -> list[bool] | None:
    """A 0 or 1 for each layer."""
    marks = c.list(key, length=layers, default=None)
    if marks is not None and any(mark not in (0, 1) for mark in marks):
        raise c.fail(key, "needs a 0 or 1 for each layer")
    return None if marks is None else [mark == 1 for mark in marks]


def _scopes(c: Config, layers: int) -> list[str]:
    """Full attention in the first layer and every sixth, unless the file lists it."""
    words = {"full_attention": FULL, "sliding_attention": WINDOW}
    spaced = [FULL if i == 0 or not (i + 1) % 6 else WINDOW for i in range(layers)]
    marks = _marks(c, "hybrid_layer_pattern", layers)
    if marks is not None:
        spaced = [WINDOW if mark else FULL for mark in marks]
    scopes = layer_types(c, layers, words, spaced)
    if marks is not None and scopes != spaced:
        raise c.fail("hybrid_layer_pattern", "is contradicted by layer_types")
    return scopes


def _sparse(c: Config, layers: int) -> list[bool]:
    """Which layers hold experts: all but the first, unless the file lists them."""
    marks = _marks(c, "moe_layer_freq", layers)
    words = c.list("mlp_layer_types", length=layers, default=None)
    if words is None:
        return [i > 0 for i in range(layers)] if marks is None else marks
    if any(word not in ("dense", "sparse") for word in words):
        raise c.fail("mlp_layer_types", "needs 'dense' or 'sparse' for each layer")
    sparse = [word == "sparse" for word in words]
    if marks is not None and marks != sparse:
        raise c.fail("moe_layer_freq", "is contradicted by mlp_layer_types")
    return sparse


def _mixers(c: Config, hidden: Quantity) -> dict[str, Block]:
    """Full and windowed attention; windows have head counts and dimensions of their own."""
    bias = c.flag("attention_bias", default=False)
    heads = c.int("num_attention_heads", symbol="H")
    kv_heads = c.int("num_key_value_heads", symbol="G")
    width = c.int("head_dim", default=192, symbol="dh")
    values = c.int("v_head_dim", default=128, symbol="dv")

    def one(at: str, double: int, sinks: bool, window: Quantity | None) -> Attention:
        groups = (double * kv_heads).named("G") if double > 1 else kv_heads
        return Attention(
            D=hidden,
            H=c.int(f"{at}num_attention_heads", default=heads, symbol="H"),
            G=c.int(f"{at}num_key_value_heads", default=groups, symbol="G"),
            dh=c.int(f"{at}head_dim", default=width, symbol="dh"),
            dv=c.int(f"{at}v_head_dim", default=values, symbol="dv"),
            W=window,
            scope="full" if window is None else "window",
            qkv_bias=bias,
            sinks=sinks,
            sinks_name="attention_sink_bias",
        )

    window = c.int("sliding_window", "sliding_window_size", symbol="W")
    return {
        FULL: one("", 1, c.flag("add_full_attention_sink_bias", default=False), None),
        WINDOW: one("swa_", 2, c.flag("add_swa_attention_sink_bias", default=True), window),
    }


def mimo_v2_flash(c: Config) -> ModelSpec:
    """Read a MiMo-V2-Flash config; window layers have twice the key-value heads and sinks.

    The released checkpoint's three MTP modules have a window layer and a dense feed-forward each.
    """
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    c.expect("n_shared_experts", [0], "this family has no shared expert")
    c.ignore("attention_chunk_size", "attention_value_scale", "layernorm_epsilon")
    routing = sigmoid_routing(c, groups=(1, 1), scale=1.0)
    moe = routed_experts(c, routing, shared=0)
    dense = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"))
    mixers = _mixers(c, hidden)
    count = int(layers.value)

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return pre_norm(hidden, mixers[kind[0]], moe if "moe" in kind else dense)

    kinds = [
        (scope, "moe" if sparse else "dense")
        for scope, sparse in zip(_scopes(c, count), _sparse(c, count), strict=True)
    ]
    groups = layer_groups(kinds, build, count=layers)
    ahead = pre_norm(hidden, mixers[WINDOW], dense, ("input_layernorm", "pre_mlp_layernorm"))
    mtp = mtp_modules(
        c,
        hidden,
        ahead,
        layers,
        released_modules(c, 3),
        last="final_layernorm",
        prefix="model.mtp.layers.{i}.",
        first=0,
    )
    return decoder(c, hidden, groups, name="mimo_v2_flash", mtp=mtp)
