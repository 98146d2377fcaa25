"""Embeddings of a token and the few before it, added to the residual streams (Qwen4-Exp's PLE).

The token and its predecessors are hashed, once for each of N heads, into a table that is far larger
than the vocabulary; the N rows that come out are one vector of Pe. From it follow a value of D and
a key for each of hc streams; a stream that agrees with its key takes the value in, and a dilated
convolution over the tokens takes in those of the neighbours. Symbols: N heads of the hash, Vn rows
of the table in all heads, Sn its parts in the checkpoint, Pe width of the N rows together, w taps
of the convolution, n longest n-gram (and dilation), hc streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.model.ops import Block, CacheEntry, Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["NGramEmbedding"]

_PART = "ceil_div(Vn, Sn)"  # rows of a part
_WHOLE = f"(Vn//{_PART})"
_REST = f"(Vn % {_PART})"  # rows of a smaller part behind them, where the parts do not come out
_WIDE = "hc*D"


@dataclass(frozen=True, eq=False)
class NGramEmbedding(Block):
    """Hashed n-gram look-ups, gated into every residual stream."""

    D: Number
    hc: Number
    N: Number
    Vn: Number
    Sn: Number
    Pe: Number
    w: Number
    n: Number
    prefix: str = "ple."

    @property
    def label(self) -> str:
        """What stands beside the mixers of a layer."""
        return "n-gram embeddings"

    def locals(self, work: Workload) -> Mapping[str, str]:
        """State: the convolution's inputs that a step of decoding still needs."""
        return {"state": f"B*{_WIDE}*n*(w - 1)" if work.phase == "decode" else "0*B"}

    def _table(self) -> tuple[Weight, Weight]:
        """The parts of equal size and what is left; a token reads N rows of all of them."""
        at = f"{self.prefix}ple_embedding.ngram_embedding.shard_"

        def part(mark: str, rows: str, copies: str, first: str, read: str) -> Weight:
            return Weight(
                f"{at}{mark}.weight",
                (rows, "Pe//N"),
                "embedding",
                copies=copies,
                active=f"per({read}, {rows})",
                first=first,
                matmul=False,
                shard="vocab",
            )

        last = f"max(1, {_REST})"
        read = (f"per(N*{_WHOLE}*{_PART}, Vn)", f"per(N*{_REST}, Vn)")
        return (
            part("{e}", _PART, _WHOLE, "0", read[0]),
            part("{e+}", last, f"min(1, {_REST})", _WHOLE, read[1]),
        )

    def _hashes(self) -> tuple[Weight, ...]:
        at = f"{self.prefix}ple_embedding."
        sizes = {"layer_multipliers": "n", "ngram_heads_vocab_sizes": "N"}
        sizes["ngram_heads_offsets"] = "N"
        return tuple(
            Weight(at + name, (size,), "embedding", matmul=False, buffer=True)
            for name, size in sizes.items()
        )

    def _parts(self) -> dict[str, Weight]:
        at = self.prefix

        def norm(name: str) -> Weight:
            return Weight(f"{at}{name}.weight", (_WIDE,), "norms", matmul=False)

        return {
            "key": Weight(f"{at}key_proj.weight", (_WIDE, "Pe"), "embedding"),
            "value": Weight(f"{at}value_proj.weight", ("D", "Pe"), "embedding"),
            "norm_key": norm("norm_key"),
            "norm_query": norm("norm_query"),
            "norm_conv": norm("norm_conv"),
            "conv": Weight(f"{at}conv1d.weight", (_WIDE, "1", "w"), "embedding", matmul=False),
        }

    def weights(self) -> tuple[Weight, ...]:
        """The table in its parts, the hashes' constants, projections, norms, convolution."""
        return (*self._table(), *self._hashes(), *self._parts().values())

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Look-up, projections, gate, convolution, the sum with the streams."""
        part, wide = self._parts(), f"T*{_WIDE}"
        look_up = Op(
            "ngram_embed",
            "gather",
            "embedding",
            weights=(*self._table(), *self._hashes()),
            uses="0",  # N rows of the table, which are read as such
            read="T*Pe",
            write="T*Pe",
            shard="vocab",
        )
        gate = pointwise(
            "ngram_gate",
            "norms",
            f"2*{wide} + T*D",
            f"2*{wide}",
            weights=(part["norm_key"], part["norm_query"], part["norm_conv"]),
            kept=(
                Kept("ngram_keys", wide),
                Kept("ngram_queries", wide),
                Kept("ngram_value", "T*D"),
            ),
        )
        conv = Op(
            name="ngram_conv",
            kind="scan",
            component="embedding",
            flops=f"2*{wide}*w",
            weights=(part["conv"],),
            read=f"{wide} + state",
            write=f"{wide} + state",
            kept=(Kept("ngram_conv_input", wide), Kept("ngram_conv_output", wide)),
            shard="tokens",
        )
        return (
            look_up,
            linear("ngram_key", part["key"], kept=(Kept("ngram_rows", "T*Pe"),)),
            linear("ngram_value", part["value"]),
            gate,
            conv,
            pointwise("ngram_add", "embedding", f"3*{wide}", wide),
        )

    def cache(self) -> tuple[CacheEntry, ...]:
        """The convolution's last inputs, and the tokens that begin the next n-gram."""
        return (
            CacheEntry("ngram_conv_state", fixed=f"{_WIDE}*n*(w - 1)", bits=16),
            CacheEntry("ngram_tokens", fixed="n - 1", bits=64),
        )
