"""Block-sparse attention whose indexer scores means of keys as rows (Qwen4-Exp's QSA).

An indexer of few narrow heads scores blocks of bi tokens by the mean of their keys; a query attends
to the tokens of the kb best blocks that are complete, and to those behind the last one. Symbols as
in `block_sparse_attention`; Pi counts (query, block) pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.model.block_sparse_attention import BlockSparseAttention
from moeplan.model.masks import compressed_pairs, selected_pairs
from moeplan.model.ops import Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload

__all__ = ["PooledBlockAttention"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PooledBlockAttention(BlockSparseAttention):
    """Gated grouped-query attention over the blocks that an indexer picks by their mean keys.

    The open block's tokens are always seen: (bi - 1)/2 of them in a prefill, on average.
    """

    indexer: str = "indexer."

    @property
    def label(self) -> str:
        """The words for it in a list of families."""
        return f"{super().label} of mean keys"

    def locals(self, work: Workload) -> Mapping[str, str]:
        """P: attended pairs; N: new key positions; K: keys read; Pi: scored pairs."""
        tail = "C % bi" if work.phase == "decode" else "half(bi - 1)"
        return {
            "P": selected_pairs(work, f"(kb*bi + {tail})"),
            "N": "T",
            "K": f"min(C, S*(kb*bi + {tail}))",
            "Pi": compressed_pairs(work, "bi"),
        }

    def _index_parts(self) -> tuple[Weight, ...]:
        at = f"{self.prefix}{self.indexer}"
        matrix = Weight(f"{at}index_qk_proj.weight", ("(Hi + 1)*di", "D"), "attention")
        norms = (
            Weight(f"{at}{name}.weight", ("di",), "norms", matmul=False)
            for name in ("q_layernorm", "k_layernorm")
        )
        return (matrix, *norms)

    def _index_rows(self) -> tuple[Op, ...]:
        """Queries and one key per token; means of keys; scores; the best blocks.

        A score is 2·di FLOPs a head and pair; ReLU and the sum over heads are element-wise. Mean
        keys are formed anew from the keys of all tokens, which are what is kept.
        """
        matrix, *norms = self._index_parts()
        wide = "T*(Hi + 1)*di"
        score = Op(
            name="index_scores",
            kind="attention",
            component="attention",
            flops="2*B*Pi*Hi*di",
            read="T*Hi*di",
            write="2*B*Pi",  # fp32, counted in two-byte elements
            cached="B*C*di",
            kept=(Kept("index_q", "T*Hi*di"), Kept("index_k", "T*di")),
            shard="none",
        )
        select = Op(
            name="index_select",
            kind="select",
            component="attention",
            read="2*B*Pi",
            write="2*T*kb",
            kept=(Kept("index_picked", "T*kb", bits=32),),
            shard="tokens",
        )
        return (
            linear("index_qk", matrix),
            pointwise(
                "index_norms",
                "norms",
                wide,
                wide,
                weights=tuple(norms),
                kept=(Kept("index_projected", wide),),
            ),
            pointwise("index_rope", "attention", wide, wide),
            score,
            select,
        )
