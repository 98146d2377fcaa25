"""Attention over compressed keys as rows (DeepSeek-V4).

Every layer attends to the last W tokens; most also attend to entries that each stand for m tokens:
all of them ("hca", heavily compressed), or the ki that an indexer picks ("csa"). One entry serves
as key and as value of all heads. Queries come from a latent, outputs leave in groups of heads.

Symbols: H heads of dh dimensions, dr of them rotated, rq rank of the query latent, Go groups of
heads in the output with a rank of ro each, W window, m tokens per entry, Hi heads of the indexer,
di their dimension, ki entries that a query attends to, o series of entries (2 where neighbouring
blocks overlap), Pw, Pc and Pi (query, key) pairs per sequence with the window, with entries, and
with the indexer's entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moeplan.model.masks import compressed_pairs, visible_keys, visible_pairs
from moeplan.model.ops import Block, CacheEntry, Kept, Op, Shard, Weight, linear, pointwise
from moeplan.model.sparse_attention import select_row
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["CompressedAttention"]


@dataclass(frozen=True, eq=False, kw_only=True)
class CompressedAttention(Block):
    """Window attention with compressed entries; `kind` says which entries a query attends to.

    kind: "window" (none), "csa" (the ki best by the indexer; blocks overlap) or "hca" (all).
    The compressors run in fp32 and keep the tokens of the open block as state; the entries and
    the window are cached in the format that the user chose.
    """

    D: Number
    H: Number
    dh: Number
    dr: Number
    rq: Number
    W: Number
    Go: Number
    ro: Number
    kind: Literal["window", "csa", "hca"] = "window"
    m: Number | None = None
    Hi: Number | None = None
    di: Number | None = None
    ki: Number | None = None
    prefix: str = "attn."

    @property
    def label(self) -> str:
        """What the field calls this kind."""
        kinds = {"window": "window", "csa": "picked by indexer", "hca": "heavily compressed"}
        return f"compressed keys, {kinds[self.kind]}"

    @property
    def _series(self) -> int:
        return 2 if self.kind == "csa" else 1

    def locals(self, work: Workload) -> Mapping[str, str]:
        """Pairs of each kind, o, and the keys that the pass reads (K)."""
        out = {"Pw": visible_pairs(work, window="W"), "o": str(self._series), "Pc": "0", "Pi": "0"}
        read = visible_keys(window="W")
        if self.kind == "hca":
            out["Pc"] = compressed_pairs(work, "m")
            read += " + C//m"
        if self.kind == "csa":
            out["Pc"] = compressed_pairs(work, "m", top="ki")
            out["Pi"] = compressed_pairs(work, "m")
            read += " + min(C//m, S*ki)"
        return {**out, "K": read}

    # --------------------------------------------------------------------------------- weights
    def _matrix(self, name: str, n: str, k: str, shard: Shard = "none") -> Weight:
        return Weight(f"{self.prefix}{name}.weight", (n, k), "attention", shard=shard)

    def _norm(self, name: str, dim: str) -> Weight:
        return Weight(f"{self.prefix}{name}.weight", (dim,), "norms", matmul=False)

    def _compressor(self, at: str, width: str) -> tuple[Weight, Weight, Weight, Weight]:
        """Values, gates, position biases inside the block, norm of the entries."""
        rows = f"{self._series}*{width}"
        bias = Weight(f"{self.prefix}{at}ape", ("m", rows), "attention", matmul=False)
        return (
            self._matrix(f"{at}wkv", rows, "D"),
            self._matrix(f"{at}wgate", rows, "D"),
            bias,
            self._norm(f"{at}norm", width),
        )

    def _index(self) -> tuple[Weight, Weight]:
        return (
            self._matrix("indexer.wq_b", "Hi*di", "rq"),
            self._matrix("indexer.weights_proj", "Hi", "D"),
        )

    def _parts(self) -> dict[str, Weight]:
        return {
            "q_a": self._matrix("wq_a", "rq", "D"),
            "q_norm": self._norm("q_norm", "rq"),
            "q_b": self._matrix("wq_b", "H*dh", "rq", "column"),
            "kv": self._matrix("wkv", "dh", "D"),
            "kv_norm": self._norm("kv_norm", "dh"),
            "sinks": Weight(
                f"{self.prefix}attn_sink", ("H",), "attention", matmul=False, shard="heads"
            ),
            "o_a": self._matrix("wo_a", "Go*ro", "H*dh//Go", "column"),
            "o_b": self._matrix("wo_b", "D", "Go*ro", "row"),
        }

    def weights(self) -> tuple[Weight, ...]:
        """Query latent, key-value projection, grouped output; compressors and indexer."""
        out = list(self._parts().values())
        if self.kind != "window":
            out += self._compressor("compressor.", "dh")
        if self.kind == "csa":
            out += self._index()
            out += self._compressor("indexer.compressor.", "di")
        return tuple(out)

    # ------------------------------------------------------------------------------------ rows
    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Queries, keys, compression, selection, attention, inverse rotation, grouped output."""
        part = self._parts()
        moved = "T*(H + 1)*dr"
        q_a_input = (Kept("attn_input", "T*D", drop="norm"),)
        rows = [
            linear("q_a_proj", part["q_a"], kept=q_a_input),
            self._normed("q_a_norm", (part["q_norm"],), "T*rq", "q_a"),
            linear("q_b_proj", part["q_b"], kept=(Kept("q_a_normed", "T*rq", drop="norm"),)),
            self._normed("q_b_norm", (), "T*H*dh", "q_b"),
            linear("kv_proj", part["kv"]),
            self._normed("kv_norm", (part["kv_norm"],), "T*dh", "kv"),
            pointwise("rope", "attention", moved, moved, shard="heads"),
        ]
        if self.kind != "window":
            rows += self._compress("compress", "compressor.", "dh")
        if self.kind == "csa":
            rows += self._select()
        rows += [
            self._attend(part["sinks"]),
            pointwise("rope_inverse", "attention", "T*H*dr", "T*H*dr", shard="heads"),
            self._grouped(part["o_a"]),
            linear("o_b_proj", part["o_b"], kept=(Kept("o_a", "T*Go*ro"),)),
        ]
        return tuple(rows)

    def _normed(self, name: str, weights: tuple[Weight, ...], n: str, kept: str) -> Op:
        return pointwise(name, "norms", n, n, weights=weights, kept=(Kept(kept, n),))

    def _compress(self, op: str, at: str, width: str) -> list[Op]:
        """Gated pooling of m tokens (2·m where blocks overlap) into one entry.

        The pooling is a soft-max and weighted sum per feature: bytes, no FLOPs by the convention.
        """
        values, gates, bias, norm = self._compressor(at, width)
        wide = f"T*o*{width}"
        return [
            linear(f"{op}_kv", values),
            linear(f"{op}_gate", gates),
            pointwise(
                f"{op}_pool",
                "attention",
                f"4*{wide}",  # values and gates in fp32, counted in two-byte elements
                f"per(T*{width}, m)",
                weights=(bias, norm),
                kept=(Kept(f"{op}_kv", wide, bits=32), Kept(f"{op}_gate", wide, bits=32)),
            ),
        ]

    def _select(self) -> list[Op]:
        """The indexer over entries of its own: 2·di FLOPs a head and pair, 2 for their sum."""
        queries, weights = self._index()
        score = Op(
            name="index_scores",
            kind="attention",
            component="attention",
            flops="2*B*Pi*Hi*(di + 1)",
            read="T*Hi*(di + 1)",
            write="2*B*Pi",  # fp32, counted in two-byte elements
            cached="B*(C//m)*di",
            kept=(Kept("index_q", "T*Hi*di"), Kept("index_entries", "per(T*di, m)")),
        )
        return [
            linear("index_q", queries),
            linear("index_weights", weights, kept=(Kept("index_weights", "T*Hi"),)),
            *self._compress("index_compress", "indexer.compressor.", "di"),
            score,
            select_row("Pi", "min(C//m, ki)"),
        ]

    def _attend(self, sinks: Weight) -> Op:
        entries = () if self.kind == "window" else (Kept("entries", "per(T*dh, m)"),)
        return Op(
            name="attention",
            kind="attention",
            component="attention",
            flops="4*B*(Pw + Pc)*H*dh",
            read="T*H*dh",
            write="T*H*dh",
            cached="B*K*dh",
            weights=(sinks,),
            kept=(
                Kept("q", "T*H*dh", drop="up_projection"),
                Kept("kv_normed", "T*dh"),
                *entries,
                Kept("attn_out", "T*H*dh"),
                Kept("softmax_sum", "T*H", bits=32),
            ),
            shard="heads",
        )

    def _grouped(self, weight: Weight) -> Op:
        """Block-diagonal: each of the Go groups of heads has a projection of its own."""
        return Op(
            name="o_a_proj",
            kind="linear",
            component="attention",
            flops="2*T*H*dh*ro",
            gemm=("T", "H*dh//Go", "ro"),
            groups="Go",
            weights=(weight,),
            read="T*H*dh",
            write="T*Go*ro",
            shard="column",
        )

    # ----------------------------------------------------------------------------------- cache
    def cache(self) -> tuple[CacheEntry, ...]:
        """The window, the entries, the indexer's entries, and the compressors' open blocks.

        An open block holds values and gates of o·m tokens, o series wide, in fp32.
        """
        out = [CacheEntry("window_kv", per_token="dh", window="W")]
        if self.kind == "window":
            return tuple(out)
        o = self._series
        out += [
            CacheEntry("compressed_kv", per_token="per(dh, m)"),
            CacheEntry("compressor_state", fixed=f"2*{o}*m*{o}*dh", bits=32),
        ]
        if self.kind == "csa":
            out += [
                CacheEntry("index_keys", per_token="per(di, m)"),
                CacheEntry("index_state", fixed=f"2*{o}*m*{o}*di", bits=32),
            ]
        return tuple(out)
