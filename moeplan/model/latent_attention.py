"""Multi-latent attention as rows (DeepSeek-V2, arXiv 2405.04434).

Symbols: H heads, rq and rkv latent ranks of queries and of keys and values, dn and dr head
dimensions without and with rotary position, dv of values, P (query, key) pairs per sequence that
are computed, K keys that a pass reads from the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from moeplan.model.masks import visible_keys, visible_pairs
from moeplan.model.ops import Block, CacheEntry, Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["LatentAttention", "LatentNames"]


class LatentNames(NamedTuple):
    """What a checkpoint calls the tensors of multi-latent attention."""

    q: str = "q_proj"
    q_a: str = "q_a_proj"
    q_a_norm: str = "q_a_layernorm"
    q_b: str = "q_b_proj"
    kv_a: str = "kv_a_proj_with_mqa"
    kv_a_norm: str = "kv_a_layernorm"
    kv_b: str = "kv_b_proj"
    o: str = "o_proj"
    gate: str = "g_proj"
    sinks: str = "sinks"
    k_rope_norm: str = "k_rope_only_layernorm"
    scaling: tuple[str, str] = ("softmax_scaling.scale", "softmax_scaling.bias")


@dataclass(frozen=True, eq=False)
class LatentAttention(Block):
    """Multi-latent attention: keys and values are expanded from one cached latent per token.

    Prefill and training expand keys and values (FLOPs of the expanded form); decoding absorbs the
    expansions into queries and outputs and attends over the latents, with the same weights.
    rq is None where queries have no latent. mode "auto" does this; "absorbed" and "expanded"
    force one form.
    W: each query sees the last W keys. rope: the dr dimensions are rotated; without, they are plain
    dimensions that all heads share. own_gate: a projection of the input yields an output gate, one
    number per element ("full") or per head ("head"); "joint": the queries' up-projection yields it,
    from the latent and its normalised copy side by side (A.X K2). k_rope_norm: the shared part of
    the keys is normalised. sinks: one learned logit per head. scales_queries: each head's queries
    are scaled by a learned line over the logarithm of their position. shares_kv: the latents are
    another layer's; only their expansion is the layer's own.
    """

    D: Number
    H: Number
    rq: Number | None
    rkv: Number
    dn: Number
    dr: Number
    dv: Number
    bias: bool = False
    W: Number | None = None
    rope: bool = True
    own_gate: Literal["none", "full", "head", "joint"] = "none"
    k_rope_norm: bool = False
    sinks: bool = False
    scales_queries: bool = False
    shares_kv: bool = False
    mode: Literal["auto", "absorbed", "expanded"] = "auto"
    prefix: str = "self_attn."
    names: LatentNames = field(default_factory=LatentNames)

    @property
    def label(self) -> str:
        """Multi-latent attention, what it sees, and whose latents."""
        scope = "" if self.W is None else ", window"
        return "multi-latent" + scope + (", shared latents" if self.shares_kv else "")

    def locals(self, work: Workload) -> Mapping[str, str]:
        """P: computed (query, key) pairs per sequence; K: keys that the pass reads."""
        limit = {} if self.W is None else {"window": "W"}
        return {"P": visible_pairs(work, **limit), "K": visible_keys(**limit)}

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
        n = self.names
        low, own = self.rq is not None, not self.shares_kv
        heads, queries = "H*(dn + dr)", "rq"
        if self.own_gate == "joint":
            heads, queries = "H*(dn + dr + dv)", "2*rq"
        return {
            "q_proj": None if low else self._weight(n.q, heads, "D", shard="column"),
            "q_a_proj": self._weight(n.q_a, "rq", "D") if low else None,
            "q_a_bias": self._bias(n.q_a, "rq") if low else None,
            "q_a_norm": self._norm(n.q_a_norm, "rq") if low else None,
            "q_b_proj": self._weight(n.q_b, heads, queries, shard="column") if low else None,
            "kv_a_proj": self._weight(n.kv_a, "rkv + dr", "D") if own else None,
            "kv_a_bias": self._bias(n.kv_a, "rkv + dr") if own else None,
            "kv_a_norm": self._norm(n.kv_a_norm, "rkv") if own else None,
            "k_rope_norm": self._norm(n.k_rope_norm, "dr") if own and self.k_rope_norm else None,
            "kv_b_proj": self._weight(n.kv_b, "H*(dn + dv)", "rkv", shard="column"),
            "gate": self._gate(),
            "o_proj": self._weight(n.o, "D", "H*dv", shard="row"),
            "o_bias": self._bias(n.o, "D"),
        }

    def _gate(self) -> Weight | None:
        """The output gate's own projection."""
        if self.own_gate not in ("full", "head"):
            return None
        width = "H" if self.own_gate == "head" else "H*dv"
        return self._weight(self.names.gate, width, "D", shard="column")

    def _per_head(self) -> tuple[Weight, ...]:
        """Learned numbers of each head: the sink, and the line that scales its queries."""
        names: tuple[str, ...] = (self.names.sinks,) if self.sinks else ()
        names += self.names.scaling if self.scales_queries else ()
        return tuple(
            Weight(self.prefix + name, ("H",), "attention", matmul=False, shard="heads")
            for name in names
        )

    def weights(self) -> tuple[Weight, ...]:
        """Down and up projections of queries and of keys and values, norms, output."""
        return (*(w for w in self._parts().values() if w is not None), *self._per_head())

    def _query_rows(self, part: dict[str, Weight | None]) -> list[Op]:
        kept = (Kept("attn_input", "T*D", drop="norm"),)
        if part["q_proj"] is not None:
            return [linear("q_proj", part["q_proj"], kept=kept)]
        assert part["q_a_proj"]
        assert part["q_a_norm"]
        assert part["q_b_proj"]
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
        assert part["kv_b_proj"]
        assert part["o_proj"]
        rows = self._query_rows(part)
        rows += self._latent_rows(part)
        if self.rope:
            turned = "T*H*dr" if self.shares_kv else "T*(H + 1)*dr"
            rows.append(pointwise("rope", "attention", turned, turned, shard="heads"))
        if self.scales_queries:
            wide = "T*H*(dn + dr)"
            rows.append(pointwise("q_scale", "attention", wide, wide, shard="heads"))
        rows += self._selection_rows(work)
        rows += self._absorbed_rows(part) if self._absorbed(work) else self._expanded_rows(part)
        rows += self._gate_rows(part)
        rows.append(linear("o_proj", part["o_proj"], bias=part["o_bias"]))
        return tuple(rows)

    def _latent_rows(self, part: dict[str, Weight | None]) -> list[Op]:
        """The keys' and values' latent of each new token, unless it is another layer's."""
        if self.shares_kv:
            return []
        assert part["kv_a_proj"]
        assert part["kv_a_norm"]
        norms = (part["kv_a_norm"],)
        rows = [
            linear("kv_a_proj", part["kv_a_proj"], bias=part["kv_a_bias"]),
            pointwise(
                "kv_a_norm", "norms", "T*rkv", "T*rkv", weights=norms, kept=(Kept("kv_a", "T*rkv"),)
            ),
        ]
        if part["k_rope_norm"] is not None:
            norms, kept = (part["k_rope_norm"],), (Kept("k_rope", "T*dr"),)
            rows.append(pointwise("k_rope_norm", "norms", "T*dr", "T*dr", weights=norms, kept=kept))
        return rows

    def _gate_rows(self, part: dict[str, Weight | None]) -> list[Op]:
        """The gate's projection, where it has one of its own, and its product with the output."""
        if self.own_gate == "none":
            return []
        rows = [] if part["gate"] is None else [linear("gate_proj", part["gate"])]
        width = "H" if self.own_gate == "head" else "H*dv"
        kept = (Kept("gate", f"T*{width}"), Kept("attn_ungated", "T*H*dv"))
        moved = f"T*H*dv + T*{width}"
        rows.append(pointwise("gate", "attention", moved, "T*H*dv", kept=kept, shard="heads"))
        return rows

    def _selection_rows(self, work: Workload) -> list[Op]:
        """What picks the keys that queries attend to; here they attend to all."""
        return []

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
            cached="B*K*H*(dn + dr + dv)",
            kept=(
                Kept("q", "T*H*(dn + dr)", drop="up_projection"),
                Kept("k", "T*H*(dn + dr)", drop="up_projection"),
                Kept("v", "T*H*dv", drop="up_projection"),
                Kept("attn_out", "T*H*dv"),
                Kept("softmax_sum", "T*H", bits=32),
            ),
            weights=self._per_head(),
            shard="heads",
        )
        keys = "B*C" if self.W is None else "B*K"
        return [linear("kv_b_proj", part["kv_b_proj"], kept=latent, rows=keys), attend]

    def _absorbed_rows(self, part: dict[str, Weight | None]) -> list[Op]:
        kv_b = part["kv_b_proj"]
        assert kv_b is not None

        def half(
            name: str, width: str, k: str, n: str, share: str, kept: tuple[Kept, ...] = ()
        ) -> Op:
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
                kept=kept,
                shard="heads",
            )

        attend = Op(
            name="attention",
            kind="attention",
            component="attention",
            flops="2*B*P*H*(2*rkv + dr)",
            read="T*H*(rkv + dr)",
            write="T*H*rkv",
            cached="B*K*(rkv + dr)",
            kept=(
                Kept("q_absorbed", "T*H*(rkv + dr)", drop="up_projection"),
                Kept("latent", "T*(rkv + dr)", drop="norm"),
                Kept("attn_latent", "T*H*rkv"),
                Kept("softmax_sum", "T*H", bits=32),
            ),
            weights=self._per_head(),
            shard="heads",
        )
        return [
            half(
                "q_absorb",
                "dn",
                "dn",
                "rkv",
                "dn/(dn + dv)",
                (Kept("q", "T*H*(dn + dr)", drop="up_projection"),),
            ),
            attend,
            half(
                "v_expand",
                "dv",
                "rkv",
                "dv",
                "dv/(dn + dv)",
                (Kept("attn_out", "T*H*dv"),),
            ),
        ]

    def cache(self) -> tuple[CacheEntry, ...]:
        """One latent and one rotary key per token, shared by all heads."""
        if self.shares_kv:
            return ()
        window = None if self.W is None else "W"
        return (CacheEntry("latent", per_token="rkv + dr", window=window),)
