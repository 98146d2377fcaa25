"""Search for serving: instances of every size and layout, and how many of them carry the requests.

An instance is evaluated with the largest batch that fits and meets TPOT. Prefill and decoding share
each instance, or have pools of instances of their own, each with its own layout. All instances of a
pool are alike and there are whole numbers of them. GPUs of two pools add up, so that the best pairs
are made of the best of each pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from moeplan.arrays import np
from moeplan.cluster.hardware import Cluster
from moeplan.cluster.layout import Layout
from moeplan.model.spec import ModelSpec
from moeplan.parallel import ServingJob, ServingPlan
from moeplan.parallel.limits import cache_transfer
from moeplan.plan.grid import divisors, domain_of
from moeplan.quantity import plain

__all__ = ["DEGREES", "Demand", "Instance", "Option", "Pool", "ServingFound", "search_serving"]

DEGREES = ("tp", "pp", "dp", "ep", "etp")
MODES = ("aggregated", "disaggregated")


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
    """Instances of one layout: how many, GPUs of all, and other instances that do as well."""

    instance: Instance
    count: int
    gpus: int
    alike: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class Option:
    """A way to carry the requests: one pool, or prefill's and decoding's. ttft, tpot in seconds."""

    mode: str
    pools: tuple[Pool, ...]
    gpus: int
    ttft: float
    tpot: float


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
    "time" (the least time per output token).
    """
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
    options: list[Option] = []
    assert columns is not None  # a mode and a job at least
    for mode in modes:
        find = _aggregated if mode == "aggregated" else _disaggregated
        found, counts[mode] = find(answers, jobs, demand, columns["gpus"], transfers, top)
        options += found
    key = _key(by)
    options = [o for o in options if demand.gpus is None or o.gpus <= demand.gpus]
    options.sort(key=key)
    by_mode = {mode: next((o for o in options if o.mode == mode), None) for mode in modes}
    return ServingFound(
        cluster, demand, columns, jobs, plans, answers, transfers, options[:top], by_mode,
        len(columns["gpus"]) * len(jobs), counts,
    )  # fmt: skip


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


def _key(by: str) -> Any:
    if by == "time":
        return lambda o: (o.tpot, o.gpus, o.ttft)
    return lambda o: (o.gpus, o.tpot, o.ttft)


def _instances(load: Any) -> Any:
    """Whole instances for a load in instances; what is a whole number but for rounding stays."""
    return np.maximum(1, np.ceil(load * (1 - 1e-12)))


def _within(numbers: Any, limit: float | None) -> Any:
    good = np.isfinite(numbers)
    return good if limit is None else good & (numbers <= limit * (1 + 1e-9))


def _count(answer: Mapping[str, Any], good: Any) -> dict[str, int]:
    return {
        "legal": int(answer["legal"].sum()),
        "fit": int(answer["fits"].sum()),
        "meet": int(good.sum()),
    }


def _sum(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(c[name] for c in counts) for name in ("legal", "fit", "meet")}


def _aggregated(
    answers: Mapping[tuple[str, int], Mapping[str, Any]],
    jobs: Sequence[ServingJob],
    demand: Demand,
    gpus: Any,
    transfers: Mapping[int, Any],
    top: int,
) -> tuple[list[Option], dict[str, int]]:
    """Instances that prefill and decode by turns."""
    out, counts = [], []
    for number in range(len(jobs)):
        a = answers["aggregated", number]
        if "ttft" not in a:
            counts.append({"legal": 0, "fit": 0, "meet": 0})
            continue
        good = a["fits"] & _within(a["ttft"], demand.ttft) & _within(a["tpot"], demand.tpot)
        counts.append(_count(a, good))
        rows = np.flatnonzero(good)
        rate = a["requests_per_second"] / gpus
        for pool in _pools(number, rows, gpus, rate, a["tpot"], demand.load, top):
            row = pool.instance.row
            out.append(
                Option("aggregated", (pool,), pool.gpus, float(a["ttft"][row]),
                       float(a["tpot"][row]))
            )  # fmt: skip
    return out, _sum(counts)


def _disaggregated(
    answers: Mapping[tuple[str, int], Mapping[str, Any]],
    jobs: Sequence[ServingJob],
    demand: Demand,
    gpus: Any,
    transfers: Mapping[int, Any],
    top: int,
) -> tuple[list[Option], dict[str, int]]:
    """Pairs of a prefill pool and a decoding pool with the same formats."""
    out, counts = [], []
    for number, job in enumerate(jobs):
        a = answers["disaggregated", number]
        if "ttft" not in a:
            counts.append({"legal": 0, "fit": 0, "meet": 0})
            continue
        ttft = a["ttft"] + transfers[number]
        first = a["fits"] & _within(ttft, demand.ttft)
        then = a["fits"] & _within(a["tpot"], demand.tpot)
        counts.append(_count(a, then if first.any() else first))
        new = plain(job.input) * (1 - plain(job.cached))
        prefill = _pools(
            number, np.flatnonzero(first), gpus, a["prefill_tokens_per_second_per_gpu"], ttft,
            demand.load * new, top,
        )  # fmt: skip
        decode = _pools(
            number, np.flatnonzero(then), gpus, a["decode_tokens_per_second_per_gpu"], a["tpot"],
            demand.load * plain(job.output), top,
        )  # fmt: skip
        out += [
            Option("disaggregated", (p, d), p.gpus + d.gpus, float(ttft[p.instance.row]),
                   float(a["tpot"][d.instance.row]))
            for p in prefill
            for d in decode
        ]  # fmt: skip
    return out, _sum(counts)


def _pools(
    number: int, rows: Any, gpus: Any, rate: Any, seconds: Any, load: float, top: int
) -> list[Pool]:
    """The pools of fewest GPUs, and those of least seconds, each `top` of them.

    rows: instances that may be. rate: of each per GPU, of which `load` is to be carried. Pools of
    equal GPUs, seconds and rate are one, with the others as `alike`.
    """
    count = _instances(load / (rate[rows] * gpus[rows]))
    total = count * gpus[rows]
    carried = total * rate[rows]
    alike: dict[tuple[str, ...], list[int]] = {}
    for i in np.lexsort((gpus[rows], seconds[rows], total)).tolist():
        key = tuple(f"{x:.12g}" for x in (total[i], seconds[rows[i]], carried[i]))
        alike.setdefault(key, []).append(i)
    groups = list(alike.values())
    fast = sorted(groups, key=lambda group: (seconds[rows[group[0]]], total[group[0]]))
    out = {}
    for first, *others in (*groups[:top], *fast[:top]):
        out[first] = Pool(
            Instance(number, int(rows[first])), int(count[first]), int(total[first]),
            tuple(Instance(number, int(rows[i])) for i in others),
        )  # fmt: skip
    return list(out.values())


def instance_sizes(cluster: Cluster, most: int) -> Iterator[int]:
    """Sizes of instances up to `most`: any within a domain, then whole domains."""
    domain = domain_of(cluster.gpu)
    yield from range(1, min(domain, most + 1))
    yield from range(domain, most + 1, domain)
