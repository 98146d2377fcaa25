"""ZAYA1 (arXiv 2511.17127): attention behind convolutions, a deep router, one expert that skips."""

from __future__ import annotations

from collections.abc import Mapping

from moeplan.families.common import attention, decoder, layer_groups, layer_types
from moeplan.families.reader import Config, shown
from moeplan.model.basic import Affine, GatedResidual, Norm
from moeplan.model.compressed_convolutional_attention import CompressedConvolutionalAttention
from moeplan.model.deep_router import DeepRouterMoE
from moeplan.model.ffn import ExpertNames, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity, Source, derive

__all__ = ["zaya"]

FULL, WINDOW = "compressed convolutional attention", "compressed convolutional attention, window"
NAMES = ExpertNames(
    experts="mlp.experts.",
    gate_up="gate_up_proj",
    suffix="",
    selection_bias="mlp.gate.balancing_biases",
)
_SKIPS = Source(
    "assumed", "one of the scored experts passes a token on: the class has no key for it"
)
SCALES = ("hidden_states_scale", "hidden_states_bias", "residual_scale", "residual_bias")


def _mixer(c: Config, hidden: Quantity, window: Quantity | None) -> Block:
    bias = c.flag("attention_bias", default=False)
    usual = attention(c, hidden, grouped=True, head_dim=128)
    return CompressedConvolutionalAttention(
        D=hidden,
        H=usual.H,
        G=usual.G,
        dh=usual.dh,
        dv=usual.dv,
        dr=_turned(c, int(usual.values["dh"])),
        W=window,
        scope="full" if window is None else "window",
        qkv_bias=bias,
        o_bias=bias,
        t0=c.int("cca_time0", default=2, symbol="t0"),
        t1=c.int("cca_time1", default=2, symbol="t1"),
    )


def _turned(c: Config, width: int) -> Quantity:
    """Rotated dimensions of a head: partial_rotary_factor of them, by default half."""
    rope = c.data.get("rope_parameters")
    inner = rope.get("hybrid") if isinstance(rope, Mapping) else None
    share = inner.get("partial_rotary_factor", 0.5) if isinstance(inner, Mapping) else 0.5
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise c.fail("rope_parameters", f"rotates {shown(share)} of a head: it must be in (0, 1]")
    key = "rope_parameters.hybrid.partial_rotary_factor"
    source = Source("config", f"{key} of head_dim")
    if not isinstance(inner, Mapping) or "partial_rotary_factor" not in inner:
        source = Source("assumed", f"{key} is absent: half of head_dim, the family's default")
    return Quantity.given(int(width * share), symbol="dr", source=source)


def _moe(c: Config, hidden: Quantity, *, first: bool) -> DeepRouterMoE:
    """One of the scored experts passes the token on; the first layer has no router before it."""
    experts = c.int("num_experts", "num_local_experts", symbol="E")
    k = c.int("num_experts_per_tok", symbol="k", most=1)
    return DeepRouterMoE(
        D=hidden,
        E=experts,
        k=k,
        F=c.int("moe_intermediate_size", symbol="F"),
        Z=Quantity.given(1, "experts", "Z", _SKIPS),
        r=derive("k*E/(E + 1)", symbol="r", k=k, E=experts),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax", selection_bias=True),
        stacked=True,
        names=NAMES,
        Rh=c.int("router_hidden_size", default=256, symbol="Rh"),
        averages=not first,
    )


def zaya(c: Config) -> ModelSpec:
    """Read a ZAYA1 config; residual additions scale and shift both sides."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    count = int(layers.value)
    words = {"hybrid": FULL, "hybrid_sliding": WINDOW}
    kinds = layer_types(c, count, words, [FULL] * count)
    window = c.int("sliding_window", symbol="W") if WINDOW in kinds else None
    mixers = {FULL: _mixer(c, hidden, None)}
    if window is not None:
        mixers[WINDOW] = _mixer(c, hidden, window)
    c.ignore("sliding_window", "rope_parameters")

    def scaled(name: str) -> tuple[str, ...]:
        return tuple(f"{name}_residual_scale.{part}" for part in SCALES)

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return (
            Norm(hidden, "input_layernorm"),
            mixers[kind[0]],
            GatedResidual(hidden, "attention", scaled("post_attention")),
            Norm(hidden, "post_attention_layernorm"),
            _moe(c, hidden, first=len(kind) > 2),
            GatedResidual(hidden, "routed_experts", scaled("post_mlp")),
        )

    places = [(k, "moe", *(("no average",) if i == 0 else ())) for i, k in enumerate(kinds)]
    at = "model.input_hidden_states"
    before = Group("input scale", (Affine(hidden, (f"{at}_scale", f"{at}_bias")),))
    groups = layer_groups(places, build, count=layers)
    return decoder(
        c,
        hidden,
        [before, *groups],
        name="zaya",
        tied_default=True,
        head_bias=c.flag("lm_head_bias", default=False),
    )
