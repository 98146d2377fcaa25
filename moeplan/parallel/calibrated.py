"""Seconds of a row by the calibration of its kind of op, with the band of its held-out errors.

Dense matmuls go through the GEMM model, experts' matmuls through the grouped part of the MoE op's,
attention by its FLOPs and bytes, everything else by its bytes. The bytes are the row's own, since
they know how weights are stored and that gradients are added up in fp32. Experts' rows are spread
at random; tiles are those that a tuned backend takes for the rows per expert.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from moeplan.arrays import is_array, larger, np, real
from moeplan.calc import value
from moeplan.calibration.band import banded
from moeplan.calibration.derived import of_gpu
from moeplan.calibration.fabric import fabric_of
from moeplan.calibration.moe import grouped_features, grouped_seconds
from moeplan.calibration.points import Kind, Points
from moeplan.calibration.store import TITLES, Calibration
from moeplan.calibration.tiles import VLLM_TUNED, choose
from moeplan.calibration.uniform import uniform_loads
from moeplan.cluster.hardware import Gpu
from moeplan.cluster.network import Collectives
from moeplan.parallel.optime import Seconds, Stack, Work
from moeplan.quantity import Quantity

__all__ = ["CalibratedTimes"]

_CHUNK = 4096  # rows at a time: a GEMM looks at 78 choices of tile and split for each


class CalibratedTimes:
    """Times of rows by a GPU's calibrations, its own or carried over from another GPU."""

    attention_backward = 2.5  # it computes the scores again

    def __init__(self, gpu: Gpu, stack: Stack) -> None:
        self.gpu, self.stack = gpu, stack
        self.fabric: Collectives | None = fabric_of(gpu)
        self.calibrations = cache(partial(of_gpu, gpu))
        self.used: dict[tuple[Kind, str], Calibration] = {}
        self._known: dict[Work, Seconds] = {}  # of single rows: layouts share most of them

    def seconds(self, work: Work, *, explained: bool) -> Seconds:
        """Lower, expected and upper seconds."""
        kind = _kind(work)
        used = self.calibrations(work.number_format if work.gemm is not None else "bf16")[kind]
        self.used[kind, used.name] = used
        bare = work._replace(
            flops=value(work.flops),
            moved=value(work.moved),
            gemm=work.gemm and tuple(value(side) for side in work.gemm),
            groups=value(work.groups),
            experts=value(work.experts),
        )
        found = self._seconds(kind, used, bare)
        if not explained:
            return found
        return Seconds(
            *(
                Quantity(
                    seconds, "s", formula=f"{bound} of the {kind} model",
                    inputs=partial(_inputs, work, kind, used),
                    note=f"calibration {used.name}, {used.fits[kind].origin}",
                )
                for bound, seconds in zip(Seconds._fields, found, strict=True)
            )
        )  # fmt: skip

    def _seconds(self, kind: Kind, used: Calibration, work: Work) -> Seconds:
        many = any(is_array(x) for x in (work.flops, work.moved, *(work.gemm or ())))
        if not many and work in self._known:
            return self._known[work]
        found = _once_each(partial(_timed, kind, used), work)
        if work.kind == "select":  # its many small kernels are the fixed cost of an MoE op
            fixed = self.calibrations("bf16")["moe"].fits["moe"].constants["launch"]
            found = Seconds(*(seconds + fixed for seconds in found))
        floor = self._floor(work)
        found = Seconds(*(larger(seconds, floor) for seconds in found))
        if not many:
            self._known[work] = found
        return found

    def _floor(self, work: Work) -> Any:
        """Seconds at the datasheet's rates, which no band reaches below."""
        peaks = self.gpu.peaks
        name = next((f for f in (work.number_format, "bf16", "fp16") if f in peaks), "")
        rate = peaks[name or next(iter(peaks))].value
        return larger(work.flops / rate, work.moved / self.gpu.memory_bandwidth.value)

    def sources(self) -> dict[str, str]:
        """For each calibration that was used, what it timed and its band; then where it is from."""
        out: dict[str, str] = {}
        for (kind, name), used in self.used.items():
            fit = used.fits[kind]
            low, high = fit.band("all")
            about = f"{TITLES[kind]}: {name}, {fit.origin}, {low - 1:+.0%} to {high - 1:+.0%}"
            out[about] = fit.note or used.source
        return out if self.fabric is None else {**out, **self.fabric.sources()}


