"""Compressed convolutional attention (CCA) as rows (arXiv 2510.04476, ZAYA1).

Attention runs in a narrow space: queries and keys of H and G heads pass a depthwise and a grouped
convolution over the sequence before they are normalised; half of each value comes from the token
itself, half from the one before it. Symbols beside those of grouped-query attention: t0 and t1 taps
of the two convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.model.attention import Attention
from moeplan.model.ops import CacheEntry, Kept, Op, Weight, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["CompressedConvolutionalAttention"]

_WIDE = "(H + G)*dh"  # channels of the convolutions: queries and keys


@dataclass(frozen=True, eq=False, kw_only=True)
class CompressedConvolutionalAttention(Attention):
    """Grouped-query attention behind two convolutions; keys have a learned temperature per head."""

    t0: Number
    t1: Number

    @property
    def label(self) -> str:
        """The words for it in a list of families."""
        return f"{super().label}, behind convolutions"

    def _projections(self) -> list[tuple[str, Weight, Weight | None]]:
        rows = {"q_proj": "H*dh", "k_proj": "G*dh", "v_proj_current": "G*dv//2"}
        rows["v_proj_delayed"] = "G*dv//2"
        at = "qkv_proj."
        return [
            (
                op,
                self._weight(at + op, width, "D"),
                self._weight(at + op, width, matmul=False, suffix="bias")
                if self.qkv_bias
                else None,
            )
            for op, width in rows.items()
        ]

    def _convolutions(self) -> tuple[tuple[Weight, Weight], tuple[Weight, Weight]]:
        at = f"{self.prefix}qkv_proj.conv_qk_"

        def one(name: str, *dims: str) -> tuple[Weight, Weight]:
            return (
                Weight(f"{at}{name}.weight", dims, "attention", matmul=False, shard="heads"),
                Weight(f"{at}{name}.bias", dims[:1], "attention", matmul=False, shard="heads"),
            )

        return one("depthwise", _WIDE, "1", "t0"), one("grouped", _WIDE, "dh", "t1")

    def _temperature(self) -> Weight:
        name = f"{self.prefix}qk_norm.temp"
        return Weight(name, ("G",), "attention", matmul=False, shard="heads")

    def weights(self) -> tuple[Weight, ...]:
        """Projections, both convolutions, the keys' temperatures, output."""
        first, second = self._convolutions()
        return (*super().weights(), *first, *second, self._temperature())

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """The rows of grouped-query attention, with convolutions and norms before the rotation."""
        rows = list(super().rows(work))
        place = next(i for i, row in enumerate(rows) if row.name in ("rope", "attention"))
        return (*rows[:place], *self._mix_rows(work.phase == "decode"), *rows[place:])

    def _mix_rows(self, decode: bool) -> list[Op]:
        """2·t0 FLOPs a channel depthwise, 2·dh·t1 grouped (a head's channels see each other).

        Decoding reads and writes the inputs that both convolutions still need, and one half value.
        """
        state = f" + B*{_WIDE}*(t0 + t1 - 2) + B*G*dv//2" if decode else ""
        first, second = self._convolutions()
        moved = f"T*{_WIDE}"
        return [
            Op(
                name="conv",
                kind="scan",
                component="attention",
                flops=f"2*{moved}*(t0 + dh*t1)",
                weights=(*first, *second),
                read=f"{moved}{state}",
                write=f"{moved}{state}",
                kept=(Kept("conv_input", moved), Kept("conv_between", moved)),
                shard="heads",
            ),
            pointwise(
                "qk_norm",
                "norms",
                f"2*{moved}",  # the convolutions' output and the projections beside them
                moved,
                weights=(self._temperature(),),
                kept=(Kept("qk_norm_input", moved),),
                shard="heads",
            ),
        ]

    def cache(self) -> tuple[CacheEntry, ...]:
        """Keys and values; what the convolutions and the delayed half of a value need."""
        fixed = f"{_WIDE}*(t0 + t1 - 2) + G*dv//2"
        return (*super().cache(), CacheEntry("conv_state", fixed=fixed, bits=16))
