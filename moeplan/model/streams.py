"""Residual streams that a sub-layer's output is spread over without mixing them (Hy4).

As in hyper-connections, the residual is hc streams of D, collapsed into one before a sub-layer by
weights that a projection of all streams gives; afterwards the output is added to each stream with a
weight of its own, and the streams stay apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.model.ops import Kept, Op, Weight, pointwise
from moeplan.model.residual import HyperCollapse, HyperExpand
from moeplan.model.workload import Workload

__all__ = ["StreamCollapse", "StreamExpand"]


@dataclass(frozen=True, eq=False)
class StreamCollapse(HyperCollapse):
    """hc streams into one, with hc weights to collapse and hc to spread."""

    def _outputs(self) -> str:
        return "2*hc"

    def weights(self) -> tuple[Weight, ...]:
        """Projection, its bias, and a scale for each of the two uses of the weights."""
        return (
            Weight(f"{self.name}_fn", ("2*hc", "hc*D"), "norms", matmul=False),
            Weight(f"{self.name}_base", ("2*hc",), "norms", matmul=False),
            Weight(f"{self.name}_scale", ("2",), "norms", matmul=False),
        )


@dataclass(frozen=True, eq=False)
class StreamExpand(HyperExpand):
    """A sub-layer's output added to hc streams, to each with its own weight."""

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """The streams and the output read, the streams written; element-wise: no FLOPs."""
        kept = (Kept("sublayer_out", "T*D"),)
        return (pointwise("residual", "norms", "T*(hc + 1)*D", "T*hc*D", kept=kept),)
