"""Gemma 4 with experts: a dense layer and an MoE side by side, windows, keys that are values.

DiffusionGemma has the same layers, once for the prompt and once for the canvas that it denoises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moeplan.families.common import decoder, layer_groups, layer_types, selection
from moeplan.families.reader import Config
from moeplan.families.stack import text_part
from moeplan.model.attention import Attention
from moeplan.model.basic import Norm, Residual, Scale
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.self_conditioning import SelfConditioning
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity

__all__ = ["diffusion_gemma", "gemma4", "gemma4_text"]

FULL, WINDOW, REUSE = "full attention", "sliding attention", "reused keys"
TEXT = "model.language_model."
NAMES = ExpertNames(router="router.proj", experts="experts.", gate_up="gate_up_proj", suffix="")


def _global_sizes(c: Config, kinds: Sequence[str]) -> dict[str, Quantity]:
    """Head dimension and key-value heads of full layers from `per_layer_config`, if it is there."""
    own = c.sub("per_layer_config", required=False)
    if own is None:
        return {}
    full = [str(i) for i, kind in enumerate(kinds) if kind == FULL]
    if sorted(own.data) != sorted(full):
        raise c.fail("per_layer_config", f"needs sizes for the layers {', '.join(full)}")
    layers = [own.sub(i) for i in full]
    sizes: dict[str, Quantity] = {}
    for key, symbol in (("head_dim", "dh"), ("num_key_value_heads", "G")):
        found = [layer.int(key, symbol=symbol) for layer in layers if layer and key in layer]
        if found and (len(found) < len(full) or len({q.value for q in found}) > 1):
            raise c.fail("per_layer_config", f"gives full layers different sizes of {key}")
        sizes |= {symbol: found[0]} if found else {}
    return sizes


def _attention(
    c: Config,
    hidden: Quantity,
    kind: str,
    reused: bool,
    own: Mapping[str, Quantity],
    *,
    keyed: bool,
) -> Attention:
    """Full layers have head dimensions and key-value heads of their own, and may lack values.

    own: such sizes, where the file gives them layer by layer.
    """
    heads, bias = c.int("num_attention_heads", symbol="H"), c.flag("attention_bias", default=False)
    groups = c.int("num_key_value_heads", symbol="G")
    width = c.int("head_dim", default=256, symbol="dh")
    window = c.int("sliding_window", default=512, symbol="W")
    without_values = c.flag("attention_k_eq_v", default=keyed)
    if kind == FULL:
        width = c.int("global_head_dim", default=512, symbol="dh")
        if without_values:
            groups = c.int("num_global_key_value_heads", default=groups, symbol="G")
        width, groups = own.get("dh", width), own.get("G", groups)
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


def _experts(c: Config, hidden: Quantity) -> MoE:
    experts = c.int("num_experts", symbol="E")
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "top_k_experts"),
        F=c.int("moe_intermediate_size", symbol="F"),
        activation=_activation(c),
        routing=Routing("softmax", renormalise=True),
        router_scales=True,
        stacked=True,
        names=NAMES,
    )


def _activation(c: Config) -> str:
    gelu = "gelu_pytorch_tanh"
    return c.choice("hidden_activation", allowed=(gelu,), default=gelu)


def _groups(
    c: Config, hidden: Quantity, at: str, *, twin: str = "", keyed: bool = False
) -> list[Group]:
    """The layers. twin: of a layer's scalar. keyed: full layers have no values of their own."""
    layers = c.int("num_hidden_layers", symbol="L")
    words = ["vision"]  # images may see all of themselves: text stays causal
    c.expect("use_bidirectional_attention", words, "attention over all tokens is not described")
    moe, activation = _experts(c, hidden), _activation(c)
    width = c.int("intermediate_size", symbol="F")
    wider = c.flag("use_double_wide_mlp", default=False)
    kinds = _kinds(c, int(layers.value))
    own = _global_sizes(c, [kind[0] for kind in kinds])

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        reused = REUSE in kind
        wide = (2 * width).named("F") if wider and reused else width
        return (
            Norm(hidden, "input_layernorm"),
            _attention(c, hidden, kind[0], reused, own, keyed=keyed),
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
            Scale(hidden, "layer_scalar", twin),
        )

    return layer_groups(kinds, build, prefix=f"{at}layers.{{i}}.", count=layers)


def _text(c: Config, at: str, **how: Any) -> ModelSpec:
    hidden = c.int("hidden_size", symbol="D")
    if not c.flag("enable_moe_block", default=False):
        raise c.fail("enable_moe_block", "is not true: the dense Gemma 4 is not described")
    if c.int("hidden_size_per_layer_input", default=256, least=0).value:
        raise c.fail("hidden_size_per_layer_input", "is not 0: per-layer inputs are not described")
    c.ignore("vocab_size_per_layer_input")
    return decoder(
        c,
        hidden,
        _groups(c, hidden, at),
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


DENOISED = (
    "a decoding figure is one place of the canvas in one denoising step: a place takes several "
    "steps, and a step computes the whole canvas",
    "prompt and canvas run through the same weights, but for a scalar a layer",
)


def diffusion_gemma(c: Config) -> ModelSpec:
    """Read a DiffusionGemma config: its text part, under the names of the layers for the canvas.

    Full layers have no values of their own. The embedding table is read again for soft tokens.
    """
    text, how = text_part(c, ["diffusion_gemma_text"], vision_config="vision tower")
    c.ignore("canvas_length")
    at = "model.decoder."
    embed = f"{at}embed_tokens.weight"
    hidden = text.int("hidden_size", symbol="D")
    soft = SelfConditioning(
        D=hidden,
        F=text.int("intermediate_size", symbol="F"),
        V=text.int("vocab_size", symbol="V"),
        activation=_activation(text),
        prefix=f"{at}self_conditioning.",
        table=embed,
    )
    text.expect("attention_k_eq_v", [True], "full layers of this family have no values")
    layers = _groups(
        text, hidden, at, keyed=True, twin="model.encoder.language_model.layers.{i}.layer_scalar"
    )
    return decoder(
        text,
        hidden,
        [Group("self-conditioning", (soft,)), *layers],
        name="diffusion_gemma",
        tied_default=True,
        embed=embed,
        norm=f"{at}norm",
        notes=DENOISED,
        **how,
    )
