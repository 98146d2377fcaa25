"""A mixture of experts whose router is a small network of its own (ZAYA1, arXiv 2511.17127).

A token is projected to Rh features, to which the router's features of the layer before are added
(weighted by a learned vector); two hidden layers of Rh and an output with a score for each expert
follow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moeplan.model.ffn import MoE
from moeplan.model.ops import Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["DeepRouterMoE"]


@dataclass(frozen=True, eq=False, kw_only=True)
class DeepRouterMoE(MoE):
    """Experts behind a router of width Rh; `averages`: it takes the layer before's features in."""

    Rh: Number
    averages: bool = True

    def _parts(self) -> dict[str, Weight]:
        at, inner = f"{self.names.router}.", f"{self.names.router}.router_mlp."

        def matrix(name: str, n: str, k: str) -> Weight:
            return Weight(f"{name}.weight", (n, k), "router")

        def vector(name: str) -> Weight:
            return Weight(name, ("Rh",), "router", matmul=False)

        return {
            "down": matrix(f"{at}down_proj", "Rh", "D"),
            "down_bias": vector(f"{at}down_proj.bias"),
            "average": vector(f"{at}router_states_scale"),
            "norm": vector(f"{inner}norm.weight"),
            "fc1": matrix(f"{inner}fc1", "Rh", "Rh"),
            "fc1_bias": vector(f"{inner}fc1.bias"),
            "fc2": matrix(f"{inner}fc2", "Rh", "Rh"),
            "fc2_bias": vector(f"{inner}fc2.bias"),
            "out": matrix(f"{inner}out_proj", self.scored, "Rh"),
        }

    def _router(self) -> tuple[Weight, ...]:
        parts = self._parts()
        return tuple(w for name, w in parts.items() if name != "average" or self.averages)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """The router's own layers, then the rows of any mixture of experts."""
        part, wide = self._parts(), "T*Rh"
        first = (Kept("moe_input", "T*D", drop="norm"),)
        rows = [linear("router_down", part["down"], bias=part["down_bias"], kept=first)]
        if self.averages:
            scale = (part["average"],)
            rows.append(pointwise("router_average", "router", f"2*{wide}", wide, weights=scale))
        norm = (part["norm"],)
        kept = (Kept("router_states", wide),)
        rows.append(pointwise("router_norm", "router", wide, wide, weights=norm, kept=kept))
        for name in ("fc1", "fc2"):
            normed = (Kept(f"router_{name}_input", wide),)
            rows.append(
                linear(f"router_{name}", part[name], bias=part[f"{name}_bias"], kept=normed)
            )
            held = (Kept(f"router_{name}_output", wide, drop="activation"),)
            rows.append(pointwise(f"router_{name}_activation", "router", wide, wide, kept=held))
        score = linear("router", part["out"], kept=(Kept("router_out_input", wide),))
        _, *rest = super().rows(work)  # but the usual router, which is one matrix of the input
        return tuple(replace(row, shard="tokens") for row in (*rows, score)) + tuple(rest)
