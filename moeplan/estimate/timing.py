"""Floor of the time: what a GPU's datasheet allows, op row by op row.

t_c = FLOPs / peak rate and t_m = bytes / memory bandwidth of each row. Three figures: `lower`,
where everything overlaps (the larger of the sums), `sequential`, where rows follow each other and
each overlaps its own arithmetic with its own bytes (the sum of the larger), and `upper`, where
nothing overlaps (the sum of both). None of them is a prediction: real kernels reach a part of the
peak, and a calibrated model has to say which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moeplan.cluster.hardware import Gpu
from moeplan.estimate.fold import Line, lines, over_layers
from moeplan.estimate.memory import layer_bytes
from moeplan.model.formats import format_named
from moeplan.model.ops import Weight
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Workload
from moeplan.quantity import Number, Quantity, derive, total

__all__ = ["Floor", "floor"]

ACTIVATION_BYTES = 2  # bf16 activations
GRADIENT_BYTES = 2  # bf16 gradients, written once per weight by the backward pass


class Floor:
    """The roofline of a pass on one GPU, row by row of one layer.

    In training each row's matmuls run three times (forward, input gradient, weight gradient), its
    activations move three times, its weights are read twice, and gradients of all its weights are
    written, idle experts included.
    """

    def __init__(self, spec: ModelSpec, work: Workload, gpu: Gpu, cache: str = "bf16") -> None:
        self.spec, self.work, self.gpu = spec, work, gpu
        self.cache_bytes = format_named(cache, "cache format").bits / 8
        self.backward = work.phase == "train"
        self._stored = layer_bytes(spec)
        # exchanges move nothing on one GPU; their bytes are counted by the all-to-all section
        self.lines = [line for line in lines(spec, work) if line.op.kind != "exchange"]

    def flops(self, line: Line) -> Quantity:
        """FLOPs of a row in one layer."""
        times = "3*" if self.backward and line.op.flops != "0" else ""
        return line.quantity(f"{times}({line.op.flops})", "FLOP")

    def traffic(self, line: Line) -> Quantity:
        """Bytes that a row of one layer moves: activations, cache, weights and their gradients."""
        op, times = line.op, 3 if self.backward else 1
        moved = f"{ACTIVATION_BYTES * times}*(({op.read}) + ({op.write}))"
        parts = [("activations", line.quantity(moved, "B"))]
        if op.cached != "0":
            size = f"{self.cache_bytes * times:g}*({op.cached})"
            parts.append(("cache", line.quantity(size, "B")))
        for weight in op.weights:
            parts += self._weight_traffic(line, weight)
        return total(parts, "B")

    def _weight_traffic(self, line: Line, weight: Weight) -> list[tuple[str, Quantity]]:
        stored = self._stored[id(line.block), weight.name]
        if line.op.uses == weight.copies:
            read, formula = stored, "stored"
        else:
            uses, copies = line.evaluate(line.op.uses), line.evaluate(weight.copies)
            read, formula = stored * uses / copies, "stored*uses/copies"

        def inputs() -> Mapping[str, Quantity]:
            known = {
                "stored": Quantity(stored, "B", symbol="stored", formula="as stored"),
                "uses": line.quantity(line.op.uses, "copies"),
                "copies": line.quantity(weight.copies, "copies"),
            }
            return {name: known[name] for name in formula.replace("/", "*").split("*")}

        quantity = Quantity(read, "B", formula=formula, inputs=inputs)
        if not self.backward:
            return [(weight.name, quantity)]
        gradient = line.quantity(f"{GRADIENT_BYTES}*{weight.elements}", "B")
        return [
            (weight.name, quantity),
            (f"{weight.name} (backward)", quantity),
            (f"{weight.name} (gradient)", gradient),
        ]

    def peak(self, line: Line) -> Quantity:
        """The rate of a row's matmul: of its weights' format where the GPU has it, else bf16."""
        wanted = "bf16"
        weight = next((w for w in line.op.weights if w.matmul), None)
        if weight is not None:
            name = next(line.group.tensor_names(weight), weight.name)
            wanted = self.spec.checkpoint.of(weight, name).peak
        for name in (wanted, "bf16", "fp16"):
            if name in self.gpu.peaks:
                return self.gpu.peaks[name]
        return self.gpu.peak(wanted)

    def row(self, line: Line) -> dict[str, Quantity]:
        """Seconds of a row in one layer: compute, memory, and the larger of the two."""
        flops, traffic, peak = self.flops(line), self.traffic(line), self.peak(line)
        bandwidth = self.gpu.memory_bandwidth
        compute = _ratio("flops", flops, "peak", peak)
        memory = _ratio("bytes", traffic, "bandwidth", bandwidth)
        return {"flops": flops, "bytes": traffic, "compute": compute, "memory": memory}


def _ratio(above: str, x: Quantity, below: str, y: Quantity) -> Quantity:
    return Quantity(x.value / y.value, "s", formula=f"{above}/{below}", inputs={above: x, below: y})


def _larger(compute: Quantity, memory: Quantity) -> Quantity:
    c, m = compute.value, memory.value
    either = isinstance(c, np.ndarray) or isinstance(m, np.ndarray)
    value: Number = np.maximum(c, m) if either else max(c, m)
    inputs = {"compute": compute, "memory": memory}
    return Quantity(value, "s", formula="max(compute, memory)", inputs=inputs)


def floor(spec: ModelSpec, work: Workload, gpu: Gpu, cache: str = "bf16") -> dict[str, Any]:
    """Lower, sequential and upper floor of a pass, with the rows of one layer of each group."""
    roofline = Floor(spec, work, gpu, cache)
    rows = [(line, roofline.row(line)) for line in roofline.lines]
    for _, row in rows:
        row["lower"] = _larger(row["compute"], row["memory"])

    def summed(key: str) -> Quantity:
        return total(
            [
                (f"{line.group.name}: {line.op.name}", over_layers(line.group, row[key], "s"))
                for line, row in rows
            ],
            "s",
        )

    compute, memory = summed("compute"), summed("memory")
    return {
        "lower": _larger(compute, memory),
        "sequential": summed("lower"),
        "upper": derive("compute + memory", "s", compute=compute, memory=memory),
        "compute": compute,
        "memory": memory,
        "rows": [_row(line, row) for line, row in rows],
    }


def _row(line: Line, row: dict[str, Quantity]) -> dict[str, Any]:
    compute, memory = row["compute"], row["memory"]
    return {
        "layer": line.group.name,
        "layers": line.group.quantity,
        "op": line.op.name,
        "component": line.op.component,
        **row,
        "upper": derive("compute + memory", "s", compute=compute, memory=memory),
        "bound": np.where(compute.value >= memory.value, "compute", "memory").tolist(),
    }


