"""Each MoE beside the dense models of equal active and of equal total size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from moeplan.estimation.estimate import Estimate
from moeplan.estimation.timing import floor
from moeplan.model.dense_equivalent import Match, dense_equivalent
from moeplan.model.ffn import DenseFFN
from moeplan.model.workload import Workload
from moeplan.quantity import Number, plain
from moeplan.report.columns import Row, side_by_side
from moeplan.report.tables import Table
from moeplan.units import fmt_bytes, fmt_count, fmt_flops, fmt_time

__all__ = ["NOTES", "SERVING_BATCH", "Beside", "beside_dense", "beside_tables", "decode_batches"]

SERVING_BATCH = 64  # the second batch of the comparison where the user names none

NOTES = (
    "Dense: one FFN in the place of each MoE block and everything else alike, of as many "
    "parameters as a token touches, or as there are in all (to within half a unit of width).",
    "Decode: floor of a step on one GPU that is taken to hold all weights. At batch 1 an MoE reads "
    "its active experts only. A larger batch reaches ever more of the experts, where a dense model "
    "of the active size reads no more than its own weights.",
)


@dataclass(frozen=True)
class Beside:
    """One model of the comparison: the MoE itself, or a dense model of equal size.

    kind: "moe", "active" or "total". width: FFN width in the exchanged layers (None for the MoE).
    parameters; flops: forward FLOPs a token; weights: bytes as stored. decode: floor of one step
    in seconds, at each of `batches`.
    """

    kind: str
    width: int | None
    parameters: Number
    flops: Number
    weights: Number
    batches: tuple[int, int]
    decode: tuple[float, float]


def decode_batches(e: Estimate) -> tuple[int, int]:
    """Batch 1, and the scenario's batch, or `SERVING_BATCH` where that is 1 too."""
    batch = int(plain(e.scenario["batch"]))
    return (1, batch if batch > 1 else SERVING_BATCH)


def beside_dense(e: Estimate) -> list[Beside]:
    """An MoE, the dense model of equal active and that of equal total size; empty if dense."""
    if e.spec.moe is None:
        return []
    old = {id(block) for _, block in e.spec.blocks(DenseFFN)}
    out = [_beside("moe", e, None)]
    for match in get_args(Match):
        spec = dense_equivalent(e.spec, match)
        assert spec is not None
        width = next(block.F for _, block in spec.blocks(DenseFFN) if id(block) not in old)
        out.append(_beside(match, Estimate(spec, e.scenario), int(plain(width))))
    return out


def _beside(kind: str, e: Estimate, width: int | None) -> Beside:
    batches = decode_batches(e)
    work = Workload("decode", B=np.asarray(batches, dtype=np.float64), S=1, C=e.scenario["context"])
    lower = floor(e.spec, work, e.gpu, e.tree["kv_cache"]["format"])["lower"].value
    return Beside(
        kind=kind,
        width=width,
        parameters=e.tree["params"]["total"].value,
        flops=e.tree["flops"]["forward_per_token"].value,
        weights=e.tree["memory"]["weights"].value,
        batches=batches,
        decode=(float(lower[0]), float(lower[1])),
    )


def beside_tables(name: str, e: Estimate, width: int | None) -> list[Table]:
    """The comparison of one MoE as a table, numbers with their ratios to it; none if dense."""
    found = beside_dense(e)
    if not found:
        return []
    one, many = found[0].batches
    rows = (
        Row("FFN width", lambda b: b.width, lambda n: f"{n:,}", compared=False),
        Row("parameters", lambda b: b.parameters, fmt_count),
        Row("forward FLOPs/token", lambda b: b.flops, lambda n: fmt_flops(n).removesuffix("FLOP")),
        Row("weights", lambda b: b.weights, fmt_bytes),
        Row(f"decode, batch {one:,}", lambda b: b.decode[0], fmt_time),
        Row(f"decode, batch {many:,}", lambda b: b.decode[1], fmt_time),
    )
    names = [name, *(f"dense, equal {b.kind}" for b in found[1:])]
    return side_by_side("Dense models of the same layers and attention", names, rows, found, width)
