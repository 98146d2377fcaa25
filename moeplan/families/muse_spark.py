"""Meta's Muse Spark: experts in a normalised latent, gated residuals, full layers unrotated."""

from __future__ import annotations

from dataclasses import replace

from moeplan.families.common import selection
from moeplan.families.reader import Config
from moeplan.families.stack import (
    FULL,
    WINDOW,
    layered,
    scoped_attention,
    scopes,
    sparse_words,
    text_part,
)
from moeplan.model.attention import Attention
from moeplan.model.basic import GatedResidual, Norm
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.ops import Block, Component
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["muse_spark"]

NAMES = ExpertNames(
    experts="mlp.experts.",
    gate_up="gate_up_proj",
    suffix="",
    latent=("mlp.pre_expert_proj", "mlp.post_expert_proj"),
)
STILL = ", no rotation"


def _layer(hidden: Quantity, mixer: Block, ffn: Block) -> tuple[Block, ...]:
    """Norms around both branches, the one behind attention without weights; gated additions."""
    part: Component = "routed_experts" if isinstance(ffn, MoE) else "dense_ffn"
    return (
        Norm(hidden, "input_layernorm"),
        mixer,
        Norm(hidden, "post_attention_layernorm", scale=False),
        GatedResidual(hidden, "attention", ("post_attention_residual_gate.gate",)),
        Norm(hidden, "pre_feedforward_layernorm"),
        ffn,
        Norm(hidden, "post_feedforward_layernorm"),
        GatedResidual(hidden, part, ("post_feedforward_residual_gate.gate",)),
    )


def _mixers(c: Config, hidden: Quantity, kinds: list[str]) -> dict[str, Block]:
    """Gated attention whose queries and keys are normalised without weights, by scope and turn."""
    bias = c.flag("attention_bias", default=False)
    mixers = scoped_attention(
        c,
        hidden,
        kinds,
        window=2048,
        turned=(FULL, WINDOW),
        grouped=True,
        head_dim=64,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="unit",
        own_gate="full",
    )
    for kind, mixer in list(mixers.items()):
        assert isinstance(mixer, Attention)
        mixers[kind + STILL] = replace(mixer, rope=False)
    return mixers


def _turned(c: Config, layers: int) -> list[bool]:
    """Layers with a base in layer_rope_theta; by default all but every fourth from the last."""
    bases = c.list("layer_rope_theta", length=layers, default=None)
    if bases is None:
        return [(layers - 1 - i) % 4 != 0 for i in range(layers)]
    return [bool(base) for base in bases]


def muse_spark(c: Config) -> ModelSpec:
    """Read a Muse Spark config: the text part; vision and audio towers are not counted."""
    towers = {"vision_config": "vision tower", "audio_config": "audio tower"}
    text, how = text_part(c, ["muse_spark_text"], **towers)
    c.ignore("out_hidden_size", "projector_hidden_size", "projector_hidden_act")
    hidden = text.int("hidden_size", symbol="D")
    layers = int(text.int("num_hidden_layers", symbol="L").value)
    experts = text.int("num_local_experts", "num_experts", symbol="E")
    text.ignore("qk_scale_factor", "output_multiplier", "residual_gate_temperature")
    text.ignore("post_norm_eps")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(text, experts, "num_experts_per_tok"),
        F=text.int("moe_intermediate_size", symbol="F"),
        Dl=text.int("moe_hidden_size", symbol="Dl"),
        activation=text.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing(
            "sigmoid",
            selection_bias=True,
            renormalise=True,
            scale=text.number("routed_scaling_factor", default=1.0),
        ),
        latent_norms=True,
        stacked=True,
        names=NAMES,
    )
    kinds = scopes(text, layers, full=lambda i: (layers - 1 - i) % 4 == 0)
    mixers = _mixers(text, hidden, kinds)
    turned = _turned(text, layers)
    kinds = [kind if at else kind + STILL for kind, at in zip(kinds, turned, strict=True)]
    sparse = sparse_words(text, layers, [True] * layers)
    at = "model.language_model."
    return layered(
        text, "muse_spark", hidden, mixers, kinds, moe, sparse, layer=_layer, text=at, **how
    )
