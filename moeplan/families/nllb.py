"""NLLB-MoE (arXiv 2207.04672): an encoder and a decoder, experts in every fourth layer, top-2."""

from __future__ import annotations

from dataclasses import replace

from moeplan.families.common import layer_groups
from moeplan.families.quantization import read_checkpoint
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.basic import Embedding, Head, Norm, Residual
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec, Role
from moeplan.quantity import Quantity, Source

__all__ = ["nllb_moe"]

SHARED = "model.shared.weight"
SIDES: tuple[tuple[str, Role], ...] = (("encoder", "encoder"), ("decoder", "model"))


def _attention(c: Config, hidden: Quantity, side: str) -> Attention:
    heads = c.int(f"{side}_attention_heads", symbol="H")
    if hidden.value % heads.value:
        problem = f"is {heads.value}: it must divide d_model ({hidden.value})"
        raise c.fail(f"{side}_attention_heads", problem)
    width = (hidden // heads).named("dh")
    return Attention(
        D=hidden,
        H=heads,
        G=heads,
        dh=width,
        dv=width,
        causal=side == "decoder",
        qkv_bias=True,
        o_bias=True,
        rope=False,
        names=("q_proj", "k_proj", "v_proj", "out_proj"),
    )


def _feed_forward(c: Config, hidden: Quantity, side: str) -> dict[str, Block]:
    width = c.int(f"{side}_ffn_dim", symbol="F")
    activation = c.choice("activation_function", allowed=("relu", "gelu", "silu"), default="relu")
    top = Source("assumed", "the class always routes a token to two experts")
    moe = MoE(
        D=hidden,
        E=c.int("num_experts", symbol="E", least=2),
        k=Quantity.given(2, "experts", "k", top),
        F=width,
        gated=False,
        activation=activation,
        routing=Routing("softmax", renormalise=True),
        router_bias=c.flag("router_bias", default=False),
        expert_bias=True,
        names=ExpertNames(
            router="ffn.router.classifier",
            experts="ffn.experts.expert_{e}.",
            up="fc1",
            down="fc2",
        ),
    )
    dense = DenseFFN(
        D=hidden,
        F=width,
        gated=False,
        bias=True,
        activation=activation,
        prefix="ffn.",
        names=("", "fc1", "fc2"),
    )
    return {"moe": moe, "dense": dense}


def _stack(c: Config, hidden: Quantity, side: str, role: Role) -> list[Group]:
    """The layers of a side and its last norm; each `sparse_step`-th layer holds experts."""
    keys = (f"{side}_layers", "num_hidden_layers") if side == "encoder" else (f"{side}_layers",)
    layers = c.int(*keys, symbol="L")
    step = int(c.int(f"{side}_sparse_step", default=4, least=0).value)
    mixer = _attention(c, hidden, side)
    crossing = replace(mixer, causal=False, cross=True, prefix="cross_attention.")
    ffns = _feed_forward(c, hidden, side)

    def norm(name: str) -> Norm:
        return Norm(hidden, name, bias=True)

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        cross: tuple[Block, ...] = ()
        if side == "decoder":
            cross = (norm("cross_attention_layer_norm"), crossing, Residual(hidden, "attention"))
        return (
            norm("self_attn_layer_norm"),
            mixer,
            Residual(hidden, "attention"),
            *cross,
            norm("ff_layer_norm"),
            ffns[kind[1]],
            Residual(hidden, "routed_experts" if kind[1] == "moe" else "dense_ffn"),
        )

    kinds = [
        (side, "moe" if step and (i + 1) % step == 0 else "dense") for i in range(int(layers.value))
    ]
    prefix = f"model.{side}.layers.{{i}}."
    groups = layer_groups(kinds, build, prefix=prefix, role=role, count=layers)
    last = Group(f"{side} final norm", (norm(f"model.{side}.layer_norm"),), role=role)
    return [*groups, last]


def nllb_moe(c: Config) -> ModelSpec:
    """Read an NLLB-MoE config; one table serves encoder, decoder and output."""
    c.expect("is_encoder_decoder", [True], "only the encoder-decoder is described")
    c.expect("tie_word_embeddings", [True], "which tables are then apart is not described")
    c.ignore(
        "router_dtype",
        "router_ignore_padding_tokens",
        "second_expert_policy",
        "normalize_router_prob_before_dropping",
        "batch_prioritized_routing",
    )
    hidden = c.int("d_model", "hidden_size", symbol="D")
    vocabulary = c.int("vocab_size", symbol="V")
    encoder, decoder = (f"model.{side}.embed_tokens.weight" for side, _ in SIDES)
    stacks = [_stack(c, hidden, side, role) for side, role in SIDES]
    groups = (
        Group("embedding", (Embedding(vocabulary, hidden, SHARED, aliases=(decoder,)),)),
        Group(
            "encoder embedding", (Embedding(vocabulary, hidden, encoder, SHARED),), role="encoder"
        ),
        *stacks[0],
        *stacks[1],
        Group("head", (Head(vocabulary, hidden, tied=SHARED),)),
    )
    context = c.optional("max_position_embeddings", symbol="max_context")
    checkpoint = read_checkpoint(c)
    unread = c.finish()
    return ModelSpec(
        name="nllb_moe",
        family="nllb-moe",
        groups=groups,
        checkpoint=checkpoint,
        max_context=context,
        source=c.path,
        unread=unread,
        notes=tuple(c.notes),
    )
