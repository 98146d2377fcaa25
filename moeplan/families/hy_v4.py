"""Tencent's Hy4: gated latent attention with sinks over an indexer's picks, residual streams."""

from __future__ import annotations

from dataclasses import replace

from moeplan.families.deepseek import routed_experts, sigmoid_routing
from moeplan.families.deepseek_sparse import sparse_attention
from moeplan.families.reader import Config
from moeplan.families.stack import Layer, layered, sparse_words
from moeplan.model.basic import Norm
from moeplan.model.ffn import DenseFFN, ExpertNames
from moeplan.model.latent_attention import LatentNames
from moeplan.model.ops import Block
from moeplan.model.residual import HyperCollapse
from moeplan.model.spec import Group, ModelSpec
from moeplan.model.streams import StreamCollapse, StreamExpand
from moeplan.quantity import Quantity

__all__ = ["hy_v4"]

PICKS, SHARED = "sparse attention", "sparse attention (shared picks)"
LATENT = LatentNames(gate="linear_gate", sinks="learnable_sink_param")
DENSE = ("linear_gate", "up_proj", "down_proj")
NAMES = ExpertNames(experts="mlp.experts.", gate_up="gate_up_proj", suffix="", shared_names=DENSE)


def _layer(streams: Quantity) -> Layer:
    """Each sub-layer reads one stream collapsed from all, and is added to each."""

    def layer(hidden: Quantity, mixer: Block, ffn: Block) -> tuple[Block, ...]:
        return (
            StreamCollapse(hidden, streams, "hc_pre.hc_attn_layer.hc"),
            Norm(hidden, "input_layernorm"),
            mixer,
            StreamExpand(hidden, streams),
            StreamCollapse(hidden, streams, "hc_pre.hc_mlp_layer.hc"),
            Norm(hidden, "post_attention_layernorm"),
            ffn,
            StreamExpand(hidden, streams),
        )

    return layer


def _kinds(c: Config, layers: int) -> list[str]:
    """Which layers run the indexer: the first and every fourth from the second on."""
    c.expect("layer_types", [["indexed_attention"] * layers], "every layer is sparse here")
    words = c.list("indexer_types", length=layers, default=None)
    if words is None:
        words = ["full" if i == 0 or i % 4 == 1 else "shared" for i in range(layers)]
    if any(word not in ("full", "shared") for word in words) or words[0] != "full":
        raise c.fail("indexer_types", "needs 'full' or 'shared' for each layer, the first 'full'")
    return [PICKS if word == "full" else SHARED for word in words]


def hy_v4(c: Config) -> ModelSpec:
    """Read a Hy4 config; one dense layer."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    streams = c.int("hc_mult", default=4, symbol="hc")
    c.ignore("hc_magnitude", "learnable_sink_init", "swiglu_limit")
    c.expect("num_nextn_predict_layers", [0], "multi-token prediction is not described here")
    kinds = _kinds(c, layers)
    gated = {"own_gate": "full", "sinks": True, "names": LATENT}
    mixers: dict[str, Block] = {
        kind: replace(sparse_attention(c, indexes=kind == PICKS), **gated)  # type: ignore[arg-type]
        for kind in set(kinds)
    }
    moe = routed_experts(c, sigmoid_routing(c, groups=(1, 1), scale=2.827), shared=1)
    moe = replace(moe, stacked=True, names=NAMES)
    sparse = sparse_words(c, layers, [i > 0 for i in range(layers)])
    dense = None
    if not all(sparse):
        dense = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"), names=DENSE)
    head = HyperCollapse(hidden, streams, "model.hc_pre.hc_head.hc_head", mixes=False)
    return layered(
        c,
        "hy_v4",
        hidden,
        mixers,
        kinds,
        moe,
        sparse,
        layer=_layer(streams),
        dense=dense,
        last=[Group("residual streams", (head,))],
    )
