"""Sparse attention with an indexer as rows: DeepSeek Sparse Attention (DSA, DeepSeek-V3.2-Exp).

An indexer of few narrow heads scores every earlier token, and each query attends to the ki best
only: the cost of the scores still grows with the context, that of the attention stops at ki.

Symbols: Hi heads of the indexer, di their dimension, ki tokens that a query attends to, Pi
(query, key) pairs per sequence that the indexer scores, P pairs that the attention computes; the
others are those of multi-latent attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.model.latent_attention import LatentAttention
from moeplan.model.masks import selected_pairs, visible_pairs
from moeplan.model.ops import CacheEntry, Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["SparseLatentAttention", "select_row"]


def select_row(pairs: str, picked: str) -> Op:
    """The top-k over index scores: reads each fp32 score, writes the picked places (32-bit)."""
    return Op(
        name="index_select",
        kind="select",
        component="attention",
        read=f"2*B*{pairs}",  # fp32, counted in two-byte elements
        write=f"2*T*{picked}",
        kept=(Kept("index_picked", f"T*{picked}", bits=32),),
        shard="tokens",
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class SparseLatentAttention(LatentAttention):
    """Multi-latent attention over the ki tokens that an indexer picks for each query.

    All heads of a query read the same picked latents, so every phase runs the absorbed form (the
    paper's "MQA mode"); mode "expanded" forces the other one. Training is counted in the sparse
    stage; the short dense warm-up of the indexer is not described.
    indexes: the layer has an indexer; without one it takes the previous layer's picks (GLM-5).
    """

    Hi: Number
    di: Number
    ki: Number
    indexes: bool = True

    @property
    def label(self) -> str:
        """What the field calls this kind."""
        picks = "sparse by indexer" if self.indexes else "sparse by another layer's picks"
        return f"multi-latent, {picks}"

    def locals(self, work: Workload) -> Mapping[str, str]:
        """P: attended pairs; K: distinct keys that are read at most; Pi: scored pairs."""
        return {
            "P": selected_pairs(work, "ki"),
            "K": "min(C, S*ki)",
            "Pi": visible_pairs(work),
        }

    def _absorbed(self, work: Workload) -> bool:
        return self.mode != "expanded"

    def _index_parts(self) -> dict[str, Weight]:
        at = f"{self.prefix}indexer."

        def vector(name: str) -> Weight:
            return Weight(at + name, ("di",), "norms", matmul=False)

        def matrix(name: str, n: str, k: str) -> Weight:
            return Weight(f"{at}{name}.weight", (n, k), "attention")

        return {
            "wq_b": matrix("wq_b", "Hi*di", "rq"),
            "wk": matrix("wk", "di", "D"),
            "norm": vector("k_norm.weight"),
            "norm_bias": vector("k_norm.bias"),
            "weights_proj": matrix("weights_proj", "Hi", "D"),
        }

    def weights(self) -> tuple[Weight, ...]:
        """Those of multi-latent attention, and the indexer's projections and norm."""
        return (*super().weights(), *(self._index_parts().values() if self.indexes else ()))

    def _selection_rows(self, work: Workload) -> list[Op]:
        """The indexer: queries from the query latent, one key per token, scores, top-k.

        A score is the weighted sum over heads of ReLU(q·k): 2·di FLOPs a head and pair for the
        product, 2 for the sum.
        """
        if not self.indexes:
            return []
        part = self._index_parts()
        norms = (part["norm"], part["norm_bias"])
        score = Op(
            name="index_scores",
            kind="attention",
            component="attention",
            flops="2*B*Pi*Hi*(di + 1)",
            read="T*Hi*(di + 1)",
            write="2*B*Pi",  # fp32, counted in two-byte elements
            cached="B*C*di",
            kept=(Kept("index_q", "T*Hi*di"), Kept("index_k", "T*di")),
            shard="none",
        )
        return [
            linear("index_q", part["wq_b"]),
            linear("index_k", part["wk"]),
            pointwise(
                "index_k_norm", "norms", "T*di", "T*di", weights=norms, kept=(Kept("wk", "T*di"),)
            ),
            linear("index_weights", part["weights_proj"], kept=(Kept("index_weights", "T*Hi"),)),
            pointwise("index_rope", "attention", "T*(Hi + 1)*dr", "T*(Hi + 1)*dr"),
            score,
            select_row("Pi", "min(C, ki)"),
        ]

    def cache(self) -> tuple[CacheEntry, ...]:
        """The latents, and the indexer's key of every token."""
        keys = (CacheEntry("index_keys", per_token="di"),) if self.indexes else ()
        return (*super().cache(), *keys)
