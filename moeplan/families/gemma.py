"""Gemma 4 with experts: a dense layer and an MoE side by side, windows, keys that are values."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import decoder, layer_groups, layer_types, selection
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.basic import Norm, Residual, Scale
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["gemma4", "gemma4_text"]

FULL, WINDOW, REUSE = "full attention", "sliding attention", "reused keys"
TEXT = "model.language_model."
NAMES = ExpertNames(router="router.proj", experts="experts.", gate_up="gate_up_proj", suffix="")


def _attention(c: Config, hidden: Quantity, kind: str, reused: bool) -> Attention:
    """Full layers have head dimensions and key-value heads of their own, and may lack values."""
    heads, bias = c.int("num_attention_heads", symbol="H"), c.flag("attention_bias", default=False)
    groups = c.int("num_key_value_heads", symbol="G")
    width = c.int("head_dim", default=256, symbol="dh")
    window = c.int("sliding_window", default=512, symbol="W")
    without_values = c.flag("attention_k_eq_v", default=False)
    if kind == FULL:
        width = c.int("global_head_dim", default=512, symbol="dh")
        if without_values:
            groups = c.int("num_global_key_value_heads", default=groups, symbol="G")
    c.ignore("num_global_key_value_heads", "global_head_dim")
    return Attention(
        D=hidden,
        H=heads,
        G=groups,
        dh=width,
        dv=width,
        W=None if kind == FULL else window,
        scope="full" if kind == FULL else "window",
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="head",
        v_norm=True,
        values_are_keys=without_values and kind == FULL,
        shares_kv=reused,
    )


def _kinds(c: Config, layers: int) -> list[tuple[str, ...]]:
    """Five windows to one full layer, the last one full; the last few may reuse keys and values."""
    words = {"full_attention": FULL, "sliding_attention": WINDOW}
    spaced = [WINDOW if (i + 1) % 6 else FULL for i in range(layers)]
    scopes = layer_types(c, layers, words, spaced)
    scopes[-1] = FULL
    reusing = int(c.int("num_kv_shared_layers", default=0, least=0).value)
    first = layers - reusing
    if reusing and not set(scopes) <= set(scopes[: max(first, 0)]):
        problem = f"is {reusing}: each kind of layer needs an earlier one whose keys it reuses"
        raise c.fail("num_kv_shared_layers", problem)
    return [
        (scope, *((REUSE,) if i >= first else ()), "dense", "moe") for i, scope in enumerate(scopes)
    ]


def _text(c: Config, at: str, **how: Any) -> ModelSpec:
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    if not c.flag("enable_moe_block", default=False):
        raise c.fail("enable_moe_block", "is not true: the dense Gemma 4 is not described")
    if c.int("hidden_size_per_layer_input", default=256, least=0).value:
        raise c.fail("hidden_size_per_layer_input", "is not 0: per-layer inputs are not described")
    c.ignore("vocab_size_per_layer_input")
    words = ["vision"]  # images may see all of themselves: text stays causal
    c.expect("use_bidirectional_attention", words, "attention over all tokens is not described")
    activation = c.choice(
        "hidden_activation", allowed=("gelu_pytorch_tanh",), default="gelu_pytorch_tanh"
    )
    experts = c.int("num_experts", symbol="E")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "top_k_experts"),
        F=c.int("moe_intermediate_size", symbol="F"),
        activation=activation,
        routing=Routing("softmax", renormalise=True),
        router_scales=True,
        stacked=True,
        names=NAMES,
    )
    width = c.int("intermediate_size", symbol="F")
    wider = c.flag("use_double_wide_mlp", default=False)

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        reused = REUSE in kind
        wide = (2 * width).named("F") if wider and reused else width
        return (
            Norm(hidden, "input_layernorm"),
            _attention(c, hidden, kind[0], reused),
            Norm(hidden, "post_attention_layernorm"),
            Residual(hidden, "attention"),
            Norm(hidden, "pre_feedforward_layernorm"),
            DenseFFN(D=hidden, F=wide, activation=activation),
            Norm(hidden, "post_feedforward_layernorm_1"),
            Norm(hidden, "pre_feedforward_layernorm_2"),
            moe,
            Norm(hidden, "post_feedforward_layernorm_2"),
            Residual(hidden, "routed_experts"),
            Norm(hidden, "post_feedforward_layernorm"),
            Residual(hidden, "dense_ffn"),
            Scale(hidden, "layer_scalar"),
        )

    groups = layer_groups(
        _kinds(c, int(layers.value)), build, prefix=f"{at}layers.{{i}}.", count=layers
    )
    return decoder(
        c,
        hidden,
        groups,
        tied_default=True,
        embed=f"{at}embed_tokens.weight",
        norm=f"{at}norm",
        **how,
    )


def gemma4_text(c: Config) -> ModelSpec:
    """Read the text part of Gemma 4 as a model of its own."""
    return _text(c, "model.", name="gemma4_text")


def gemma4(c: Config) -> ModelSpec:
    """Read a Gemma 4 config with experts: the text part; vision and audio are not counted."""
    text = c.sub("text_config")
    assert text is not None
    text.expect("model_type", ["gemma4_text"], "the text part is of another family")
    c.ignore("vision_config", "audio_config", "vision_soft_tokens_per_image", "eoa_token_index")
    towers = ("vision tower (vision_config)", "audio tower (audio_config)")
    return _text(
        text,
        TEXT,
        name="gemma4",
        wrapper=c,
        not_counted=tuple(t for t in towers if c.data.get(t.split("(")[1][:-1]) is not None),
    )
