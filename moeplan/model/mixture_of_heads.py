"""Mixture of attention heads as rows (arXiv 2210.05144, JetMoe arXiv 2404.07413).

Experts are pairs of projections: one into the queries of G heads, one from those heads' outputs
back. A router picks k of E of them for each token; keys and values are shared by all. Attention
therefore runs over k·G query heads on G key-value heads.

Symbols: E experts, k chosen, G heads of an expert (and key-value heads), dh head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.model.masks import visible_pairs
from moeplan.model.ops import Block, CacheEntry, Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["MixtureOfHeads"]


@dataclass(frozen=True, eq=False)
class MixtureOfHeads(Block):
    """Routed queries and outputs over shared keys and values; a trained bias behind the sum."""

    D: Number
    E: Number
    k: Number
    G: Number
    dh: Number
    prefix: str = "self_attention."

    @property
    def label(self) -> str:
        """What the field calls this kind."""
        return "mixture of attention heads"

    def locals(self, work: Workload) -> Mapping[str, str]:
        """P: computed (query, key) pairs; A: expected experts that get a token."""
        return {"P": visible_pairs(work), "A": "E*(1 - (1 - k/E)**T)"}

    def _parts(self) -> dict[str, Weight]:
        at = f"{self.prefix}experts."

        def expert(name: str, n: str, k: str) -> Weight:
            return Weight(
                f"{at}{name}.weight", (n, k), "attention", copies="E", active="k", stacked=True
            )

        return {
            "router": Weight(f"{at}router.layer.weight", ("E", "D"), "router"),
            "queries": expert("input_linear", "G*dh", "D"),
            "outputs": expert("output_linear", "D", "G*dh"),
            "bias": Weight(f"{at}bias", ("D",), "attention", matmul=False),
            "kv": Weight(f"{self.prefix}kv_proj.weight", ("2*G*dh", "D"), "attention"),
        }

    def weights(self) -> tuple[Weight, ...]:
        """Router, query and output projections of every expert, bias, keys and values."""
        return tuple(self._parts().values())

    def _grouped(self, name: str, weight: Weight, k: str, n: str, kept: tuple[Kept, ...]) -> Op:
        """One matmul per expert over the tokens that chose it."""
        return Op(
            name=name,
            kind="grouped_linear",
            component="attention",
            flops=f"2*T*k*{k}*{n}",
            gemm=("T*k", k, n),
            groups="A",
            weights=(weight,),
            uses="A",
            read=f"T*k*{k}",
            write=f"T*k*{n}",
            kept=kept,
        )

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Router, selection, queries, keys and values, rotation, attention, outputs, their sum."""
        part = self._parts()
        first = (Kept("attn_input", "T*D", drop="norm"),)
        select = Op(
            "head_select",
            "select",
            "router",
            read="2*T*E",  # fp32 logits, counted in two-byte elements
            write="T*k*4",
            kept=(Kept("head_probs", "T*E"), Kept("head_map", "T*k", bits=64)),
            shard="tokens",
        )
        moved = "T*(k + 1)*G*dh"
        attend = Op(
            name="attention",
            kind="attention",
            component="attention",
            flops="4*B*P*k*G*dh",
            read="T*k*G*dh",
            write="T*k*G*dh",
            cached="2*B*C*G*dh",
            kept=(
                Kept("q", "T*k*G*dh"),
                Kept("k", "T*G*dh"),
                Kept("v", "T*G*dh"),
                Kept("attn_out", "T*k*G*dh"),
                Kept("softmax_sum", "T*k*G", bits=32),
            ),
        )
        bias = (part["bias"],)
        return (
            linear("head_router", part["router"], kept=first),
            select,
            self._grouped("q_experts", part["queries"], "D", "(G*dh)", ()),
            linear("kv_proj", part["kv"]),
            pointwise("rope", "attention", moved, moved),
            attend,
            self._grouped("o_experts", part["outputs"], "(G*dh)", "D", ()),
            pointwise(
                "head_sum",
                "attention",
                "T*k*D",
                "T*D",
                weights=bias,
                kept=(Kept("head_outputs", "T*k*D"),),
            ),
        )

    def cache(self) -> tuple[CacheEntry, ...]:
        """Keys and values of each token."""
        return (CacheEntry("kv", per_token="2*G*dh"),)
