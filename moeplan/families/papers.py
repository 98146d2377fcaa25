"""Models that are known from their papers alone: GLaM (arXiv 2112.06905), GShard (2006.16668).

Nobody has released their weights, so the files are written in this package's own keys and tensor
names, and what a paper does not say is not counted (position biases) or noted.
"""

from __future__ import annotations

from dataclasses import replace

from moeplan.families.common import decoder, layer_groups, pre_norm, selection
from moeplan.families.quantization import read_checkpoint
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.basic import Embedding, Head, Norm, Residual
from moeplan.model.ffn import DenseFFN, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec, Role
from moeplan.quantity import Quantity

__all__ = ["glam", "gshard"]

POSITIONS = "relative position biases are not counted: the paper does not give their size"
SHARED = "shared.weight"


def _attention(c: Config, hidden: Quantity) -> Attention:
    """Multi-head attention whose heads need not make up the hidden size."""
    heads = c.int("num_attention_heads", symbol="H")
    width = c.int("head_dim", symbol="dh")
    return Attention(D=hidden, H=heads, G=heads, dh=width, dv=width, rope=False)


def _experts(c: Config, hidden: Quantity, activation: str) -> MoE:
    """Ungated experts without biases, the second one's weight relative to the first's."""
    experts = c.int("num_experts", symbol="E")
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("intermediate_size", symbol="F"),
        gated=False,
        activation=activation,
        routing=Routing("softmax", renormalise=True),
    )


def _sparse(c: Config, layers: Quantity) -> list[str]:
    """Every `moe_layer_frequency`-th layer holds experts."""
    every = int(c.int("moe_layer_frequency").value)
    if every > layers.value:
        raise c.fail("moe_layer_frequency", f"is {every}: it leaves no layer with experts")
    return ["dense" if (i + 1) % every else "moe" for i in range(int(layers.value))]


def glam(c: Config) -> ModelSpec:
    """Read a GLaM config: dense layers are gated (GEGLU), experts are not; one embedding table."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    dense = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"), activation="gelu")
    ffns: dict[str, Block] = {"moe": _experts(c, hidden, "gelu"), "dense": dense}
    mixer = _attention(c, hidden)
    groups = layer_groups(
        [("attention", kind) for kind in _sparse(c, layers)],
        lambda kind: pre_norm(hidden, mixer, ffns[kind[1]]),
        count=layers,
    )
    return decoder(c, hidden, groups, name="glam", tied_default=True, notes=(POSITIONS,))


def _stack(c: Config, hidden: Quantity, side: str, role: Role) -> list[Group]:
    layers = c.int(f"{side}_layers", symbol="L")
    mixer = replace(_attention(c, hidden), causal=side == "decoder")
    crossing = replace(mixer, causal=False, cross=True, prefix="cross_attn.")
    width = c.int("intermediate_size", symbol="F")
    dense = DenseFFN(D=hidden, F=width, gated=False, activation="relu")
    ffns: dict[str, Block] = {"moe": _experts(c, hidden, "relu"), "dense": dense}

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        first, *rest = pre_norm(hidden, mixer, ffns[kind[1]])
        attend, add, *feed = rest
        cross: tuple[Block, ...] = ()
        if side == "decoder":
            cross = (Norm(hidden, "cross_attn_layernorm"), crossing, Residual(hidden, "attention"))
        return (first, attend, add, *cross, *feed)

    kinds = [(side, kind) for kind in _sparse(c, layers)]
    groups = layer_groups(kinds, build, prefix=f"{side}.layers.{{i}}.", role=role, count=layers)
    return [*groups, Group(f"{side} final norm", (Norm(hidden, f"{side}.norm"),), role=role)]


def gshard(c: Config) -> ModelSpec:
    """Read a GShard config: an encoder and a decoder for translation, one embedding table."""
    hidden = c.int("hidden_size", symbol="D")
    vocabulary = c.int("vocab_size", symbol="V")
    table = Embedding(vocabulary, hidden, SHARED)
    source = Embedding(vocabulary, hidden, "encoder.embed_tokens.weight", SHARED)
    groups = (
        Group("embedding", (table,)),
        Group("encoder embedding", (source,), role="encoder"),
        *_stack(c, hidden, "encoder", "encoder"),
        *_stack(c, hidden, "decoder", "model"),
        Group("head", (Head(vocabulary, hidden, tied=SHARED),)),
    )
    checkpoint = read_checkpoint(c)
    unread = c.finish()
    return ModelSpec(
        name="gshard",
        family="gshard",
        groups=groups,
        checkpoint=checkpoint,
        source=c.path,
        unread=unread,
        notes=(POSITIONS, *c.notes),
    )
