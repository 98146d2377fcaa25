"""DBRX (Databricks, 2024): fused q, k and v, layer norms without shift, experts in one tensor."""

from __future__ import annotations

from moeplan.families.common import decoder, layer_groups, pre_norm, selection
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["dbrx"]

NAMES = ExpertNames(
    router="ffn.router.layer",
    experts="ffn.experts.mlp.",
    gate="w1",
    up="v1",
    down="w2",
    suffix="",
)


def _attention(c: Config, hidden: Quantity) -> Attention:
    nested = c.sub("attn_config")
    assert nested is not None
    nested.ignore("model_type", "attn_pdrop")
    heads = c.int("n_heads", "num_attention_heads", symbol="H")
    kv_heads = nested.int("kv_n_heads", symbol="G")
    if hidden.value % heads.value:
        raise c.fail("n_heads", f"is {heads.value}: it must divide d_model ({hidden.value})")
    if heads.value % kv_heads.value:
        raise nested.fail(
            "kv_n_heads", f"is {kv_heads.value}: it must divide n_heads ({heads.value})"
        )
    c.expect("num_key_value_heads", [kv_heads.value], "attn_config.kv_n_heads says otherwise")
    width = (hidden // heads).named("dh")
    return Attention(
        D=hidden,
        H=heads,
        G=kv_heads,
        dh=width,
        dv=width,
        prefix="norm_attn_norm.attn.",
        names=("q_proj", "k_proj", "v_proj", "out_proj"),
        fused="Wqkv",
    )


def _experts(c: Config, hidden: Quantity) -> MoE:
    nested = c.sub("ffn_config")
    assert nested is not None
    nested.ignore("model_type", "uniform_expert_assignment", "moe_loss_weight")
    nested.expect("hidden_size", [hidden.value], "d_model says otherwise")
    nested.expect("ffn_act_fn", [{"name": "silu"}], "the experts are described with SwiGLU")
    norm = "chosen weights are described as summing to one (the 1-norm)"
    nested.expect("moe_normalize_expert_weights", [1], norm)
    experts = nested.int("moe_num_experts", symbol="E")
    return MoE(
        D=hidden,
        E=experts,
        k=selection(nested, experts, "moe_top_k"),
        F=nested.int("ffn_hidden_size", symbol="F"),
        routing=Routing("softmax", renormalise=True),
        stacked=True,
        down_transposed=True,
        names=NAMES,
    )


def dbrx(c: Config) -> ModelSpec:
    """Read a DBRX config."""
    hidden = c.int("d_model", "hidden_size", symbol="D")
    mixer, moe = _attention(c, hidden), _experts(c, hidden)
    c.expect("tie_word_embeddings", [False], "this family's embeddings are not tied")
    layers = c.int("n_layers", "num_hidden_layers", symbol="L")
    norms = ("norm_attn_norm.norm_1", "norm_attn_norm.norm_2")
    groups = layer_groups(
        [("attention", "moe")] * int(layers.value),
        lambda kind: pre_norm(hidden, mixer, moe, norms),
        prefix="transformer.blocks.{i}.",
        count=layers,
    )
    return decoder(
        c,
        hidden,
        groups,
        name="dbrx",
        embed="transformer.wte.weight",
        norm="transformer.norm_f",
    )