def _kind(work: Work) -> Kind:
    if work.kind == "grouped_linear" and work.gemm is not None:
        return "moe"
    if work.gemm is not None:
        return "gemm"
    return "attention" if work.kind in ("attention", "scan") else "bytes"


def _inputs(work: Work, kind: Kind, used: Calibration) -> dict[str, Quantity]:
    """Shape, FLOPs and bytes of the row, and the constants of the fit."""
    sides = zip("mkn", work.gemm, strict=True) if work.gemm is not None else ()
    given = {"flops": work.flops, "bytes": work.moved, **dict(sides)}
    shown = {n: x if isinstance(x, Quantity) else Quantity.given(x) for n, x in given.items()}
    return {**shown, **used.fits[kind].quantities(used.source)}


def _once_each(timed: Any, work: Work) -> Seconds:
    """`timed` of the different rows of arrays only, in pieces: layouts share most of them."""
    gemm = work.gemm or (1, 1, 1)
    given = [work.flops, work.moved, *gemm, work.groups, work.experts]
    if not any(is_array(x) for x in given):
        return Seconds(*timed(work))
    shape = np.broadcast_shapes(*(np.shape(x) for x in given))
    spread: list[Any] = [
        np.broadcast_to(x, shape).ravel() if is_array(x) else float(x) for x in given
    ]
    first, back = _different([x for x in spread if is_array(x)])
    parts = []
    for start in range(0, len(first), _CHUNK):
        own = first[start : start + _CHUNK]
        flops, moved, m, k, n, groups, experts = (x[own] if is_array(x) else x for x in spread)
        sides = (m, k, n) if work.gemm is not None else None
        piece = work._replace(flops=flops, moved=moved, gemm=sides, groups=groups, experts=experts)
        parts.append([np.broadcast_to(x, own.shape) for x in timed(piece)])
    joined = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Seconds(*(column[back].reshape(shape) for column in joined))


def _different(columns: list[Any]) -> tuple[Any, Any]:
    """Places of the different rows of columns, and where each row is among them.

    Rows are told apart by a code of 64 bits; where two share one, every row counts as different.
    """
    code = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        bits = np.ascontiguousarray(column, np.float64).view(np.uint64)
        code = (code ^ (bits >> np.uint64(29)) ^ bits) * np.uint64(0x9E3779B97F4A7C15)
    _, first, back = np.unique(code, return_index=True, return_inverse=True)
    if any((x[first][back] != x).any() for x in columns):
        first = back = np.arange(len(code))
    return first, back


def _timed(kind: Kind, used: Calibration, work: Work) -> tuple[Any, Any, Any]:
    fit = used.fits[kind]
    if kind == "moe":
        expected = _grouped(used, work)
        low, high = fit.band("all")
        return expected * low, expected, expected * high
    if kind == "gemm":
        assert work.gemm is not None
        m, k, n = (real(side) for side in work.gemm)
        columns = {"m": m, "n": n, "k": k, "moved": work.moved}
    elif kind == "attention":
        columns = {"flops": work.flops + 1.0, "bytes": work.moved}
    else:
        columns = {"bytes": work.moved, "launches": 1}
    points = Points(kind, columns)
    features = fit.model.prepare(points, used.device)
    expected = fit.model.seconds(features, fit.constants)
    found = banded(points, fit, expected, features)
    return found.lower, found.expected, found.upper


def _grouped(used: Calibration, work: Work) -> Any:
    """Seconds of a grouped matmul of m rows, spread over the experts that the GPU holds."""
    assert work.gemm is not None
    m, k, n = (real(side) for side in work.gemm)
    experts = real(work.experts)
    counted = uniform_loads(m, experts, 1.0)
    tile = choose(VLLM_TUNED, m / experts)
    features = grouped_features(used.device, tile, counted, n, k, 2)
    return grouped_seconds({**features, "bytes": work.moved}, used.fits["moe"].constants)
