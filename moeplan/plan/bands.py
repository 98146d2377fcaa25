"""Shown rows with all ops at the fast, and at the slow end of their bands, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from moeplan.arrays import np
from moeplan.cluster.layout import NUMBERS, Layout
from moeplan.parallel import ServingPlan, TrainingPlan
from moeplan.parallel.optime import AtBound
from moeplan.plan.serving import DEGREES, Pool, ServingFound
from moeplan.plan.training import Row
from moeplan.quantity import plain

__all__ = ["serving_pools", "training_rows"]

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


def serving_pools(
    found: ServingFound, pools: Mapping[str, Sequence[Pool]]
) -> dict[tuple[str, Pool], dict[str, Any]]:
    """Numbers of an instance of pools of each mode at the load, with `band`: TTFT and TPOT at the
    fast and at the slow end.
    """
    out: dict[tuple[str, Pool], dict[str, Any]] = {}
    for mode, some in pools.items():
        for job in sorted({pool.instance.job for pool in some}):
            own = [pool for pool in dict.fromkeys(some) if pool.instance.job == job]
            at = np.array([pool.instance.row for pool in own])
            layout = Layout(**{name: found.columns[name][at] for name in DEGREES})
            plan = found.plans[mode, job]
            given = replace(plan.job, batch=np.array([float(p.batch) for p in own]), tpot=None)
            times = plan.inference.times
            here, *ends = (
                ServingPlan(plan.spec, plan.cluster, given, t).evaluate(
                    layout, found.columns["gpus"][at]
                )
                for t in (times, *(AtBound(times, bound) for bound in _ENDS))
            )
            for i, pool in enumerate(own):
                band = {n: [float(end[n][i]) for end in ends] for n in ("ttft", "tpot")}
                out[mode, pool] = {n: x[i].item() for n, x in here.items()} | {"band": band}
    return out
