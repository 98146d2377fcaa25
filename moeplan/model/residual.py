"""Residual streams that are mixed by learned weights (hyper-connections, DeepSeek-V4).

The residual is hc streams of D. Before a sub-layer they are collapsed into one by weights that a
projection of all streams gives; after it, its output is spread over the streams, which are mixed
with each other by a doubly stochastic hc x hc matrix. Symbols: hc streams.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.model.ops import Block, Kept, Op, Weight, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["HyperCollapse", "HyperExpand"]


@dataclass(frozen=True, eq=False)
class HyperCollapse(Block):
    """hc streams into one, with the mixing weights: hc to collapse, and where `mixes` hc to
    spread and hc·hc to mix afterwards. The projection runs in fp32 over all streams.
    """

    D: Number
    hc: Number
    name: str = "hc_attn"
    mixes: bool = True

    def _outputs(self) -> str:
        return "hc*(hc + 2)" if self.mixes else "hc"

    def weights(self) -> tuple[Weight, ...]:
        """Projection, its bias, and one scale for each use of the weights."""
        n = self._outputs()
        scales = "3" if self.mixes else "1"
        return (
            Weight(f"{self.name}_fn", (n, "hc*D"), "norms", matmul=False),
            Weight(f"{self.name}_base", (n,), "norms", matmul=False),
            Weight(f"{self.name}_scale", (scales,), "norms", matmul=False),
        )

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """The projection, and the weighted sum over streams (element-wise: no FLOPs)."""
        n = self._outputs()
        project = Op(
            name=f"{self.name}_weights",
            kind="linear",
            component="norms",
            flops=f"2*T*hc*D*({n})",
            gemm=("T", "hc*D", n),
            weights=self.weights(),
            read="T*hc*D",
            write=f"2*T*({n})",  # fp32, counted in two-byte elements
            kept=(Kept(f"{self.name}_streams", "T*hc*D"), Kept(f"{self.name}_w", f"T*({n})", 32)),
            shard="tokens",
        )
        collapse = pointwise(f"{self.name}_collapse", "norms", "T*hc*D", "T*D")
        return project, collapse


@dataclass(frozen=True, eq=False)
class HyperExpand(Block):
    """A sub-layer's output spread over hc streams, and the streams mixed with each other."""

    D: Number
    hc: Number

    def weights(self) -> tuple[Weight, ...]:
        """None: the mixing weights come from `HyperCollapse`."""
        return ()

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """The hc x hc mixing matrix times the streams; adding the output is element-wise."""
        return (
            Op(
                name="residual",
                kind="pointwise",
                component="norms",
                flops="2*T*hc*hc*D",
                read="T*(hc + 1)*D",
                write="T*hc*D",
                kept=(Kept("sublayer_out", "T*D"),),
                shard="tokens",
            ),
        )
