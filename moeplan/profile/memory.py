"""Predicted peak memory of the measured layer, walked through its rows.

A row's output has the size that `MoE.rows` writes, and lives until its one reader has run, or,
with a backward pass, until that reader's backward has run. Weights, the input, what the router
leaves and the gradients of weights stay. The backward pass runs the rows in reverse: each makes the
gradients of its input and weights while its kept tensors and its output's gradient are alive.

Two ways of running the row operations differ in what they need beside their results: `eager` torch
(the CPU) makes fp32 copies of T rows, the Triton kernels need nothing. Allocators add what this
does not know: rounding, and a GPU library's own workspace (cuBLAS takes up to 32 MiB on Hopper).
No figure for a GPU has been compared with its allocator yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from moeplan.model.ffn import MoE
from moeplan.model.ops import Op
from moeplan.model.workload import Workload
from moeplan.profile.activations import activation_named
from moeplan.quantity import Number, evaluate

__all__ = ["PeakMemory", "peak_memory"]


@dataclass
class PeakMemory:
    """Bytes that the layer holds: throughout, at most in each phase, and at most of all.

    weights: parameters and buffers. input: x, with a backward pass also the output's gradient.
    kept: what the forward keeps for the backward pass. phases: (stage, row name) to bytes.
    """

    weights: Number
    input: Number
    kept: Number = 0
    phases: dict[tuple[Literal["forward", "backward"], str], Number] = field(default_factory=dict)

    @property
    def peak(self) -> Number:
        """The most of all phases."""
        peak: Number = 0
        for alive in self.phases.values():
            peak = np.maximum(peak, alive) if isinstance(alive, np.ndarray) else max(peak, alive)
        return peak


def peak_memory(
    block: MoE,
    tokens: Number,
    *,
    backward: bool,
    element: int = 2,
    kernels: bool = False,
) -> PeakMemory:
    """Peak of one pass over `tokens` tokens; numbers or arrays.

    element: bytes of a weight or activation. kernels: whether the row operations run as Triton
    kernels (see `moeplan.profile.functions.uses_kernels`).
    """
    walk = _Walk(block, tokens, element, kernels)
    walk.forward(backward)
    if backward:
        walk.backward()
    return walk.memory


class _Walk:
    """What is alive, row after row. Sizes are bytes; `w` is an element's, fp32 is 4."""

    def __init__(self, block: MoE, tokens: Number, element: int, kernels: bool) -> None:
        work = Workload("train", B=1, S=tokens, C=tokens)
        self.block, self.w, self.eager = block, element, not kernels
        self.env: Mapping[str, Number] = block.environment(work)
        self.ops = {op.name: op for op in block.rows(work) if op.kind != "exchange"}
        self.activation = activation_named(block.activation)
        self.half = element < 4
        sizes = {name: self.env[name] for name in ("T", "D", "E", "k")}
        self.TD, self.TE = sizes["T"] * sizes["D"], sizes["T"] * sizes["E"]
        self.ED, self.R = sizes["E"] * sizes["D"], sizes["T"] * sizes["k"]
        weights = sum(self._weight_bytes(w) for w in block.weights())
        self.memory = PeakMemory(weights, self.TD * element)
        self.alive: Number = weights + self.memory.input
        routed = [name for name in self.ops if name.startswith("experts_")]
        self.routed = ["permute", *routed, "combine"]
        self.shared = [name for name in self.ops if name.startswith("shared_")]

    def _weight_bytes(self, weight: object) -> Number:
        """Bytes of a tensor; buffers are fp32."""
        size = 4 if getattr(weight, "buffer", False) else self.w
        return evaluate(getattr(weight, "elements", "0"), self.env) * size

    def _output(self, name: str) -> Number:
        return evaluate(self.ops[name].write, self.env) * self.w

    def _gradients(self, op: Op) -> Number:
        return sum(self._weight_bytes(weight) for weight in op.weights)

    def _at(self, stage: Literal["forward", "backward"], name: str, extra: Number) -> None:
        """Note what is alive in a phase: all that was, and what the phase makes and needs."""
        self.memory.phases[stage, name] = self.alive + extra

    # ------------------------------------------------------------------------------- forward
    def forward(self, keep: bool) -> None:
        """Walk the rows; with `keep` nothing that the backward pass reads is freed."""
        if keep:  # the caller holds the gradient of the output
            self.memory.input = self.memory.input + self.TD * self.w
            self.alive = self.alive + self.TD * self.w
        start = self.alive
        self._route(keep)
        held: Number = 0
        for name in self.routed:
            held = self._step(name, held, keep)
        output = held  # the combine's
        held = 0
        for name in self.shared:
            if name == "shared_add":
                self._at("forward", name, self.TD * self.w)
                self.alive = self.alive - (0 if keep and self.block.shared_gate else held)
            else:
                held = self._step(name, held, keep)
        self.memory.kept = self.alive - start - output

    def _step(self, name: str, held: Number, keep: bool) -> Number:
        """Run a row whose input is `held`; return its output's bytes."""
        out = self._output(name)
        if name == "shared_gate":
            out = self.TD * self.w
        self._at("forward", name, out + self._workspace(name))
        self.alive = self.alive + out
        frees = not keep or name == "shared_down" and False
        if frees:
            self.alive = self.alive - held
        return out

    def _route(self, keep: bool) -> None:
        """The router and the selection: fp32 logits and scores, ids, weights, the rows' order."""
        fp32_copies = 4 * (self.TD + self.ED) if self.eager and self.half else 0
        logits = 4 * self.TE
        self._at("forward", "router", fp32_copies + logits)
        choices = self.R * (8 + 4)  # int64 ids, fp32 weights
        order = self.R * (8 + 2) + 4 * self.env["E"]  # int64 places, int16 experts, int32 ends
        sorting = self.R * (2 + 8 + 8)  # keys, order and running index
        self._at("forward", "select", 2 * logits + choices + order + sorting)
        self.alive = self.alive + choices + order + (logits if keep else 0)

    def _workspace(self, name: str) -> Number:
        raise NotImplementedError

    def backward(self) -> None:
        raise NotImplementedError
