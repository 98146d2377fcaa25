"""DeepSeek-V4: compressed attention, mixed residual streams, hash-routed first layers.

Tensors are named as in the released checkpoints (and in the code released with them).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moeplan.families.common import decoder, layer_groups, selection
from moeplan.families.reader import Config
from moeplan.model.basic import Embedding, Head, Norm, Projection
from moeplan.model.compressed_attention import CompressedAttention
from moeplan.model.ffn import ExpertNames, MoE, Routing
from moeplan.model.formats import FORMATS, Checkpoint, scaled_8bit
from moeplan.model.ops import Block
from moeplan.model.residual import HyperCollapse, HyperExpand
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity

__all__ = ["deepseek_v4"]

WINDOW, CSA, HCA = "window", "csa", "hca"
RATIOS = {0: WINDOW, 4: CSA, 128: HCA}
WORDS = {
    "sliding_attention": WINDOW,
    "compressed_sparse_attention": CSA,
    "heavily_compressed_attention": HCA,
}
RATES = {CSA: ("compressed_sparse_attention", 4), HCA: ("heavily_compressed_attention", 128)}
NAMES = ExpertNames(
    router="ffn.gate",
    experts="ffn.experts.{e}.",
    gate="w1",
    up="w3",
    down="w2",
    shared="ffn.shared_experts.",
    selection_bias="ffn.gate.bias",
    table="ffn.gate.tid2eid",
)
EMBED, HEAD = "embed.weight", "head.weight"


def _scopes(c: Config, layers: int) -> tuple[list[str], str]:
    """The attention of each layer, and that of the MTP module.

    compress_ratios has a ratio for each layer, and one more for each MTP module; without it, two
    heavily compressed layers, then sparse and heavily compressed ones in turn.
    """
    ratios = c.list("compress_ratios", default=None)
    if ratios is not None and "layer_types" not in c:
        if len(ratios) < layers or any(ratio not in RATIOS for ratio in ratios):
            raise c.fail("compress_ratios", f"needs 0, 4 or 128 for each of the {layers} layers")
        kinds = [RATIOS[ratio] for ratio in ratios]
        return kinds[:layers], kinds[layers] if len(kinds) > layers else WINDOW
    words = c.list("layer_types", default=None)
    if words is None:
        return [HCA if i < 2 or i % 2 == 0 else CSA for i in range(layers)], WINDOW
    if len(words) < layers or any(word not in WORDS for word in words):
        raise c.fail("layer_types", f"needs {', '.join(WORDS)} for each of the {layers} layers")
    return [WORDS[word] for word in words[:layers]], WINDOW


def _attention(c: Config, hidden: Quantity, kind: str) -> CompressedAttention:
    heads, groups = c.int("num_attention_heads", symbol="H"), c.int("o_groups", symbol="Go")
    width = c.int("head_dim", symbol="dh")
    if heads.value % groups.value:
        raise c.fail("o_groups", f"is {groups.value}: it must divide the {heads.value} heads")
    c.expect("num_key_value_heads", [1], "one entry is the key and value of all heads")
    more: dict[str, Any] = {}
    if kind != WINDOW:
        more["m"] = _rate(c, *RATES[kind])
    if kind == CSA:
        more |= {
            "Hi": c.int("index_n_heads", symbol="Hi"),
            "di": c.int("index_head_dim", symbol="di"),
            "ki": c.int("index_topk", symbol="ki"),
        }
    c.ignore("index_n_heads", "index_head_dim", "index_topk")
    return CompressedAttention(
        D=hidden,
        H=heads,
        dh=width,
        dr=c.int("qk_rope_head_dim", default=64, symbol="dr"),
        rq=c.int("q_lora_rank", symbol="rq"),
        W=c.int("sliding_window", symbol="W"),
        Go=groups,
        ro=c.int("o_lora_rank", symbol="ro"),
        kind=kind,  # type: ignore[arg-type]
        **more,
    )


def _rate(c: Config, word: str, default: int) -> Quantity:
    """Tokens per entry, from compress_rates or the class's default."""
    rates = c.sub("compress_rates", required=False)
    if rates is not None and word in rates:
        return rates.int(word, symbol="m")
    short = {"compressed_sparse_attention": "csa", "heavily_compressed_attention": "hca"}[word]
    return c.int(f"compress_rate_{short}", default=default, symbol="m")


def _moe(c: Config, hidden: Quantity, *, hashed: bool) -> MoE:
    """The experts; hash-routed layers read a token's experts from a table of all tokens."""
    experts = c.int("n_routed_experts", "num_local_experts", symbol="E")
    width = c.int("moe_intermediate_size", symbol="F")
    c.expect("n_shared_experts", [1], "this family has one shared expert")
    c.expect("topk_method", ["noaux_tc"], "this family selects with a bias")
    c.expect("hidden_act", ["silu"], "the gate of this family's clamped SwiGLU")
    score = c.choice(
        "scoring_func", allowed=("sqrtsoftplus", "sigmoid", "softmax"), default="sqrtsoftplus"
    )
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=width,
        Fs=width.named("Fs"),
        V=c.int("vocab_size", symbol="V") if hashed else None,
        activation="clamped_silu",
        routing=Routing(
            score,  # type: ignore[arg-type]
            selection_bias=not hashed,
            renormalise=c.flag("norm_topk_prob", default=True),
            scale=c.number("routed_scaling_factor", default=1.5),
        ),
        names=NAMES,
    )


