"""MiniMax-M2 and M2.x: full attention, sigmoid routing with a selection bias."""

from __future__ import annotations

from moeplan.families.common import attention, decoder, layer_groups, pre_norm, selection
from moeplan.families.mixtral import NAMES
from moeplan.families.reader import Config
from moeplan.model.ffn import MoE, Routing
from moeplan.model.spec import ModelSpec

__all__ = ["minimax_m2"]


def _unreleased_mtp(c: Config) -> None:
    """The files describe multi-token prediction that the released weights do not hold."""
    modules = c.optional("num_mtp_modules")
    used = c.flag("use_mtp", default=False)
    c.optional("mtp_transformer_layers")
    if used and modules is not None:
        c.note(
            f"{modules.value} multi-token-prediction modules are named but not counted: the "
            "released checkpoints hold no tensors of them"
        )


def minimax_m2(c: Config) -> ModelSpec:
    """Read a MiniMax-M2 config: queries and keys are normalised over all heads of a layer."""
    hidden = c.int("hidden_size", symbol="D")
    experts = c.int("num_local_experts", "num_experts", symbol="E")
    c.expect("use_qk_norm", [True], "this family normalises queries and keys")
    c.expect("qk_norm_type", ["per_layer"], "queries and keys are normalised over all heads")
    c.expect("use_routing_bias", [True], "this family selects experts with a bias")
    c.expect("scoring_func", ["sigmoid"], "this family scores with a sigmoid")
    c.expect("shared_intermediate_size", [0], "this family has no shared expert")
    layers = c.int("num_hidden_layers", symbol="L")
    every = "every layer of this family has full attention (1)"
    c.expect("attn_type_list", [[1] * int(layers.value)], every)
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("intermediate_size", symbol="F"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("sigmoid", selection_bias=True, renormalise=True),
        names=NAMES._replace(selection_bias="block_sparse_moe.e_score_correction_bias"),
    )
    turned = c.optional("rotary_dim", symbol="dr")
    mixer = attention(c, hidden, grouped=True, head_dim=128, qk_norm="full", dr=turned)
    if turned is not None and turned.value > mixer.values["dh"]:
        raise c.fail("rotary_dim", f"is {turned.value}: it must be at most head_dim")
    groups = layer_groups(
        [("attention", "moe")] * int(layers.value),
        lambda kind: pre_norm(hidden, mixer, moe),
        count=layers,
    )
    _unreleased_mtp(c)
    return decoder(c, hidden, groups, name="minimax_m2")
