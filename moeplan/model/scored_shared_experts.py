"""Experts beside shared ones that the router scores as well, and a dense FFN like them (Inkling).

Symbols: Es shared experts, each of width F, which every token meets with a weight of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moeplan.model.dense_ffn import DenseFFN
from moeplan.model.ffn import MoE
from moeplan.model.ops import Op, Weight
from moeplan.quantity import Number

__all__ = ["FusedFFN", "ScoredSharedMoE"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredSharedMoE(MoE):
    """The router scores the Es shared experts, which every token meets, too; a scale follows.

    Shared experts are stacked tensors of their own.
    """

    Es: Number

    @property
    def scored(self) -> str:
        """Formula of the router's outputs."""
        return "(E + Es)"

    def _router(self) -> tuple[Weight, ...]:
        scale = Weight(f"{self.names.router}.global_scale", ("1",), "router", matmul=False)
        return (*super()._router(), scale)

    def _shared(self) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
        def stacked(name: str, rows: str, columns: str) -> tuple[Weight, ...]:
            return (
                Weight(
                    f"{self.names.shared}{name}",
                    (rows, columns),
                    "shared_experts",
                    copies="Es",
                    active="Es",
                    stacked=True,
                ),
            )

        return stacked("shared_w13_weight", "2*F", "D"), stacked("shared_w2_weight", "D", "F")

    def _shared_rows(self) -> list[Op]:
        """Every pass reads all Es of them."""
        return [replace(op, uses="Es") if op.weights else op for op in super()._shared_rows()]


@dataclass(frozen=True, eq=False)
class FusedFFN(DenseFFN):
    """A dense layer whose gate and up projection are one tensor; a learned scale follows."""

    def _matrices(self) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
        at = self.prefix
        scale = Weight(f"{at}global_scale", ("1",), "dense_ffn", matmul=False)
        ins = Weight(f"{at}w13_dn.weight", ("2*F", "D"), "dense_ffn", shard="column")
        out = Weight(f"{at}w2_md.weight", ("D", "F"), "dense_ffn", shard="row")
        return (ins,), (out, scale)
