"""Linear attention as rows: the gated delta rule, whose state has a fixed size.

Symbols: Hk key heads (queries have as many), Hv value heads, dk and dv their head dimensions,
w taps of the causal convolution, Q tokens of a chunk. The state of a value head is a dk x dv
matrix M; with decay a, write strength b, key k, value v and query q of a token it becomes

    M = a·M + k (b·(v - (a·M)ᵀ k))ᵀ,    output = Mᵀ q

(Gated DeltaNet, arXiv 2412.06464). Decoding runs this recurrence; prefill and training run its
chunked form (arXiv 2406.06484), which turns the Q updates of a chunk into matmuls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moeplan.model.ops import Block, CacheEntry, Kept, Op, Shard, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["GatedDeltaNet"]

_CONV = "(2*Hk*dk + Hv*dv)"  # channels of the convolution: queries, keys, values
_STATE = "Hv*dk*dv"


@dataclass(frozen=True, eq=False)
class GatedDeltaNet(Block):
    """A gated delta rule mixer: projections, short convolution, recurrence, gated norm, output.

    layout: how the checkpoint stores the input projections. "paired" (Qwen3-Next): one tensor for
    queries, keys, values and output gates, one for write strengths and decays. "split" (Qwen3.5):
    queries with keys and values, output gates, write strengths and decays each their own.
    chunk: tokens per chunk of the chunked form, a kernel's constant. State is fp32.
    """

    D: Number
    Hk: Number
    Hv: Number
    dk: Number
    dv: Number
    w: Number
    chunk: Number = 64
    layout: Literal["paired", "split"] = "paired"
    prefix: str = "linear_attn."

    @property
    def label(self) -> str:
        """What the field calls this kind."""
        return "gated delta rule"

    def locals(self, work: Workload) -> Mapping[str, str]:
        """Q: tokens per chunk, less where the pass is shorter."""
        return {} if work.phase == "decode" else {"Q": "min(chunk, S)"}

    def _vector(self, name: str, *dims: str, shard: Shard = "heads") -> Weight:
        return Weight(f"{self.prefix}{name}", dims, "attention", matmul=False, shard=shard)

    def _inputs(self) -> list[Weight]:
        rows = {
            "paired": {"in_proj_qkvz": "2*Hk*dk + 2*Hv*dv", "in_proj_ba": "2*Hv"},
            "split": {
                "in_proj_qkv": "2*Hk*dk + Hv*dv",
                "in_proj_z": "Hv*dv",
                "in_proj_b": "Hv",
                "in_proj_a": "Hv",
            },
        }[self.layout]
        return [
            Weight(f"{self.prefix}{name}.weight", (n, "D"), "attention", shard="column")
            for name, n in rows.items()
        ]

    def _conv(self) -> Weight:
        return self._vector("conv1d.weight", "2*Hk*dk + Hv*dv", "1", "w")

    def _decays(self) -> tuple[Weight, ...]:
        return self._vector("dt_bias", "Hv"), self._vector("A_log", "Hv")

    def _norm(self) -> Weight:
        return Weight(f"{self.prefix}norm.weight", ("dv",), "norms", matmul=False)

    def _output(self) -> Weight:
        return Weight(f"{self.prefix}out_proj.weight", ("D", "Hv*dv"), "attention", shard="row")

    def weights(self) -> tuple[Weight, ...]:
        """Input projections, convolution, decay parameters, gated norm, output projection."""
        return (*self._inputs(), self._conv(), *self._decays(), self._norm(), self._output())

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Projections, convolution, gates, delta rule in the form of the phase, norm, output."""
        rows: list[Op] = []
        for weight in self._inputs():
            kept = (Kept("attn_input", "T*D", drop="norm"),) if not rows else ()
            name = weight.name.removeprefix(self.prefix).removesuffix(".weight")
            rows.append(linear(name, weight, kept=kept))
        decode = work.phase == "decode"
        rows += [
            self._convolve(decode),
            pointwise(
                "decay",
                "attention",
                "2*T*Hv",
                "3*T*Hv",  # write strengths, and logarithms of decays in fp32
                weights=self._decays(),
                kept=(Kept("gates_input", "2*T*Hv"),),
                shard="heads",
            ),
            self._recurrent() if decode else self._chunked(),
            pointwise(
                "gated_norm",
                "norms",
                "2*T*Hv*dv",
                "T*Hv*dv",
                weights=(self._norm(),),
                kept=(Kept("delta_out", "T*Hv*dv"), Kept("gate", "T*Hv*dv")),
                shard="heads",
            ),
            linear("out_proj", self._output(), kept=(Kept("gated", "T*Hv*dv", drop="norm"),)),
        ]
        return tuple(rows)

    def _convolve(self, decode: bool) -> Op:
        """Depthwise: each channel sees w tokens. Decoding reads and writes the last w - 1."""
        state = f" + B*{_CONV}*(w - 1)" if decode else ""
        return Op(
            name="conv",
            kind="scan",
            component="attention",
            flops=f"2*T*{_CONV}*w",
            weights=(self._conv(),),
            read=f"T*{_CONV}{state}",
            write=f"T*{_CONV}{state}",
            kept=(Kept("conv_input", f"T*{_CONV}"),),
            shard="heads",
        )

    def _recurrent(self) -> Op:
        """Token by token: Mᵀk, k(...)ᵀ and Mᵀq are 2·dk·dv FLOPs each per value head.

        The decay's multiplication is element-wise and not counted. The fp32 state is read and
        written once a pass (counted in two-byte elements).
        """
        return Op(
            name="delta_rule",
            kind="scan",
            component="attention",
            flops=f"6*T*{_STATE}",
            read=f"T*{_CONV} + 3*T*Hv + 2*B*{_STATE}",
            write=f"T*Hv*dv + 2*B*{_STATE}",
            shard="heads",
        )

    def _chunked(self) -> Op:
        """FLOPs per chunk of Q tokens and value head, whole Q x Q tiles as kernels compute them.

        K Kᵀ and Q Kᵀ: 2·Q²·dk each. Inverse of the unit lower triangular I + tril(K Kᵀ) by forward
        substitution: Q(Q-1)(Q-2)/3. The inverse times K and times V: 2·Q²·dk and 2·Q²·dv. Scores
        times the new values: 2·Q²·dv. With the state: what it predicts, what queries read from it,
        its update: 2·Q·dk·dv each. Together, per token: 2·Q(3·dk + 2·dv) + (Q-1)(Q-2)/3 + 6·dk·dv.
        A ragged last chunk is taken in proportion. Kernels write each chunk's state and read it
        back: dk·dv elements a chunk and head.
        """
        states = f"per(T*{_STATE}, Q)"
        return Op(
            name="delta_rule",
            kind="scan",
            component="attention",
            flops="T*Hv*(2*Q*(3*dk + 2*dv) + 6*dk*dv) + per(T*Hv*(Q - 1)*(Q - 2), 3)",
            read=f"T*{_CONV} + 3*T*Hv + {states}",
            write=f"T*Hv*dv + {states}",
            kept=(
                Kept("q", "T*Hk*dk"),
                Kept("k", "T*Hk*dk"),
                Kept("v", "T*Hv*dv"),
                Kept("beta", "T*Hv"),
                Kept("log_decay", "T*Hv", bits=32),
                Kept("inverse", "T*Hv*Q"),
            ),
            shard="heads",
        )

    def cache(self) -> tuple[CacheEntry, ...]:
        """State of every value head in fp32, and the convolution's last w - 1 inputs."""
        return (
            CacheEntry("state", fixed=_STATE, bits=32),
            CacheEntry("conv_state", fixed=f"{_CONV}*(w - 1)", bits=16),
        )
