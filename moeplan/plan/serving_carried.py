"""The most requests that some GPUs carry, of the instances that a search evaluated."""

from __future__ import annotations

from typing import Any

from moeplan.arrays import np
from moeplan.plan.serving import ServingFound
from moeplan.plan.serving_remedies import within
from moeplan.quantity import plain

__all__ = ["MOST", "carried"]

MOST = 4096
"""GPUs up to which `carried` answers: it tries every division between two pools."""


def carried(found: ServingFound, gpus: int) -> float:
    """Requests per second that at most `gpus` GPUs carry within the limits; 0 for none.

    One pool of whole instances, or the slower of two that share the GPUs in the best proportion.
    """
    limits = found.demand.ttft, found.demand.tpot
    first, then = (
        within(found, name, float("inf") if limit is None else limit)
        for name, limit in zip(("ttft", "tpot"), limits, strict=True)
    )
    best = 0.0
    for (mode, job), a in found.answers.items():
        if "ttft" not in a:
            continue
        sizes = found.columns["gpus"]
        soon, fast = first[mode, job] & a["fits"], then[mode, job] & a["fits"]
        if mode == "aggregated":
            each = _pool(sizes, a["requests_per_second"], soon & fast, gpus)
            best = max(best, float(each[-1]))
            continue
        own = found.jobs[job]
        new = plain(own.input) * (1 - plain(own.cached))
        prefill = _pool(sizes, a["prefill_tokens_per_second_per_gpu"] * sizes / new, soon, gpus)
        decode = a["decode_tokens_per_second_per_gpu"] * sizes / plain(own.output)
        both = np.minimum(prefill, _pool(sizes, decode, fast, gpus)[::-1])
        best = max(best, float(both.max()))
    return best * found.demand.utilization


def _pool(sizes: Any, each: Any, good: Any, gpus: int) -> Any:
    """Requests per second of the best whole instances on 0 to `gpus` GPUs.

    sizes, each, good: GPUs and requests per second of an instance, and which may be.
    """
    out = np.zeros(gpus + 1)
    count = np.arange(gpus + 1)
    for size in np.unique(sizes[good]).astype(int).tolist():
        most = float(each[good & (sizes == size)].max())
        out = np.maximum(out, count // size * most)
    return out
