"""Feed-forward kinds as rows: dense, and Mixture-of-Experts with its router and shared experts.

Symbols: F width of an expert or of the dense layer, E experts, k experts per token (top-k),
Fs width of all shared experts together, A experts that get at least one of the pass's T tokens
(expected under uniform routing: E·(1 − (1 − k/E)^T)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from moeplan.model.ops import Block, Component, Kept, Op, Weight, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["DenseFFN", "ExpertNames", "MoE", "Routing"]


class Routing(NamedTuple):
    """How a router picks experts: what `profile` builds and what the all-to-all counts.

    score: "softmax" or "sigmoid" over the experts ("softmax_topk": softmax over the chosen ones
    only; "sqrtsoftplus": square root of softplus). groups, group_limit: device- or node-limited
    routing (n_group, topk_group). group_score: what ranks the groups. renormalise: chosen weights
    sum to one. scale: factor on the weights.
    """

    score: Literal["softmax", "sigmoid", "softmax_topk", "sqrtsoftplus", "sparsemixer"] = "softmax"
    selection_bias: bool = False
    groups: int = 1
    group_limit: int = 1
    group_score: Literal["max", "top2_sum"] = "max"
    renormalise: bool = False
    scale: float = 1.0


class ExpertNames(NamedTuple):
    """Where the checkpoint keeps an MoE block's tensors; `{e}` is the expert's index."""

    router: str = "mlp.gate"
    experts: str = "mlp.experts.{e}."
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    gate_up: str = ""  # set where gate and up are one stacked tensor
    suffix: str = ".weight"
    bias_suffix: str = ".bias"
    shared: str = "mlp.shared_experts."
    shared_gate: str = "mlp.shared_expert_gate"
    selection_bias: str = "mlp.gate.e_score_correction_bias"


def _gated_rows(
    op: str,
    component: Component,
    weights: tuple[tuple[Weight, ...], tuple[Weight, ...]],
    width: str,
    *,
    gated: bool,
    rows: str = "T",
    grouped: bool = False,
    kept: tuple[Kept, ...] = (),
) -> list[Op]:
    """The rows of an FFN of `width` over `rows` tokens: up, activation, down.

    `op` prefixes the row names; grouped ones run over the experts that got a token.
    """
    inner = f"2*{width}" if gated else width
    up, down = weights
    shard = "experts" if grouped else "column"
    act = "activation"

    def matmul(name: str, k: str, n: str, ws: tuple[Weight, ...], kept: tuple[Kept, ...]) -> Op:
        return Op(
            name=f"{op}{name}",
            kind="grouped_linear" if grouped else "linear",
            component=component,
            flops=f"2*{rows}*{k}*{n}",
            gemm=(rows, k, n),
            groups="A" if grouped else "1",
            weights=ws,
            uses="A" if grouped else "1",
            read=f"{rows}*{k}",
            write=f"{rows}*{n}",
            kept=kept,
            shard=shard if name != "down" or grouped else "row",  # type: ignore[arg-type]
        )

    return [
        matmul("gate_up" if gated else "up", "D", inner, up, kept),
        pointwise(
            f"{op}{act}",
            component,
            f"{rows}*{inner}",
            f"{rows}*{width}",
            kept=(Kept(f"{op}{act}_input", f"{rows}*{inner}"),),
            shard=shard,  # type: ignore[arg-type]
        ),
        matmul(
            "down", width, "D", down, (Kept(f"{op}down_input", f"{rows}*{width}", drop=act),)
        ),
    ]


@dataclass(frozen=True, eq=False)
class DenseFFN(Block):
    """A dense feed-forward layer: D to F and back; gated (SwiGLU and its kin) has two inputs."""

    D: Number
    F: Number
    gated: bool = True
    bias: bool = False
    activation: str = "silu"
    prefix: str = "mlp."
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    component: Component = "dense_ffn"

    def _matrices(self) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
        gate, up, down = self.names
        make = self._matrix
        ins = (*make(gate, "F", "D"), *make(up, "F", "D")) if self.gated else make(up, "F", "D")
        return ins, make(down, "D", "F")

    def _matrix(self, name: str, n: str, k: str) -> tuple[Weight, ...]:
        shard: Literal["row", "column"] = "row" if name == self.names[2] else "column"
        weight = Weight(f"{self.prefix}{name}.weight", (n, k), self.component, shard=shard)
        bias = Weight(f"{self.prefix}{name}.bias", (n,), self.component, matmul=False)
        return (weight, bias) if self.bias else (weight,)

    def weights(self) -> tuple[Weight, ...]:
        """Gate, up and down matrices with their biases."""
        ins, out = self._matrices()
        return ins + out

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Up (with gate), activation, down."""
        kept = (Kept("ffn_input", "T*D", drop="norm"),)
        ins_out = self._matrices()
        return tuple(_gated_rows("", self.component, ins_out, "F", gated=self.gated, kept=kept))


