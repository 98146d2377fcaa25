"""Tencent's Hy3: DeepSeek-V3's routing behind grouped-query attention."""

from __future__ import annotations

from moeplan.families.common import attention, pre_norm, selection
from moeplan.families.mtp import mtp_modules
from moeplan.families.reader import Config
from moeplan.families.stack import FULL, dense_first, layered, sparse_words
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.spec import ModelSpec

__all__ = ["hy_v3"]

NAMES = ExpertNames(
    router="mlp.router.gate", selection_bias="mlp.expert_bias", shared="mlp.shared_mlp."
)


def hy_v3(c: Config) -> ModelSpec:
    """Read a Hy3 config: normalised queries and keys, one dense layer."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    experts = c.int("num_experts", "num_local_experts", symbol="E")
    width = c.int("moe_intermediate_size", "expert_hidden_dim", symbol="F")
    shared = c.int("num_shared_experts", default=1, symbol="shared")
    c.expect("qk_norm", [True], "this family normalises each head's queries and keys")
    c.expect("mlp_bias", [False], "feed-forward biases are not described")
    c.expect("moe_router_use_sigmoid", [True], "this family scores with a sigmoid")
    c.expect("moe_router_enable_expert_bias", [True], "this family selects with a bias")
    c.expect("route_norm", [True], "this family's chosen weights sum to one")
    c.ignore("enable_moe_fp32_combine", "enable_attention_fp32_softmax", "enable_lm_head_fp32")
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=width,
        Fs=(shared * width).named("Fs"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing(
            "sigmoid",
            selection_bias=True,
            renormalise=True,
            scale=c.number("router_scaling_factor", default=2.826),
        ),
        names=NAMES,
    )
    bias = c.flag("attention_bias", default=False)
    mixer = attention(
        c, hidden, grouped=True, head_dim=128, qkv_bias=bias, o_bias=bias, qk_norm="head"
    )
    sparse = sparse_words(c, layers, lambda: dense_first(c, layers, "first_k_dense_replace", 1))
    modules = c.int("num_nextn_predict_layers", default=0, symbol="modules", least=0)
    count, layer = c.int("num_hidden_layers", symbol="L"), pre_norm(hidden, mixer, moe)
    mtp = mtp_modules(c, hidden, layer, count, modules, last="final_layernorm")
    return layered(c, "hy_v3", hidden, {FULL: mixer}, [FULL] * layers, moe, sparse, mtp=mtp)
