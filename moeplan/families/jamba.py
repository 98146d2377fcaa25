"""Jamba (arXiv 2403.19887): seven Mamba layers to one of attention, experts in every second."""

from __future__ import annotations

from moeplan.families.common import attention, decoder, layer_groups, pre_norm, selection
from moeplan.families.reader import Config
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.model.state_space import Mamba1
from moeplan.quantity import Quantity, derive

__all__ = ["jamba"]

NAMES = ExpertNames(router="feed_forward.router", experts="feed_forward.experts.{e}.")
NORMS = ("input_layernorm", "pre_ff_layernorm")


def _mamba(c: Config, hidden: Quantity) -> Mamba1:
    rank = derive("ceil_div(D, 16)", symbol="R", D=hidden, note='mamba_dt_rank "auto"')
    if c.raw("mamba_dt_rank", default="auto")[1] != "auto":
        rank = c.int("mamba_dt_rank", symbol="R")
    expand = c.int("mamba_expand", default=2, symbol="expand")
    c.ignore("use_mamba_kernels", "use_mambapy", "use_associative_scan", "mamba_inner_layernorms")
    return Mamba1(
        D=hidden,
        Di=(expand * hidden).named("Di"),
        N=c.int("mamba_d_state", default=16, symbol="N"),
        R=rank,
        w=c.int("mamba_d_conv", default=4, symbol="w"),
        conv_bias=c.flag("mamba_conv_bias", default=True),
        bias=c.flag("mamba_proj_bias", default=False),
        norms=True,
    )


def _every(c: Config, what: str, period: int, offset: int, layers: int) -> list[bool]:
    """Which layers come at `offset` of each period of `<what>_layer_period`."""
    period = int(c.int(f"{what}_layer_period", default=period).value)
    offset = int(c.int(f"{what}_layer_offset", default=offset, least=0).value)
    if offset >= period:
        problem = f"is {offset}: it must be less than {what}_layer_period ({period})"
        raise c.fail(f"{what}_layer_offset", problem)
    return [i % period == offset for i in range(layers)]


def jamba(c: Config) -> ModelSpec:
    """Read a Jamba config; its attention has no rotary embedding."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    width = c.int("intermediate_size", symbol="F")
    activation = c.choice("hidden_act", allowed=("silu",), default="silu")
    experts = c.int("num_experts", "num_local_experts", symbol="E")
    c.expect("sliding_window", [0], "this family has no sliding windows")
    c.ignore("num_logits_to_keep")
    mixers: dict[str, Block] = {
        "attention": attention(c, hidden, grouped=True, rope=False),
        "mamba": _mamba(c, hidden),
    }
    ffns: dict[str, Block] = {
        "moe": MoE(
            D=hidden,
            E=experts,
            k=selection(c, experts, "num_experts_per_tok"),
            F=width,
            activation=activation,
            routing=Routing("softmax"),
            names=NAMES,
        ),
        "dense": DenseFFN(D=hidden, F=width, activation=activation, prefix="feed_forward."),
    }
    count = int(layers.value)
    attends = _every(c, "attn", 8, 4, count)
    sparse = _every(c, "expert", 2, 1, count)
    several = experts.value > 1  # one expert is a dense layer here
    kinds = [
        ("attention" if a else "mamba", "moe" if s and several else "dense")
        for a, s in zip(attends, sparse, strict=True)
    ]
    groups = layer_groups(
        kinds, lambda kind: pre_norm(hidden, mixers[kind[0]], ffns[kind[1]], NORMS), count=layers
    )
    return decoder(c, hidden, groups, name="jamba", norm="model.final_layernorm")
