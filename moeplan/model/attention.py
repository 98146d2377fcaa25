"""Multi-head and grouped-query attention as rows: windows, chunks, gates, sinks, shared keys.

Symbols: H query heads, G key-value heads, dh head dimension of queries and keys, dv of values,
W window or chunk in tokens, rq rank of queries that come from a latent, P (query, key) pairs per
sequence that are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moeplan.model.masks import surrounding_pairs, visible_keys, visible_pairs
from moeplan.model.ops import Block, CacheEntry, Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number, plain

__all__ = ["Attention"]


@dataclass(frozen=True, eq=False)
class Attention(Block):
    """Multi-head and grouped-query attention over keys and values of its own or of another layer.

    D hidden, H query heads, G key-value heads, dh and dv head dimensions, W window or chunk.
    scope: "full", "window" (each query sees the last W keys, and where not causal W on each side)
    or "chunk" (its own chunk of W).
    qk_norm: "head" (one vector of dh for all heads), "full" (one over all heads), "unit" (to
    length one, without weights) or "none".
    gate: the query projection also yields an output gate of the same width (Qwen3-Next).
    own_gate: a projection of its own yields the output gate, one number for each element of the
    output ("full") or for each head ("head"); gate_bias: a learned number per head is added to it.
    sinks: one learned logit per head (gpt-oss). position_bias: rows of a relative position table
    (T5), held by the first layer only. cross: keys come from the encoder's X tokens.
    rope: queries and keys are rotated by their position. dr: rotated dimensions of a head, where
    not all are.
    fused: name of one tensor that holds q, k and v stacked (DBRX), else "".
    shares_kv: the layer reads another layer's keys and values and has none of its own;
    norms_shared_keys: but normalises those keys with a vector of its own (Hunyuan-Large).
    rq: queries come from a normalised latent of rq, through the tensors `latent_names` (Step-3).
    values_are_keys: values are the projected keys before their norm and rotation (Gemma 4).
    v_norm: values are normalised without weights.
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
    own_gate: Literal["none", "full", "head"] = "none"
    gate_bias: bool = False
    sinks: bool = False
    position_buckets: Number | None = None
    rope: bool = True
    dr: Number | None = None
    shares_kv: bool = False
    norms_shared_keys: bool = False
    rq: Number | None = None
    values_are_keys: bool = False
    v_norm: bool = False
    prefix: str = "self_attn."
    names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    norm_names: tuple[str, str] = ("q_norm", "k_norm")
    gate_names: tuple[str, str] = ("gate_proj.weight", "gate_bias")
    latent_names: tuple[str, str] = ("inter_norm", "wq")
    sinks_name: str = "sinks"
    fused: str = ""

    @property
    def label(self) -> str:
        """Heads, what they see, and whose keys and values."""
        if self.cross:
            return "cross-attention"
        kind = "multi-head" if plain(self.H) == plain(self.G) else "grouped-query"
        scope = {"full": "", "window": ", window", "chunk": ", chunks"}[self.scope]
        scope += "" if self.causal or self.scope == "full" else " on both sides"
        return kind + scope + (", shared keys and values" if self.shares_kv else "")

    def locals(self, work: Workload) -> Mapping[str, str]:
        """P: computed pairs; N: new key positions; K: keys that a query block reads."""
        if self.cross:
            return {"P": "S*X", "N": "B*X" if work.phase != "decode" else "0", "K": "X"}
        seen = work if self.causal else Workload(work.phase, mask="full")
        limit = {} if self.scope == "full" else {self.scope: "W"}
        if self.scope == "window" and not self.causal:
            return {"P": surrounding_pairs(work, "W"), "N": "T", "K": "min(C, S + 2*W - 2)"}
        return {"P": visible_pairs(seen, **limit), "N": "T", "K": visible_keys(**limit)}

    def _weight(
        self, which: str, *dims: str, matmul: bool = True, suffix: str = "weight"
    ) -> Weight:
        # a projection into the queries' latent has no heads to divide
        divided = matmul and (self.rq is None or which != self.names[0])
        return Weight(
            f"{self.prefix}{which}.{suffix}",
            dims,
            "attention" if matmul or suffix == "bias" else "norms",
            matmul=matmul,
            shard="row" if which == self.names[3] else "column" if divided else "none",
        )

    def _projections(self) -> list[tuple[str, Weight, Weight | None]]:
        """(row name, weight, bias) of the projections into queries, keys and values."""
        q_rows = "2*H*dh" if self.gate else "H*dh"
        if self.fused:
            rows = [("qkv_proj", self.fused, "H*dh + G*dh + G*dv")]
        else:
            rows = [("q_proj", self.names[0], q_rows if self.rq is None else "rq")]
            if not self.shares_kv:
                rows.append(("k_proj", self.names[1], "G*dh"))
            if not (self.shares_kv or self.values_are_keys):
                rows.append(("v_proj", self.names[2], "G*dv"))
        return [
            (
                op,
                self._weight(name, width, "D"),
                self._weight(name, width, matmul=False, suffix="bias") if self.qkv_bias else None,
            )
            for op, name, width in rows
        ]

    def _query_latent(self) -> tuple[Weight, Weight] | None:
        """The norm of the queries' latent, and the projection from it to the heads."""
        if self.rq is None:
            return None
        norm, up = self.latent_names
        return self._weight(norm, "rq", matmul=False), self._weight(up, "H*dh", "rq")

    def _norms(self) -> list[tuple[str, tuple[Weight, ...], str]]:
        """(row name, weights, elements normalised) of query, key and value normalisation."""
        rows = []
        if self.qk_norm != "none":
            kinds = {"head": ("dh", "dh"), "full": ("H*dh", "G*dh"), "unit": ("", "")}
            widths = kinds[self.qk_norm]
            rows.append(("q_norm", self.norm_names[0], widths[0], "T*H*dh"))
            if self.norms_shared_keys or not self.shares_kv:
                rows.append(("k_norm", self.norm_names[1], widths[1], "N*G*dh"))
        if self.v_norm and not self.shares_kv:
            rows.append(("v_norm", "", "", "N*G*dv"))
        return [
            (op, (self._weight(name, width, matmul=False),) if width else (), n)
            for op, name, width, n in rows
        ]

    def _extras(self) -> list[Weight]:
        """Sinks and relative position tables: learned, used inside the attention row."""
        out = []
        if self.sinks:
            name = f"{self.prefix}{self.sinks_name}"
            out.append(Weight(name, ("H",), "attention", matmul=False, shard="heads"))
        if self.position_buckets is not None:
            name = f"{self.prefix}relative_attention_bias.weight"
            dims = ("position_buckets", "H")
            out.append(Weight(name, dims, "attention", matmul=False, shard="heads"))
        return out

    def _gate_width(self) -> str:
        return "H" if self.own_gate == "head" else "H*dv"

    def _own_gate(self) -> list[Weight]:
        """The projection into the output gate, and its bias per head."""
        if self.own_gate == "none":
            return []
        matrix, bias = (self.prefix + name for name in self.gate_names)
        out = [Weight(matrix, (self._gate_width(), "D"), "attention", shard="column")]
        if self.gate_bias:
            out.append(Weight(bias, ("H",), "attention", matmul=False, shard="heads"))
        return out

    def _output(self) -> tuple[Weight, Weight | None]:
        bias = self._weight(self.names[3], "D", matmul=False, suffix="bias")
        return self._weight(self.names[3], "D", "H*dv"), bias if self.o_bias else None

    def weights(self) -> tuple[Weight, ...]:
        """Projections with their biases, head norms, sinks, position table."""
        out: list[Weight] = []
        for _, weight, bias in self._projections():
            out += [weight] if bias is None else [weight, bias]
        out += self._query_latent() or ()
        out += [weight for _, weights, _ in self._norms() for weight in weights]
        out += self._extras()
        out += self._own_gate()
        out += [w for w in self._output() if w is not None]
        return tuple(out)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Projections, norms, rotary embedding, attention, gate, output projection."""
        rows: list[Op] = []
        for op, weight, bias in self._projections():
            if self.cross and work.phase == "decode" and op != "q_proj":
                continue  # the source's keys and values were projected once, before decoding
            tokens = "N" if op in ("k_proj", "v_proj") else "T"
            # the input is one tensor for the three projections: kept once, by the first
            kept: tuple[Kept, ...] = () if rows else (Kept("attn_input", "T*D", drop="norm"),)
            rows.append(linear(op, weight, bias=bias, rows=tokens, kept=kept))
        rows += self._query_latent_rows()
        for op, weights, elements in self._norms():
            kept = (Kept(f"{op}_input", elements, drop="norm"),)
            rows.append(pointwise(op, "norms", elements, elements, weights=weights, kept=kept))
        if self.rope and not self.cross and self.position_buckets is None:
            turned = "dh" if self.dr is None else "dr"
            moved = f"T*H*{turned}" + ("" if self.shares_kv else f" + N*G*{turned}")
            rows.append(pointwise("rope", "attention", moved, moved, shard="heads"))
        rows.append(self._attend())
        rows += self._gate_rows()
        weight, bias = self._output()
        rows.append(linear("o_proj", weight, bias=bias))
        return tuple(rows)

    def _gate_rows(self) -> list[Op]:
        """The gate's projection, where it has one of its own, and its product with the output."""
        if not self.gate and self.own_gate == "none":
            return []
        width = self._gate_width()
        kept = (Kept("gate", f"T*{width}"), Kept("attn_ungated", "T*H*dv"))
        rows = []
        if own := self._own_gate():
            rows.append(linear("gate_proj", own[0], bias=own[1] if self.gate_bias else None))
        moved = f"T*H*dv + T*{width}"
        rows.append(pointwise("gate", "attention", moved, "T*H*dv", kept=kept))
        return rows

    def _query_latent_rows(self) -> list[Op]:
        parts = self._query_latent()
        if parts is None:
            return []
        norm, up = parts
        kept = (Kept("q_latent", "T*rq"),)
        return [
            pointwise("q_latent_norm", "norms", "T*rq", "T*rq", weights=(norm,), kept=kept),
            linear("q_b_proj", up, kept=(Kept("q_latent_normed", "T*rq", drop="norm"),)),
        ]

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
