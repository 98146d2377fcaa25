"""Experts of two modalities behind one layer: a token only meets those of its own (ERNIE 4.5 VL).

The figures are those of a text token. The other modality's router and experts lie beside, are
stored and trained, and nothing of them is read for text. Symbols: Fv width of their experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moeplan.model.ffn import MoE
from moeplan.model.ops import Op, Weight
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["ModalityMoE"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ModalityMoE(MoE):
    """E experts of width F for text and E of width Fv for images, numbered after them."""

    Fv: Number

    @property
    def label(self) -> str:
        """The words for it in a list of families."""
        return f"{super().label}, apart for text and images"

    def _others(self) -> tuple[Weight, ...]:
        """Router and experts of the other modality; no text token touches them."""
        n = self.names
        router = Weight(f"{n.router}.weight_1", ("D", "E"), "router", active="0", transposed=True)

        def matrix(name: str, rows: str, columns: str) -> Weight:
            return Weight(
                f"{n.experts}{name}{n.suffix}".replace("{e}", "{e+}"),
                (rows, columns),
                "routed_experts",
                copies="E",
                active="0",
                first="E",
                shard="experts",
            )

        return (
            router,
            matrix(n.gate, "Fv", "D"),
            matrix(n.up, "Fv", "D"),
            matrix(n.down, "D", "Fv"),
        )

    def _router(self) -> tuple[Weight, ...]:
        own, *rest = super()._router()
        return (replace(own, dims=own.dims[::-1], transposed=True), *rest)

    def weights(self) -> tuple[Weight, ...]:
        """Those of a mixture of experts, and the other modality's."""
        return (*super().weights(), *self._others())

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """The rows of text, and one that holds what text leaves unread."""
        idle = Op(
            "other_modality",
            "pointwise",
            "routed_experts",
            weights=self._others(),
            uses="0",
            shard="experts",
        )
        return (*super().rows(work), idle)
