"""Qwen4-Exp: the delta rule and sparse attention, gated residual streams, n-gram embeddings."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from moeplan.families.common import attention, decoder, layer_groups, layer_types, rotated
from moeplan.families.qwen import shared_expert_moe
from moeplan.families.qwen_hybrid import STACKED, delta_net
from moeplan.families.reader import Config
from moeplan.families.stack import text_part
from moeplan.model.ngram_embedding import NGramEmbedding
from moeplan.model.ops import Block
from moeplan.model.pooled_block_attention import PooledBlockAttention
from moeplan.model.spec import Group, ModelSpec
from moeplan.model.streams import LowRankCollapse, StreamExpand
from moeplan.quantity import Quantity, Source

__all__ = ["qwen4_exp", "qwen4_exp_text"]

LINEAR, SPARSE, NGRAMS = "linear attention", "sparse attention", "n-grams"
WORDS = {"linear_attention": LINEAR, "indexed_attention": SPARSE, "full_attention": SPARSE}
TEXT = "model.language_model."


def _sparse(c: Config, hidden: Quantity) -> PooledBlockAttention:
    bias = c.flag("attention_bias", default=False)
    how: dict[str, Any] = {"qkv_bias": bias, "o_bias": bias, "qk_norm": "head", "gate": True}
    full = rotated(c, attention(c, hidden, grouped=True, head_dim=256, **how), 1.0)
    c.expect("indexer_kv_heads", [1], "the indexer of this family has one key head")
    block = c.int("indexer_compress_ratio", symbol="bi")
    budget = c.int("indexer_budget", symbol="budget")
    if budget.value % block.value:
        problem = f"is {budget.value}: it must be a multiple of indexer_compress_ratio"
        raise c.fail("indexer_budget", f"{problem} ({block.value})")
    own = {f.name: getattr(full, f.name) for f in fields(full)}
    return PooledBlockAttention(
        **own,
        Hi=c.int("indexer_n_heads", symbol="Hi"),
        di=c.int("indexer_head_dim", symbol="di"),
        bi=block,
        kb=(budget // block).named("kb"),
    )


def _kinds(c: Config, layers: int) -> list[str]:
    """layer_types, or sparse attention in every full_attention_interval-th layer."""
    every = int(c.int("full_attention_interval", default=4).value)
    spaced = [LINEAR if (i + 1) % every else SPARSE for i in range(layers)]
    return layer_types(c, layers, WORDS, spaced)


def _primes(first: int, count: int) -> list[int]:
    """The first `count` primes from `first` on."""
    found: list[int] = []
    number = max(first, 2)
    while len(found) < count:
        if all(number % d for d in range(2, math.isqrt(number) + 1)):
            found.append(number)
        number += 1
    return found


def _ngrams(c: Config, hidden: Quantity, streams: Quantity, place: int) -> NGramEmbedding:
    """The table of the `place`-th layer that has one: each head's size is a prime of its own."""
    longest = c.int("ngram_size", default=3, symbol="n", least=2)
    each = c.int("heads_per_ngram", default=8, symbol="heads", most=1000)
    width = c.int("ple_embed_dim", default=hidden, symbol="Pe")
    base = c.int("ngram_vocab_size_base", default=20_000_000, symbol="base", most=10**9)
    divisor = int(c.int("make_ngram_vocab_size_divisible_by", default=128).value)
    heads = ((longest - 1) * each).named("N")
    count = int(heads.value)
    if width.value % count:
        raise c.fail("ple_embed_dim", f"is {width.value}: {count} hash heads must divide it")
    rows = sum(_primes(int(base.value), (place + 1) * count)[place * count :])
    source = Source("config", "ngram_vocab_size_base: the next primes, one a head, summed, padded")
    c.ignore("seed")
    return NGramEmbedding(
        D=hidden,
        hc=streams,
        N=heads,
        Vn=Quantity.given(-(-rows // divisor) * divisor, symbol="Vn", source=source),
        Sn=c.int("split_ngram_parts", default=512, symbol="Sn"),
        Pe=width,
        w=c.int("ple_conv_kernel_size", default=4, symbol="w"),
        n=longest,
    )


def _ngram_layers(c: Config, kinds: list[str]) -> list[int]:
    """Layers (from 0) that take n-grams in; the file counts from one."""
    places = sorted(c.indices("ple_layer_ids", len(kinds) + 1))
    for place in places:
        if not place or kinds[place - 1] != LINEAR:
            problem = f"holds {place}: it must be a layer of linear attention, counted from 1"
            raise c.fail("ple_layer_ids", problem)
    return [place - 1 for place in places]


def _text(c: Config, name: str, **how: Any) -> ModelSpec:
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    streams = c.int("hc_count", default=4, symbol="hc", least=2)
    rank = c.int("hc_lowrank", default=320, symbol="r")
    kinds = _kinds(c, int(layers.value))
    ngrams = _ngram_layers(c, kinds)
    moe = shared_expert_moe(
        c, hidden, renormalise=c.flag("norm_topk_prob", default=True), names=STACKED, stacked=True
    )
    mixers: dict[str, Block] = {LINEAR: delta_net(c, hidden, "split")}
    if SPARSE in kinds:
        mixers[SPARSE] = _sparse(c, hidden)
    c.expect("output_gate_type", ["silu", "sigmoid"], "this gate is not described")
    c.expect("mamba_ssm_dtype", ["float32"], "the recurrent state is described in fp32")
    c.ignore("intermediate_size", "mtp_use_dedicated_embeddings", "attn_output_gate")
    c.ignore("number_of_conv_states")  # follows from the other keys
    if c.optional("mtp_num_hidden_layers") is not None:
        c.note("the multi-token-prediction module that the file names is not counted")
    tables = {str(i): _ngrams(c, hidden, streams, place) for place, i in enumerate(ngrams)}

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        first = (tables[kind[-1]],) if NGRAMS in kind else ()
        return (
            *first,
            LowRankCollapse(hidden, streams, rank, "attn_hyper_connection"),
            mixers[kind[0]],
            StreamExpand(hidden, streams),
            LowRankCollapse(hidden, streams, rank, "mlp_hyper_connection"),
            moe,
            StreamExpand(hidden, streams),
        )

    places = [
        (kind, "moe", NGRAMS, str(i)) if i in ngrams else (kind, "moe")
        for i, kind in enumerate(kinds)
    ]
    last = LowRankCollapse(hidden, streams, rank, f"{TEXT}hyper_connection_mixer", injects=False)
    groups = layer_groups(places, build, prefix=f"{TEXT}layers.{{i}}.", count=layers)
    return decoder(
        c,
        hidden,
        [*groups, Group("residual streams", (last,))],
        name=name,
        embed=f"{TEXT}embed_tokens.weight",
        norm="",
        **how,
    )


def qwen4_exp_text(c: Config) -> ModelSpec:
    """Read the text part of Qwen4-Exp as a model of its own."""
    return _text(c, "qwen4_exp_text")


def qwen4_exp(c: Config) -> ModelSpec:
    """Read a Qwen4-Exp config: the text part; the vision tower is not counted."""
    text, how = text_part(c, ["qwen4_exp_text"], vision_config="vision tower")
    return _text(text, "qwen4_exp", **how)
