"""Shown rows with all ops at the fast, and at the slow end of their bands, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from moeplan.arrays import np
from moeplan.cluster.layout import NUMBERS, Layout
from moeplan.parallel import ServingPlan, TrainingPlan
from moeplan.parallel.optime import AtBound
from moeplan.plan.serving import DEGREES, Instance, ServingFound
from moeplan.plan.training import Row
from moeplan.quantity import plain

__all__ = ["serving_bands", "training_rows"]

_ENDS: tuple[Literal["lower", "upper"], ...] = ("lower", "upper")


def training_rows(rows: Sequence[Row]) -> list[tuple[dict[str, Any], list[float]]]:
    """Each row's numbers, and seconds of its step at the fast and at the slow end of the bands.

    Rows of a kind are evaluated at once.
    """
    numbers: list[dict[str, Any]] = [{} for _ in rows]
    bands = np.empty((len(rows), len(_ENDS)))
    searches = {id(row.found): row.found for row in rows}
    for found in searches.values():
        plan, gpus = found.grid.plan, found.grid.gpus
        here = [i for i, row in enumerate(rows) if row.found is found]
        alike: dict[str, list[int]] = {}
        for i in here:
            kinds = rows[i].layout.at(dict.fromkeys(NUMBERS, 1))
            alike.setdefault(str(kinds), []).append(i)
        many = [_many([rows[i].layout for i in places]) for places in alike.values()]
        degrees = _many([rows[i].layout for i in here])
        for end in (None, *_ENDS):
            own = plan
            if end is not None:
                times = AtBound(plan.times, end)
                own = TrainingPlan(plan.spec, plan.cluster, plan.job, times=times)
            own.prepare(many, {name: getattr(degrees, name) for name in NUMBERS})
            for layout, places in zip(many, alike.values(), strict=True):
                answer = own.evaluate(layout, gpus)
                if end is not None:
                    bands[places, _ENDS.index(end)] = answer["step"]
                    continue
                for at, i in enumerate(places):
                    numbers[i] = {name: array[at].item() for name, array in answer.items()}
    return list(zip(numbers, bands.tolist(), strict=True))


def _many(layouts: Sequence[Layout]) -> Layout:
    """Layouts as one of arrays, with the kinds of the first."""
    return layouts[0].at({n: [float(plain(getattr(x, n))) for x in layouts] for n in NUMBERS})


def serving_bands(
    found: ServingFound, instances: Mapping[str, Sequence[Instance]]
) -> dict[tuple[str, Instance], dict[str, list[float]]]:
    """TTFT and TPOT of instances of each mode at the fast and the slow end, at the same batch."""
    out: dict[tuple[str, Instance], dict[str, list[float]]] = {}
    for mode, some in instances.items():
        for job in sorted({instance.job for instance in some}):
            own = [i for i in dict.fromkeys(some) if i.job == job]
            at = np.array([i.row for i in own])
            layout = Layout(**{name: found.columns[name][at] for name in DEGREES})
            plan = found.plans[mode, job]
            given = replace(plan.job, batch=found.answers[mode, job]["batch"][at], tpot=None)
            ends = [
                ServingPlan(
                    plan.spec, plan.cluster, given, AtBound(plan.inference.times, bound)
                ).evaluate(layout, found.columns["gpus"][at])
                for bound in _ENDS
            ]
            for place, instance in enumerate(own):
                out[mode, instance] = {
                    name: [float(end[name][place]) for end in ends] for name in ("ttft", "tpot")
                }
    return out
