"""FLOPs of the measured layer as torch counts them, phase by phase.

torch's counter knows the shapes of every matmul that runs, forward and backward, on any device and
on none (meta); it shares nothing with the formulas of `MoE.rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moeplan.profile.layer import Layer
from moeplan.profile.phases import Stage

__all__ = ["MATMULS", "count_flops"]


def _grouped_mm_flops(a: Sequence[int], b: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of torch's grouped matmul, which its counter leaves at zero.

    [R, K] x [E, K, N] gives each row to one expert; the weights' gradient is [M, R] x [R, N].
    Either way every row meets one matrix: 2·(all of a)·(columns of b).
    """
    return 2 * a[0] * a[1] * b[-1]


MATMULS = {torch.ops.aten._grouped_mm: _grouped_mm_flops}
"""What FlopCounterMode needs as `custom_mapping` to count this layer."""


def count_flops(
    layer: Layer, x_TD: Tensor, routing_override: Tensor | None = None, *, backward: bool = False
) -> dict[Stage, dict[str, int]]:
    """FLOPs of each phase, forward and (where asked) backward, with x's gradient.

    Raises ValueError where FLOPs ran outside every phase.
    """
    counter = FlopCounterMode(display=False, custom_mapping=MATMULS)
    counts: dict[Stage, dict[str, int]] = {"forward": {}, "backward": {}}

    @contextmanager
    def watch(name: str, stage: Stage) -> Iterator[None]:
        before = counter.get_total_flops()
        yield
        phase = counts[stage]
        phase[name] = phase.get(name, 0) + counter.get_total_flops() - before

    with counter, torch.set_grad_enabled(backward):
        x_TD = x_TD.detach().requires_grad_(backward)
        y_TD = layer(x_TD, phase_hook=watch, routing_override=routing_override)
        if backward:
            y_TD.backward(torch.empty_like(y_TD))
    layer.zero_grad(set_to_none=True)
    inside = sum(sum(phase.values()) for phase in counts.values())
    if inside != counter.get_total_flops():
        raise ValueError(f"{counter.get_total_flops() - inside} FLOPs ran outside every phase")
    return counts
