"""Successors of DeepSeek Sparse Attention as rows: other indexers over the same attention.

Pooled (GLM-5-Next): the indexer scores pools of p tokens, each with one key that is a learned
weighted mean of its tokens' keys, and queries attend to the tokens of the best pools and to the
open pool. Scaled (Mistral Large 4): the indexer's queries come from the layer's input through a
LayerNorm of their own, and grow with the logarithm of their position.

Symbols beside those of DSA: p tokens of a pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.model.masks import compressed_pairs, selected_pairs, visible_pairs
from moeplan.model.ops import CacheEntry, Kept, Op, Weight, linear, pointwise
from moeplan.model.sparse_attention import SparseLatentAttention, select_row
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["PooledSparseAttention", "ScaledSparseAttention"]


def _scores(dims: str, pairs: str, cached: str) -> Op:
    """ReLU(q·k) of every head and their weighted sum: 2·di and 2 FLOPs a head and pair."""
    return Op(
        name="index_scores",
        kind="attention",
        component="attention",
        flops=f"2*B*{pairs}*Hi*({dims} + 1)",
        read=f"T*Hi*({dims} + 1)",
        write=f"2*B*{pairs}",  # fp32, counted in two-byte elements
        cached=cached,
        kept=(Kept("index_q", f"T*Hi*{dims}"), Kept("index_k", f"T*{dims}")),
        shard="none",
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class PooledSparseAttention(SparseLatentAttention):
    """DSA over pools of p tokens; ki counts tokens, a query attends to ki of closed pools at most.

    The open pool adds at most p - 1 tokens, which are counted. Pooled keys are cached, one for p
    tokens; the open pool's own keys are few and left out.
    """

    p: Number

    @property
    def label(self) -> str:
        """What the field calls this kind."""
        picks = "pools picked by indexer" if self.indexes else "another layer's pools"
        return f"multi-latent, {picks}"

    def locals(self, work: Workload) -> Mapping[str, str]:
        """P: attended pairs; K: distinct keys that are read at most; Pi: scored pools."""
        top = "(ki + p - 1)"
        return {
            "P": selected_pairs(work, top),
            "K": f"min(C, S*{top})",
            "Pi": compressed_pairs(work, "p"),
        }

    def _index_parts(self) -> dict[str, Weight]:
        at = f"{self.prefix}indexer.index_kpool_compress_"
        return {
            **super()._index_parts(),
            "pool_gate": Weight(f"{at}gate", ("di", "D"), "attention"),
            "pool_place": Weight(f"{at}ape", ("p", "di"), "attention", matmul=False),
        }

    def _selection_rows(self, work: Workload) -> list[Op]:
        """The indexer: queries, keys and their weights in the pool, pooled keys, scores, top-k."""
        if not self.indexes:
            return []
        part = self._index_parts()
        norms, place = (part["norm"], part["norm_bias"]), (part["pool_place"],)
        gates = (Kept("pool_gates", "T*di"),)
        return [
            linear("index_q", part["wq_b"]),
            linear("index_k", part["wk"]),
            pointwise(
                "index_k_norm", "norms", "T*di", "T*di", weights=norms, kept=(Kept("wk", "T*di"),)
            ),
            linear("index_gate", part["pool_gate"]),
            pointwise(
                "index_pool", "attention", "2*T*di", "per(T*di, p)", weights=place, kept=gates
            ),
            linear("index_weights", part["weights_proj"], kept=(Kept("index_weights", "T*Hi"),)),
            _scores("di", "Pi", "per(B*C*di, p)"),
            select_row("Pi", "per(min(C, ki), p)"),
        ]

    def cache(self) -> tuple[CacheEntry, ...]:
        """The latents, and the indexer's pooled keys."""
        latents = tuple(entry for entry in super().cache() if entry.name != "index_keys")
        pools = (CacheEntry("index_pools", per_token="per(di, p)"),) if self.indexes else ()
        return (*latents, *pools)


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaledSparseAttention(SparseLatentAttention):
    """DSA whose indexer takes queries from the layer's input and scales them by position."""

    def locals(self, work: Workload) -> Mapping[str, str]:
        """P: attended pairs; K: distinct keys that are read at most; Pi: scored pairs."""
        return {
            "P": selected_pairs(work, "ki"),
            "K": "min(C, S*ki)",
            "Pi": visible_pairs(work),
        }

    def _index_parts(self) -> dict[str, Weight]:
        at = f"{self.prefix}indexer."

        def vector(name: str, width: str) -> Weight:
            return Weight(at + name, (width,), "norms", matmul=False)

        return {
            **super()._index_parts(),
            "wq_b": Weight(f"{at}wq_b.weight", ("Hi*di", "D"), "attention"),
            "q_norm": vector("q_input_norm.weight", "D"),
            "q_norm_bias": vector("q_input_norm.bias", "D"),
            "scale": vector(self.names.scaling[0], "Hi"),
            "offset": vector(self.names.scaling[1], "Hi"),
        }

    def _selection_rows(self, work: Workload) -> list[Op]:
        """The indexer: normalised input, queries, their scale, keys, scores, top-k."""
        if not self.indexes:
            return []
        part = self._index_parts()
        norms, inner = (part["norm"], part["norm_bias"]), (part["q_norm"], part["q_norm_bias"])
        lines = (part["scale"], part["offset"])
        wide, turned = "T*Hi*di", "T*(Hi + 1)*dr"
        rows = [
            pointwise(
                "index_q_norm", "norms", "T*D", "T*D", weights=inner, kept=(Kept("wq", "T*D"),)
            ),
            linear("index_q", part["wq_b"], kept=(Kept("index_q_input", "T*D", drop="norm"),)),
            pointwise("index_q_scale", "attention", wide, wide, weights=lines),
            linear("index_k", part["wk"]),
            pointwise(
                "index_k_norm", "norms", "T*di", "T*di", weights=norms, kept=(Kept("wk", "T*di"),)
            ),
            linear("index_weights", part["weights_proj"], kept=(Kept("index_weights", "T*Hi"),)),
        ]
        if self.rope:
            rows.append(pointwise("index_rope", "attention", turned, turned))
        return [*rows, _scores("di", "Pi", "B*C*di"), select_row("Pi", "min(C, ki)")]
