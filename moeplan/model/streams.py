"""Residual streams that a sub-layer's output is spread over without mixing them (Hy4, Qwen4-Exp).

As in hyper-connections, the residual is hc streams of D, collapsed into one before a sub-layer by
weights that a projection of all streams gives; afterwards the output is added to each stream with a
weight of its own, and the streams stay apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moeplan.model.ops import Block, Kept, Op, Weight, linear, pointwise
from moeplan.model.residual import HyperCollapse, HyperExpand
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["LowRankCollapse", "StreamCollapse", "StreamExpand"]


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


@dataclass(frozen=True, eq=False)
class LowRankCollapse(Block):
    """hc streams into one through a bottleneck of rank r, and hc weights to spread (Qwen4-Exp).

    Each stream is normalised with a scale of its own; the mean over streams is weighed element by
    element, by a gate that two projections make of all streams. Symbols: r rank of the gate.
    injects: whether weights to spread an output follow, which the last one has not.
    """

    D: Number
    hc: Number
    r: Number
    name: str = "attn_hyper_connection"
    injects: bool = True

    def _parts(self) -> dict[str, Weight]:
        wide = "hc*D"
        at = f"{self.name}."

        def matrix(name: str, n: str, k: str) -> Weight:
            return Weight(f"{at}{name}.weight", (n, k), "norms")

        return {
            "norm": Weight(f"{at}hc_norm.weight", (wide,), "norms", matmul=False),
            "down": matrix("input_mix_weight_down", "r", wide),
            "up": matrix("input_mix_weight_up", wide, "r"),
            "inject": matrix("block_inject_weight", "hc", wide),
        }

    def weights(self) -> tuple[Weight, ...]:
        """The norm's scales, the gate's two projections, the projection to hc weights."""
        parts = self._parts()
        return tuple(w for name, w in parts.items() if name != "inject" or self.injects)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Norm, gate, weighted mean; the weights with which the output is spread."""
        part, wide, op = self._parts(), "T*hc*D", self.name
        streams, normed = (Kept(f"{op}_streams", wide),), (Kept(f"{op}_normed", wide),)
        rows = [
            pointwise(f"{op}_norm", "norms", wide, wide, weights=(part["norm"],), kept=streams),
            linear(f"{op}_down", part["down"], kept=normed),
            linear(f"{op}_up", part["up"], kept=(Kept(f"{op}_rank", "T*r"),)),
            pointwise(f"{op}_mix", "norms", f"2*{wide}", "T*D", kept=(Kept(f"{op}_gate", wide),)),
        ]
        if self.injects:
            rows.append(linear(f"{op}_inject", part["inject"], kept=(Kept(f"{op}_w", "T*hc"),)))
        return tuple(replace(row, shard="tokens") for row in rows)
