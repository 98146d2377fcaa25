"""The feed-forward rows that every kind shares, and the dense FFN made of them.

Symbols: D width of the residual stream, F width of the layer, T tokens of the pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeplan.model.ops import Block, Component, Kept, Op, Weight, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["DenseFFN", "ffn_rows"]


def ffn_rows(
    op: str,
    component: Component,
    weights: tuple[tuple[Weight, ...], tuple[Weight, ...]],
    width: str,
    *,
    gated: bool,
    rows: str = "T",
    grouped: bool = False,
    outer: str = "D",
    kept: tuple[Kept, ...] = (),
) -> list[Op]:
    """The rows of an FFN of `width` over `rows` tokens of `outer`: up, activation, down.

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
        matmul("gate_up" if gated else "up", outer, inner, up, kept),
        pointwise(
            f"{op}{act}",
            component,
            f"{rows}*{inner}",
            f"{rows}*{width}",
            kept=(Kept(f"{op}{act}_input", f"{rows}*{inner}"),),
            shard=shard,  # type: ignore[arg-type]
        ),
        matmul("down", width, outer, down, (Kept(f"{op}down_input", f"{rows}*{width}", drop=act),)),
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

    @property
    def label(self) -> str:
        """What the field calls this kind."""
        return "dense" if self.gated else "dense, ungated"

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
        return tuple(ffn_rows("", self.component, ins_out, "F", gated=self.gated, kept=kept))
