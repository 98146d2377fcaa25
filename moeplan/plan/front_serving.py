"""Speed for a user against output of a GPU: batches on layouts that no other beats in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moeplan.arrays import np
from moeplan.cluster.layout import Layout
from moeplan.parallel.limits import by_turns, disaggregate
from moeplan.plan.front import undominated
from moeplan.plan.pools import DEGREES
from moeplan.plan.serving import ServingFound
from moeplan.quantity import plain

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
    parts = list(_points(found, question.modes))
    if not parts:
        return []
    tpot, rate, ttft, row, batch, job, prefill, mode = (
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


def _points(found: ServingFound, modes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Columns of the points, by job, batch and way of serving, which share decoding steps."""
    for number in range(len(found.jobs)):
        answer, plan = found.answers[modes[0], number], found.plans[modes[0], number]
        if "ttft" not in answer:
            continue
        fits = np.flatnonzero(answer["fits"])
        most = answer["max_batch"][fits]
        batch = 1
        while (most >= batch).any():
            at = fits[most >= batch]
            layout = Layout(**{name: found.columns[name][at] for name in DEGREES})
            step = plan.step_seconds(layout, float(batch))
            for place, mode in enumerate(modes):
                one = _Batch(found, number, mode, batch, at, step)
                columns = one.columns()
                if columns is not None:
                    yield (*columns, np.full(columns[0].size, place))
            batch *= 2


@dataclass(frozen=True, eq=False)
class _Batch:
    """A batch on rows `at` of the grid, with seconds of a decoding step on each."""

    found: ServingFound
    job: int
    mode: str
    batch: int
    at: Any
    step: Any

    def columns(self) -> tuple[Any, ...] | None:
        """TPOT (s), output tokens/s/GPU, TTFT (s), row, batch, job, and the row that prefills or
        -1; None where none prefills in time.
        """
        answer, job = self.found.answers[self.mode, self.job], self.found.jobs[self.job]
        gpus, output = self.found.columns["gpus"][self.at], plain(job.output)
        decode = {"tpot": self.step, "fits": True,
                  "decode_tokens_per_second_per_gpu": self.batch / (self.step * gpus)}  # fmt: skip
        here = {name: x[self.at] for name, x in answer.items()} | decode
        first, good = -1, np.ones(self.at.size, dtype=bool)
        if self.mode == "disaggregated":
            found = _prefill(self.found, self.job, answer)
            if found is None:
                return None
            first, sent = found, self.found.transfers[self.job][found]
            here |= disaggregate({n: x[first] for n, x in answer.items()}, here, job, sent)
        else:
            new = plain(job.input) * (1 - plain(job.cached))
            cost = new / here["prefill_tokens_per_second_per_gpu"]
            here["tpot"] = by_turns(self.step, cost, self.batch, gpus, output)
            together = disaggregate(here, here, job)  # as if it took turns between two pools
            here["output_tokens_per_second_per_gpu"] = together["output_tokens_per_second_per_gpu"]
            if self.found.demand.ttft is not None:
                good = here["ttft"] <= self.found.demand.ttft
        one = np.ones(self.at.size)
        columns = (here["tpot"], here["output_tokens_per_second_per_gpu"], here["ttft"] * one,
                   self.at, self.batch * one, self.job * one, first * one)  # fmt: skip
        return tuple(column[good] for column in columns)


def _prefill(found: ServingFound, number: int, a: Mapping[str, Any]) -> int | None:
    """The row that prefills most on a GPU within TTFT."""
    if "ttft" not in a:
        return None
    limit = found.demand.ttft
    good = a["fits"] & (True if limit is None else a["ttft"] + found.transfers[number] <= limit)
    if not good.any():
        return None
    return int(np.argmax(np.where(good, a["prefill_tokens_per_second_per_gpu"], -np.inf)))