@dataclass(frozen=True, eq=False)
class MoE(Block):
    """Mixture of experts: a router, E experts of width F of which k serve a token, shared experts.

    Fs: width of the shared experts together (None: none). shared_gate: a sigmoid gate on their
    output (Qwen2-MoE). router_bias, expert_bias: trained biases (gpt-oss). stacked: the experts
    are one tensor in the checkpoint; transposed: stored [in, out]; down_transposed: only the down
    projections are (DBRX).
    """

    D: Number
    E: Number
    k: Number
    F: Number
    Fs: Number | None = None
    gated: bool = True
    activation: str = "silu"
    routing: Routing = Routing()
    shared_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    stacked: bool = False
    transposed: bool = False
    down_transposed: bool = False
    names: ExpertNames = field(default_factory=ExpertNames)

    def locals(self, work: Workload) -> Mapping[str, str]:
        """A: expected experts that get a token (every token draws k of E, uniformly)."""
        return {"A": "E*(1 - (1 - k/E)**T)"}

    def _expert(self, name: str, n: str, k: str) -> tuple[Weight, ...]:
        transposed = self.transposed or (self.down_transposed and name == self.names.down)
        dims = (k, n) if transposed else (n, k)
        base = self.names.experts + name
        how = {"copies": "E", "active": "k", "stacked": self.stacked, "shard": "experts"}
        weight = Weight(
            base + self.names.suffix,
            dims,
            "routed_experts",
            transposed=transposed,
            **how,  # type: ignore[arg-type]
        )
        bias = Weight(
            base + self.names.bias_suffix, (n,), "routed_experts", matmul=False, **how  # type: ignore[arg-type]
        )
        return (weight, bias) if self.expert_bias else (weight,)

    def _experts(self) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
        n = self.names
        if n.gate_up:
            ins = self._expert(n.gate_up, "2*F", "D")
        elif self.gated:
            ins = (*self._expert(n.gate, "F", "D"), *self._expert(n.up, "F", "D"))
        else:
            ins = self._expert(n.up, "F", "D")
        return ins, self._expert(n.down, "D", "F")

    def _shared(self) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
        n = self.names

        def make(name: str, rows: str, cols: str, shard: Literal["row", "column"]) -> Weight:
            full = f"{n.shared}{name}.weight"
            return Weight(full, (rows, cols), "shared_experts", shard=shard)

        ins = [make(name, "Fs", "D", "column") for name in ((n.gate, n.up) if self.gated else (n.up,))]
        return tuple(ins), (make(n.down, "D", "Fs", "row"),)

    def _router(self) -> tuple[Weight, ...]:
        out = [Weight(f"{self.names.router}.weight", ("E", "D"), "router")]
        if self.router_bias:
            out.append(Weight(f"{self.names.router}.bias", ("E",), "router", matmul=False))
        return tuple(out)

    def _gate(self) -> Weight:
        return Weight(f"{self.names.shared_gate}.weight", ("1", "D"), "shared_experts")

    def weights(self) -> tuple[Weight, ...]:
        """Router, selection bias (a buffer), experts, shared experts and their gate."""
        out = list(self._router())
        if self.routing.selection_bias:
            name = self.names.selection_bias
            out.append(Weight(name, ("E",), "router", matmul=False, buffer=True))
        ins, down = self._experts()
        out += [*ins, *down]
        if self.Fs is not None:
            ins, down = self._shared()
            out += [*ins, *down]
        if self.shared_gate:
            out.append(self._gate())
        return tuple(out)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Router, selection, dispatch, experts, combine, shared experts."""
        rows = [
            self._router_row(),
            Op(
                "select",
                "select",
                "router",
                read="2*T*E",  # fp32 logits, counted in two-byte elements
                write="T*k*4",
                kept=(Kept("probs", "T*E"), Kept("row_map", "T*k", bits=64)),
                shard="tokens",
            ),
            Op("dispatch", "exchange", "routed_experts", read="T*k*D", shard="experts"),
            Op("permute", "gather", "routed_experts", read="T*k*D", write="T*k*D", shard="experts"),
            *_gated_rows(
                "experts_",
                "routed_experts",
                self._experts(),
                "F",
                gated=self.gated,
                rows="T*k",
                grouped=True,
                kept=(Kept("experts_input", "T*k*D", drop="dispatch"),),
            ),
            Op("return", "exchange", "routed_experts", read="T*k*D", shard="experts"),
            Op(
                "combine",
                "gather",
                "routed_experts",
                read="T*k*D",
                write="T*D",
                kept=(Kept("experts_output", "T*k*D", drop="dispatch"),),
                shard="experts",
            ),
        ]
        return (*rows, *self._shared_rows())

    def _router_row(self) -> Op:
        return Op(
            name="router",
            kind="linear",
            component="router",
            flops="2*T*D*E",
            gemm=("T", "D", "E"),
            weights=self._router(),
            read="T*D",
            write="2*T*E",  # fp32 logits, counted in two-byte elements
            kept=(Kept("moe_input", "T*D", drop="norm"),),
            shard="tokens",
        )

    def _shared_rows(self) -> list[Op]:
        if self.Fs is None:
            return []
        component: Component = "shared_experts"
        rows = _gated_rows("shared_", component, self._shared(), "Fs", gated=self.gated)
        if self.shared_gate:
            rows.append(
                Op(
                    "shared_gate",
                    "linear",
                    component,
                    flops="2*T*D",
                    gemm=("T", "D", "1"),
                    weights=(self._gate(),),
                    read="T*D",
                    write="T",
                    kept=(Kept("shared_output", "T*D"),),
                )
            )
        rows.append(pointwise("shared_add", component, "2*T*D", "T*D"))
        return rows
