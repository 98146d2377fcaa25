"""What a piece of a model costs in a microbatch, as values: its numbers, its rows, its choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from moeplan.calc import calc
from moeplan.cluster.layout import Layout
from moeplan.model.ops import Kept, Op
from moeplan.parallel.traffic import Message

__all__ = ["COLUMNS", "DROPPED_ROWS", "HIDDEN", "Alike", "PieceCost", "RowCost", "dropped"]

HIDDEN: dict[str, dict[str, int]] = {
    "none": {"tp": 0, "ep": 0, "cp": 0, "pp": 0, "dp": 0},
    "usual": {"tp": 0, "ep": 0, "cp": 1, "pp": 1, "dp": 1},
    "all-to-all": {"tp": 0, "ep": 1, "cp": 1, "pp": 1, "dp": 1},
    "dualpipe": {"tp": 0, "ep": 1, "cp": 1, "pp": 1, "dp": 1},
}
"""Overlap assumptions: messages that run under compute (1) as far as there is compute to hide
them. usual: Megatron-LM's overlap of gradients and parameters, of pipeline sends and of the ring
of context parallelism. all-to-all: the exchange too, each pass under its own layer's compute.
dualpipe: as that, with a forward and a backward pass side by side to hide under. Hidden exchanges
take multiprocessors from compute: 20 of 132 (DeepSeek-V3, arXiv 2412.19437, 3.2.2)."""

COLUMNS = (
    "dense", "experts", "kept", "workspace", "buffer",
    "lower", "time", "upper", "backward", "wgrad", "compute", "recompute",
    "tp", "ep", "cp", "up", "out",
)  # fmt: skip
"""Numbers of a piece: parameters on a GPU by the group that copies them; bytes kept for the
backward pass, bytes that recomputation needs for a while, bytes of exchange buffers; seconds of a
forward and backward pass (bounds and expected), of the backward pass, of weight gradients, of
compute, of what is computed again, of exposed messages; bytes sent over each link tier."""

DROPPED_ROWS: dict[str, Callable[[Op], bool]] = {
    "norm": lambda op: op.component == "norms",
    "activation": lambda op: op.name.endswith("activation"),
    "up_projection": lambda op: op.name in ("q_b_proj", "kv_b_proj", "rope"),
    "dispatch": lambda op: op.name == "permute",
    "permute": lambda op: False,  # the gate weight is applied before the down projection
}


def dropped(kept: Kept, layout: Layout) -> bool:
    """Whether selective recomputation leaves a tensor out."""
    if kept.name == "experts_output":
        return "permute" in layout.selective
    return kept.drop in layout.selective


class RowCost(NamedTuple):
    """Seconds of a row of one layer: forward, gradients of inputs and of weights, recomputed.

    lower, upper: of all of these together at the ends of their bands; once: of the forward pass.
    """

    name: str
    forward: Any
    input_gradient: Any
    weight_gradient: Any
    lower: Any
    upper: Any
    once: tuple[Any, Any]
    again: Any = 0

    def recomputed(self) -> RowCost:
        """The same with its forward pass once more."""
        lower, upper = (
            calc("all + once", "s", all=every, once=once)
            for every, once in zip((self.lower, self.upper), self.once, strict=True)
        )
        return self._replace(again=self.forward, lower=lower, upper=upper)


class Alike(NamedTuple):
    """Rows with their ops, messages, kept tensors with bytes of a piece, and sums by name."""

    rows: list[tuple[Op, RowCost]]
    sent: list[Message]
    kept: list[tuple[Kept, Any]]
    sums: dict[str, Any]


@dataclass
class PieceCost:
    """The numbers of COLUMNS, with the lists behind them where they are explained."""

    numbers: dict[str, Any]
    rows: list[RowCost] = field(default_factory=list)
    kept: list[tuple[str, Any]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
