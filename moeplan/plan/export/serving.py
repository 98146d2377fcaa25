"""What both serving engines ask of a choice: phases, lengths, sequences, formats."""

from __future__ import annotations

from collections.abc import Iterator

from moeplan.cluster.layout import Layout
from moeplan.parallel.jobs import ServingJob
from moeplan.parallel.serving import ServingPlan
from moeplan.plan.chosen import Chosen
from moeplan.plan.export.engine import Arguments, Refusals, Subject
from moeplan.quantity import plain

__all__ = ["cache_notes", "instance_notes", "per_replica", "phases", "tokens", "weight_format"]


def phases(chosen: Chosen) -> Iterator[tuple[str, Layout]]:
    """Each kind of instance, with its layout: one for both phases (""), or one for each."""
    job = chosen.job
    assert isinstance(job, ServingJob)
    if not job.disaggregated and chosen.prefill is None:
        yield "", chosen.layout
        return
    yield "prefill", chosen.prefill or chosen.layout
    yield "decode", chosen.layout


def tokens(job: ServingJob) -> int:
    """The longest request: input and output, and what is drafted beyond."""
    return int(plain(job.input)) + int(plain(job.output)) + int(plain(job.draft))


def per_replica(subject: Subject, job: ServingJob, layout: Layout, phase: str) -> int:
    """Sequences that each data-parallel rank runs at once."""
    if phase == "prefill":
        return int(plain(job.prefill_batch))
    world = layout.values["world"] if subject.chosen.pooled else None
    found = ServingPlan(subject.spec, subject.cluster, job).evaluate(layout, world)
    batch = found["batch"] if found["fits"] else 1
    return max(1, -(-int(batch) // int(layout.values["dp"])))


def weight_format(subject: Subject, job: ServingJob, args: Arguments, no: Refusals) -> None:
    """Weights in another format than the checkpoint's: only fp8 is made while loading."""
    formats = subject.spec.checkpoint
    if job.weights is None or job.weights == (formats.quantised or formats.base).name:
        return
    no.unless(job.weights.startswith("fp8"), f"weights in {job.weights}: they need a checkpoint in "
              "that format, only fp8 is made while loading")  # fmt: skip
    args.flag(job.weights.startswith("fp8"), "--quantization", "fp8")


def cache_notes(job: ServingJob) -> list[str]:
    """What of a request mix no option says."""
    if plain(job.cached):
        return [f"{plain(job.cached):.0%} of the input is expected in the prefix cache"]
    return []


def instance_notes(chosen: Chosen, engine: str) -> list[str]:
    """How many instances there are, and what must join them."""
    if not chosen.pooled and not (isinstance(chosen.job, ServingJob) and chosen.job.disaggregated):
        return []
    prefill = f", {chosen.prefill_instances} for prefill" if chosen.prefill is not None else ""
    joined = "a router in front of them is yours to start"
    plural = "s" if chosen.instances > 1 else ""
    return [f"{chosen.instances} instance{plural} of {engine} for decoding{prefill}: {joined}"]
