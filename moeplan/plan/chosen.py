"""A chosen layout as a value and as a plan file: what is run, on what, laid out how.

How to use it::

    from moeplan.plan.chosen import Chosen

    best = Chosen(
        model="deepseek-v3",        # as the user named it: a preset, or a path to a config.json
        cluster="h800x2048",        # as `moeplan.cluster.hardware.cluster` reads it
        layout=Layout.parse("pp=16,ep=64,batch=15360", gpus=2048),
        job=TrainingJob(tokens=14.8e12),
    )
    best.save("plan.toml")          # commented TOML that a person may edit
    assert Chosen.load("plan.toml") == best
    best.answer()                   # the tree that `moeplan layout --json` prints

Training: the layout fills the cluster. Serving: `layout` is one instance, `instances` of which
decode (and prefill, unless `prefill` gives that a layout of its own, `prefill_instances` times);
the cluster holds them all, so it has at least `Chosen.gpus`. Numbers may be numpy scalars or
quantities: they are kept as plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeplan.cluster.layout import NUMBERS, Layout
from moeplan.errors import UserError
from moeplan.parallel.jobs import Overheads, ServingJob, TrainingJob
from moeplan.quantity import plain

if TYPE_CHECKING:
    from moeplan.cluster.hardware import Cluster

__all__ = ["Chosen"]


@dataclass(frozen=True, eq=False)
class Chosen:
    """A model on a layout of a cluster, for a job. Equal where everything written is equal."""

    model: str
    cluster: str
    layout: Layout
    job: TrainingJob | ServingJob
    prefill: Layout | None = None
    instances: int = 1
    prefill_instances: int = 0
    file: str | None = None  # where it was read, for what is wrong with it

    def __post_init__(self) -> None:
        for layout in self.layouts:
            if layout.is_many:
                raise ValueError("one layout is chosen, not an array of them")
        if self.training and (self.prefill is not None or self.instances != 1):
            raise UserError("plan: instances and a prefill layout are for serving")
        if self.instances < 1:
            raise UserError(f"plan: instances is {self.instances}, and must be at least 1")
        if (self.prefill is None) != (self.prefill_instances == 0):
            raise UserError(
                f"plan: prefill_instances is {self.prefill_instances}: a prefill layout needs at "
                "least 1, and without one there are 0"
            )

    @property
    def training(self) -> bool:
        """Whether this trains; else it serves."""
        return isinstance(self.job, TrainingJob)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layout, and that of prefill where it has its own."""
        return (self.layout,) if self.prefill is None else (self.layout, self.prefill)

    @property
    def gpus(self) -> int:
        """GPUs that all instances take together."""
        out = self.layout.values["world"] * self.instances
        if self.prefill is not None:
            out += self.prefill.values["world"] * self.prefill_instances
        return int(out)

    @property
    def pooled(self) -> bool:
        """Whether several instances share the cluster; else one layout fills it."""
        return self.instances > 1 or self.prefill is not None

    def machine(self) -> Cluster:
        """The cluster. `UserError` where the instances need more GPUs than it has."""
        from moeplan.cluster.hardware import cluster

        found = cluster(self.cluster)
        if self.pooled and self.gpus > found.gpus.value:
            raise UserError(
                f"plan: {self._product()} = {self.gpus} GPUs, and cluster {self.cluster} has "
                f"{found.gpus.value}"
            )
        return found

    def place(self) -> Cluster:
        """The machine that an instance lies on: one domain where no NIC joins the cluster's and no
        instance needs one, else the cluster. `UserError` as `machine`.
        """
        from moeplan.quantity import Quantity

        found = self.machine()
        domain = int(found.domain_size.value)
        most = max(int(layout.values["world"]) for layout in self.layouts)
        if self.pooled and most == 1 and found.scale_up_bandwidth is None:
            domain = 1  # nothing is known that joins them, and nothing needs it
        if not self.pooled or found.scale_out_bandwidth is not None or most > domain:
            return found
        return replace(found, gpus=Quantity.given(domain, "", "gpus", found.gpus.source))

    def _product(self) -> str:
        parts = []
        counts = (self.instances, self.prefill_instances)
        for layout, count in zip(self.layouts, counts, strict=False):
            v = layout.values
            parts.append(f"{count} x tp*cp*pp*dp = {v['tp']}*{v['cp']}*{v['pp']}*{v['dp']}")
        return " + ".join(parts)

    def document(self) -> dict[str, Any]:
        """Plain values by table and key, as the plan file has them; what is None is not there."""
        kind = "training" if self.training else "serving"
        out: dict[str, Any] = {
            "model": self.model,
            "cluster": self.cluster,
            "layout": _layout_values(self.layout),
        }
        if not self.training:
            out["instances"] = self.instances
        out[kind] = _job_values(self.job)
        if self.prefill is not None:
            out["prefill_instances"] = self.prefill_instances
            out["prefill"] = _layout_values(self.prefill)
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chosen) and self.document() == other.document()

    def __hash__(self) -> int:
        return hash(repr(self.document()))

    def save(self, path: str | Path) -> None:
        """Write the plan file, whole or not at all. `UserError` where that is not possible."""
        from moeplan.plan.planfile import write_plan

        write_plan(self.document(), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Chosen:
        """Read a plan file. `UserError` with the file and key of what is wrong."""
        from moeplan.plan.planfile import read_plan

        return replace(read_plan(Path(path)), file=str(path))

    def answer(self) -> dict[str, Any]:
        """What it costs: the tree that `moeplan layout --json` prints.

        Serving: of one instance; where several share the cluster, `pool` is what they serve
        together, `gpus` and `requests_per_second` count all, and `gpus_of_instance` one. `prefill`
        is the tree of prefill's own layout, whose TTFT, with the sending of the cache, is that of
        the whole.
        """
        try:
            return self._answer()
        except UserError as problem:
            if self.file is None or str(problem).startswith(f"{self.file}:"):
                raise
            raise UserError(f"{self.file}: {problem}") from None

    def _answer(self) -> dict[str, Any]:
        from moeplan.load import load_model
        from moeplan.report.layout_answer import pooled, serving_answer, training_answer

        spec, machine = load_model(self.model), self.place()
        if isinstance(self.job, TrainingJob):
            return training_answer(spec, self.layout, machine, self.job)
        whole = int(self.machine().gpus.value)
        jobs = (self.job, replace(self.job, batch=None))  # the batch is decoding's
        trees = [
            serving_answer(spec, x, machine, job, x.values["world"] if self.pooled else None)
            for x, job in zip(self.layouts, jobs, strict=False)
        ]
        for tree in trees:
            tree["cluster"]["gpus"] = whole
        if not self.pooled:
            return trees[0]
        return pooled(trees, self._pool(self.job, trees[0], trees[-1]), machine, self.job)

    def _pool(
        self, job: ServingJob, decode: Mapping[str, Any], prefill: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What all instances serve: of two pools, the slower one decides."""
        out: dict[str, Any] = {"gpus": self.gpus, "instances": self.instances}
        if self.prefill is None:
            rate = decode["requests_per_second"]
            out["requests_per_second"] = None if rate is None else rate * self.instances
            return out
        new = plain(job.input) * (1 - plain(job.cached))
        out["prefill_instances"] = self.prefill_instances
        pools = (
            ("prefill", prefill, self.prefill_instances, new),
            ("decode", decode, self.instances, plain(job.output)),
        )
        rates = []
        for name, tree, instances, tokens in pools:
            each = tree[f"{name}_tokens_per_second_per_gpu"]
            rate = None if each is None else each * tree["gpus"] * instances / tokens
            out[f"{name}_requests_per_second"] = rate
            rates.append(rate)
        known = [rate for rate in rates if rate is not None]
        out["requests_per_second"] = min(known) if len(known) == len(rates) else None
        return out


def _scalar(value: Any) -> Any:
    """A plain Python value; tuples become lists."""
    if isinstance(value, (tuple, str)):
        return list(value) if isinstance(value, tuple) else value
    value = plain(value)
    return value.item() if hasattr(value, "item") else value


def _layout_values(layout: Layout) -> dict[str, Any]:
    out = {f.name: _scalar(getattr(layout, f.name)) for f in fields(layout)}
    return {name: int(x) if name in NUMBERS else x for name, x in out.items()}


def _job_values(job: TrainingJob | ServingJob) -> dict[str, Any]:
    """A job's fields that are not None; overheads only where they are not the assumed ones."""
    out: dict[str, Any] = {}
    for f in fields(job):
        if f.name != "overheads":
            out[f.name] = _scalar(getattr(job, f.name))
    out |= _overhead_values(job.overheads)
    return {name: x for name, x in out.items() if x is not None}


def _overhead_values(overheads: Overheads) -> Mapping[str, Any]:
    names = ("framework", "fragmentation")
    found = {name: _scalar(getattr(overheads, name)) for name in names}
    usual = {name: _scalar(getattr(Overheads(), name)) for name in names}
    return {name: x for name, x in found.items() if x != usual[name]}
