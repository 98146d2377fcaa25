"""Attention whose scores depend on distance through the query, behind short convolutions (Inkling).

Keys and values each pass a causal depthwise convolution over the sequence, which is added to them.
There is no rotation: every head of a query has dp numbers that mix dp learned profiles of Re
distances into a bias for each of the Re keys before it. Symbols: dp relative numbers of a head, Re
distances that have a bias, w taps of the convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.model.attention import Attention
from moeplan.model.ops import Block, CacheEntry, Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["RelativeAttention", "ResidualAttention", "ResidualConvolution"]

_WIDE = "G*(dh + dv)"  # channels of the two convolutions together


@dataclass(frozen=True, eq=False, kw_only=True)
class RelativeAttention(Attention):
    """Grouped-query attention with relative biases and convolved keys and values.

    clips: queries, keys and relative numbers are limited in length behind learned scales, in the
    place of norms, and a projection yields each query's sinks (Inkling 2). dynamic: the taps are
    the sum of fixed ones and of some that each token's input gives, one set for a head.
    """

    dp: Number
    Re: Number
    w: Number
    clips: bool = False
    dynamic: bool = False

    @property
    def label(self) -> str:
        """The words for it in a list of families."""
        return f"{super().label}, relative biases, short convolutions"

    def _vector(self, name: str, *dims: str) -> Weight:
        return Weight(self.prefix + name, dims, "attention", matmul=False, shard="heads")

    def _convolutions(self) -> tuple[Weight, ...]:
        widths = {"k_sconv": "G*dh", "v_sconv": "G*dv"}
        if self.dynamic:
            return tuple(self._vector(f"{n}.static_w", "w", width) for n, width in widths.items())
        return tuple(self._vector(f"{n}.weight", width, "1", "w") for n, width in widths.items())

    def _taps(self) -> tuple[Weight, ...]:
        """Projections from the input to taps."""
        if not self.dynamic:
            return ()
        return tuple(
            Weight(
                f"{self.prefix}{name}_sconv.weight_proj", ("G*w", "D"), "attention", shard="column"
            )
            for name in ("k", "v")
        )

    def _relative(self) -> tuple[Weight, Weight]:
        at = self.prefix
        return (
            Weight(f"{at}wr_du.weight", ("H*dp", "D"), "attention", shard="column"),
            Weight(f"{at}rel_logits_proj.proj", ("dp", "Re"), "attention", transposed=True),
        )

    def _clips(self) -> tuple[Weight, ...]:
        if not self.clips:
            return ()
        return self._vector("q_l2_clip.scale", "H", "dh"), self._vector(
            "rel_l2_clip.scale", "H", "dp"
        )

    def _sink(self) -> tuple[Weight, ...]:
        name = f"{self.prefix}attn_sink_proj.weight"
        return (Weight(name, ("H", "D"), "attention", shard="column"),) if self.clips else ()

    def weights(self) -> tuple[Weight, ...]:
        """Those of grouped-query attention, convolutions, relative projections, scales, sinks."""
        return (
            *super().weights(),
            *self._convolutions(),
            *self._taps(),
            *self._relative(),
            *self._clips(),
            *self._sink(),
        )

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """The rows of grouped-query attention, with what its scores need before the attention."""
        rows = list(super().rows(work))
        place = next(i for i, row in enumerate(rows) if row.name == "attention")
        return (*rows[:place], *self._own_rows(work.phase == "decode"), *rows[place:])

    def _own_rows(self, decode: bool) -> list[Op]:
        """Two FLOPs a tap and channel; a bias is a product of dp numbers with a profile."""
        moved = f"T*{_WIDE}"
        state = f" + B*{_WIDE}*(w - 1)" if decode else ""
        rows = [linear(f"{'kv'[i]}_taps", weight) for i, weight in enumerate(self._taps())]
        rows.append(
            Op(
                name="conv",
                kind="scan",
                component="attention",
                flops=f"2*{moved}*w",
                weights=self._convolutions(),
                read=f"{moved}{state}",
                write=f"{moved}{state}",
                kept=(Kept("conv_input", moved),),
                shard="heads",
            )
        )
        project, profiles = self._relative()
        kept = (Kept("relative", "T*H*dp"),)
        if self.clips:
            wide = "T*(H*dh + G*(dh + dv) + H*dp)"
            held = (Kept("clip_input", wide),)
            rows.append(
                pointwise(
                    "clip", "norms", wide, wide, weights=self._clips(), kept=held, shard="heads"
                )
            )
            rows += [linear("sinks", weight) for weight in self._sink()]
        return [
            *rows,
            linear("relative", project),
            linear("relative_bias", profiles, rows="T*H", kept=kept),
        ]

    def cache(self) -> tuple[CacheEntry, ...]:
        """Keys and values, and the inputs that the convolutions still need (fp32)."""
        return (*super().cache(), CacheEntry("conv_state", fixed=f"{_WIDE}*(w - 1)", bits=32))


@dataclass(frozen=True, eq=False)
class ResidualConvolution(Block):
    """A causal depthwise convolution of w taps over a branch's output, added to it."""

    D: Number
    w: Number
    name: str = "attn_sconv"

    @property
    def label(self) -> str:
        """What follows each branch."""
        return "short convolutions behind branches"

    def _weight(self) -> Weight:
        return Weight(f"{self.name}.weight", ("D", "1", "w"), "attention", matmul=False)

    def weights(self) -> tuple[Weight, ...]:
        """The taps of each channel."""
        return (self._weight(),)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Two FLOPs a tap and channel; decoding reads and writes the last w - 1 inputs."""
        state = " + B*D*(w - 1)" if work.phase == "decode" else ""
        conv = Op(
            name=self.name,
            kind="scan",
            component="attention",
            flops="2*T*D*w",
            weights=self.weights(),
            read=f"T*D{state}",
            write=f"T*D{state}",
            kept=(Kept(f"{self.name}_input", "T*D"),),
            shard="tokens",
        )
        return (conv,)

    def cache(self) -> tuple[CacheEntry, ...]:
        """The last w - 1 inputs (fp32)."""
        return (CacheEntry("conv_state", fixed="D*(w - 1)", bits=32),)


@dataclass(frozen=True, eq=False)
class ResidualAttention(Block):
    """A branch's input as attention over the outputs of earlier blocks of layers (Inkling 2).

    q learned queries of D, the same at every place, attend to n states of the token itself: the
    sums of earlier blocks of layers and what the open block has summed so far. branch: whose input.
    """

    D: Number
    n: Number
    q: Number = 1
    name: str = ""
    several: bool = False
    branch: str = ""

    @property
    def label(self) -> str:
        """What the residual is read through."""
        return "attention over earlier layers"

    def weights(self) -> tuple[Weight, ...]:
        """The queries."""
        dims = ("q", "D") if self.several else ("D",)
        return (Weight(self.name, dims, "norms", matmul=False),)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """The states normalised, 2·D FLOPs a query and state for scores and for the mean each."""
        states = "T*n*D"
        attend = Op(
            name=f"{self.branch}residual_attention",
            kind="attention",
            component="norms",
            flops=f"4*{states}*q",
            weights=self.weights(),
            read=f"2*{states}",  # fp32, counted in two-byte elements
            write="2*T*q*D",
            kept=(Kept(f"{self.branch}residual_weights", "T*n*q"),),
            shard="tokens",
        )
        # of the states only the open block's sum is new here
        kept = (Kept(f"{self.branch}residual_input", "T*D"),)
        norm = pointwise(f"{self.branch}residual_norm", "norms", states, f"2*{states}", kept=kept)
        return norm, attend
