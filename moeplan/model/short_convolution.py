"""A short convolution as the mixer of a layer (LFM2, arXiv 2511.23404).

One projection gives two gates and an input of D each; the gated input passes a causal convolution
of w taps per channel, and the other gate and an output projection follow.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.model.ops import Block, CacheEntry, Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["ShortConvolution"]


@dataclass(frozen=True, eq=False)
class ShortConvolution(Block):
    """Gates, convolution, gate, output. The last w - 1 gated inputs are all that a layer keeps."""

    D: Number
    w: Number
    bias: bool = False
    prefix: str = "conv."

    @property
    def label(self) -> str:
        """What the field calls this kind."""
        return "short convolution"

    def _pair(self, name: str, *dims: str, matmul: bool = True) -> tuple[Weight, Weight | None]:
        """A weight and its bias."""
        at = self.prefix + name
        shard = ("row" if name == "out_proj" else "column") if matmul else "heads"
        weight = Weight(f"{at}.weight", dims, "attention", matmul=matmul, shard=shard)  # type: ignore[arg-type]
        bias = Weight(f"{at}.bias", dims[:1], "attention", matmul=False)
        return weight, bias if self.bias else None

    def _parts(self) -> dict[str, tuple[Weight, Weight | None]]:
        return {
            "in": self._pair("in_proj", "3*D", "D"),
            "conv": self._pair("conv", "D", "1", "w", matmul=False),
            "out": self._pair("out_proj", "D", "D"),
        }

    def weights(self) -> tuple[Weight, ...]:
        """Input projection, convolution, output projection, with their biases."""
        return tuple(w for pair in self._parts().values() for w in pair if w is not None)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Projection, gate, convolution, gate, projection."""
        part = self._parts()
        state = " + B*D*(w - 1)" if work.phase == "decode" else ""
        conv = Op(
            name="conv",
            kind="scan",
            component="attention",
            flops="2*T*D*w",
            weights=tuple(w for w in part["conv"] if w is not None),
            read=f"T*D{state}",
            write=f"T*D{state}",
            kept=(Kept("conv_input", "T*D"),),
            shard="heads",
        )
        weight, bias = part["in"]
        out, out_bias = part["out"]
        return (
            linear("in_proj", weight, bias=bias, kept=(Kept("attn_input", "T*D", drop="norm"),)),
            pointwise("gate_in", "attention", "2*T*D", "T*D", kept=(Kept("gates", "3*T*D"),)),
            conv,
            pointwise("gate_out", "attention", "2*T*D", "T*D", kept=(Kept("conv_out", "T*D"),)),
            linear("out_proj", out, bias=out_bias, kept=(Kept("gated", "T*D", drop="activation"),)),
        )

    def cache(self) -> tuple[CacheEntry, ...]:
        """The convolution's last w - 1 inputs."""
        return (CacheEntry("conv_state", fixed="D*(w - 1)", bits=16),)
