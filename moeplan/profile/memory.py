"""Predicted peak memory of the measured layer, walked through its rows.

A row's output has the size that `MoE.rows` writes, and lives until the row that reads it has run;
with a backward pass, where that row keeps it, until that row's backward has run. Weights, the
input, what the router leaves and the gradients of weights stay. The backward pass runs the rows in
reverse: each makes the gradients of its input and weights while its output's gradient and what it
kept are alive.

The row operations need something beside their results in plain torch (the CPU), where they copy T
rows to fp32, and nothing as Triton kernels. Allocators add what is not known here: rounding, and
the libraries' own workspace (cuBLAS takes up to 32 MiB on Hopper). No figure for a GPU has been
compared with its allocator yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moeplan.model.ffn import MoE
from moeplan.model.ops import Weight
from moeplan.model.workload import Workload
from moeplan.profile.activations import activation_named
from moeplan.profile.phases import Stage
from moeplan.quantity import Number, evaluate

__all__ = ["PeakMemory", "peak_memory"]

_FP32, _INT64, _INT32, _INT16 = 4, 8, 4, 2


@dataclass
class PeakMemory:
    """Bytes that the layer holds throughout, and at most in each phase.

    weights: parameters and buffers. input: x, and with a backward pass the output's gradient.
    kept: what the forward leaves for the backward pass, x not among it. phases: (stage, row name)
    to the most bytes alive in it.
    """

    weights: Number
    input: Number
    kept: Number = 0
    phases: dict[tuple[Stage, str], Number] = field(default_factory=dict)

    @property
    def peak(self) -> Number:
        """The most bytes alive in any phase."""
        peak: Number = 0
        for alive in self.phases.values():
            peak = _larger(peak, alive)
        return peak


def peak_memory(
    block: MoE, tokens: Number, *, backward: bool, element: int = 2, kernels: bool = False
) -> PeakMemory:
    """Peak of one pass over `tokens` tokens with the `torch` backend; numbers or arrays.

    element: bytes of a weight or activation. kernels: whether the row operations run as Triton
    kernels (see `moeplan.profile.functions.uses_kernels`).
    """
    walk = _Walk(block, tokens, element, kernels)
    walk.forward(keep=backward)
    if backward:
        walk.backward()
    return walk.memory


def _larger(a: Number, b: Number) -> Number:
    return np.maximum(a, b) if isinstance(a + b, np.ndarray) else max(a, b)


class _Walk:
    """What is alive, row after row, by the name of the row that made it; all sizes in bytes."""

    def __init__(self, block: MoE, tokens: Number, element: int, kernels: bool) -> None:
        work = Workload("train", B=1, S=tokens, C=tokens)
        self.block, self.w, self.eager, self.half = block, element, not kernels, element < _FP32
        self.weigh_input = getattr(block.routing, "weigh", "output") == "input"
        self.env: Mapping[str, Number] = block.environment(work)
        self.T, width = self.env["T"], self.env.get("Dl", self.env["D"])
        self.TD, self.TL, self.TE = (self.T * n for n in (self.env["D"], width, self.env["E"]))
        self.ED, self.R = self.env["E"] * self.env["D"], self.T * self.env["k"]
        self.ops = {op.name: op for op in block.rows(work) if op.kind != "exchange"}
        shared = [name for name in self.ops if name.startswith("shared_")]
        routed = [name for name in self.ops if name not in ("router", "select", *shared)]
        self.chains = [routed, shared]  # each row reads what the one before it made, or x
        weights = sum(self._weight(weight) for weight in block.weights())
        self.memory = PeakMemory(weights, self.TD * element)
        self.alive: dict[str, Number] = {"weights": weights, "x": self.TD * element}

    def _weight(self, weight: Weight) -> Number:
        size = _FP32 if weight.buffer else self.w
        return evaluate(weight.elements, self.env) * size

    def _output(self, name: str) -> Number:
        # the gate's row writes the gate, the layer also what it has gated
        elements = self.TD if name == "shared_gate" else evaluate(self.ops[name].write, self.env)
        return elements * self.w

    def _keeps_input(self, name: str) -> bool:
        return bool(self.ops[name].kept)

    def _note(self, stage: Stage, name: str, more: Number) -> None:
        """Record a phase: what was alive when it began, and what it makes and needs."""
        self.memory.phases[stage, name] = sum(self.alive.values()) + more

    # ------------------------------------------------------------------------------- forward
    def forward(self, keep: bool) -> None:
        """Walk the rows; with `keep`, what the backward pass reads stays alive."""
        if keep:
            self.alive["d_y"] = self.TD * self.w
            self.memory.input = self.memory.input + self.alive["d_y"]
        self._route(keep)
        for chain in self.chains:
            before = None
            for name in chain:
                output = self._output(name)
                self._note("forward", name, output + self._needs_forward(name))
                self.alive[name] = output
                if before is not None and not (keep and self._keeps_input(name)):
                    del self.alive[before]
                before = name
        *_, output = (name for chain in self.chains for name in chain)
        if self.chains[1]:
            del self.alive[self.chains[0][-1]]  # added to the shared experts' output
        held = ("weights", "x", "d_y", output)
        if keep:
            self.alive["routing"] = self._kept_of_routing()
            self.alive["gate"] = self.T * self.w if self.block.shared_gate else 0
            self.memory.kept = sum(size for name, size in self.alive.items() if name not in held)

    def _route(self, keep: bool) -> None:
        """The router's fp32 logits and scores, then the choices and the rows' order."""
        logits = _FP32 * self.TE
        copies = _FP32 * (self.TD + self.ED) if self.eager and self.half else 0
        self._note("forward", "router", copies + logits)
        choices = self.R * (_INT64 + _FP32)
        order = self.R * (_INT64 + _INT16) + _INT32 * self.env["E"]
        sorting = self.R * (_INT16 + 2 * _INT64)  # keys, their order, a running index
        self._note("forward", "select", 2 * logits + choices + order + sorting)
        self.alive["routing"] = choices + order
        if keep:
            unused = 0 if self.block.expert_bias else self.R * _INT16
            self.alive["routing"] = self._kept_of_routing() + unused

    def _kept_of_routing(self) -> Number:
        """Scores, choices and order that the backward pass of the router and the rows reads."""
        rule, scores = self.block.routing, _FP32 * self.TE
        if rule.score == "sqrtsoftplus":
            scores = 2 * scores  # what softplus read and what the root gave
        if rule.score == "sparsemixer":  # in each round: a mask, a softmax, the choice twice
            scores = self.env["k"] * (scores + self.TE)
        if self.block.router_scales:  # the scaled input, the weights before their scales, those
            scores = scores + self.TD * self.w + self.R * (_FP32 + self.w)
        kept = scores + self.R * (_INT64 + _FP32) + self.R * _INT64 + _INT32 * self.env["E"]
        if rule.renormalise and rule.score not in ("softmax_topk", "sparsemixer"):
            kept = kept + self.R * _FP32 + self.T * _FP32  # weights before, and their sums
        return kept + (self.R * _INT16 if self.block.expert_bias else 0)

    def _needs_forward(self, name: str) -> Number:
        """Temporaries of a row in plain torch, its output not among them."""
        if not self.eager:
            return 0
        if name == "combine":
            return self.TL * self._gather_sum(weighed=not self.weigh_input)
        if name == "permute":
            return self.TL * (_FP32 + self.w) if self.weigh_input else 0
        if name.endswith("activation"):
            clamped = activation_named(self.block.activation).limit is not None
            return 2 * self._output(name) if clamped else 0
        if name.startswith("experts_") and self.block.expert_bias:
            return self._output(name) + _INT32 * self.R
        return 0

    def _gather_sum(self, weighed: bool) -> int:
        """Bytes an element beside the result: one choice's rows, or the fp32 sum.

        Weighed rows are wide as well; what is only added gives way to the result.
        """
        return 2 * _FP32 if self.half and weighed else _FP32

    # ------------------------------------------------------------------------------ backward
    def backward(self) -> None:
        """Walk the rows in reverse, from the output's gradient to those of x and the weights."""
        self.alive["d_x"] = self.alive["d_weights"] = 0
        for chain in reversed(self.chains):
            self.alive["d_output"] = 0  # the caller's, counted with the input
            for place in range(len(chain) - 1, -1, -1):
                self._step_back(chain[place], chain[place - 1] if place else None)
            del self.alive["d_output"]
        self._note("backward", "select", 2 * _FP32 * self.TE)
        copies: Number = 0
        if self.eager and self.half:  # of x and the weights, then of either gradient in fp32
            of_weights = self.ED * (_FP32 + self.w)
            copies = _FP32 * (self.TD + self.ED) + _larger(_FP32 * self.TD, of_weights)
            copies = copies - self.ED * self.w
        gradients = self.TD * self.w + self._weight_gradients("router")
        self.alive["routing"] = self.TD * self.w if self.block.router_scales else 0
        self._note("backward", "router", _FP32 * self.TE + copies + gradients)

    def _step_back(self, name: str, before: str | None) -> None:
        if name == "shared_add":  # hands its output's gradient on
            self._note("backward", name, 0)
            return
        d_input = self.TD * self.w if before is None else self._output(before)
        d_weights = self._weight_gradients(name)
        makes = d_input + d_weights + self._needs_backward(name)
        self._note("backward", name, _larger(makes, self._needs_bias(name)))
        self.alive["d_weights"] = self.alive["d_weights"] + d_weights
        if before is None or name == "shared_gate":
            self.alive["d_x"] = self.TD * self.w  # one buffer, added up
        if before is not None and self._keeps_input(name):
            del self.alive[before]
        weighed = "permute" if self.weigh_input else "combine"
        if name == weighed and self.block.routing.score == "softmax_topk":
            # the weights' gradients wait; other scores give the weights back for them
            self.alive["routing"] = self.alive["routing"] + self.R * _FP32
        self.alive["d_output"] = d_input if before is not None else 0

    def _needs_bias(self, name: str) -> Number:
        """What an expert's bias takes for its own gradient, before the other gradients are made."""
        if not (self.block.expert_bias and self.ops[name].kind == "grouped_linear"):
            return 0
        elements = evaluate(self.ops[name].write, self.env)
        bias = [w.elements for w in self.ops[name].weights if not w.matmul]
        sums = sum(evaluate(size, self.env) for size in bias) * (_FP32 + self.w)
        copy = _FP32 * elements if self.half else 0
        return sums + (copy + _INT32 * self.R if self.eager else 0)

    def _weight_gradients(self, name: str) -> Number:
        return sum(self._weight(weight) for weight in self.ops[name].weights)

    def _needs_backward(self, name: str) -> Number:
        """Temporaries of a row's backward, its gradients not among them."""
        if name == "shared_gate":  # x's gradient, or the product before it is summed
            return self.TD * self.w
        if not self.eager:
            return 0
        if name == "combine":
            if self.weigh_input:
                return 0
            # weighed copies of a choice's rows; or, before there are any, the weights' gradients
            copies = self.TL * (_FP32 + (self.w if self.half else 0))
            dots = self.TL * (2 * _FP32 + self.w if self.half else _FP32)
            return self.R * _FP32 + _larger(copies, dots - self.env["k"] * self.TL * self.w)
        if name == "permute" and self.weigh_input:
            return self.TL * (2 * _FP32 + self.w if self.half else _FP32) + self.R * _FP32
        if name == "permute":
            return self.TL * self._gather_sum(weighed=False)
        if name.endswith("activation"):
            clamped = activation_named(self.block.activation).limit is not None
            return (4 if clamped else 2) * self._output(name) if self.block.gated else 0
        return 0
