"""What happens to the best layout if one input changes: the search is decided again each time.

A layout that is slower than the old winner under the change cannot win. Where an input gets better
by a factor f no step shrinks by more than f, and where it gets worse none shrinks at all: so the
layouts that could win are those within a known factor of the best, and the search kept them. Where
it kept too few, it is run again as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from moeplan.arrays import np
from moeplan.cluster.hardware import Cluster
from moeplan.cluster.layout import Layout
from moeplan.parallel import TrainingJob, TrainingPlan
from moeplan.plan.grid import Grid
from moeplan.plan.tally import SLACK
from moeplan.plan.training import Found, search_training
from moeplan.quantity import Quantity, Source, plain

__all__ = ["Change", "Outcome", "changes", "other_memory", "scaled", "sensitivity"]

_FACTOR = 1.25


@dataclass(frozen=True, eq=False)
class Change:
    """One input changed: what it is called, the plan with it, and by how much a step can shrink."""

    name: str
    cluster: Cluster
    job: TrainingJob
    gain: float


@dataclass(frozen=True)
class Outcome:
    """The best under a change: seconds of a step, its layout, and the old winner's step.

    layout is None where nothing fits any more; old is None where the old winner does not.
    evaluated: layouts that could win and were evaluated. again: the whole search was run.
    """

    name: str
    step: float | None
    layout: Layout | None
    old: float | None
    evaluated: int
    again: bool = False


def changes(cluster: Cluster, job: TrainingJob) -> Iterator[Change]:
    """Memory bandwidth, both networks and the imbalance of experts, each for better and worse."""
    for factor in (1 / _FACTOR, _FACTOR):
        gain = max(1.0, factor)
        percent = f"{factor - 1:+.0%}"
        bandwidth = scaled(cluster.gpu.memory_bandwidth, factor)
        device = replace(cluster.gpu, memory_bandwidth=bandwidth)
        yield Change(f"memory bandwidth {percent}", replace(cluster, gpu=device), job, gain)
        for name, kind in (("scale_up", "scale-up"), ("scale_out", "scale-out")):
            links = {
                f"{name}_{what}": scaled(getattr(cluster, f"{name}_{what}"), factor)
                for what in ("bandwidth", "effective")
            }
            many = cluster.gpus.value > cluster.domain_size.value
            if any(q is not None for q in links.values()) and (name == "scale_up" or many):
                yield Change(f"{kind} bandwidth {percent}", replace(cluster, **links), job, gain)
    imbalance = plain(job.imbalance)
    for more in (1.2, 1.5):
        given = replace(job, imbalance=imbalance * more)
        yield Change(f"imbalance of experts {imbalance * more:g}", cluster, given, 1.0)


def scaled(given: Quantity | None, factor: float) -> Any:
    """A figure of the hardware times a factor."""
    if given is None:
        return None
    source = Source("user", f"what if: {factor:g} times")
    return Quantity.given(given.value * factor, given.unit, given.symbol, source)


def sensitivity(found: Found) -> list[Callable[[], Outcome]]:
    """For each change a call that finds the best layout under it."""
    plan = found.grid.plan
    if not found.tally.near.shape[1]:
        return []
    return [
        partial(_outcome, found, change)
        for change in changes(plan.cluster, plan.job)
        if not change.name.startswith("imbalance") or plan.spec.moe is not None
    ]


def _outcome(found: Found, change: Change) -> Outcome:
    near = found.tally.near
    plan = TrainingPlan(found.grid.plan.spec, change.cluster, change.job)
    old = float(_evaluate(found, plan, near[:, :1])[0][0])
    before = old if np.isfinite(old) else None
    kept = SLACK * float(near[-1, 0])
    some = near if before is None else near[:, near[-1] <= before * change.gain]
    step, which = _evaluate(found, plan, some)
    first = int(np.argmin(step))
    best = float(step[first])
    # what was not kept takes more than `kept`, and more than kept/gain under the change
    if best * change.gain <= kept or (near.shape[1] == found.tally.fit and change.gain == 1):
        if not np.isfinite(best):
            return Outcome(change.name, None, None, None, some.shape[1])
        layout = found.layout(which[:, first])
        return Outcome(change.name, best, layout, before, some.shape[1])
    again = search_training(plan, found.grid.space, found.grid.gpus, found.grid.batch, top=1)
    if not again.tally.near.shape[1]:
        return Outcome(change.name, None, None, None, again.tally.legal, again=True)
    layout = again.layout(again.tally.near[:, 0])
    step = float(again.tally.near[-1, 0])
    return Outcome(change.name, step, layout, before, again.tally.legal, again=True)


def _evaluate(found: Found, plan: TrainingPlan, near: Any) -> tuple[Any, Any]:
    """Step of each layout under another plan (inf where it does not fit), and its numbers."""
    grid: Grid = found.grid
    steps, numbers = [], []
    kinds = np.unique(near[0]).astype(int)
    every = np.unique(found.tally.near[2]).astype(int)  # all that was kept: later calls share it
    plan.prepare(
        [found.kinds[kind] for kind in kinds], {n: a[every] for n, a in grid.columns.items()}
    )
    for kind in kinds:
        columns = near[:, near[0] == kind]
        rows = columns[2].astype(int)
        degrees = {name: a[rows] for name, a in grid.columns.items()}
        many = found.kinds[kind].at(
            {**degrees, "vpp": columns[1], "zero": columns[3],
             "batch": np.full(len(rows), float(grid.batch))}
        )  # fmt: skip
        answer = plan.evaluate(many, grid.gpus)
        steps.append(np.where(answer["fits"], answer["step"], np.inf))
        numbers.append(columns)
    return np.concatenate(steps), np.concatenate(numbers, axis=1)


def other_memory(
    found: Found, factors: tuple[float, ...] = (0.5, 0.75, 1.25, 1.5)
) -> list[Outcome]:
    """The best layout with other memory on each GPU, from the front of memory and step."""
    front, out = found.tally.front, []
    for factor in factors:
        name = f"GPU memory {factor - 1:+.0%}"
        count = int(np.searchsorted(front.first, factor * found.tally.capacity, side="right"))
        old = None
        if found.tally.near.shape[1] and found.tally.near[4, 0] <= factor * found.tally.capacity:
            old = float(found.tally.near[5, 0])
        if not count:
            out.append(Outcome(name, None, None, None, found.tally.legal))
            continue
        best = found.layout(front.rows[:, count - 1])
        out.append(Outcome(name, float(front.second[count - 1]), best, old, found.tally.legal))
    return out
