"""Multi-latent attention as rows (DeepSeek-V2, arXiv 2405.04434).

Symbols: H heads, rq and rkv latent ranks of queries and of keys and values, dn and dr head
dimensions without and with rotary position, dv of values, P (query, key) pairs per sequence that
are computed, K keys that a pass reads from the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moeplan.model.masks import visible_pairs
from moeplan.model.ops import Block, CacheEntry, Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["LatentAttention"]


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
        """P: computed (query, key) pairs per sequence; K: keys that the pass reads."""
        return {"P": visible_pairs(work), "K": "C"}

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
        assert part["kv_a_proj"]
        assert part["kv_a_norm"]
        assert part["kv_b_proj"]
        assert part["o_proj"]
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
        rows += self._selection_rows(work)
        rows += self._absorbed_rows(part) if self._absorbed(work) else self._expanded_rows(part)
        rows.append(linear("o_proj", part["o_proj"], bias=part["o_bias"]))
        return tuple(rows)

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
            shard="heads",
        )
        return [linear("kv_b_proj", part["kv_b_proj"], kept=latent, rows="B*C"), attend]

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
        return (CacheEntry("latent", per_token="rkv + dr"),)
