"""Attention kinds as rows: grouped-query (with windows, chunks, gates, sinks) and multi-latent.

Symbols: H query heads, G key-value heads, dh head dimension of queries and keys, dv of values,
W window or chunk in tokens, P (query, key) pairs per sequence that are computed.
For multi-latent attention (DeepSeek-V2, arXiv 2405.04434): rq and rkv latent ranks of queries and
of keys and values, dn and dr head dimensions without and with rotary position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moeplan.model.ops import Block, CacheEntry, Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["Attention", "LatentAttention", "visible_pairs"]


def visible_pairs(work: Workload, *, window: str = "", chunk: str = "", keys: str = "C") -> str:
    """Formula of the (query, key) pairs per sequence whose scores are computed.

    Causal counts half of the rectangle (the diagonal's half token is ignored, as the field does);
    a window or chunk of W tokens cuts it further; "full" ignores masks. Decoding sees all keys.
    """
    if work.mask == "full" and not work.phase == "decode":
        return f"S*{keys}"
    if work.phase == "decode":
        if window:
            return f"S*min({keys}, {window})"
        if chunk:
            return f"S*({keys} - {chunk}*(({keys} - 1)//{chunk}))"
        return f"S*{keys}"
    if window:
        return _until(f"{keys}", window) + f" - ({_until(f'({keys}-S)', window)})"
    if chunk:
        return _chunked(f"{keys}", chunk) + f" - ({_chunked(f'({keys}-S)', chunk)})"
    return f"S*{keys} - half(S**2)"


def _until(x: str, window: str) -> str:
    """Pairs of the first x positions, each seeing at most `window` keys."""
    return f"{x}*min({x}, {window}) - half(min({x}, {window})**2)"


def _chunked(x: str, chunk: str) -> str:
    """Pairs of the first x positions, each seeing the earlier keys of its own chunk."""
    return f"half(({x}//{chunk})*{chunk}**2 + ({x}%{chunk})**2)"


@dataclass(frozen=True, eq=False)
class Attention(Block):
    """Multi-head and grouped-query attention over keys and values of its own or of another layer.

    D hidden, H query heads, G key-value heads, dh and dv head dimensions, W window or chunk.
    scope: "full", "window" (each query sees the last W keys) or "chunk" (its own chunk of W).
    qk_norm: "head" (one vector of dh for all heads), "full" (one over all heads), "unit" (to
    length one, without weights) or "none".
    gate: the query projection also yields an output gate of the same width (Qwen3-Next).
    sinks: one learned logit per head (gpt-oss). position_bias: rows of a relative position table
    (T5), held by the first layer only. cross: keys come from the encoder's X tokens.
    rope: queries and keys are rotated by their position. dr: rotated dimensions of a head, where
    not all are.
    fused: name of one tensor that holds q, k and v stacked (DBRX), else "".
    shares_kv: the layer reads another layer's keys and values and has none of its own.
    """

    D: Number
    H: Number
    G: Number
    dh: Number
    dv: Number
    W: Number | None = None
    scope: Literal["full", "window", "chunk"] = "full"
    causal: bool = True
    cross: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: Literal["none", "head", "full", "bias", "unit"] = "none"
    gate: bool = False
    sinks: bool = False
    position_buckets: Number | None = None
    rope: bool = True
    dr: Number | None = None
    shares_kv: bool = False
    prefix: str = "self_attn."
    names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    norm_names: tuple[str, str] = ("q_norm", "k_norm")
    fused: str = ""

    def locals(self, work: Workload) -> Mapping[str, str]:
        """P: computed pairs; N: new key positions; K: keys that a query block reads."""
        if self.cross:
            return {"P": "S*X", "N": "B*X" if work.phase != "decode" else "0", "K": "X"}
        seen = work if self.causal else Workload(work.phase, mask="full")
        pairs = visible_pairs(
            seen,
            window="W" if self.scope == "window" else "",
            chunk="W" if self.scope == "chunk" else "",
        )
        read = {"full": "C", "window": "min(C, W + S)", "chunk": "min(C, W + S)"}[self.scope]
        return {"P": pairs, "N": "T", "K": read}

    def _weight(self, which: str, *dims: str, matmul: bool = True, suffix: str = "weight") -> Weight:
        return Weight(
            f"{self.prefix}{which}.{suffix}",
            dims,
            "attention" if matmul or suffix == "bias" else "norms",
            matmul=matmul,
            shard="row" if which == self.names[3] else "column" if matmul else "none",
        )

    def _projections(self) -> list[tuple[str, Weight, Weight | None]]:
        """(row name, weight, bias) of the projections into queries, keys and values."""
        q_rows = "2*H*dh" if self.gate else "H*dh"
        if self.fused:
            rows = [("qkv_proj", self.fused, "H*dh + G*dh + G*dv")]
        else:
            rows = [("q_proj", self.names[0], q_rows)]
            if not self.shares_kv:
                rows += [("k_proj", self.names[1], "G*dh"), ("v_proj", self.names[2], "G*dv")]
        return [
            (
                op,
                self._weight(name, width, "D"),
                self._weight(name, width, matmul=False, suffix="bias") if self.qkv_bias else None,
            )
            for op, name, width in rows
        ]

    def _norms(self) -> list[tuple[str, tuple[Weight, ...], str]]:
        """(row name, weights, elements normalised) of query and key normalisation."""
        if self.qk_norm == "none":
            return []
        widths = {"head": ("dh", "dh"), "full": ("H*dh", "G*dh"), "unit": ("", "")}[self.qk_norm]
        rows = [("q_norm", self.norm_names[0], widths[0], "T*H*dh")]
        if not self.shares_kv:
            rows.append(("k_norm", self.norm_names[1], widths[1], "N*G*dh"))
        return [
            (op, (self._weight(name, width, matmul=False),) if width else (), n)
            for op, name, width, n in rows
        ]

    def _extras(self) -> list[Weight]:
        """Sinks and relative position tables: learned, used inside the attention row."""
        out = []
        if self.sinks:
            name = f"{self.prefix}sinks"
            out.append(Weight(name, ("H",), "attention", matmul=False, shard="heads"))
        if self.position_buckets is not None:
            name = f"{self.prefix}relative_attention_bias.weight"
            dims = ("position_buckets", "H")
            out.append(Weight(name, dims, "attention", matmul=False, shard="heads"))
        return out

    def _output(self) -> tuple[Weight, Weight | None]:
        bias = self._weight(self.names[3], "D", matmul=False, suffix="bias")
        return self._weight(self.names[3], "D", "H*dv"), bias if self.o_bias else None

    def weights(self) -> tuple[Weight, ...]:
        """Projections with their biases, head norms, sinks, position table."""
        out: list[Weight] = []
        for _, weight, bias in self._projections():
            out += [weight] if bias is None else [weight, bias]
        out += [weight for _, weights, _ in self._norms() for weight in weights]
        out += self._extras()
        out += [w for w in self._output() if w is not None]
        return tuple(out)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Projections, norms, rotary embedding, attention, gate, output projection."""
        rows: list[Op] = []
        for op, weight, bias in self._projections():
            tokens = "N" if op in ("k_proj", "v_proj") else "T"
            # the input is one tensor for the three projections: kept once, by the first
            kept: tuple[Kept, ...] = () if rows else (Kept("attn_input", "T*D", drop="norm"),)
            rows.append(linear(op, weight, bias=bias, rows=tokens, kept=kept))
        for op, weights, elements in self._norms():
            kept = (Kept(f"{op}_input", elements, drop="norm"),)
            rows.append(pointwise(op, "norms", elements, elements, weights=weights, kept=kept))
        if self.rope and not self.cross and self.position_buckets is None:
            turned = "dh" if self.dr is None else "dr"
            moved = f"T*H*{turned}" + ("" if self.shares_kv else f" + N*G*{turned}")
            rows.append(pointwise("rope", "attention", moved, moved, shard="heads"))
        rows.append(self._attend())
        if self.gate:
            kept = (Kept("gate", "T*H*dv"), Kept("attn_ungated", "T*H*dv"))
            rows.append(pointwise("gate", "attention", "2*T*H*dv", "T*H*dv", kept=kept))
        weight, bias = self._output()
        rows.append(linear("o_proj", weight, bias=bias))
        return tuple(rows)

    def _attend(self) -> Op:
        keys_values = () if self.shares_kv else (Kept("k", "N*G*dh"), Kept("v", "N*G*dv"))
        return Op(
            name="attention",
            kind="attention",
            component="attention",
            flops="2*B*P*H*(dh + dv)",
            read="T*H*dh",
            write="T*H*dv",
            cached="B*K*G*(dh + dv)",
            weights=tuple(self._extras()),
            # a flash kernel keeps the row sums (fp32), not the scores
            kept=(
                Kept("q", "T*H*dh"),
                *keys_values,
                Kept("attn_out", "T*H*dv"),
                Kept("softmax_sum", "T*H", bits=32),
            ),
            shard="heads",
        )

    def cache(self) -> tuple[CacheEntry, ...]:
        """Keys and values of each token, inside the window where there is one."""
        if self.shares_kv or not self.causal:
            return ()
        if self.cross:
            return (CacheEntry("cross_kv", fixed="X*G*(dh + dv)"),)
        window = "W" if self.scope != "full" else None
        return (CacheEntry("kv", per_token="G*(dh + dv)", window=window),)


@dataclass(frozen=True, eq=False)
class LatentAttention(Block):
    """Multi-latent attention: keys and values are expanded from one cached latent per token.

    Prefill and training expand keys and values (FLOPs of the expanded form); decoding absorbs the
    expansions into queries and outputs and attends over the latents, with the same weights.
    rq is None where queries have no latent. mode "auto" does this; "absorbed" and "expanded"
    force one form.
    """

    D: Number
    H: Number
    rq: Number | None
    rkv: Number
    dn: Number
    dr: Number
    dv: Number
    bias: bool = False
    mode: Literal["auto", "absorbed", "expanded"] = "auto"
    prefix: str = "self_attn."

    def locals(self, work: Workload) -> Mapping[str, str]:
        """P: computed (query, key) pairs per sequence."""
        return {"P": visible_pairs(work)}

    def _absorbed(self, work: Workload) -> bool:
        return self.mode == "absorbed" or (self.mode == "auto" and work.phase == "decode")

    def _weight(self, name: str, *dims: str, **how: object) -> Weight:
        return Weight(f"{self.prefix}{name}.weight", dims, "attention", **how)  # type: ignore[arg-type]

    def _norm(self, name: str, dim: str) -> Weight:
        return Weight(f"{self.prefix}{name}.weight", (dim,), "norms", matmul=False)

    def _bias(self, name: str, dim: str) -> Weight | None:
        name = f"{self.prefix}{name}.bias"
        return Weight(name, (dim,), "attention", matmul=False) if self.bias else None

    def _parts(self) -> dict[str, Weight | None]:
        heads = "H*(dn + dr)"
        low = self.rq is not None
        return {
            "q_proj": None if low else self._weight("q_proj", heads, "D", shard="column"),
            "q_a_proj": self._weight("q_a_proj", "rq", "D") if low else None,
            "q_a_bias": self._bias("q_a_proj", "rq") if low else None,
            "q_a_norm": self._norm("q_a_layernorm", "rq") if low else None,
            "q_b_proj": self._weight("q_b_proj", heads, "rq", shard="column") if low else None,
            "kv_a_proj": self._weight("kv_a_proj_with_mqa", "rkv + dr", "D"),
            "kv_a_bias": self._bias("kv_a_proj_with_mqa", "rkv + dr"),
            "kv_a_norm": self._norm("kv_a_layernorm", "rkv"),
            "kv_b_proj": self._weight("kv_b_proj", "H*(dn + dv)", "rkv", shard="column"),
            "o_proj": self._weight("o_proj", "D", "H*dv", shard="row"),
            "o_bias": self._bias("o_proj", "D"),
        }

    def weights(self) -> tuple[Weight, ...]:
        """Down and up projections of queries and of keys and values, norms, output."""
        return tuple(w for w in self._parts().values() if w is not None)

    def _query_rows(self, part: dict[str, Weight | None]) -> list[Op]:
        kept = (Kept("attn_input", "T*D", drop="norm"),)
        if part["q_proj"] is not None:
            return [linear("q_proj", part["q_proj"], kept=kept)]
        assert part["q_a_proj"] and part["q_a_norm"] and part["q_b_proj"]
        latent = (Kept("q_a", "T*rq"),)
        normed = (Kept("q_a_normed", "T*rq", drop="norm"),)
        return [
            linear("q_a_proj", part["q_a_proj"], bias=part["q_a_bias"], kept=kept),
            pointwise(
                "q_a_norm", "norms", "T*rq", "T*rq", weights=(part["q_a_norm"],), kept=latent
            ),
            linear("q_b_proj", part["q_b_proj"], kept=normed),
        ]

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Projections, norms, rotary embedding, attention in the form of the phase, output."""
        part = self._parts()
        assert part["kv_a_proj"] and part["kv_a_norm"] and part["kv_b_proj"] and part["o_proj"]
        rows = self._query_rows(part)
        rows += [
            linear("kv_a_proj", part["kv_a_proj"], bias=part["kv_a_bias"]),
            pointwise(
                "kv_a_norm",
                "norms",
                "T*rkv",
                "T*rkv",
                weights=(part["kv_a_norm"],),
                kept=(Kept("kv_a", "T*rkv"),),
            ),
            pointwise("rope", "attention", "T*(H + 1)*dr", "T*(H + 1)*dr", shard="heads"),
        ]
        rows += self._absorbed_rows(part) if self._absorbed(work) else self._expanded_rows(part)
        rows.append(linear("o_proj", part["o_proj"], bias=part["o_bias"]))
        return tuple(rows)

    def _expanded_rows(self, part: dict[str, Weight | None]) -> list[Op]:
        assert part["kv_b_proj"] is not None
        latent = (Kept("kv_a_normed", "T*rkv", drop="norm"),)
        attend = Op(
            name="attention",
            kind="attention",
            component="attention",
            flops="2*B*P*H*(dn + dr + dv)",
            read="T*H*(dn + dr)",
            write="T*H*dv",
            cached="B*C*H*(dn + dr + dv)",
            kept=(
                Kept("q", "T*H*(dn + dr)", drop="up_projection"),
                Kept("k", "T*H*(dn + dr)", drop="up_projection"),
                Kept("v", "T*H*dv", drop="up_projection"),
                Kept("attn_out", "T*H*dv"),
                Kept("softmax_sum", "T*H", bits=32),
            ),
            shard="heads",
        )
        return [linear("kv_b_proj", part["kv_b_proj"], kept=latent, rows="B*C"), attend]

    def _absorbed_rows(self, part: dict[str, Weight | None]) -> list[Op]:
        kv_b = part["kv_b_proj"]
        assert kv_b is not None

        def half(name: str, width: str, k: str, n: str, share: str) -> Op:
            return Op(
                name=name,
                kind="linear",
                component="attention",
                flops=f"2*T*H*rkv*{width}",
                gemm=("T", k, n),
                groups="H",
                weights=(kv_b,),
                uses=share,
                read=f"T*H*{k}",
                write=f"T*H*{n}",
                shard="heads",
            )

        attend = Op(
            name="attention",
            kind="attention",
            component="attention",
            flops="2*B*P*H*(2*rkv + dr)",
            read="T*H*(rkv + dr)",
            write="T*H*rkv",
            cached="B*C*(rkv + dr)",
            shard="heads",
        )
        return [
            half("q_absorb", "dn", "dn", "rkv", "dn/(dn + dv)"),
            attend,
            half("v_expand", "dv", "rkv", "dv", "dv/(dn + dv)"),
        ]

    def cache(self) -> tuple[CacheEntry, ...]:
        """One latent and one rotary key per token, shared by all heads."""
        return (CacheEntry("latent", per_token="rkv + dr"),)
