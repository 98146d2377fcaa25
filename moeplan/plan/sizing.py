"""The smallest cluster that trains by a deadline, or within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from moeplan.calc import value
from moeplan.cluster.hardware import Cluster
from moeplan.cluster.layout import Layout
from moeplan.errors import UserError
from moeplan.model.ops import OpKind
from moeplan.parallel import TrainingJob, TrainingPlan
from moeplan.parallel.optime import Roofline
from moeplan.plan.grid import domain_of
from moeplan.plan.space import Space
from moeplan.plan.training import Found, default_batch, search_training
from moeplan.quantity import plain

__all__ = ["Sized", "at_least", "payable", "sized_of", "sizes", "smallest"]

MOST = 65536
_FINE = 16
_TRIES = 64  # sizes after the first that holds the model


@dataclass(frozen=True)
class Sized:
    """The best on some GPUs: seconds and dollars of the run (None: nothing legal fits)."""

    gpus: int
    seconds: float | None
    dollars: float | None
    layout: Layout | None
    meets: bool
    legal: int


def sizes(cluster: Cluster, least: int, step: int | None = None) -> Iterator[int]:
    """Counts of GPUs from `least` on: any below a domain, then whole domains.

    step: their distance; None: a power of two of domains, at most a sixteenth of the cluster.
    """
    domain = domain_of(cluster.gpu)
    if step is not None and step % domain:
        raise UserError(f"--gpu-step is {step}, and must be a multiple of the domain of {domain}")
    if step is None:
        yield from range(least, domain)
    gpus = max(least, step or domain)
    while True:
        each = step or domain * 2 ** max(0, (gpus // (domain * _FINE)).bit_length() - 1)
        gpus = -(-gpus // each) * each
        if gpus > MOST:
            return
        yield gpus
        gpus += each


def at_least(plan: TrainingPlan, seconds: float) -> int:
    """GPUs below which no layout trains in time: all FLOPs at the highest rate of any row."""
    job = plan.job
    flops = plan.flops["causal"] * plain(job.tokens) / plain(job.sequence)
    return max(1, int(flops / (_highest_rate(plan) * seconds)))


def _highest_rate(plan: TrainingPlan) -> float:
    """FLOP/s that no row exceeds: a stack's best rate, or the highest peak."""
    peaks, times = plan.cluster.gpu.peaks, plan.times
    formats = ("bf16", "fp16", "fp8") if plan.job.precision == "fp8" else ("bf16", "fp16")
    named = [name for name in peaks if name in formats]
    if isinstance(times, Roofline) and not getattr(times.stack, "calibrated", False):
        kinds: tuple[OpKind, ...] = ("linear", "grouped_linear", "attention")
        return max(float(times.rate(kind, name).value) for kind in kinds for name in named)
    return max(float(peaks[name].value) for name in named)


def smallest(
    make: Callable[[int], TrainingPlan],
    cluster: Cluster,
    job: TrainingJob,
    space: Space,
    *,
    batch: int | None,
    deadline: float | None,
    budget: float | None,
    step: int | None = None,
    most: int = MOST,
    workers: int = 1,
    told: Callable[[Sized], Any] = lambda sized: None,
) -> tuple[list[Sized], Found | None]:
    """Search each number of GPUs in turn, from the fewest that could do, until one meets both.

    make: a plan for a number of GPUs. batch: sequences of a step; None: as `default_batch` for each
    number. told: called with each size that was searched. Returns all sizes, the last one meets
    the limits if any does, and the search of it.
    """
    sequence = int(plain(job.sequence))
    if budget is not None:
        payable(make(_first(cluster)), budget)
    least = 1 if deadline is None else at_least(make(_first(cluster)), deadline)
    if least > most:
        raise UserError(
            f"--deadline: {least:,} GPUs are needed even at the highest rate of any row, and "
            f"{most:,} are the most that are searched"
        )
    tried: list[Sized] = []
    for gpus in sizes(cluster, least, step):
        if gpus > most:
            break
        plan = make(gpus)
        used = batch if batch is not None else default_batch(gpus, sequence)
        found = search_training(plan, space, gpus, used, workers=workers)
        sized = sized_of(found, deadline, budget)
        tried.append(sized)
        told(sized)
        if sized.meets:
            return tried, found
        if sum(s.seconds is not None for s in tried) >= _TRIES:
            break
    return tried, None


def payable(plan: TrainingPlan, budget: float) -> None:
    """Refuse a budget below what all FLOPs cost at the highest rate, on any number of GPUs."""
    least = at_least(plan, 3600) * float(value(plan.price()))  # GPU-hours times dollars
    if math.isnan(least):
        device = plan.cluster.gpu.id
        raise UserError(f"--budget: no price of {device} is on file; give one: --price '$2/h'")
    if least > budget:
        raise UserError(
            f"--budget: all FLOPs at the highest rate of any row cost ${least:,.0f}, and "
            f"${budget:,.0f} was given"
        )


def _first(cluster: Cluster) -> int:
    return int(cluster.gpus.value)


def sized_of(found: Found, deadline: float | None, budget: float | None) -> Sized:
    """The best of a search, and whether it meets a deadline (s) and a budget ($)."""
    gpus, legal = found.grid.gpus, found.tally.legal
    if not found.tally.near.shape[1]:
        return Sized(gpus, None, None, None, False, legal)
    layout = found.best(1)[0]
    answer = found.grid.plan.evaluate(layout, gpus)
    meets = (deadline is None or answer["seconds"] <= deadline) and (
        budget is None or answer["dollars"] <= budget
    )
    return Sized(gpus, answer["seconds"], answer["dollars"], layout, bool(meets), legal)
