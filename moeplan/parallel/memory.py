"""Bytes on one GPU of a pipeline rank: state by ZeRO stage, activations, buffers, overheads.

What is copied over data parallelism, and so divided by ZeRO, differs: dense tensors over cp·dp
ranks, experts over edp. Shards need the whole tensors of a layer for a while, which count as
buffers: weights of two layers (one computed with, one prefetched), and gradients of one, until they
are reduced and scattered.
"""

from __future__ import annotations

from typing import Any

from moeplan.calc import add, calc, value
from moeplan.estimation.memory import Optimizer
from moeplan.parallel.jobs import Overheads

__all__ = ["MEMORY_PARTS", "WHOLE_FROM", "owned", "rank_memory", "with_overheads"]

MEMORY_PARTS = (
    "weights", "gradients", "optimizer", "activations", "buffers", "framework", "fragmentation",
)  # fmt: skip


WHOLE_FROM = 2
"""ZeRO stage from which a layer's gradients (then also weights) are whole for a while only."""


def owned(dense: Any, experts: Any, zero: Any, least: int, dense_group: Any, edp: Any) -> Any:
    """Parameters whose state a GPU holds, where ZeRO stages from `least` on divide it."""
    return calc(
        f"per(dense, pick(zero >= {least}, n_dense, 1))"
        f" + per(experts, pick(zero >= {least}, edp, 1))",
        "parameters",
        dense=dense,
        experts=experts,
        zero=zero,
        n_dense=dense_group,
        edp=edp,
    )


def rank_memory(
    dense: Any,
    experts: Any,
    kept: Any,
    workspace: Any,
    buffer: Any,
    layer: Any,
    *,
    zero: Any,
    dense_group: Any,
    edp: Any,
    optimizer: Optimizer,
    overheads: Overheads,
) -> dict[str, Any]:
    """The parts of MEMORY_PARTS of a rank, in bytes.

    dense, experts: parameters it holds. kept: activations of the microbatches in flight.
    workspace: tensors that are computed again, of one layer. buffer: of exchanges. layer:
    parameters of its largest layer, whole for a while from ZeRO stage WHOLE_FROM on.
    """
    parts: dict[str, Any] = {}
    sizes = {
        "weights": (3, optimizer.weights),
        "gradients": (2, optimizer.gradients),
        "optimizer": (1, optimizer.main + optimizer.moments),
    }
    for name, (least, each) in sizes.items():
        count = owned(dense, experts, zero, least, dense_group, edp)
        parts[name] = calc("each*parameters", "B", each=each, parameters=count)
    parts["activations"] = calc("kept + workspace", "B", kept=kept, workspace=workspace)
    parts["buffers"] = calc(
        "exchange + pick(zero >= 3, 2*weights*layer, 0) + pick(zero >= 2, gradients*layer, 0)",
        "B",
        exchange=buffer,
        zero=zero,
        weights=optimizer.weights,
        gradients=optimizer.gradients,
        layer=layer,
    )
    share = overheads.fragmentation
    used = add(dict(parts), "B")
    framework, bare = overheads.framework, overheads.fragmentation
    explained = hasattr(used, "formula")
    if not explained:
        framework = getattr(framework, "value", framework)
        share = getattr(bare, "value", bare)
    parts["framework"] = framework
    parts["fragmentation"] = calc("share*used", "B", share=share, used=used)
    return parts


def with_overheads(used: Any, overheads: Overheads) -> Any:
    """Bytes with framework and fragmentation, of the sum of the other parts; bare numbers."""
    return calc(
        "framework + (1 + share)*used",
        framework=value(overheads.framework),
        share=value(overheads.fragmentation),
        used=used,
    )
