"""Kimi delta attention (KDA) as rows (arXiv 2510.26692): a delta rule with a decay per channel.

The state of a head is a dk x dk matrix, updated as in the gated delta rule, but each of its rows
decays by its own amount, which a small two-step projection gives. Symbols: H heads of dk
dimensions, w taps of the convolutions, Q tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.model.ops import Block, CacheEntry, Kept, Op, Shard, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["KimiDeltaAttention"]

_WIDE = "H*dk"
_STATE = "H*dk*dk"


@dataclass(frozen=True, eq=False)
class KimiDeltaAttention(Block):
    """Queries, keys, values with a convolution each; decays, gates; delta rule; output.

    Decays and output gates come from projections through dk features, or from one each where not
    low_rank. decay_dims: the shape in which the decays' logarithms are stored. output: name of the
    output projection. chunk: tokens per chunk of the chunked form, a kernel's constant. State is
    fp32.
    """

    D: Number
    H: Number
    dk: Number
    w: Number
    chunk: Number = 64
    low_rank: bool = True
    decay_dims: tuple[str, ...] = ("1", "1", "H", "1")
    output: str = "o_proj"
    prefix: str = "self_attn."

    @property
    def label(self) -> str:
        """What the field calls this kind."""
        return "Kimi delta attention"

    def locals(self, work: Workload) -> Mapping[str, str]:
        """Q: tokens per chunk, less where the pass is shorter."""
        return {} if work.phase == "decode" else {"Q": "min(chunk, S)"}

    def _matrix(self, name: str, n: str, k: str, shard: Shard = "column") -> Weight:
        return Weight(f"{self.prefix}{name}.weight", (n, k), "attention", shard=shard)

    def _vector(self, name: str, *dims: str) -> Weight:
        return Weight(f"{self.prefix}{name}", dims, "attention", matmul=False, shard="heads")

    def _matrices(self) -> dict[str, Weight]:
        return {
            **{f"{x}_proj": self._matrix(f"{x}_proj", _WIDE, "D") for x in "qkv"},
            **self._gates(),
            "b_proj": self._matrix("b_proj", "H", "D"),
            "o_proj": self._matrix(self.output, "D", _WIDE, "row"),
        }

    def _gates(self) -> dict[str, Weight]:
        """The projections into decays (f) and output gates (g)."""
        if not self.low_rank:
            return {f"{x}_proj": self._matrix(f"{x}_proj", _WIDE, "D") for x in "fg"}
        return {
            **{f"{x}_a_proj": self._matrix(f"{x}_a_proj", "dk", "D", "none") for x in "fg"},
            **{f"{x}_b_proj": self._matrix(f"{x}_b_proj", _WIDE, "dk") for x in "fg"},
        }

    def _gate_rows(self, name: str, x: str) -> list[Op]:
        m = self._gates()
        if not self.low_rank:
            return [linear(f"{name}_proj", m[f"{x}_proj"])]
        kept = (Kept(f"{name}_latent", "T*dk"),)
        return [
            linear(f"{name}_a", m[f"{x}_a_proj"]),
            linear(f"{name}_b", m[f"{x}_b_proj"], kept=kept),
        ]

    def _convs(self) -> tuple[Weight, ...]:
        return tuple(self._vector(f"{x}_conv1d.weight", _WIDE, "1", "w") for x in "qkv")

    def _decays(self) -> tuple[Weight, ...]:
        return self._vector("dt_bias", _WIDE), self._vector("A_log", *self.decay_dims)

    def _norm(self) -> Weight:
        return Weight(f"{self.prefix}o_norm.weight", ("dk",), "norms", matmul=False)

    def weights(self) -> tuple[Weight, ...]:
        """Projections, three convolutions, decay parameters, gated norm."""
        return (*self._matrices().values(), *self._convs(), *self._decays(), self._norm())

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Projections, convolutions, decays, delta rule in the form of the phase, norm, output."""
        m = self._matrices()
        wide = f"T*{_WIDE}"
        first = (Kept("attn_input", "T*D", drop="norm"),)
        return (
            linear("q_proj", m["q_proj"], kept=first),
            linear("k_proj", m["k_proj"]),
            linear("v_proj", m["v_proj"]),
            self._convolve(work.phase == "decode"),
            *self._gate_rows("decay", "f"),
            linear("beta", m["b_proj"]),
            pointwise(
                "decay",
                "attention",
                wide,
                f"2*{wide}",  # logarithms in fp32, counted in two-byte elements
                weights=self._decays(),
                kept=(Kept("decay_input", wide),),
                shard="heads",
            ),
            self._recurrent() if work.phase == "decode" else self._chunked(),
            *self._gate_rows("gate", "g"),
            pointwise(
                "gated_norm",
                "norms",
                f"2*{wide}",
                wide,
                weights=(self._norm(),),
                kept=(Kept("delta_out", wide), Kept("gate", wide)),
                shard="heads",
            ),
            linear("o_proj", m["o_proj"], kept=(Kept("gated", wide, drop="norm"),)),
        )

    def _convolve(self, decode: bool) -> Op:
        """Depthwise: each channel sees w tokens. Decoding reads and writes the last w - 1."""
        state = f" + 3*B*{_WIDE}*(w - 1)" if decode else ""
        return Op(
            name="conv",
            kind="scan",
            component="attention",
            flops=f"6*T*{_WIDE}*w",
            weights=self._convs(),
            read=f"3*T*{_WIDE}{state}",
            write=f"3*T*{_WIDE}{state}",
            kept=(Kept("conv_input", f"3*T*{_WIDE}"),),
            shard="heads",
        )

    def _recurrent(self) -> Op:
        """Three products of 2·dk² FLOPs a head with the fp32 state, which is read and written."""
        state = f"2*B*{_STATE}"  # counted in two-byte elements
        return Op(
            name="delta_rule",
            kind="scan",
            component="attention",
            flops=f"6*T*{_STATE}",
            read=f"5*T*{_WIDE} + T*H + {state}",
            write=f"T*{_WIDE} + {state}",
            shard="heads",
        )

    def _chunked(self) -> Op:
        """FLOPs of the gated delta rule with dk = dv: decays per channel scale the factors.

        Per token and head: 2·Q·5·dk for the two Q x Q products, the inverse times keys and values
        and the scores times values; (Q-1)(Q-2)/3 for the inverse; 6·dk² with the state.
        """
        states = f"per(T*{_STATE}, Q)"
        return Op(
            name="delta_rule",
            kind="scan",
            component="attention",
            flops="T*H*(10*Q*dk + 6*dk*dk) + per(T*H*(Q - 1)*(Q - 2), 3)",
            read=f"5*T*{_WIDE} + T*H + {states}",
            write=f"T*{_WIDE} + {states}",
            kept=(
                *(Kept(x, f"T*{_WIDE}") for x in "qkv"),
                Kept("beta", "T*H"),
                Kept("log_decay", f"T*{_WIDE}", bits=32),
                Kept("inverse", "T*H*Q"),
            ),
            shard="heads",
        )

    def cache(self) -> tuple[CacheEntry, ...]:
        """The state of every head in fp32, and the convolutions' last w - 1 inputs."""
        return (
            CacheEntry("state", fixed=_STATE, bits=32),
            CacheEntry("conv_state", fixed=f"3*{_WIDE}*(w - 1)", bits=16),
        )
