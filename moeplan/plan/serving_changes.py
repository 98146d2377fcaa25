"""What happens to the best way of serving if one input changes: searched again each time.

Where hardware gets worse, no instance carries more than it does now. So what could win are the
instances that now carry the requests on as many GPUs as the present best take under the change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moeplan.arrays import np
from moeplan.cluster.hardware import Cluster
from moeplan.parallel import ServingJob
from moeplan.plan.sensitivity import scaled
from moeplan.plan.serving import ServingFound
from moeplan.quantity import plain
from moeplan.workers import spread

if TYPE_CHECKING:
    from moeplan.plan.ask_serving import ServingQuestion

__all__ = ["ServingChange", "serving_changes"]

_FACTOR = 1.25
_ROOM = 1.02  # for batches, which are found by halving


@dataclass(frozen=True)
class ServingChange:
    """The best under a change: GPUs (None: nothing carries the requests), and its search."""

    name: str
    gpus: int | None
    found: ServingFound


def serving_changes(
    question: ServingQuestion, found: ServingFound, workers: int = 1
) -> list[ServingChange]:
    """The search again under other hardware and imbalance."""
    if not found.options:
        return []
    tried = [(name, cluster, found.jobs, factor) for name, cluster, factor in
             _hardware(found.cluster)]  # fmt: skip
    if question.spec.moe is not None:
        for more in (1.2, 1.5):
            own = [replace(job, imbalance=plain(job.imbalance) * more) for job in found.jobs]
            name = f"imbalance of experts {plain(own[0].imbalance):g}"
            tried.append((name, found.cluster, own, 1 / more))

    def change(number: int) -> ServingChange:
        name, cluster, jobs, factor = tried[number]
        again = _again(question, found, cluster, jobs, better=factor > 1)
        small = replace(again, plans={}, answers={}, transfers={})  # what is sent to this process
        return ServingChange(name, again.options[0].gpus if again.options else None, small)

    return list(spread(change, range(len(tried)), min(workers, len(tried))))


def _again(
    question: ServingQuestion,
    found: ServingFound,
    cluster: Cluster,
    jobs: Sequence[ServingJob],
    *,
    better: bool,
) -> ServingFound:
    """The best under a change, of the instances that could be part of it."""

    def search(rows: Any) -> ServingFound:
        columns = {name: a[rows] for name, a in found.columns.items()}
        return question.under(cluster, jobs, (), 1, columns)

    gpus = found.columns["gpus"]
    every = np.arange(gpus.size)
    if question.by == "time":
        return search(every)
    if better:  # a larger instance than all of the present best is no part of anything better
        return search(np.flatnonzero(gpus <= found.options[0].gpus))
    least = _least(found)
    pools = [pool for option in found.options for pool in option.pools]
    first = least <= found.options[-1].gpus
    first[[pool.instance.row for pool in pools]] = True
    now = search(np.flatnonzero(first))
    if not now.options:
        return search(every)
    could = least <= now.options[0].gpus
    return search(np.flatnonzero(could | first)) if (could & ~first).any() else now


def _least(found: ServingFound) -> Any:
    """GPUs below which no option has this row as a part, at present."""
    gpus, load = found.columns["gpus"], found.demand.load
    out = np.full(gpus.shape, np.inf)
    for (mode, number), a in found.answers.items():
        if "ttft" not in a:
            continue
        job = found.jobs[number]
        new = plain(job.input) * (1 - plain(job.cached))
        if mode == "aggregated":
            out = np.fmin(out, _pool(load, a["requests_per_second"] / gpus, gpus))
            continue
        prefill = _pool(load * new, a["prefill_tokens_per_second_per_gpu"], gpus)
        decode = _pool(load * plain(job.output), a["decode_tokens_per_second_per_gpu"], gpus)
        fits = a["fits"]
        if fits.any():
            first, then = np.nanmin(prefill[fits]), np.nanmin(decode[fits])
            out = np.fmin(out, np.fmin(prefill + then, decode + first))
    return out


def _pool(load: float, rate: Any, gpus: Any) -> Any:
    """GPUs of a pool that carries a load, at a little more than its rate per GPU (nan: none)."""
    return np.maximum(1, np.ceil(load / (_ROOM * rate * gpus))) * gpus


def _hardware(cluster: Cluster) -> Iterator[tuple[str, Cluster, float]]:
    for factor in (1 / _FACTOR, _FACTOR):
        percent = f"{factor - 1:+.0%}"
        device = cluster.gpu
        more = {n: scaled(getattr(device, n), factor) for n in ("memory_bytes", "memory_reported")}
        yield f"GPU memory {percent}", replace(cluster, gpu=replace(device, **more)), factor
        band = {"memory_bandwidth": scaled(device.memory_bandwidth, factor)}
        yield f"memory bandwidth {percent}", replace(cluster, gpu=replace(device, **band)), factor
        for name, word in (("scale_up", "scale-up"), ("scale_out", "scale-out")):
            links = {
                f"{name}_{what}": scaled(getattr(cluster, f"{name}_{what}"), factor)
                for what in ("bandwidth", "effective")
            }
            if any(q is not None for q in links.values()):
                yield f"{word} bandwidth {percent}", replace(cluster, **links), factor
