"""Attention whose values say which of them are worth attending to (Doge's dynamic mask) as rows.

Each token's values give one number per key-value head, which is added to the scores of that token
for every query; where the context is longer than W, a query attends to the W tokens with the
largest of these numbers only. Symbols beside those of grouped-query attention: W tokens kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.model.attention import Attention
from moeplan.model.masks import selected_pairs
from moeplan.model.ops import Kept, Op, Weight
from moeplan.model.workload import Workload

__all__ = ["DynamicMaskAttention"]


@dataclass(frozen=True, eq=False, kw_only=True)
class DynamicMaskAttention(Attention):
    """Grouped-query attention over the W tokens that the mask keeps.

    The mask's numbers are not cached: a pass computes them from the values of all its context.
    """

    @property
    def label(self) -> str:
        """The words for it in a list of families."""
        return f"{super().label}, dynamic mask"

    def locals(self, work: Workload) -> Mapping[str, str]:
        """P: attended pairs; N: new key positions; K: keys read, all for the mask."""
        return {"P": selected_pairs(work, "W"), "N": "T", "K": "C"}

    def _mask_parts(self) -> tuple[Weight, ...]:
        at = self.prefix
        matrix = Weight(f"{at}dt_proj.weight", ("G", "G*dv"), "attention", shard="row")
        bias = Weight(f"{at}dt_proj.bias", ("G",), "attention", matmul=False, shard="heads")
        scale = Weight(f"{at}A", ("G",), "attention", matmul=False, shard="heads")
        return (matrix, bias, scale) if self.qkv_bias else (matrix, scale)

    def weights(self) -> tuple[Weight, ...]:
        """Those of grouped-query attention, and the mask's projection and scale."""
        return (*super().weights(), *self._mask_parts())

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """The rows of grouped-query attention, with the mask's before the attention itself."""
        rows = list(super().rows(work))
        place = next(i for i, row in enumerate(rows) if row.name == "attention")
        project = Op(
            name="mask_proj",
            kind="linear",
            component="attention",
            flops="2*B*C*G*G*dv",
            gemm=("B*C", "G*dv", "G"),
            weights=self._mask_parts(),
            write="B*C*G",
            kept=(Kept("mask_states", "B*C*G"),),
        )
        select = Op(
            name="mask_select",
            kind="select",
            component="attention",
            read="B*C*G",
            write="2*B*G*min(C, W)",
            kept=(Kept("mask_picked", "B*G*min(C, W)", bits=32),),
        )
        return (*rows[:place], project, select, *rows[place:])
