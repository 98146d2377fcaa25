"""Poolside's Laguna and JetBrains' Mellum: full and windowed layers, rotated by their own bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from moeplan.families.common import pre_norm, selection
from moeplan.families.mtp import mtp_stack
from moeplan.families.reader import Config, shown
from moeplan.families.stack import (
    FULL,
    WINDOW,
    WORDS,
    layered,
    scoped_attention,
    scopes,
    sparse_words,
)
from moeplan.model.attention import Attention
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity, Source

__all__ = ["laguna", "mellum"]

NAMES = ExpertNames(
    shared="mlp.shared_expert.", selection_bias="mlp.experts.e_score_correction_bias"
)
KEYS = {FULL: "full_attention", WINDOW: "sliding_attention"}
SHARES = {FULL: 0.5, WINDOW: 1.0}  # rotated parts of a head by default


def _turned(c: Config, mixer: Attention, kind: str) -> Attention:
    """dr from the scope's entry in `rope_parameters`."""
    key = KEYS[kind]
    rope = c.data.get("rope_parameters")
    source = Source("assumed", "rope_parameters is absent: the default")
    share: Any = SHARES[kind]
    if isinstance(rope, Mapping) and isinstance(rope.get(key), Mapping):
        share = rope[key].get("partial_rotary_factor", 1.0)
        source = Source("config", f"rope_parameters.{key}.partial_rotary_factor of head_dim")
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise c.fail("rope_parameters", f"rotates {shown(share)} of a head: it must be in (0, 1]")
    width = int(mixer.values["dh"] * share)
    return replace(mixer, dr=Quantity.given(width, symbol="dr", source=source))


def _gate(c: Config) -> Literal["full", "head"]:
    _, gating = c.raw("gating", default=True)
    if gating is True or gating == "per-head":
        return "head"
    if gating == "per-element":
        return "full"
    raise c.fail("gating", f"is {shown(gating)}: allowed are true, 'per-head' and 'per-element'")


def _mixers(
    c: Config, hidden: Quantity, kinds: Sequence[str], heads: Sequence[Quantity]
) -> tuple[dict[str, Block], list[str]]:
    """Attention for each scope and number of heads; layers may differ in the latter."""
    bias = c.flag("attention_bias", default=False)
    how: dict[str, Any] = {"grouped": True, "head_dim": 128, "qk_norm": "head"}
    how |= {"qkv_bias": bias, "o_bias": bias, "own_gate": _gate(c)}
    base = scoped_attention(c, hidden, kinds, window=512, gate_names=("g_proj.weight", ""), **how)
    mixers: dict[str, Block] = {}
    names = []
    for kind, count in zip(kinds, heads, strict=True):
        name = f"{kind}, {count.value} heads"
        mixer = base[kind]
        assert isinstance(mixer, Attention)
        if count.value % mixer.values["G"]:
            problem = f"holds {count.value}: num_key_value_heads must divide it"
            raise c.fail("num_attention_heads_per_layer", problem)
        mixers.setdefault(name, replace(_turned(c, mixer, kind), H=count))
        names.append(name)
    c.ignore("rope_parameters")
    return mixers, names


def _sparse(c: Config, layers: int) -> list[bool]:
    """All layers but the first, or those that neither of two keys calls dense."""
    dense = c.indices("mlp_only_layers", layers) if "mlp_only_layers" in c else frozenset((0,))
    sparse = sparse_words(c, layers, [i not in dense for i in range(layers)])
    if "mlp_only_layers" in c and sparse != [i not in dense for i in range(layers)]:
        raise c.fail("mlp_only_layers", "is contradicted by mlp_layer_types")
    return sparse


def laguna(c: Config) -> ModelSpec:
    """Read a Laguna config: gated attention, whose number of heads may differ by layer."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    experts = c.int("num_experts", symbol="E")
    c.expect("moe_apply_router_weight_on_input", [False], "weights on inputs are not described")
    c.expect("norm_topk_prob", [True], "this family's chosen weights sum to one")
    c.expect("decoder_sparse_step", [1], "mlp_layer_types names the layers with experts")
    c.expect("qkv_bias", [False], "attention_bias decides")
    c.expect("swa_attention_sink_enabled", [False], "attention sinks are not described")
    c.ignore("moe_router_logit_softcapping", "mlp_only_layers")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("moe_intermediate_size", symbol="F"),
        Fs=c.int("shared_expert_intermediate_size", symbol="Fs"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing(
            "sigmoid",
            selection_bias=True,
            renormalise=True,
            scale=c.number("moe_routed_scaling_factor", default=1.0),
        ),
        names=NAMES,
    )
    kinds = scopes(c, layers, full=lambda i: True)
    alike = c.int("num_attention_heads", symbol="H")
    heads = c.per_layer("num_attention_heads_per_layer", layers=layers, default=alike, symbol="H")
    mixers, names = _mixers(c, hidden, kinds, heads)
    sparse = _sparse(c, layers)
    return layered(c, "laguna", hidden, mixers, names, moe, sparse)


def mellum(c: Config) -> ModelSpec:
    """Read a Mellum config: Qwen3's experts, with windows where `layer_types` asks for them."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    experts = c.int("num_experts", "num_local_experts", symbol="E")
    modules = c.int("num_nextn_predict_layers", "num_mtp_layers", default=0, least=0, most=1)
    (ahead,) = c.list("mtp_layer_types", length=1, default=None) or ["sliding_attention"]
    c.expect("mtp_mlp_layer_types", [["sparse"]], "the prediction layer holds experts")
    if ahead not in WORDS:
        raise c.fail("mtp_layer_types", f"holds {shown(ahead)}")
    c.ignore("rope_parameters")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("moe_intermediate_size", symbol="F"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax", renormalise=c.flag("norm_topk_prob", default=True)),
    )
    kinds = scopes(c, layers, full=lambda i: True)
    bias = c.flag("attention_bias", default=False)
    how: dict[str, Any] = {"grouped": True, "head_dim": 128, "qk_norm": "head"}
    every = [*kinds, *([WORDS[ahead]] if modules.value else [])]
    mixers = scoped_attention(c, hidden, every, window=1024, qkv_bias=bias, o_bias=bias, **how)
    sparse = sparse_words(c, layers, [True] * layers)
    mtp: list[Group] = []
    if modules.value:
        mtp = mtp_stack(c, hidden, pre_norm(hidden, mixers[WORDS[ahead]], moe), modules)
    return layered(c, "mellum", hidden, mixers, kinds, moe, sparse, mtp=mtp)
