"""Inkling (Thinking Machines): relative attention behind convolutions, windows, many experts."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import decoder, layer_groups, layer_types, selection
from moeplan.families.reader import Config
from moeplan.families.stack import sparse_words, text_part
from moeplan.model.basic import Norm, Residual
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.relative_attention import (
    RelativeAttention,
    ResidualAttention,
    ResidualConvolution,
)
from moeplan.model.scored_shared_experts import FusedFFN, ScoredSharedMoE
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity, Source

__all__ = ["inkling2", "inkling_mm_model"]

FULL, WINDOW = "relative attention", "relative attention, window"
WORDS = {"hybrid": FULL, "hybrid_sliding": WINDOW}
AT = "model.llm."
_MIXED = Source(
    "config", "n_layers_per_attn_res_block: blocks of layers behind a branch, and its own"
)
_QUERIES = Source("assumed", "queries, keys and values of full layers read mixtures of their own")
NAMES = ExpertNames(
    experts="mlp.experts.",
    gate_up="w13_weight",
    down="w2_weight",
    suffix="",
    shared="mlp.shared_experts.",
    selection_bias="mlp.gate.bias",
    selection_dims=("E",),
)


def _mixer(c: Config, hidden: Quantity, kind: str, **how: Any) -> RelativeAttention:
    """Layers with windows have heads of their own, and a bias for every key in the window."""
    own = kind == WINDOW
    at = "swa_" if own else ""
    heads = c.int(f"{at}num_attention_heads", symbol="H")
    groups = c.int(f"{at}num_key_value_heads", symbol="G")
    if heads.value % groups.value:
        problem = f"is {groups.value}: it must divide {at}num_attention_heads ({heads.value})"
        raise c.fail(f"{at}num_key_value_heads", problem)
    width = c.int(f"{at}head_dim", default=128, symbol="dh")
    reach = _window(c) if own else c.int("rel_extent", default=1024, symbol="Re")
    return RelativeAttention(
        D=hidden,
        H=heads,
        G=groups,
        dh=width,
        dv=width,
        W=_window(c) if own else None,
        scope="window" if own else "full",
        rope=False,
        dp=c.int("d_rel", default=16, symbol="dp"),
        Re=reach.named("Re"),
        w=_taps(c),
        prefix="attn.",
        names=("wq_du", "wk_dv", "wv_dv", "wo_ud"),
        **how,
    )


def _window(c: Config) -> Quantity:
    return c.int("sliding_window_size", "sliding_window", symbol="W")


def _taps(c: Config) -> Quantity:
    return c.int("conv_kernel_size", "sconv_kernel_size", default=4, symbol="w")


def _closed(c: Config, name: str, hidden: Quantity, groups: list[Group], **how: Any) -> ModelSpec:
    """The embedding is normalised; some files say how many rows their head holds."""
    c.ignore("log_scaling_n_floor", "log_scaling_alpha", "use_cache", "number_of_conv_states")
    c.ignore("model_max_length", "final_logit_softcapping", "logits_mup_width_multiplier")
    c.ignore("embedding_multiplier", "rms_norm_eps_moe_gate", "route_scale")
    c.expect("tie_word_embeddings", [False], "this family never ties its head")
    return decoder(
        c,
        hidden,
        [Group("embedding norm", (Norm(hidden, f"{AT}embed_norm"),)), *groups],
        name=name,
        embed=f"{AT}embed.weight",
        norm=f"{AT}norm",
        head=f"{AT}unembed",
        **how,
    )


def _sparse(c: Config, layers: int) -> list[bool]:
    """Which layers hold experts: mlp_layer_types, or all from dense_mlp_idx on."""
    dense = c.int("dense_mlp_idx", default=0, least=0, most=layers)
    return sparse_words(c, layers, [i >= dense.value for i in range(layers)])


def _scopes(c: Config, layers: int) -> list[str]:
    """layer_types, or windows where local_layer_ids says so, or in all but every sixth layer."""
    local = {i for i in range(layers) if (i + 1) % 6}
    if "local_layer_ids" in c:
        local = set(c.indices("local_layer_ids", layers))
    c.ignore("local_layer_ids")
    return layer_types(c, layers, WORDS, [WINDOW if i in local else FULL for i in range(layers)])


def _scored_experts(c: Config, hidden: Quantity) -> ScoredSharedMoE:
    experts = c.int("n_routed_experts", "num_local_experts", symbol="E")
    if "dense_intermediate_size" in c:  # then the other key is the experts' width
        width = c.int("intermediate_size", symbol="F")
        c.ignore("moe_intermediate_size")
    else:
        width = c.int("moe_intermediate_size", symbol="F")
    shared = c.int("n_shared_experts", default=2, symbol="Es")
    c.expect("shared_expert_sink", [True], "shared experts that are not scored")
    return ScoredSharedMoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=width,
        Fs=(shared * width).named("Fs"),
        Es=shared,
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing(
            "sigmoid",
            selection_bias=True,
            renormalise=True,
            scale=c.number("route_scale", default=8.0),
        ),
        stacked=True,
        names=NAMES,
    )


def inkling_mm_model(c: Config) -> ModelSpec:
    """Read an Inkling config: the text part; vision and audio are not counted."""
    towers = {"vision_config": "vision tower", "audio_config": "audio tower"}
    text, how = text_part(c, ["inkling_text"], **towers)
    hidden = text.int("hidden_size", symbol="D")
    layers = text.int("num_hidden_layers", symbol="L")
    count, taps = int(layers.value), _taps(text)
    moe = _scored_experts(text, hidden)
    kinds, sparse = _scopes(text, count), _sparse(text, count)
    mixers = {kind: _mixer(text, hidden, kind, qk_norm="head") for kind in set(kinds)}
    key = "dense_intermediate_size"
    key = key if key in text else "intermediate_size"
    dense = None if all(sparse) else FusedFFN(D=hidden, F=text.int(key, symbol="F"))
    text.ignore("intermediate_size", "dense_intermediate_size", "sliding_window_size")
    _ignore_mtp(c, text)

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        ffn: Block = moe if kind[1] == "moe" or dense is None else dense
        return (
            Norm(hidden, "attn_norm"),
            mixers[kind[0]],
            ResidualConvolution(hidden, taps, "attn_sconv"),
            Residual(hidden, "attention"),
            Norm(hidden, "mlp_norm"),
            ffn,
            ResidualConvolution(hidden, taps, "mlp_sconv"),
            Residual(hidden, "routed_experts" if ffn is moe else "dense_ffn"),
        )

    places = [(k, "moe" if s else "dense") for k, s in zip(kinds, sparse, strict=True)]
    groups = layer_groups(places, build, prefix=f"{AT}layers.{{i}}.", count=layers)
    rows = text.optional("unpadded_vocab_size", symbol="V")
    return _closed(text, "inkling_mm_model", hidden, groups, outputs=rows, **how)


def _ignore_mtp(c: Config, text: Config) -> None:
    """Multi-token prediction stands in the text part or beside it."""
    own = c.sub("mtp_config", required=False)
    if own is not None:
        own.ignore(*own.data)
    beside = own is not None and own.data.get("num_nextn_predict_layers")
    if text.optional("num_mtp_layers") is not None or beside:
        c.note("the multi-token-prediction modules that the file names are not counted")
    text.ignore("chain_hidden_post_norm", "mtp_hidden_states_first", "mtp_local_layer_ids")


def _experts(c: Config, hidden: Quantity) -> MoE:
    experts = c.int("n_routed_experts", "num_local_experts", symbol="E")
    c.expect("scoring_func", ["sigmoid"], "this family scores with a sigmoid")
    c.ignore("mlp_gate_softcap", "mlp_up_softcap", "qk_l2_clip_threshold", "rel_l2_clip_threshold")
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("moe_intermediate_size", "intermediate_size", symbol="F"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing(
            "sigmoid",
            selection_bias=True,
            renormalise=True,
            scale=c.number("route_scale", "routed_scaling_factor", default=8.0),
        ),
        stacked=True,
        names=NAMES,
    )


def inkling2(c: Config) -> ModelSpec:
    """Read an Inkling 2 config: the text part; the vision tower is not counted.

    Branches read a mixture of earlier blocks of layers: the more of them there are behind a layer,
    the more it computes.
    """
    text, how = text_part(c, ["inkling2_text"], vision_config="vision tower")
    hidden = text.int("hidden_size", symbol="D")
    layers = text.int("num_hidden_layers", symbol="L")
    span = int(text.int("n_layers_per_attn_res_block", default=6).value)
    taps, moe = _taps(text), _experts(text, hidden)
    kinds = _scopes(text, int(layers.value))
    clipped = {
        "clips": True,
        "v_norm": True,
        "own_gate": "full",
        "gate_names": ("gate_attn.weight", ""),
    }
    mixers = {k: _mixer(text, hidden, k, dynamic=k == FULL, **clipped) for k in set(kinds)}
    text.ignore("sliding_window_size", "unpadded_vocab_size")

    def mixed(states: int, name: str, queries: int = 1) -> ResidualAttention:
        n = Quantity.given(states, "states", "n", _MIXED)
        q = Quantity.given(queries, "queries", "q", _QUERIES)
        branch = name.partition("_")[0] + "_"
        at = f"{AT}attn_res.{name}"
        return ResidualAttention(hidden, n, q, at, several=queries > 1, branch=branch)

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        scope, before, after = kind[0], int(kind[2]), int(kind[3])
        full = scope == FULL
        mix = (mixed(before, "attn_queries.{i-1}", 3 if full else 1),) if before > 1 else ()
        norms = ("q_input_norm", "k_input_norm", "v_input_norm") if full else ("attn_norm",)
        return (
            *mix,
            *(Norm(hidden, name) for name in norms),
            mixers[scope],
            ResidualConvolution(hidden, taps, "attn_sconv"),
            Residual(hidden, "attention"),
            mixed(after, "mlp_queries.{i}"),
            Norm(hidden, "mlp_norm"),
            moe,
            ResidualConvolution(hidden, taps, "mlp_sconv"),
            Residual(hidden, "routed_experts"),
        )

    # before attention: blocks that began before this layer; after it: those up to this layer
    places = [
        (kind, "moe", str(-(-i // span) + 1), str(i // span + 2)) for i, kind in enumerate(kinds)
    ]
    groups = layer_groups(places, build, prefix=f"{AT}layers.{{i}}.", count=layers)
    states = -(-len(kinds) // span) + 1
    last = Group("residual attention", (mixed(states, "output_query"),))
    return _closed(text, "inkling2", hidden, [*groups, last], **how)
