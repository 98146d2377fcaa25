"""rednote's dots3: latent attention with gates per head, sparse or in windows of other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moeplan.families.common import layer_types
from moeplan.families.deepseek import layer_kinds, routed_experts, sigmoid_routing
from moeplan.families.deepseek_sparse import sparse_attention
from moeplan.families.reader import Config, shown
from moeplan.families.stack import WINDOW, layered, text_part
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["dots3_note", "dots3_note_text"]

PICKS, FULL = "sparse attention", "latent attention"
WORDS = {"indexed_attention": PICKS, "full_attention": FULL, "sliding_attention": WINDOW}
# key of a windowed layer -> (symbol, default)
SIZES = {
    "num_attention_heads": ("H", 64),
    "q_lora_rank": ("rq", 1024),
    "kv_lora_rank": ("rkv", 1024),
    "qk_nope_head_dim": ("dn", 192),
    "qk_rope_head_dim": ("dr", None),
    "v_head_dim": ("dv", 128),
}
HEAD = 256  # default of a windowed head's width, rotated part included


def _kinds(c: Config, layers: int) -> list[str]:
    """Three windows after each sparse layer, the first two layers sparse."""
    dsa = c.flag("use_dsa", default=True)
    windows = c.flag("use_sliding_window", default=True)
    wide = PICKS if dsa else FULL
    spaced = [wide if not windows or i < 2 or i % 4 == 1 else WINDOW for i in range(layers)]
    kinds = layer_types(c, layers, WORDS, spaced)
    if "use_dsa" in c:
        kinds = [kind if kind == WINDOW else wide for kind in kinds]
    return kinds


def _overrides(c: Config, kinds: list[str]) -> dict[str, Any]:
    """What `per_layer_config` says of the windowed layers; the same of all, nothing of others."""
    given = c.data.get("per_layer_config")
    c.ignore("per_layer_config")
    if given is None:
        return {}
    places = {i for i, kind in enumerate(kinds) if kind == WINDOW}
    if not isinstance(given, Mapping) or any(not str(key).isdigit() for key in given):
        raise c.fail("per_layer_config", f"is {shown(given)}: an object by layer is needed")
    if {int(key) for key in given} != places:
        raise c.fail("per_layer_config", "must name the layers with windows, and no others")
    first, *rest = given.values()
    if any(other != first for other in rest) or not isinstance(first, Mapping):
        raise c.fail("per_layer_config", "must say the same of all layers with windows")
    return dict(first)


def _window(c: Config, full: LatentAttention, kinds: list[str]) -> LatentAttention:
    """Latent attention in a window, with head counts and ranks of its own."""
    over = _overrides(c, kinds)
    if "per_layer_config" in c:
        own = Config(over, c.path, prefix=f"{c.prefix}per_layer_config.", origin=c.origin)
        own.ignore("num_key_value_heads", "head_dim")

        def size(key: str, symbol: str, default: int | None) -> Quantity:
            same: Any = getattr(full, symbol)
            return own.int(key, symbol=symbol) if key in own else same

    else:
        own = c

        def size(key: str, symbol: str, default: int | None) -> Quantity:
            if default is None:
                wide = c.int("swa_head_dim", default=HEAD)
                default = int(wide.value) - int(c.int("swa_qk_nope_head_dim", default=192).value)
            return c.int(f"swa_{key}", default=default, symbol=symbol)

    sizes = {symbol: size(key, symbol, default) for key, (symbol, default) in SIZES.items()}
    c.ignore("swa_num_key_value_heads", "swa_head_dim", "swa_rope_theta")
    own.finish() if own is not c else None
    window = c.int("sliding_window", "sliding_window_size", default=512, symbol="W")
    plain = LatentAttention(
        D=full.D,
        rq=sizes["rq"],
        H=sizes["H"],
        rkv=sizes["rkv"],
        dn=sizes["dn"],
        dr=sizes["dr"],
        dv=sizes["dv"],
        bias=full.bias,
        W=window,
    )
    return replace(plain, own_gate="head", k_rope_norm=True)


def _text(c: Config, name: str, **how: Any) -> ModelSpec:
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    c.expect("mlp_bias", [False], "feed-forward biases are not described")
    c.expect("num_nextn_predict_layers", [0], "multi-token prediction is not described here")
    c.ignore("rope_interleave", "indexer_rope_interleave", "swa_rope_theta")
    kinds = _kinds(c, layers)
    picks = replace(sparse_attention(c), own_gate="head", k_rope_norm=True)
    mixers: dict[str, Block] = {PICKS: picks}
    if FULL in kinds:
        same = {k: getattr(picks, k) for k in ("D", "H", "rq", "rkv", "dn", "dr", "dv", "bias")}
        mixers[FULL] = LatentAttention(**same, own_gate="head", k_rope_norm=True)
    if WINDOW in kinds:
        mixers[WINDOW] = _window(c, picks, kinds)
    c.ignore("per_layer_config", "sliding_window", "sliding_window_size")
    moe = routed_experts(c, sigmoid_routing(c, groups=(1, 1), scale=1.0), shared=1)
    wide = c.int(
        "moe_shared_expert_intermediate_size",
        "shared_experts_intermediate_size",
        default=1536,
        symbol="Fs",
    )
    shared = c.int("n_shared_experts", default=1)
    moe = replace(moe, Fs=(shared * wide).named("Fs"))
    sparse = ["moe" in kind for kind in layer_kinds(c, layers, dense=1, typed=True)]
    return layered(c, name, hidden, mixers, kinds, moe, sparse, **how)


def dots3_note_text(c: Config) -> ModelSpec:
    """Read the text part of dots3-note as a model of its own."""
    return _text(c, "dots3_note_text")


def dots3_note(c: Config) -> ModelSpec:
    """Read a dots3-note config: the text part; vision and audio encoders are not counted."""
    towers = {"vision_config": "vision encoder", "audio_config": "audio encoder"}
    text, how = text_part(c, ["dots3_note_text"], **towers)
    return _text(text, "dots3_note", **how)
