"""Block-sparse attention with an indexer as rows (MiniMax-M3).

An indexer of few narrow heads scores every earlier token; scores become one number for each block
of bi tokens (their largest), and the heads of a key-value group attend to the kb best blocks only.
The cost of the scores grows with the context, that of the attention stops at kb·bi tokens.

Symbols: Hi heads of the indexer, di their dimension, bi tokens of a block, kb blocks that a query
attends to, Pi (query, key) pairs per sequence that the indexer scores, P pairs that the attention
computes; the others are those of grouped-query attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.model.attention import Attention
from moeplan.model.masks import selected_pairs, visible_pairs
from moeplan.model.ops import CacheEntry, Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["BlockSparseAttention"]


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockSparseAttention(Attention):
    """Grouped-query attention over the blocks of tokens that an indexer picks for each query.

    Whole blocks are computed, the query's own (open) block among them. Training is counted in the
    sparse stage. indexer: what the checkpoint calls its projections and norms.
    """

    Hi: Number
    di: Number
    bi: Number
    kb: Number
    indexer: str = "index_"

    @property
    def label(self) -> str:
        """Grouped-query attention over the blocks that an indexer picks."""
        return f"{super().label}, blocks picked by indexer"

    def locals(self, work: Workload) -> Mapping[str, str]:
        """P: attended pairs; N: new key positions; K: keys read; Pi: scored pairs."""
        return {
            "P": selected_pairs(work, "(kb*bi)"),
            "N": "T",
            "K": "min(C, S*kb*bi)",
            "Pi": visible_pairs(work),
        }

    def _index_parts(self) -> tuple[Weight, ...]:
        at = f"{self.prefix}{self.indexer}"

        def matrix(name: str, n: str) -> Weight:
            return Weight(f"{at}{name}.weight", (n, "D"), "attention")

        def norm(name: str) -> Weight:
            return Weight(f"{at}{name}.weight", ("di",), "norms", matmul=False)

        return matrix("q_proj", "Hi*di"), matrix("k_proj", "di"), norm("q_norm"), norm("k_norm")

    def weights(self) -> tuple[Weight, ...]:
        """Those of grouped-query attention, and the indexer's projections and norms."""
        return (*super().weights(), *self._index_parts())

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """The rows of grouped-query attention, with the indexer's before the attention itself."""
        rows = list(super().rows(work))
        place = next(i for i, row in enumerate(rows) if row.name == "attention")
        return (*rows[:place], *self._index_rows(), *rows[place:])

    def _index_rows(self) -> tuple[Op, ...]:
        """Queries and one key per token, normalised and rotated; scores; the best blocks.

        A score is 2·di FLOPs a head and pair; the largest of a block's scores is no arithmetic. The
        fused kernel writes one fp32 number for each head, query and block.
        """
        query, key, query_norm, key_norm = self._index_parts()
        wide = "T*(Hi + 1)*di"
        kept = (Kept("index_q", "T*Hi*di"), Kept("index_k", "T*di"))
        score = Op(
            name="index_scores",
            kind="attention",
            component="attention",
            flops="2*B*Pi*Hi*di",
            read="T*Hi*di",
            write="per(2*B*Pi*Hi, bi)",  # fp32, counted in two-byte elements
            cached="B*C*di",
            kept=kept,
            shard="none",
        )
        select = Op(
            name="index_select",
            kind="select",
            component="attention",
            read="per(2*B*Pi*Hi, bi)",
            write="2*T*Hi*kb",
            kept=(Kept("index_picked", "T*Hi*kb", bits=32),),
            shard="tokens",
        )
        return (
            linear("index_q", query),
            linear("index_k", key),
            pointwise(
                "index_norms",
                "norms",
                wide,
                wide,
                weights=(query_norm, key_norm),
                kept=(Kept("index_projected", wide),),
            ),
            pointwise("index_rope", "attention", wide, wide),
            score,
            select,
        )

    def cache(self) -> tuple[CacheEntry, ...]:
        """Keys and values, and the indexer's key of every token."""
        return (*super().cache(), CacheEntry("index_keys", per_token="di"))
