"""Pools of instances that carry requests: how many of each, and what users see of them at the load.

An instance's rate is that of the largest batch that fits and meets TPOT, and says how many are
needed. At the load itself fewer sequences are decoded together (Little's law), and each of them
faster: pools are ranked by that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from moeplan.arrays import np
from moeplan.cluster.layout import Layout
from moeplan.parallel import ServingPlan
from moeplan.quantity import plain

__all__ = ["DEGREES", "Demand", "Instance", "Pool", "Sought", "decode_pools", "prefill_pools"]

DEGREES = ("tp", "pp", "dp", "ep", "etp")
_PIECE = 16384  # rows at a time


@dataclass(frozen=True)
class Demand:
    """Requests per second, and limits in seconds (None: none). gpus: the most there are.

    utilization: share of an instance's rate that is planned for.
    """

    rate: float
    ttft: float | None = None
    tpot: float | None = None
    gpus: int | None = None
    utilization: float = 1.0

    @property
    def load(self) -> float:
        """Requests per second that instances must be good for."""
        return self.rate / self.utilization


class Instance(NamedTuple):
    """One layout of an instance in one choice of formats: number of the job, row of the grid."""

    job: int
    row: int


@dataclass(frozen=True)
class Pool:
    """Instances of one layout: how many, GPUs of all, and other instances that do as well.

    seconds: TTFT of prefill, else TPOT at the load. batch: sequences that an instance decodes
    together there (1 for prefill).
    """

    instance: Instance
    count: int
    gpus: int
    seconds: float
    batch: int = 1
    alike: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class Sought:
    """Of which instances pools are made, and which of them count.

    number: the job. columns: degrees of all instances, with `gpus`. rows: instances that may be.
    rate: requests per second that each of these can carry. top: how many pools. most: GPUs that a
    pool may have where it is to be as fast as they allow (None: the fewest that do).
    """

    number: int
    columns: Mapping[str, Any]
    rows: Any
    rate: Any
    demand: Demand
    top: int
    most: float | None = None

    @property
    def size(self) -> Any:
        """GPUs of each instance."""
        return self.columns["gpus"][self.rows]

    @property
    def needed(self) -> Any:
        """Instances that carry the load; what is a whole number but for rounding stays one."""
        return np.maximum(1, np.ceil(self.demand.load / self.rate * (1 - 1e-12)))

    def only(self, at: Any) -> Sought:
        """Some of the rows."""
        return replace(self, rows=self.rows[at], rate=self.rate[at])


def prefill_pools(sought: Sought, ttft: Any) -> list[Pool]:
    """The pools of fewest GPUs. ttft: seconds of each row."""
    return _best(sought, sought.needed, ttft, np.ones(sought.rows.size))


def decode_pools(sought: Sought, plan: ServingPlan, most: Any) -> list[Pool]:
    """The pools of fewest GPUs, and of those the fastest; or the fastest on `sought.most` GPUs.

    plan: of the rows' mode and job, whose prefill takes turns with decoding or does not. most:
    the largest batch of each row.
    """
    count, size = sought.needed, sought.size
    if sought.most is not None:
        at = np.flatnonzero(count * size <= sought.most)
        sought, most = sought.only(at), most[at]
        count = np.floor(sought.most / sought.size)
    elif count.size > sought.top:  # what needs more GPUs than `top` others is not ranked
        total = count * size
        at = np.flatnonzero(total <= np.partition(total, sought.top - 1)[sought.top - 1])
        sought, most, count = sought.only(at), most[at], count[at]
    batch, tpot, rate = _at_load(sought, plan, count, most)
    if sought.most is not None:  # more instances than decode that batch make nobody faster
        enough = np.ceil(sought.demand.rate / rate * (1 - 1e-8))
        count = np.minimum(count, np.maximum(sought.needed, enough))
    return _best(sought, count, tpot, batch)


def _at_load(sought: Sought, plan: ServingPlan, count: Any, most: Any) -> tuple[Any, Any, Any]:
    """Sequences that each instance decodes together, TPOT and requests a second of one at that
    batch, with `count` of them.
    """
    batch, tpot, rate = np.empty(count.size), np.empty(count.size), np.empty(count.size)
    for start in range(0, count.size, _PIECE):
        part = slice(start, start + _PIECE)
        rows = sought.rows[part]
        layout = Layout(**{name: sought.columns[name][rows] for name in DEGREES})
        batch[part] = plan.batch_under(layout, sought.demand.rate / count[part], most[part])
        there = plan.of_job(replace(plan.job, batch=batch[part], tpot=None))
        size = sought.columns["gpus"][rows]
        found = there.evaluate(layout, size)
        tpot[part], rate[part] = found["tpot"], found["requests_per_second"]
        if plan.job.disaggregated:
            each = found["decode_tokens_per_second_per_gpu"] * size
            rate[part] = each / plain(plan.job.output)
    return batch, tpot, rate


def _best(sought: Sought, count: Any, seconds: Any, batch: Any) -> list[Pool]:
    """The first `top` pools; those of equal GPUs, seconds and rate are one, with `alike`."""
    total = count * sought.size
    carried = count * sought.rate
    keys = (total, seconds) if sought.most is None else (seconds, total)
    alike: dict[tuple[str, ...], list[int]] = {}
    for i in np.lexsort((sought.size, *reversed(keys))).tolist():
        name = tuple(f"{x:.12g}" for x in (total[i], seconds[i], carried[i]))
        if name not in alike and len(alike) == sought.top:
            break
        alike.setdefault(name, []).append(i)
    return [
        Pool(
            Instance(sought.number, int(sought.rows[first])), int(count[first]), int(total[first]),
            float(seconds[first]), int(batch[first]),
            tuple(Instance(sought.number, int(sought.rows[i])) for i in others),
        )
        for first, *others in alike.values()
    ]  # fmt: skip
