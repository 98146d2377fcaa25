"""A great many tiny experts that product keys pick: two vectors each, of width one (Doge's CDMoE).

A projection gives a token two scores for each of m keys; an expert's score is the sum of one of
either kind, so m·m experts are told apart by 2·m scores (arXiv 2412.11834, after 2407.04153).
Symbols: m keys of either kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moeplan.model.ffn import MoE
from moeplan.model.ops import Op
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["ProductKeyMoE"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ProductKeyMoE(MoE):
    """E experts of width F = 1, chosen by sums of 2·m scores; a wide FFN serves every token."""

    m: Number

    @property
    def label(self) -> str:
        """The words for it in a list of families."""
        return "MoE of single neurons by product keys, with a dense layer"

    @property
    def scored(self) -> str:
        """Formula of the router's outputs."""
        return "(2*m)"

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Those of a mixture of experts; the selection also forms the m·m sums of a token."""
        return tuple(
            replace(row, read="2*T*(2*m + m*m)") if row.name == "select" else row
            for row in super().rows(work)
        )
