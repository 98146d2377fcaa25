"""Floor of the time: what a GPU's datasheet allows, op row by op row.

t_c = FLOPs / peak rate and t_m = bytes / memory bandwidth of each row. Three figures: `lower`,
where everything overlaps (the larger of the sums), `sequential`, where rows follow each other and
each overlaps its own arithmetic with its own bytes (the sum of the larger), and `upper`, where
nothing overlaps (the sum of both). None of them is a prediction: real kernels reach a part of the
peak, and a calibrated model has to say which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeplan.arrays import is_array, np
from moeplan.cluster.hardware import Gpu
from moeplan.estimation.fold import MODEL, Line, Part, layer_count, lines, summed
from moeplan.estimation.memory import Stored, StoredTensors, stored_tensors
from moeplan.model.formats import format_named
from moeplan.model.ops import Op, Weight
from moeplan.model.spec import ModelSpec, Role
from moeplan.model.workload import Workload
from moeplan.quantity import Later, Number, Quantity, Source, derive, total

__all__ = ["Floor", "floor"]

ACTIVATION_BYTES = 2  # bf16 activations
GRADIENT_BYTES = 2  # bf16 gradients, written once per weight by the backward pass


class Floor:
    """The roofline of a pass on one GPU, row by row of one layer.

    In training each row's matmuls run three times (forward, input gradient, weight gradient), its
    activations move three times, its weights are read twice, and gradients of all its weights are
    written, idle experts included. `stored` is what `stored_tensors` gives.
    """

    def __init__(
        self,
        spec: ModelSpec,
        work: Workload,
        gpu: Gpu,
        cache: str = "bf16",
        stored: StoredTensors | None = None,
        roles: tuple[Role, ...] = MODEL,
    ) -> None:
        self.spec, self.work, self.gpu = spec, work, gpu
        self.cache_bytes = format_named(cache, "cache format").bits / 8
        self.backward = work.phase == "train"
        self.stored = stored_tensors(spec) if stored is None else stored
        # exchanges move nothing on one GPU; their bytes are counted by the all-to-all section
        self.lines = [line for line in lines(spec, work, roles) if line.op.kind != "exchange"]

    def flops_formula(self, op: Op) -> str:
        """FLOPs of a row in one layer."""
        return f"3*({op.flops})" if self.backward and op.flops != "0" else op.flops

    def traffic_formulas(self, op: Op) -> list[tuple[str, str]]:
        """Bytes of activations and of cache that a row moves, and of gradients it writes."""
        times = 3 if self.backward else 1
        out = [("activations", f"{ACTIVATION_BYTES * times}*(({op.read}) + ({op.write}))")]
        if op.cached != "0":
            out.append(("cache", f"{self.cache_bytes * times:g}*({op.cached})"))
        if self.backward:
            out += [(f"{w.name} (gradient)", f"{GRADIENT_BYTES}*{w.elements}") for w in op.weights]
        return out

    def numbers(self, line: Line) -> tuple[Number, Number]:
        """(compute seconds, memory seconds) of a row in one layer."""
        times = 3 if self.backward else 1
        moved = times * (ACTIVATION_BYTES * line.moved + self.cache_bytes * line.cached)
        for weight in line.op.weights:
            size = line.block.sizes[weight.name]
            read = self._stored(line, weight).bytes * line.uses / size.copies
            moved = moved + read
            if self.backward:
                moved = moved + read + GRADIENT_BYTES * size.elements
        flops = times * line.flops
        return flops / self.peak(line).value, moved / self.gpu.memory_bandwidth.value

    def _stored(self, line: Line, weight: Weight) -> Stored:
        """A weight in one layer, all its copies."""
        return self.stored[id(line.group), id(line.block), weight.name]

    def peak(self, line: Line) -> Quantity:
        """The rate of a row's matmul: of its weights' format where the GPU has it, else bf16."""
        wanted = "bf16"
        weight = next((w for w in line.op.weights if w.matmul), None)
        if weight is not None:
            wanted = self._stored(line, weight).peak
        for name in (wanted, "bf16", "fp16"):
            if name in self.gpu.peaks:
                return self.gpu.peaks[name]
        return self.gpu.peak(wanted)

    def explain(self, line: Line) -> dict[str, Quantity]:
        """FLOPs, bytes and both times of a row in one layer, explained."""
        flops = line.quantity(self.flops_formula(line.op), "FLOP")
        parts = [(name, line.quantity(f, "B")) for name, f in self.traffic_formulas(line.op)]
        for weight in line.op.weights:
            stored = Quantity.given(
                self._stored(line, weight).bytes,
                "B",
                "stored",
                Source("config", f"{weight.name} as stored"),
            )
            read = derive(
                "stored*uses/copies",
                "B",
                stored=stored,
                uses=line.quantity(line.op.uses, "copies"),
                copies=line.quantity(weight.copies, "copies"),
            )
            parts.append((weight.name, read))
            if self.backward:
                parts.append((f"{weight.name} (backward)", read))
        moved = total(parts, "B")
        peak, bandwidth = self.peak(line), self.gpu.memory_bandwidth
        compute = derive("flops/peak", "s", flops=flops, peak=peak)
        memory = derive("bytes/bandwidth", "s", bytes=moved, bandwidth=bandwidth)
        return {
            "flops": flops,
            "bytes": moved,
            "compute": compute,
            "memory": memory,
            "lower": derive("max(compute, memory)", "s", compute=compute, memory=memory),
            "upper": derive("compute + memory", "s", compute=compute, memory=memory),
        }


def floor(
    spec: ModelSpec,
    work: Workload,
    gpu: Gpu,
    cache: str = "bf16",
    stored: StoredTensors | None = None,
    roles: tuple[Role, ...] = MODEL,
) -> dict[str, Any]:
    """Lower, sequential and upper floor of a pass, with the rows of one layer of each group."""
    roofline = Floor(spec, work, gpu, cache, stored, roles)
    numbers = [(line, *roofline.numbers(line)) for line in roofline.lines]

    def of_all(key: str, pick: Callable[[Number, Number], Number]) -> Quantity:
        def parts() -> list[Part]:
            return [
                Part(
                    line.group,
                    line.op.component,
                    line.op.name,
                    pick(c, m),
                    lambda line=line: roofline.explain(line)[key],  # type: ignore[misc]
                )
                for line, c, m in numbers
            ]

        return summed(sum(line.group.number * pick(c, m) for line, c, m in numbers), parts, "s")

    compute = of_all("compute", lambda c, m: c)
    memory = of_all("memory", lambda c, m: m)
    return {
        "lower": derive("max(compute, memory)", "s", compute=compute, memory=memory),
        "sequential": of_all("lower", _larger),
        "upper": derive("compute + memory", "s", compute=compute, memory=memory),
        "compute": compute,
        "memory": memory,
        "rows": Later(lambda: [_row(line, roofline.explain(line)) for line in roofline.lines]),
    }


def _row(line: Line, row: dict[str, Quantity]) -> dict[str, Any]:
    compute, memory = row["compute"].value, row["memory"].value
    return {
        "layer": line.group.name,
        "layers": layer_count(line.group),
        "op": line.op.name,
        "component": line.op.component,
        **row,
        "bound": _bound(compute, memory),
    }


def _larger(compute: Number, memory: Number) -> Number:
    both_numbers = type(compute) is float and type(memory) is float
    return max(compute, memory) if both_numbers else np.maximum(compute, memory)


def _bound(compute: Number, memory: Number) -> Any:
    if is_array(compute) or is_array(memory):
        return np.where(compute >= memory, "compute", "memory").tolist()
    return "compute" if compute >= memory else "memory"
