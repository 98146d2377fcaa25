"""Feed-forward kinds as rows: dense, and Mixture-of-Experts with its router and shared experts.

Symbols: F width of an expert or of the dense layer, E experts, k experts per token (top-k),
Fs width of all shared experts together, A experts that get at least one of the pass's T tokens
(expected under uniform routing: E·(1 − (1 − k/E)^T)). Some models have more: Z zero-computation
experts beside the E, of which a token picks some so that r of its k choices hold weights; Dl
width of the latent in which experts work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from moeplan.model.dense_ffn import DenseFFN, ffn_rows
from moeplan.model.ops import Block, Component, Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["DenseFFN", "ExpertNames", "MoE", "Routing"]


class Routing(NamedTuple):
    """How a router picks experts: what `profile` builds and what the all-to-all counts.

    score: "softmax" or "sigmoid" over the experts ("softmax_topk": softmax over the chosen ones
    only; "sqrtsoftplus": square root of softplus). groups, group_limit: device- or node-limited
    routing (n_group, topk_group). group_score: what ranks the groups. renormalise: chosen weights
    sum to one. scale: factor on the weights. weigh: what a weight multiplies, an expert's output
    or (Llama 4) its input.
    """

    score: Literal["softmax", "sigmoid", "softmax_topk", "sqrtsoftplus", "sparsemixer"] = "softmax"
    selection_bias: bool = False
    groups: int = 1
    group_limit: int = 1
    group_score: Literal["max", "top2_sum"] = "max"
    renormalise: bool = False
    scale: float = 1.0
    weigh: Literal["output", "input"] = "output"


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
    shared_names: tuple[str, str, str] | None = None  # gate, up, down, where not as in the experts
    shared_gate_up: str = ""  # set where gate and up of the shared experts are one tensor
    shared_gate: str = "mlp.shared_expert_gate"
    selection_bias: str = "mlp.gate.e_score_correction_bias"
    selection_dims: tuple[str, ...] = ()  # where not one number for each scored expert
    table: str = "mlp.gate.tid2eid"
    input_scale: str = "router.scale"
    expert_scale: str = "router.per_expert_scale"
    output_bias: str = "mlp.bias"
    latent: tuple[str, str] = ("mlp.fc1_latent_proj", "mlp.fc2_latent_proj")
    latent_norms: tuple[str, str] = ("mlp.pre_expert_norm", "mlp.experts.post_expert_norm")


@dataclass(frozen=True, eq=False)
class MoE(Block):
    """Mixture of experts: a router, E experts of width F of which k serve a token, shared experts.

    Fs: width of the shared experts together (None: none). shared_gate: a sigmoid gate on their
    output (Qwen2-MoE). shared_gated: whether they are gated, where not as the experts are (Doge).
    router_bias, expert_bias: trained biases (gpt-oss). stacked: the experts
    are one tensor in the checkpoint; transposed: stored [in, out]; down_transposed: only the down
    projections are (DBRX).
    Z: zero-computation experts, which give a token back as it came (LongCat); r: experts with
    weights among a token's k, in expectation, given with Z. Dl: experts work in a latent of this
    width, into and out of which every token is projected. V: tokens of a fixed table that gives
    each token its experts, in the place of a selection by score (hash routing, DeepSeek-V4).
    router_scales: learned scales of the router's input and of each expert's weight (Gemma 4).
    shared_bias, latent_bias: biases of the shared experts and of the latent's projections.
    output_bias: a trained bias behind the sum of the experts (JetMoe).
    latent_norms: the latent is normalised before the experts, and each expert's output behind it.
    """

    D: Number
    E: Number
    k: Number
    F: Number
    Fs: Number | None = None
    Z: Number | None = None
    r: Number | None = None
    Dl: Number | None = None
    V: Number | None = None
    gated: bool = True
    activation: str = "silu"
    routing: Routing = Routing()  # noqa: RUF009 - a NamedTuple cannot change
    shared_gate: bool = False
    shared_gated: bool | None = None
    router_bias: bool = False
    expert_bias: bool = False
    shared_bias: bool = False
    latent_bias: bool = False
    latent_norms: bool = False
    output_bias: bool = False
    router_scales: bool = False
    stacked: bool = False
    transposed: bool = False
    down_transposed: bool = False
    names: ExpertNames = field(default_factory=ExpertNames)

    @property
    def label(self) -> str:
        """What kind of experts, and what stands beside them."""
        parts = {
            "MoE": True,
            "ungated": not self.gated,
            "in a latent": self.Dl is not None,
            "with zero-computation experts": self.Z is not None,
            "routed by hash": self.V is not None,
            "with gated shared experts": self.Fs is not None and self.shared_gate,
            "with shared experts": self.Fs is not None and not self.shared_gate,
        }
        return " ".join(words for words, holds in parts.items() if holds)

    @property
    def each(self) -> str:
        """Symbol of the experts with weights that a token gets: k, or r of the k."""
        return "k" if self.Z is None else "r"

    @property
    def width(self) -> str:
        """Symbol of the width in which tokens travel to experts and back."""
        return "D" if self.Dl is None else "Dl"

    @property
    def scored(self) -> str:
        """Formula of the router's outputs."""
        return "E" if self.Z is None else "(E + Z)"

    def locals(self, work: Workload) -> Mapping[str, str]:
        """A: expected experts that get a token (every token draws k, or r, of E, uniformly)."""
        return {"A": f"E*(1 - (1 - {self.each}/E)**T)"}

    def _expert(self, name: str, n: str, k: str) -> tuple[Weight, ...]:
        transposed = self.transposed or (self.down_transposed and name == self.names.down)
        dims = (k, n) if transposed else (n, k)
        base = self.names.experts + name
        how = {"copies": "E", "active": self.each, "stacked": self.stacked, "shard": "experts"}
        weight = Weight(
            base + self.names.suffix,
            dims,
            "routed_experts",
            transposed=transposed,
            **how,  # type: ignore[arg-type]
        )
        bias = Weight(
            base + self.names.bias_suffix,
            (n,),
            "routed_experts",
            matmul=False,
            **how,  # type: ignore[arg-type]
        )
        return (weight, bias) if self.expert_bias else (weight,)

    def _experts(self) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
        n = self.names
        if n.gate_up:
            ins = self._expert(n.gate_up, "2*F", self.width)
        elif self.gated:
            ins = (*self._expert(n.gate, "F", self.width), *self._expert(n.up, "F", self.width))
        else:
            ins = self._expert(n.up, "F", self.width)
        return ins, self._expert(n.down, self.width, "F")

    @property
    def _gates_shared(self) -> bool:
        return self.gated if self.shared_gated is None else self.shared_gated

    def _shared(self) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
        n = self.names

        def make(
            name: str, rows: str, cols: str, shard: Literal["row", "column"]
        ) -> tuple[Weight, ...]:
            full = f"{n.shared}{name}"
            weight = Weight(f"{full}.weight", (rows, cols), "shared_experts", shard=shard)
            bias = Weight(f"{full}.bias", (rows,), "shared_experts", matmul=False)
            return (weight, bias) if self.shared_bias else (weight,)

        gate, up, down = n.shared_names or (n.gate, n.up, n.down)
        ins = make(up, "Fs", "D", "column")
        if n.shared_gate_up:
            ins = make(n.shared_gate_up, "2*Fs", "D", "column")
        elif self._gates_shared:
            ins = (*make(gate, "Fs", "D", "column"), *ins)
        return ins, make(down, "D", "Fs", "row")

    def _router(self) -> tuple[Weight, ...]:
        n = self.names
        out = [Weight(f"{n.router}.weight", (self.scored, "D"), "router")]
        if self.router_bias:
            out.append(Weight(f"{n.router}.bias", (self.scored,), "router", matmul=False))
        if self.router_scales:
            out.append(Weight(n.input_scale, ("D",), "router", matmul=False))
            out.append(Weight(n.expert_scale, ("E",), "router", matmul=False))
        return tuple(out)

    def _chooser(self) -> tuple[Weight, ...]:
        """What decides beside the scores: a selection bias, or the table of hash routing."""
        n = self.names
        out = []
        if self.routing.selection_bias:
            out.append((n.selection_bias, n.selection_dims or (self.scored,)))
        if self.V is not None:
            out.append((n.table, ("V", "k")))
        return tuple(Weight(name, dims, "router", matmul=False, buffer=True) for name, dims in out)

    def _latent(self, into: bool) -> tuple[Weight, Weight | None]:
        """The projection of every token into the experts' latent, or out of it."""
        name = self.names.latent[0 if into else 1]
        n, k = ("Dl", "D") if into else ("D", "Dl")
        bias = Weight(f"{name}.bias", (n,), "routed_experts", matmul=False)
        weight = Weight(f"{name}.weight", (n, k), "routed_experts", shard="none")
        return weight, bias if self.latent_bias else None

    def _latent_norm(self, into: bool) -> tuple[Weight, ...]:
        """The scale of a norm in the latent: before the experts, or of each expert's output."""
        if not self.latent_norms:
            return ()
        name = self.names.latent_norms[0 if into else 1]
        return (Weight(f"{name}.weight", (self.width,), "norms", matmul=False),)

    def _latent_norm_row(self, *, into: bool) -> list[Op]:
        if not self.latent_norms:
            return []
        moved = f"T*{self.width}" if into else f"T*{self.each}*{self.width}"
        name = "latent_norm" if into else "experts_norm"
        kept = (Kept(f"{name}_input", moved),)
        return [pointwise(name, "norms", moved, moved, weights=self._latent_norm(into), kept=kept)]

    def _output_bias(self) -> tuple[Weight, ...]:
        if not self.output_bias:
            return ()
        return (Weight(self.names.output_bias, ("D",), "routed_experts", matmul=False),)

    def _gate(self) -> Weight:
        return Weight(f"{self.names.shared_gate}.weight", ("1", "D"), "shared_experts")

    def weights(self) -> tuple[Weight, ...]:
        """Router, selection bias or table (buffers), experts, shared experts and their gate."""
        out = [*self._router(), *self._chooser()]
        if self.Dl is not None:
            out += [w for into in (True, False) for w in self._latent(into) if w is not None]
        out += [w for into in (True, False) for w in self._latent_norm(into)]
        ins, down = self._experts()
        out += [*ins, *down, *self._output_bias()]
        if self.Fs is not None:
            ins, down = self._shared()
            out += [*ins, *down]
        if self.shared_gate:
            out.append(self._gate())
        return tuple(out)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Router, selection, dispatch, experts, combine, shared experts."""
        return (
            self._router_row(),
            self._select_row(),
            *self._latent_row(into=True),
            *self._latent_norm_row(into=True),
            *self._routed_rows(),
            *self._latent_row(into=False),
            *self._shared_rows(),
        )

    def _select_row(self) -> Op:
        return Op(
            "select",
            "select",
            "router",
            read=f"2*T*{self.scored}",  # fp32 logits, counted in two-byte elements
            write="T*k*4",
            kept=(Kept("probs", f"T*{self.scored}"), Kept("row_map", "T*k", bits=64)),
            shard="tokens",
        )

    def _latent_row(self, *, into: bool) -> list[Op]:
        if self.Dl is None:
            return []
        weight, bias = self._latent(into)
        kept = () if into else (Kept("latent_output", "T*Dl"),)
        return [linear("latent_down" if into else "latent_up", weight, bias=bias, kept=kept)]

    def _routed_rows(self) -> list[Op]:
        """The way to the experts, their FFNs, the way back and the weighted sum.

        Zero-computation experts add a token's own state, which is at hand where it is summed.
        """
        each, width = f"T*{self.each}", self.width
        moved = f"{each}*{width}"
        part: Component = "routed_experts"
        own = "" if self.Z is None else f" + T*{width}"
        experts = ffn_rows(
            "experts_",
            part,
            self._experts(),
            "F",
            gated=self.gated,
            rows=each,
            grouped=True,
            outer=width,
            kept=(Kept("experts_input", moved, drop="dispatch"),),
        )
        output = Kept("experts_output", moved, drop="dispatch")
        kept = (output,) if self.routing.weigh == "output" else ()  # the weights' gradients need it
        return [
            Op("dispatch", "exchange", part, read=moved, shard="experts"),
            Op("permute", "gather", part, read=moved, write=moved, shard="experts"),
            *experts,
            *self._latent_norm_row(into=False),
            Op("return", "exchange", part, read=moved, shard="experts"),
            Op(
                "combine",
                "gather",
                part,
                read=moved + own,
                write=f"T*{width}",
                weights=self._output_bias(),
                kept=kept,
                shard="experts",
            ),
        ]

    def _router_row(self) -> Op:
        return Op(
            name="router",
            kind="linear",
            component="router",
            flops=f"2*T*D*{self.scored}",
            gemm=("T", "D", self.scored),
            weights=self._router(),
            read="T*D",
            write=f"2*T*{self.scored}",  # fp32 logits, counted in two-byte elements
            kept=(Kept("moe_input", "T*D", drop="norm"),),
            shard="tokens",
        )

    def _shared_rows(self) -> list[Op]:
        if self.Fs is None:
            return []
        component: Component = "shared_experts"
        rows = ffn_rows("shared_", component, self._shared(), "Fs", gated=self._gates_shared)
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
