"""Speed for a user against output of a GPU: batches on layouts that no other beats in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moeplan.arrays import np
from moeplan.cluster.layout import Layout
from moeplan.parallel import disaggregate
from moeplan.plan.front import undominated
from moeplan.plan.pools import DEGREES
from moeplan.plan.serving import ServingFound

if TYPE_CHECKING:
    from moeplan.plan.ask_serving import ServingQuestion

__all__ = ["FrontPoint", "serving_front"]


@dataclass(frozen=True)
class FrontPoint:
    """A batch on a layout that none beats in both: TPOT (s), output tokens/s/GPU, TTFT (s).

    gpus: of the instance that decodes. prefill: the layout that prefills for it, where it has
    instances of its own, in the ratio in which neither waits.
    """

    tpot: float
    rate: float
    ttft: float
    batch: int
    layout: Layout
    gpus: int
    job: int
    mode: str
    prefill: Layout | None


def serving_front(question: ServingQuestion, found: ServingFound) -> list[FrontPoint]:
    """Every layout with every power of two as batch, in each way of serving that was asked for.

    TTFT limits it, TPOT does not; whatever the requests, with any number of instances.
    """
    parts = [part for mode in question.modes for part in _of_mode(found, mode)]
    if not parts:
        return []
    tpot, rate, ttft, row, batch, job, mode, prefill = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return [
        FrontPoint(
            float(tpot[i]), float(rate[i]), float(ttft[i]), int(batch[i]),
            found.layout(int(row[i])), int(found.columns["gpus"][int(row[i])]), int(job[i]),
            question.modes[int(mode[i])],
            found.layout(int(prefill[i])) if prefill[i] >= 0 else None,
        )
        for i in undominated(tpot, -rate)
    ]  # fmt: skip


def _of_mode(found: ServingFound, mode: str) -> Iterator[tuple[Any, ...]]:
    """Columns of the points of a way of serving, by job and batch."""
    modes = [name for name, _ in found.plans]
    layout = Layout(**{name: found.columns[name] for name in DEGREES})
    for number in range(len(found.jobs)):
        answer, plan = found.answers[mode, number], found.plans[mode, number]
        most = answer.get("max_batch")
        first = _prefill(found, number, answer) if mode == "disaggregated" else -1
        if most is None or not np.isfinite(most).any() or first is None:
            continue
        batch = 1
        while batch <= np.nanmax(most):
            there = plan.of_job(replace(plan.job, batch=batch, tpot=None))
            a = there.evaluate(layout, found.columns["gpus"])
            at = np.flatnonzero(a["fits"] & (a["batch"] == batch) & _in_time(found, a, first))
            one = np.ones(at.size)
            here = {name: x[at] for name, x in a.items()}
            if first >= 0:
                alone = {name: x[first] for name, x in answer.items()}
                here |= disaggregate(alone, here, plan.job, found.transfers[number][first])
            yield (
                here["tpot"], here["output_tokens_per_second_per_gpu"], here["ttft"] * one, at,
                batch * one, number * one, list(dict.fromkeys(modes)).index(mode) * one,
                first * one,
            )  # fmt: skip
            batch *= 2


def _in_time(found: ServingFound, a: Mapping[str, Any], first: int) -> Any:
    """Which instances keep TTFT; those that only decode need not."""
    limit = found.demand.ttft
    return True if limit is None or first >= 0 else a["ttft"] <= limit


def _prefill(found: ServingFound, number: int, a: Mapping[str, Any]) -> int | None:
    """The row that prefills most on a GPU within TTFT."""
    if "ttft" not in a:
        return None
    limit = found.demand.ttft
    good = a["fits"] & (True if limit is None else a["ttft"] + found.transfers[number] <= limit)
    if not good.any():
        return None
    return int(np.argmax(np.where(good, a["prefill_tokens_per_second_per_gpu"], -np.inf)))
