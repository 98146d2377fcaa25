"""A question about serving answered: the fewest GPUs that carry the requests."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moeplan.cluster.hardware import Cluster, gpu
from moeplan.cluster.layout import Layout
from moeplan.errors import UserError
from moeplan.model.spec import ModelSpec
from moeplan.parallel import ServingJob
from moeplan.plan.ask import Answer
from moeplan.plan.chosen import Chosen
from moeplan.plan.front_serving import serving_front
from moeplan.plan.grid import domain_of
from moeplan.plan.options import machine
from moeplan.plan.serving import (
    DEGREES,
    MODES,
    Demand,
    ServingFound,
    instance_sizes,
    search_serving,
)
from moeplan.quantity import plain
from moeplan.workers import processors

__all__ = [
    "ServingQuestion",
    "ask_serving",
]

LARGEST = 64


@dataclass(frozen=True, eq=False)
class ServingQuestion:
    """A model on a GPU, the jobs to try (choices of formats and drafted tokens), the demand.

    largest: GPUs of the largest instance (None: LARGEST, and at least one domain). pins, modes:
    degrees and ways of serving that are searched.
    """

    spec: ModelSpec
    machine: str
    jobs: Sequence[ServingJob]
    demand: Demand
    largest: int | None = None
    sizes: Sequence[int] | None = None
    pins: Mapping[str, tuple[int, ...]] | None = None
    modes: Sequence[str] = MODES
    by: str = "gpus"
    top: int = 10
    named: str = "MODEL"
    options: str = ""
    sensitivity: bool = True

    def cluster(self) -> Cluster:
        """A machine of the largest instance that may be."""
        device = gpu(self.machine)
        domain = domain_of(device)
        most = max(self.sizes) if self.sizes else self.largest
        if device.nic_bandwidth is None:
            most = min(most or domain, domain)
        most = max(domain, LARGEST if most is None else most)
        return machine(self.machine, -(-most // domain) * domain)

    def all_sizes(self, cluster: Cluster) -> list[int]:
        """Sizes of instances that are searched."""
        if self.sizes:
            domain = domain_of(cluster.gpu)
            bad = [n for n in self.sizes if n > domain and n % domain]
            if bad:
                raise UserError(
                    f"--instance is {bad[0]}, and must be at most a domain of {domain} GPUs or a "
                    "multiple of it"
                )
            return sorted(n for n in self.sizes if n <= cluster.gpus.value)
        return list(instance_sizes(cluster, self.largest or int(cluster.gpus.value)))

    def search(self) -> ServingFound:
        """The search itself."""
        machine_ = self.cluster()
        return self.under(machine_, self.jobs, self.all_sizes(machine_))

    def under(
        self,
        cluster: Cluster,
        jobs: Sequence[ServingJob],
        sizes: Sequence[int],
        top: int = 0,
        columns: Mapping[str, Any] | None = None,
    ) -> ServingFound:
        """The same with other hardware, jobs, sizes or rows of the grid."""
        return search_serving(
            self.spec, cluster, jobs, self.demand, sizes, pins=self.pins, modes=self.modes,
            by=self.by, top=top or self.top, columns=columns,
        )  # fmt: skip

    def command(self, layout: Layout, gpus: int, job: ServingJob, mode: str, batch: int) -> str:
        """The command that shows one instance in full, decoding `batch` sequences together."""
        words = ["moeplan layout", shlex.quote(self.named), _text(layout) or "tp=1",
                 f"--cluster {gpu(self.machine).id}x{gpus}", "--serve", self.options]  # fmt: skip
        for option, given in (("weights", job.weights), ("cache", job.cache)):
            words += [f"--{option} {given}"] if given is not None else []
        if plain(job.draft):
            words.append(f"--draft {plain(job.draft)}")
        words.append(f"--batch {batch}")
        if mode == "disaggregated":
            words.append("--disaggregated")
        return " ".join(filter(None, words))


def _text(layout: Layout) -> str:
    """A layout of serving as `layout` reads it: without its batch, which training has."""
    found = [(name, plain(getattr(layout, name))) for name in DEGREES]
    return ",".join(f"{name}={number}" for name, number in found if number != 1)


def ask_serving(question: ServingQuestion) -> Answer:
    """Search what was asked, and again under each change."""
    from moeplan.plan.serving_changes import serving_changes
    from moeplan.report.layout_answer import serving_answer
    from moeplan.report.plan_serving import serving_plan_answer

    found = question.search()
    changes = serving_changes(question, found, processors()) if question.sensitivity else []
    front = serving_front(question, found) if found.options else []
    tree = serving_plan_answer(question, found, changes, front)

    def full(number: int) -> Sequence[Mapping[str, Any]]:
        option = found.options[number]
        out = []
        for pool in option.pools:
            plan = found.plans[option.mode, pool.instance.job]
            gpus = int(found.columns["gpus"][pool.instance.row])
            cluster = machine(question.machine, gpus)
            layout = found.layout(pool.instance.row)
            out.append(serving_answer(question.spec, layout, cluster, plan.job))
        return out

    def chosen(number: int) -> Chosen:
        option = found.options[number]
        job = found.plans[option.mode, option.pools[0].instance.job].job
        domain = domain_of(found.cluster.gpu)
        gpus = option.gpus if option.gpus < domain else -(-option.gpus // domain) * domain
        *prefill, decode = [(found.layout(p.instance.row), p.count) for p in option.pools]
        return Chosen(
            question.named,
            machine(question.machine, gpus).id,
            decode[0],
            job,
            prefill=prefill[0][0] if prefill else None,
            instances=decode[1],
            prefill_instances=prefill[0][1] if prefill else 0,
        )

    return Answer(tree, full, chosen)
