"""Search for serving: instances of every size and layout, and how many of them carry the requests.

An instance is evaluated with the largest batch that fits and meets TPOT, which says how many are
needed, and then at its share of the load (`moeplan.plan.pools`). Prefill and decoding share each
instance, or have pools of instances of their own, each with its own layout. All instances of a pool
are alike and there are whole numbers of them. GPUs of two pools add up, so that the best pairs are
made of the best of each pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moeplan.arrays import np
from moeplan.cluster.hardware import Cluster
from moeplan.cluster.layout import Layout
from moeplan.errors import UserError
from moeplan.model.spec import ModelSpec
from moeplan.parallel import ServingJob, ServingPlan
from moeplan.parallel.limits import cache_transfer
from moeplan.plan.grid import divisors
from moeplan.plan.pools import (
    DEGREES,
    Demand,
    Instance,
    Pool,
    Sought,
    decode_pools,
    prefill_pools,
)
from moeplan.quantity import plain

__all__ = ["DEGREES", "Demand", "Instance", "Option", "Pool", "ServingFound", "search_serving"]

MODES = ("aggregated", "disaggregated")


@dataclass(frozen=True)
class Option:
    """A way to carry the requests: one pool, or prefill's and decoding's. ttft, tpot in seconds.

    others: options that decode alike on as many GPUs, with another prefill pool.
    """

    mode: str
    pools: tuple[Pool, ...]
    gpus: int
    ttft: float
    tpot: float
    others: int = 0


@dataclass(frozen=True, eq=False)
class ServingFound:
    """A search's result. options: the best, ranked; by_mode: the best of each mode.

    columns: degrees of each row of the grid, with `gpus`. jobs: each choice of formats. plans,
    answers: for each mode and job, the latter the arrays of `evaluate_serving`. transfers: seconds
    in which a request's cache is sent. counts: layouts by what became of them, for each mode.
    """

    cluster: Cluster
    demand: Demand
    columns: Mapping[str, Any]
    jobs: Sequence[ServingJob]
    plans: Mapping[tuple[str, int], ServingPlan]
    answers: Mapping[tuple[str, int], Mapping[str, Any]]
    transfers: Mapping[int, Any]
    options: Sequence[Option]
    by_mode: Mapping[str, Option | None]
    combinations: int
    counts: Mapping[str, Mapping[str, int]]

    def layout(self, row: int) -> Layout:
        """The layout of a row."""
        degrees = {name: int(self.columns[name][row]) for name in DEGREES}
        return Layout().at({**degrees, "batch": None})


def grid(
    plan: ServingPlan, sizes: Sequence[int], pins: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Degrees of all instances of some sizes, with `gpus`: every product that fills one."""
    facts = plan.facts(1)

    def allowed(name: str, number: int) -> bool:
        return name not in pins or number in pins[name]

    experts = [d for d in divisors(int(facts.get("E", 1))) if allowed("ep", d)]
    widths = [d for d in divisors(int(facts.get("F", 1))) if allowed("etp", d)]
    pairs = np.array([(e, w) for e in experts for w in widths], np.float64).reshape(-1, 2)
    blocks = []
    for gpus in sizes:
        for pp in divisors(gpus):
            for tp in divisors(gpus // pp):
                dp = gpus // (pp * tp)
                if pp > facts["L"] or not all(
                    allowed(n, x) for n, x in (("tp", tp), ("pp", pp), ("dp", dp))
                ):
                    continue
                inside = pairs[(tp * dp) % (pairs[:, 0] * pairs[:, 1]) == 0]
                block = np.empty((6, len(inside)))
                block[:4] = np.array([[gpus], [tp], [pp], [dp]])
                block[4:] = inside.T
                blocks.append(block)
    rows = np.concatenate(blocks, axis=1) if blocks else np.empty((6, 0))
    return dict(zip(("gpus", "tp", "pp", "dp", "ep", "etp"), rows, strict=True))


def search_serving(
    spec: ModelSpec,
    cluster: Cluster,
    jobs: Sequence[ServingJob],
    demand: Demand,
    sizes: Sequence[int],
    *,
    pins: Mapping[str, tuple[int, ...]] | None = None,
    modes: Sequence[str] = MODES,
    by: str = "gpus",
    top: int = 10,
    columns: Mapping[str, Any] | None = None,
) -> ServingFound:
    """Evaluate every legal instance of some sizes, in each choice of formats (`jobs`).

    columns: rows of the grid to search, in place of all of these sizes.
    cluster: a machine of at least the largest size. by: "gpus", "cost" (the same at one price), or
    "time": the least time per output token that demand.gpus GPUs allow.
    """
    if by == "time" and demand.gpus is None:
        raise UserError("--by time needs --gpus, how many there are: TPOT falls with every more")
    answers: dict[tuple[str, int], Any] = {}
    plans: dict[tuple[str, int], ServingPlan] = {}
    counts: dict[str, dict[str, int]] = {}
    transfers: dict[int, Any] = {}
    for mode in modes:
        for number, job in enumerate(jobs):
            own = replace(job, tpot=demand.tpot, disaggregated=mode == "disaggregated")
            plan = ServingPlan(spec, cluster, own)
            columns = grid(plan, sizes, pins or {}) if columns is None else columns
            plans[mode, number] = plan
            answers[mode, number] = _evaluate(plan, columns)
            transfers[number] = _transfer(plan, answers[mode, number])
    assert columns is not None  # a mode and a job at least
    asked = _Asked(
        plans, columns, demand, transfers, top, demand.gpus if by == "time" else None
    )  # fmt: skip
    options: list[Option] = []
    for mode in modes:
        find = _aggregated if mode == "aggregated" else _disaggregated
        parts = []
        for number in range(len(jobs)):
            answer = answers[mode, number]
            if "ttft" in answer:
                found, good = find(asked, number, answer)
                options += found
                parts.append(_count(answer, good))
        counts[mode] = {n: sum(c[n] for c in parts) for n in ("legal", "fit", "meet")}
    options = _ranked([o for o in options if demand.gpus is None or o.gpus <= demand.gpus], by)
    by_mode = {mode: next((o for o in options if o.mode == mode), None) for mode in modes}
    return ServingFound(
        cluster, demand, columns, jobs, plans, answers, transfers, options[:top], by_mode,
        len(columns["gpus"]) * len(jobs), counts,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Asked:
    """What pools are sought with. most: GPUs that there are, where as fast as can be is asked."""

    plans: Mapping[tuple[str, int], ServingPlan]
    columns: Mapping[str, Any]
    demand: Demand
    transfers: Mapping[int, Any]
    top: int
    most: float | None

    def sought(self, number: int, rows: Any, rate: Any, most: float | None) -> Sought:
        """Pools of these rows, which carry `rate` requests a second."""
        return Sought(number, self.columns, rows, rate, self.demand, self.top, most)


def _evaluate(plan: ServingPlan, columns: Mapping[str, Any]) -> dict[str, Any]:
    layout = Layout(**{name: columns[name] for name in DEGREES})
    if not columns["gpus"].size:
        return {}
    return plan.evaluate(layout, columns["gpus"])


def _transfer(plan: ServingPlan, answer: Mapping[str, Any]) -> Any:
    """Seconds at most in which a GPU sends its part of a request's cache to another pool."""
    if "memory_cache_per_sequence" not in answer:
        return np.empty(0)
    return cache_transfer(plan.net, answer["memory_cache_per_sequence"])


def _ranked(options: Sequence[Option], by: str) -> list[Option]:
    """In order; of those that decode alike on as many GPUs the first, with how many there are."""
    if by == "time":
        ordered = sorted(options, key=lambda o: (o.tpot, o.gpus, o.ttft))
    else:
        ordered = sorted(options, key=lambda o: (o.gpus, o.tpot, o.ttft))
    out: dict[Any, Option] = {}
    for option in ordered:
        key = option.mode, option.pools[-1].instance, option.gpus
        if key in out:
            out[key] = replace(out[key], others=out[key].others + 1)
        else:
            out[key] = option
    return list(out.values())


def _within(numbers: Any, limit: float | None) -> Any:
    good = np.isfinite(numbers)
    return good if limit is None else good & (numbers <= limit * (1 + 1e-9))


def _count(answer: Mapping[str, Any], good: Any) -> dict[str, int]:
    return {
        "legal": int(answer["legal"].sum()),
        "fit": int(answer["fits"].sum()),
        "meet": int(good.sum()),
    }


def _aggregated(asked: _Asked, number: int, a: Mapping[str, Any]) -> tuple[list[Option], Any]:
    """Instances that prefill and decode by turns; and which instances are in time."""
    demand = asked.demand
    good = a["fits"] & _within(a["ttft"], demand.ttft) & _within(a["tpot"], demand.tpot)
    rows = np.flatnonzero(good)
    sought = asked.sought(number, rows, a["requests_per_second"][rows], asked.most)
    pools = decode_pools(sought, asked.plans["aggregated", number], a["batch"][rows])
    return [
        Option("aggregated", (pool,), pool.gpus, float(a["ttft"][pool.instance.row]), pool.seconds)
        for pool in pools
    ], good


def _disaggregated(asked: _Asked, number: int, a: Mapping[str, Any]) -> tuple[list[Option], Any]:
    """Pairs of a prefill pool and a decoding pool with the same formats."""
    demand, plan = asked.demand, asked.plans["disaggregated", number]
    job, gpus = plan.job, asked.columns["gpus"]
    ttft = a["ttft"] + asked.transfers[number]
    first = a["fits"] & _within(ttft, demand.ttft)
    then = a["fits"] & _within(a["tpot"], demand.tpot)
    in_time = then if first.any() else first
    new = plain(job.input) * (1 - plain(job.cached))
    rate = gpus * a["prefill_tokens_per_second_per_gpu"] / new
    rows = np.flatnonzero(first)
    prefill = prefill_pools(asked.sought(number, rows, rate[rows], None), ttft[rows])
    if not prefill:
        return [], in_time
    rows = np.flatnonzero(then)
    rate = gpus * a["decode_tokens_per_second_per_gpu"] / plain(job.output)
    left = None if asked.most is None else asked.most - prefill[0].gpus
    decode = decode_pools(asked.sought(number, rows, rate[rows], left), plan, a["batch"][rows])
    return [
        Option("disaggregated", (p, d), p.gpus + d.gpus, p.seconds, d.seconds)
        for p in prefill
        for d in decode
    ], in_time