def _hashed(c: Config, layers: int) -> list[bool]:
    """Which layers are hash-routed: the first num_hash_layers, or those mlp_layer_types names."""
    first = int(c.int("num_hash_layers", default=3, least=0).value)
    words = c.list("mlp_layer_types", default=None)
    if words is None:
        return [i < first for i in range(layers)]
    if len(words) < layers or any(word not in ("hash_moe", "moe") for word in words):
        raise c.fail("mlp_layer_types", f"needs 'hash_moe' or 'moe' for each of {layers} layers")
    return [word == "hash_moe" for word in words[:layers]]


def _layer(hidden: Quantity, streams: Quantity, mixer: Block, moe: MoE) -> tuple[Block, ...]:
    """A layer: each sub-layer reads one stream collapsed from all, and writes to all."""
    return (
        HyperCollapse(hidden, streams, "hc_attn"),
        Norm(hidden, "attn_norm"),
        mixer,
        HyperExpand(hidden, streams),
        HyperCollapse(hidden, streams, "hc_ffn"),
        Norm(hidden, "ffn_norm"),
        moe,
        HyperExpand(hidden, streams),
    )


def _mtp(
    c: Config, hidden: Quantity, streams: Quantity, layer: tuple[Block, ...], modules: int
) -> list[Group]:
    """Modules of one layer: embedding and streams are projected apart and added."""
    vocabulary = c.int("vocab_size", symbol="V")
    head = EMBED if c.data.get("tie_word_embeddings") is True else HEAD
    if not modules:
        return []
    blocks = (
        Embedding(vocabulary, hidden, "embed.weight", tied=EMBED),
        Norm(hidden, "enorm"),
        Norm(hidden, "hnorm"),
        Projection(I=hidden, O=hidden, name="e_proj"),
        Projection(I=hidden, O=hidden, name="h_proj", times=streams),
        *layer,
        HyperCollapse(hidden, streams, "hc_head", mixes=False),
        Norm(hidden, "norm"),
        Head(vocabulary, hidden, head, name="head"),
    )
    places = tuple(range(modules))
    return [Group("MTP module", blocks, modules, places, "mtp.{i}.", "mtp")]


def _stored(checkpoint: Checkpoint, experts: str | None) -> Checkpoint:
    """The released formats: 4-bit experts, 8-bit projections with 8-bit scales, fp32 compressors.

    Compressors are fp32 and the indexer's head weights bf16 in the released checkpoints although
    the file does not say so.
    """
    if checkpoint.quantised is None:
        return checkpoint
    rules = [(r"\.compressor\.", FORMATS["fp32"]), (r"indexer\.weights_proj", checkpoint.base)]
    if experts == "fp4":
        rules.append((r"\.experts\.", FORMATS["mxfp4"]))
    eight = scaled_8bit("fp8", "block", size=(128, 128), scale=1)
    return replace(checkpoint, quantised=eight, rules=tuple(rules))


def deepseek_v4(c: Config) -> ModelSpec:
    """Read a DeepSeek-V4 config."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    streams = c.int("hc_mult", default=4, symbol="hc")
    c.expect("attention_bias", [False], "this family has no attention biases")
    c.expect("mlp_bias", [False], "feed-forward biases are not described")
    c.ignore("hc_sinkhorn_iters", "partial_rotary_factor", "compress_rope_theta")
    count = int(layers.value)
    scopes, ahead = _scopes(c, count)
    mixers = {kind: _attention(c, hidden, kind) for kind in {*scopes, ahead}}
    c.ignore("compress_ratios", "compress_rates", "compress_rate_csa", "compress_rate_hca")
    moes = {"moe": _moe(c, hidden, hashed=False), "hash moe": _moe(c, hidden, hashed=True)}
    kinds = [
        (scope, "hash moe" if table else "moe")
        for scope, table in zip(scopes, _hashed(c, count), strict=True)
    ]
    experts = c.choice("expert_dtype", allowed=("fp4", "fp8"), default="fp8")
    modules = int(c.int("num_nextn_predict_layers", default=1, least=0).value)
    groups = layer_groups(
        kinds,
        lambda kind: _layer(hidden, streams, mixers[kind[0]], moes[kind[1]]),
        prefix="layers.{i}.",
        count=layers,
    )
    last = Group("residual streams", (HyperCollapse(hidden, streams, "hc_head", mixes=False),))
    spec = decoder(
        c,
        hidden,
        [*groups, last],
        name="deepseek_v4",
        embed=EMBED,
        norm="norm",
        head="head",
        mtp=_mtp(c, hidden, streams, _layer(hidden, streams, mixers[ahead], moes["moe"]), modules),
    )
    return replace(spec, checkpoint=_stored(spec.checkpoint, experts))
