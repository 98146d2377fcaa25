"""A question about serving answered: the fewest GPUs that carry the requests."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    search_serving,
)
from moeplan.plan.serving_sizes import Sizes, sizes_of
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

    def instances(self) -> Sizes:
        """Sizes of instances that are searched, and what was left out."""
        return sizes_of(gpu(self.machine), self.sizes, self.largest, LARGEST)

    def __post_init__(self) -> None:
        """Nothing can be sent between GPUs whose link is not known: no cache either."""
        device = gpu(self.machine)
        if device.scale_up_bandwidth is not None:
            return
        if "aggregated" not in self.modes:
            raise UserError(
                f"--mode disaggregated: no bandwidth between GPUs of {device.id} is on file, over "
                "which a cache would be sent"
            )
        object.__setattr__(self, "modes", ("aggregated",))

    def cluster(self) -> Cluster:
        """A machine of the largest instance that may be."""
        device = gpu(self.machine)
        domain, most = domain_of(device), self.instances().most
        alone = device.scale_up_bandwidth is None
        return machine(self.machine, 1 if alone else -(-most // domain) * domain)

    def search(self) -> ServingFound:
        """The search itself."""
        return self.under(self.cluster(), self.jobs, self.instances().searched)

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
                 f"--cluster {shlex.quote(machine(self.machine, gpus).id)}", "--serve",
                 self.options]  # fmt: skip
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


def _apart(question: ServingQuestion, found: ServingFound) -> list[str]:
    """What the best assumes of links that are not on file: how a request's cache is sent."""
    device = gpu(question.machine)
    best = found.options[0] if found.options else None
    if best is None or device.nic_bandwidth is not None or best.mode != "disaggregated":
        return []
    if best.gpus <= domain_of(device):
        return []
    return [
        f"the cache is sent as within a domain of {domain_of(device)}: no NIC of {device.id} is on "
        "file, so place prefill beside the decoding that it feeds"
    ]


def ask_serving(question: ServingQuestion) -> Answer:
    """Search what was asked, and again under each change."""
    from moeplan.plan.serving_changes import serving_changes
    from moeplan.report.layout_answer import serving_answer
    from moeplan.report.plan_serving import serving_plan_answer

    found = question.search()
    changes = serving_changes(question, found, processors()) if question.sensitivity else []
    front = serving_front(question, found) if found.options else []
    tree = serving_plan_answer(question, found, changes, front)
    tree["notes"] = [*question.instances().notes, *_apart(question, found)]
    if not found.options:
        from moeplan.plan.why_serving import why_nothing

        tree["nothing"]["said"] = why_nothing(question, found)

    def full(number: int) -> Sequence[Mapping[str, Any]]:
        option = found.options[number]
        out = []
        for pool in option.pools:
            plan = found.plans[option.mode, pool.instance.job]
            gpus = int(found.columns["gpus"][pool.instance.row])
            cluster = machine(question.machine, gpus)
            layout = found.layout(pool.instance.row)
            job = replace(plan.job, batch=pool.batch, tpot=None)  # as the row's own command has it
            out.append(serving_answer(question.spec, layout, cluster, job))
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
