"""SK Telecom's A.X K1 and K2: DeepSeek-V3 with a norm behind the experts, or with gated norms."""

from __future__ import annotations

from dataclasses import replace

from moeplan.families.common import pre_norm
from moeplan.families.deepseek import (
    latent_attention,
    layer_kinds,
    routed_experts,
    sigmoid_routing,
)
from moeplan.families.deepseek_sparse import sparse_attention
from moeplan.families.reader import Config
from moeplan.families.stack import FULL, Layer, layered
from moeplan.model.basic import GatedNorm, Norm
from moeplan.model.ffn import MoE
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["axk1", "axk2"]


def _layer(hidden: Quantity, mixer: Block, ffn: Block) -> tuple[Block, ...]:
    *before, last = pre_norm(hidden, mixer, ffn)
    if not isinstance(ffn, MoE):
        return (*before, last)
    return (*before, Norm(hidden, "post_mlp_layernorm"), last)


def axk1(c: Config) -> ModelSpec:
    """Read an A.X K1 config; one dense layer."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    if "q_lora_rank" in c.data and c.data["q_lora_rank"] is None:
        raise c.fail("q_lora_rank", "is null: this family's queries come from a latent")
    c.expect("num_nextn_predict_layers", [0], "this family has no multi-token prediction")
    c.ignore("rope_interleave")
    moe = routed_experts(c, sigmoid_routing(c, groups=(8, 4), scale=2.5), shared=1)
    kinds = layer_kinds(c, layers, dense=1, typed=True)
    mixers = {FULL: latent_attention(c, LatentAttention)}
    sparse = ["moe" in kind for kind in kinds]
    return layered(c, "axk1", hidden, mixers, [FULL] * layers, moe, sparse, layer=_layer)


def _gated_layer(rank: Quantity) -> Layer:
    """Gated norms before attention and before experts; a dense feed-forward has a plain one."""

    def layer(hidden: Quantity, mixer: Block, ffn: Block) -> tuple[Block, ...]:
        before, attend, added, then, feed, last = pre_norm(hidden, mixer, ffn)
        before = GatedNorm(hidden, rank, "input_layernorm")
        if isinstance(ffn, MoE):
            then = GatedNorm(hidden, rank, "post_attention_layernorm")
        return before, attend, added, then, feed, last

    return layer


def axk2(c: Config) -> ModelSpec:
    """Read an A.X K2 config: DSA in every layer, queries and output gates from one projection."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    c.expect("layer_types", [["indexed_attention"] * layers], "every layer is sparse here")
    c.expect("num_nextn_predict_layers", [0], "this family has no multi-token prediction")
    c.ignore("rope_interleave", "indexer_rope_interleave")
    mixer = replace(sparse_attention(c), own_gate="joint")
    moe = routed_experts(c, sigmoid_routing(c, groups=(1, 1), scale=2.5), shared=1)
    sparse = ["moe" in kind for kind in layer_kinds(c, layers, dense=1, typed=True)]
    rank = c.int("gated_norm_rank", default=16, symbol="r")
    kinds = [FULL] * layers
    return layered(c, "axk2", hidden, {FULL: mixer}, kinds, moe, sparse, layer=_gated_layer(rank))
