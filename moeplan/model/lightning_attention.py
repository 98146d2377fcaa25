"""Lightning attention as rows (arXiv 2405.17381, MiniMax-01 arXiv 2501.08313).

Linear attention with a fixed decay per head: the state of a head is a dh x dh matrix M, and with
decay a, key k, value v and query q of a token

    M = a·M + k vᵀ,    output = Mᵀ q

Symbols: H heads of dh dimensions, Q tokens of a block. Decoding runs this recurrence; prefill and
training run blocks of Q tokens, in which scores are computed as in full attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.model.ops import Block, CacheEntry, Kept, Op, Shard, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["LightningAttention"]

_STATE = "H*dh*dh"


@dataclass(frozen=True, eq=False)
class LightningAttention(Block):
    """Fused projection of activated queries, keys and values; state; norm; output gate.

    chunk: tokens of a block, a constant of the kernel. State is fp32. names: of projection, gate,
    norm and output. norm_names: of norms of each head's queries and keys, where there are any
    (Ring), which are then rotated by their position instead of activated.
    """

    D: Number
    H: Number
    dh: Number
    chunk: Number = 256
    prefix: str = "self_attn."
    names: tuple[str, str, str, str] = ("qkv_proj", "output_gate", "norm", "out_proj")
    norm_names: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What the field calls this kind."""
        return "lightning attention"

    def locals(self, work: Workload) -> Mapping[str, str]:
        """Q: tokens per block, less where the pass is shorter."""
        return {} if work.phase == "decode" else {"Q": "min(chunk, S)"}

    def _matrix(self, name: str, n: str, k: str, shard: Shard = "column") -> Weight:
        return Weight(f"{self.prefix}{name}.weight", (n, k), "attention", shard=shard)

    def _parts(self) -> tuple[Weight, Weight, Weight, Weight]:
        qkv, gate, norm, out = self.names
        return (
            self._matrix(qkv, "3*H*dh", "D"),
            self._matrix(gate, "H*dh", "D"),
            Weight(f"{self.prefix}{norm}.weight", ("H*dh",), "norms", matmul=False),
            self._matrix(out, "D", "H*dh", "row"),
        )

    def _head_norms(self) -> tuple[Weight, ...]:
        return tuple(
            Weight(f"{self.prefix}{name}.weight", ("dh",), "norms", matmul=False)
            for name in self.norm_names
        )

    def weights(self) -> tuple[Weight, ...]:
        """Queries, keys and values in one; output gate; norm; output. Decays are no weights."""
        return (*self._parts(), *self._head_norms())

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Projections, activation, state in the form of the phase, norm, gate, output."""
        qkv, gate, norm, out = self._parts()
        wide = "T*H*dh"
        return (
            linear("qkv_proj", qkv, kept=(Kept("attn_input", "T*D", drop="norm"),)),
            *self._prepare(wide),
            self._recurrent() if work.phase == "decode" else self._blocks(),
            pointwise(
                "attn_norm", "norms", wide, wide, weights=(norm,), kept=(Kept("state_out", wide),)
            ),
            linear("output_gate", gate),
            pointwise(
                "gate",
                "attention",
                f"2*{wide}",
                wide,
                kept=(Kept("gate", wide), Kept("attn_normed", wide, drop="norm")),
                shard="heads",
            ),
            linear("out_proj", out, kept=(Kept("gated", wide, drop="activation"),)),
        )

    def _prepare(self, wide: str) -> tuple[Op, ...]:
        """What is done to queries, keys and values: an activation, or norms and a rotation."""
        if not self.norm_names:
            kept = (Kept("qkv", f"3*{wide}"),)
            moved = f"3*{wide}"
            return (pointwise("qkv_act", "attention", moved, moved, kept=kept, shard="heads"),)
        both, kept = f"2*{wide}", (Kept("qk", f"2*{wide}"),)
        norms = self._head_norms()
        return (
            pointwise("qk_norm", "norms", both, both, weights=norms, kept=kept, shard="heads"),
            pointwise("rope", "attention", both, both, shard="heads"),
        )

    def _recurrent(self) -> Op:
        """k vᵀ and Mᵀ q are 2·dh² FLOPs each per head; the fp32 state is read and written once."""
        state = f"2*B*{_STATE}"  # counted in two-byte elements
        return Op(
            name="lightning",
            kind="scan",
            component="attention",
            flops=f"4*T*{_STATE}",
            read=f"3*T*H*dh + {state}",
            write=f"T*H*dh + {state}",
            shard="heads",
        )

    def _blocks(self) -> Op:
        """FLOPs per block of Q tokens and head, whole Q x Q tiles.

        Scores and scores times values: 2·Q²·dh each. What queries read from the state and its
        update: 2·Q·dh² each. Together, per token and head: 4·Q·dh + 4·dh². The kernel walks the
        blocks in order with the state on the chip.
        """
        return Op(
            name="lightning",
            kind="scan",
            component="attention",
            flops=f"4*T*Q*H*dh + 4*T*{_STATE}",
            read="3*T*H*dh",
            write="T*H*dh",
            kept=(
                Kept("q", "T*H*dh", drop="activation"),
                Kept("k", "T*H*dh", drop="activation"),
                Kept("v", "T*H*dh", drop="activation"),
            ),
            shard="heads",
        )

    def cache(self) -> tuple[CacheEntry, ...]:
        """The state of every head in fp32."""
        return (CacheEntry("state", fixed=_STATE, bits=32),)
