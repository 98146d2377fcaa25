"""Expected times on a CPU, from three more roofs that are measured there in the same run.

torch's grouped matmul is a loop over the experts on a CPU, and a matmul of a few rows with weights
that are in no cache is far from both roofs. So FLOP/s are measured by the number of rows
(`rows N`), and an expert with m rows takes 2·m·K·N over the rate at m rows. Tensors above 32 MiB
come from the system as new pages each time (M_MMAP_THRESHOLD in mallopt(3)), so they are written at
the rate of a first touch (`fresh`). And plain torch takes a row of the block apart into small
operations, whose time (`small`) is that of a call with cold caches. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from moeplan.model.ops import Op
from moeplan.profile.record import OpPrediction, Roof
from moeplan.quantity import Number, evaluate

__all__ = ["FRESH", "ROWS", "SMALL", "Host"]

ROWS, FRESH, SMALL = "rows ", "fresh", "small"
_LARGE = 32 << 20  # bytes of a tensor that never comes from what the process holds already

# small operations of a row in plain torch (`eager`): (fixed, for each of the k choices)
_CALLS = {
    ("forward", "permute"): (2, 2),
    ("forward", "combine"): (3, 4),
    ("forward", "select"): (22, 0),
    ("backward", "permute"): (3, 4),
    ("backward", "combine"): (3, 8),
    ("backward", "select"): (14, 0),
}
# bytes as plain torch moves them over those that one pass has to: silu, then the product; for each
# choice a copy of its rows, and a sum in fp32
_MOVED = {"pointwise": 10 / 6, "combine": 4.5}
_USUAL = {
    "forward": {"linear": 3, "grouped_linear": 3, "pointwise": 5},
    "backward": {"linear": 6, "grouped_linear": 6, "pointwise": 8},
}


@dataclass(frozen=True)
class Host:
    """The further roofs of a CPU. rates: rows of a matmul to FLOP/s."""

    rates: Mapping[int, float]
    fresh: float
    small: float

    @classmethod
    def of(cls, roofs: Sequence[Roof]) -> Host | None:
        """From a run's roofs, or None where they are not among them."""
        found = {roof.name: roof.value for roof in roofs}
        rates = {int(n.removeprefix(ROWS)): v for n, v in found.items() if n.startswith(ROWS)}
        if not rates or FRESH not in found or SMALL not in found:
            return None
        return cls(dict(sorted(rates.items())), found[FRESH], found[SMALL])

    def seconds(
        self, op: Op, work: OpPrediction, rows: Sequence[int], env: Mapping[str, Number], size: int
    ) -> float:
        """Expected seconds of a row: its matmuls or its bytes, new pages, and small operations."""
        compute = self._matmuls(op, rows, env) * (1 if work.stage == "forward" else 2)
        memory = work.memory * _MOVED.get(op.name, _MOVED.get(op.kind, 1.0))
        pages = self._new_bytes(op, work, env, size) / self.fresh
        matmuls: float = (compute**4 + memory**4) ** 0.25
        return self._calls(op, work, env) + pages + matmuls

    def _matmuls(self, op: Op, rows: Sequence[int], env: Mapping[str, Number]) -> float:
        flops = float(evaluate(op.flops, env))
        if not flops:
            return 0.0
        if op.kind != "grouped_linear":
            return flops / self._rate(float(env["T"]))
        each = flops / sum(rows)
        return sum(each * m / self._rate(m) for m in rows if m)

    def _rate(self, rows: float) -> float:
        """FLOP/s of a matmul of so many rows: between measured points in proportion of logs."""
        known = list(self.rates)
        logs = [log(rate) for rate in self.rates.values()]
        return exp(float(np.interp(log(rows), [log(n) for n in known], logs)))

    def _new_bytes(self, op: Op, work: OpPrediction, env: Mapping[str, Number], size: int) -> float:
        """Bytes of the large tensors that the row makes: its output, or its gradients."""
        if work.stage == "forward":
            made = [evaluate(op.write, env)]
        else:
            # gate and up are one tensor in the measured layer
            weights = sum(evaluate(w.elements, env) for w in op.weights)
            made = [evaluate(op.read, env), weights]
        return float(sum(n * size for n in made if n * size > _LARGE))

    def _calls(self, op: Op, work: OpPrediction, env: Mapping[str, Number]) -> float:
        usual = (_USUAL[work.stage].get(op.kind, 3), 0)
        fixed, each = _CALLS.get((work.stage, op.name), usual)
        return (fixed + each * float(env["k"])) * self.small
