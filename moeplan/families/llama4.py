"""Llama 4 (Scout, Maverick): chunked attention except in every fourth layer, one routed expert."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import (
    attention,
    decoder,
    layer_groups,
    layer_types,
    pre_norm,
    selection,
)
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["llama4", "llama4_text"]

CHUNKED, FULL = "chunked attention", "full attention"
NAMES = ExpertNames(
    router="feed_forward.router",
    experts="feed_forward.experts.",
    gate_up="gate_up_proj",
    suffix="",
    shared="feed_forward.shared_expert.",
)


def _rotated(c: Config, layers: int) -> list[bool]:
    """Which layers rotate queries and keys: a 1 per such layer in no_rope_layers."""
    every = int(c.int("no_rope_layer_interval", default=4).value)
    spaced = [(i + 1) % every != 0 for i in range(layers)]
    marks = c.list("no_rope_layers", default=None)
    if not marks:
        return spaced
    if len(marks) < layers or any(m not in (0, 1) for m in marks):
        raise c.fail("no_rope_layers", f"needs a 0 or 1 for each of the {layers} layers")
    given = [m == 1 for m in marks[:layers]]
    if "no_rope_layer_interval" in c and given != spaced:
        raise c.fail("no_rope_layer_interval", f"is {every}, which no_rope_layers contradicts")
    return given


def _expert_layers(c: Config, layers: int) -> list[bool]:
    """Which layers hold experts: those in moe_layers, else every interleave_moe_layer_step-th."""
    step = int(c.int("interleave_moe_layer_step", default=1).value)
    spaced = [(i + 1) % step == 0 for i in range(layers)]
    key, moe = "interleave_moe_layer_step", spaced
    if "moe_layers" in c:
        places = c.indices("moe_layers", layers)
        moe = [i in places for i in range(layers)]
        if key in c and moe != spaced:
            raise c.fail(key, f"is {step}, which moe_layers contradicts")
        key = "moe_layers"
    c.ignore("moe_layers")
    if not any(moe):
        raise c.fail(key, "leaves no layer with experts")
    return moe


def _mixers(c: Config, hidden: Quantity) -> dict[tuple[str, bool], Attention]:
    """Attention by (kind, rotated); only rotated layers normalise queries and keys."""
    bias = c.flag("attention_bias", default=False)
    norm = "unit" if c.flag("use_qk_norm", default=True) else "none"
    chunk = c.int("attention_chunk_size", default=8192, symbol="W")
    out = {}
    for kind, scope, width in ((CHUNKED, "chunk", chunk), (FULL, "full", None)):
        for rotated in (True, False):
            out[kind, rotated] = attention(
                c,
                hidden,
                grouped=True,
                head_dim=128,
                qkv_bias=bias,
                o_bias=bias,
                rope=rotated,
                qk_norm=norm if rotated else "none",
                scope=scope,
                W=width,
            )
    return out


def _experts(c: Config, hidden: Quantity) -> MoE:
    experts = c.int("num_local_experts", "num_experts", symbol="E")
    width = c.int("intermediate_size", symbol="F")
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=width,
        Fs=width.named("Fs"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("sigmoid", weigh="input"),
        stacked=True,
        transposed=True,
        names=NAMES,
    )


def _text(c: Config, outer: str, **how: Any) -> ModelSpec:
    """The text model, whose tensors stand under `outer` in the checkpoint."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    count = int(layers.value)
    rotated = _rotated(c, count)
    words = {"chunked_attention": CHUNKED, "full_attention": FULL}
    scopes = layer_types(c, count, words, [CHUNKED if r else FULL for r in rotated])
    moe = _expert_layers(c, count)
    mixers, experts = _mixers(c, hidden), _experts(c, hidden)
    dense: Block = experts
    if not all(moe):
        wide = c.int("intermediate_size_mlp", default=16384, symbol="F")
        dense = DenseFFN(D=hidden, F=wide, prefix="feed_forward.")
    c.ignore("intermediate_size_mlp", "attn_temperature_tuning", "attn_scale", "floor_scale")

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        mixer = mixers[kind[0], "no rotation" not in kind]
        return pre_norm(hidden, mixer, experts if "moe" in kind else dense)

    kinds = [
        (scope, *(() if turn else ("no rotation",)), "moe" if sparse else "dense")
        for scope, turn, sparse in zip(scopes, rotated, moe, strict=True)
    ]
    return decoder(
        c,
        hidden,
        layer_groups(kinds, build, prefix=f"{outer}model.layers.{{i}}.", count=layers),
        embed=f"{outer}model.embed_tokens.weight",
        norm=f"{outer}model.norm",
        head=f"{outer}lm_head",
        **how,
    )


def llama4_text(c: Config) -> ModelSpec:
    """Read the text part of Llama 4 as a model of its own."""
    return _text(c, "", name="llama4_text")


def llama4(c: Config) -> ModelSpec:
    """Read a Llama 4 config: the text part; the vision tower is not counted."""
    text = c.sub("text_config")
    assert text is not None
    text.expect("model_type", ["llama4_text"], "the text part is of another family")
    c.ignore("vision_config")
    return _text(
        text,
        "language_model.",
        name="llama4",
        wrapper=c,
        not_counted=("vision tower (vision_config)",),
    )
