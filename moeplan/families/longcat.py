"""LongCat-Flash (arXiv 2509.01322): two attention and two dense layers beside each MoE.

A third of the router's choices are zero-computation experts, which give a token back as it came,
so the number of experts that compute a token varies from 0 to k.
"""

from __future__ import annotations

from dataclasses import replace

from moeplan.families.common import decoder, layer_groups, pre_norm, selection
from moeplan.families.deepseek import latent_attention
from moeplan.families.mtp import mtp_modules, released_modules
from moeplan.families.reader import Config
from moeplan.model.basic import Norm, Residual
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity, Source, evaluate

__all__ = ["longcat_flash"]

NAMES = ExpertNames(
    router="mlp.router.classifier",
    selection_bias="mlp.router.e_score_correction_bias",
)
REAL = "per(k*E, E + Z)"


def _moe(c: Config, hidden: Quantity) -> MoE:
    """Experts with weights and without; r, the real ones among a token's k, is an assumption."""
    experts = c.int("n_routed_experts", "num_local_experts", symbol="E")
    zero = c.optional("zero_expert_num", symbol="Z")
    c.expect("zero_expert_type", ["identity"], "other zero-computation experts are not described")
    every = experts if zero is None else (experts + zero).named("E + Z")
    k = selection(c, every, "moe_topk", "num_experts_per_tok")
    real: Quantity | None = None
    if zero is not None:
        value = evaluate(REAL, {"k": k.value, "E": experts.value, "Z": zero.value})
        how = f"{REAL}: zero-computation experts are chosen as often as the others"
        real = Quantity.given(value, "experts", "r", Source("assumed", how))
        c.note(f"a token is computed by 0 to {k.value} experts, by {value:g} in expectation")
    return MoE(
        D=hidden,
        E=experts,
        k=k,
        F=c.int("expert_ffn_hidden_size", "moe_intermediate_size", symbol="F"),
        Z=zero,
        r=real,
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing(
            "softmax", selection_bias=True, scale=c.number("routed_scaling_factor", default=1.0)
        ),
        router_bias=c.flag("router_bias", default=False),
        names=NAMES,
    )


def _mtp(c: Config, hidden: Quantity, mixer: Block, dense: DenseFFN) -> list[Group]:
    """One module of one attention and one dense layer; names as in the released checkpoints."""
    count = released_modules(c, 1)
    if count.value > 1:
        raise c.fail("num_nextn_predict_layers", f"is {count.value}: one module is described")
    layer = pre_norm(hidden, mixer, replace(dense, prefix="transformer_layer.mlp."))
    modules = mtp_modules(
        c,
        hidden,
        layer,
        count,
        count,
        norms=("enorm.m", "hnorm.m"),
        prefix="model.mtp.layers.{i}.",
        first=0,
    )
    if not modules:
        return []
    table, *inside, _, head = modules[0].blocks
    outside = (table, Norm(hidden, "norm"), head)
    return [
        replace(modules[0], blocks=tuple(inside)),
        Group("MTP input and output", outside, prefix="model.mtp.", role="mtp"),
    ]


def longcat_flash(c: Config) -> ModelSpec:
    """Read a LongCat-Flash config.

    A layer runs attention, dense, attention, dense; the experts read what the first dense layer
    reads, and their output joins at the end of the layer (the shortcut that hides the exchange).
    """
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_layers", symbol="L")
    c.expect("num_hidden_layers", [layers.value, 2 * layers.value], "num_layers is the other count")
    c.expect("attention_method", ["MLA"], "this family has multi-latent attention")
    c.ignore("mla_scale_q_lora", "mla_scale_kv_lora", "rope_interleave")
    mixer = latent_attention(c, LatentAttention)
    dense = DenseFFN(D=hidden, F=c.int("ffn_hidden_size", "intermediate_size", symbol="F"))
    moe = _moe(c, hidden)

    def half(i: int, *experts: Block) -> tuple[Block, ...]:
        return (
            Norm(hidden, f"input_layernorm.{i}"),
            replace(mixer, prefix=f"self_attn.{i}."),
            Residual(hidden, "attention"),
            Norm(hidden, f"post_attention_layernorm.{i}"),
            *experts,
            replace(dense, prefix=f"mlps.{i}."),
            Residual(hidden, "dense_ffn"),
        )

    blocks = (*half(0, moe), *half(1), Residual(hidden, "routed_experts"))
    kinds = [("2 attention", "2 dense", "moe")] * int(layers.value)
    groups = layer_groups(kinds, lambda kind: blocks, count=layers)
    mtp = _mtp(c, hidden, mixer, dense)
    return decoder(c, hidden, groups, name="longcat_flash", mtp=mtp)
