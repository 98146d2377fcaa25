"""MiniMax-Text-01 and M1 (arXiv 2501.08313): seven lightning attention layers to one of softmax."""

from __future__ import annotations

from moeplan.families.common import (
    attention,
    decoder,
    layer_groups,
    layer_types,
    pre_norm,
    selection,
)
from moeplan.families.mixtral import NAMES
from moeplan.families.reader import Config
from moeplan.model.ffn import MoE, Routing
from moeplan.model.lightning_attention import LightningAttention
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import plain

__all__ = ["minimax"]

LIGHTNING, FULL = "lightning attention", "full attention"


def _kinds(c: Config, layers: int) -> list[str]:
    """The mixer of each layer: layer_types, or attn_type_list (0 for lightning, 1 for full)."""
    if "attn_type_list" in c:
        marks = c.list("attn_type_list", length=layers)
        if any(mark not in (0, 1) for mark in marks):
            raise c.fail("attn_type_list", "needs 0 (lightning) or 1 (full) for each layer")
        return [FULL if mark else LIGHTNING for mark in marks]
    words = {"linear_attention": LIGHTNING, "full_attention": FULL}
    spaced = [FULL if (i + 1) % 2 else LIGHTNING for i in range(layers)]
    return layer_types(c, layers, words, spaced)


def minimax(c: Config) -> ModelSpec:
    """Read a MiniMax-Text-01 config, in its own keys or in those of transformers."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    experts = c.int("num_local_experts", "num_experts", symbol="E")
    c.expect("postnorm", [True], "the residual is taken after the norms in this family")
    c.expect("shared_intermediate_size", [0], "this family has no shared expert")
    c.expect("sliding_window", [0], "windows are not described for this family")
    c.ignore(*(f"{what}_{x}_factor" for what in _SCALED for x in ("alpha", "beta")))
    c.ignore(*(f"layernorm_{what}_{x}" for what in _NORMED for x in ("alpha", "beta")))
    c.ignore("rotary_dim", "shared_moe_mode")
    softmax = attention(c, hidden, grouped=True)
    mixers: dict[str, Block] = {
        FULL: softmax,
        LIGHTNING: LightningAttention(
            D=hidden,
            H=c.int("num_attention_heads", symbol="H"),
            dh=softmax.dh,
            chunk=c.int("block_size", default=256, symbol="chunk"),
        ),
    }
    turned = c.optional("rotary_dim", symbol="dr")
    if turned is not None and turned.value > plain(softmax.dh):
        raise c.fail("rotary_dim", f"is {turned.value}: it must be at most head_dim")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("intermediate_size", symbol="F"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax", renormalise=True),
        names=NAMES,
    )
    groups = layer_groups(
        [(kind, "moe") for kind in _kinds(c, int(layers.value))],
        lambda kind: pre_norm(hidden, mixers[kind[0]], moe),
        count=layers,
    )
    return decoder(c, hidden, groups, name="minimax")


_SCALED = ("full_attn", "linear_attn", "mlp")  # factors of residual and branch: no shapes
_NORMED = ("full_attention", "linear_attention", "mlp")
