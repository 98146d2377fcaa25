"""What engines that serve have in common: the instances of a plan, and what formats they know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moeplan.cluster.layout import Layout
from moeplan.errors import UserError
from moeplan.model.dense_ffn import DenseFFN
from moeplan.model.spec import ModelSpec
from moeplan.parallel.jobs import ServingJob
from moeplan.parallel.serving import ServingPlan
from moeplan.plan.export.engine import (
    Arguments,
    Refusals,
    Subject,
    continued,
    degrees_of,
    options,
)
from moeplan.quantity import plain
from moeplan.units import fmt_time

__all__ = [
    "MOST_ROWS",
    "Instance",
    "cache_format",
    "common_notes",
    "has_dense",
    "heading",
    "instances",
    "job_of",
    "new_tokens",
    "sequences",
    "served_command",
    "weight_format",
]

MOST_ROWS = 1024
"""Rows of one GPU that DeepEP's low-latency kernels take at most (SGLang 0.5.23 asserts it in
layers/moe/token_dispatcher/deepep.py, with the reason)."""


@dataclass(frozen=True)
class Instance:
    """One engine of a plan, `count` of which run (None: the plan does not say).

    role: what it computes. ep, etp: GPUs over which experts are divided, whole and in width (1, 1
    without experts). hosts, each: machines of one instance and its GPUs on each. batch: sequences
    decoded together on one instance (None: not known). stages: layers of the pipeline's stages, if
    the plan lists them.
    """

    role: Literal["both", "prefill", "decode"]
    tp: int
    pp: int
    dp: int
    ep: int
    etp: int
    count: int | None
    hosts: int
    each: int
    batch: int | None
    stages: tuple[int, ...] | None

    @property
    def gpus(self) -> int:
        """GPUs of one instance."""
        return self.tp * self.pp * self.dp


def job_of(subject: Subject, title: str) -> ServingJob:
    """The job, or `UserError` where the plan trains."""
    job = subject.chosen.job
    if not isinstance(job, ServingJob):
        raise UserError(
            f"{title} serves, and the plan is of training: export it to megatron-lm or torchtitan"
        )
    return job


def instances(subject: Subject, no: Refusals) -> tuple[list[Instance], list[str]]:
    """The engines of a plan, those that prefill first, with notes. What is impossible goes to `no`.

    Raises `UserError` for a layout that is not legal. An engine has no copies of experts within:
    a layout that does is as many engines, each with its share of the sequences.
    """
    chosen, job = subject.chosen, job_of(subject, no.engine)
    notes: list[str] = []
    pools: list[tuple[Any, Layout, int | None]]
    if not job.disaggregated and chosen.prefill is None:
        pools = [("both", chosen.layout, chosen.instances)]
    elif chosen.prefill is not None:
        pools = [("prefill", chosen.prefill, chosen.prefill_instances),
                 ("decode", chosen.layout, chosen.instances)]  # fmt: skip
    else:
        pools = [("prefill", chosen.layout, None), ("decode", chosen.layout, chosen.instances)]
        notes.append(
            "the plan does not say how many instances prefill: theirs is the layout of decoding"
        )
    plan = ServingPlan(subject.spec, subject.cluster, job)
    out = []
    for role, layout, count in pools:
        found = plan.evaluate(layout, layout.values["world"] if chosen.pooled else None)
        one, copies = _instance(subject, role, layout, count, found, no)
        out.append(one)
        if copies > 1:
            notes.append(
                f"the layout{_of(role)} holds {copies} copies of each expert (edp={copies}): "
                f"they are {copies} instances of dp={one.dp}, behind a load balancer"
            )
        if not found["fits"]:
            notes.append(f"DOES NOT FIT{_of(role)}: weights and one sequence exceed a GPU's memory")
        elif role != "prefill":
            notes += _missed(job, found)
    return out, notes


def _missed(job: ServingJob, found: Mapping[str, Any]) -> list[str]:
    """A note where the plan's own limit is not met."""
    limit = plain(job.tpot)
    if limit is None or found["tpot"] <= limit * (1 + 1e-9):
        return []
    return [
        f"the TPOT limit of {fmt_time(limit)} IS NOT MET: a token takes {fmt_time(found['tpot'])} "
        f"with a batch of {found['batch']:,.0f}"
    ]


def _of(role: str) -> str:
    return "" if role == "both" else f" of {role}"


def _instance(
    subject: Subject,
    role: Any,
    layout: Layout,
    count: int | None,
    found: Mapping[str, Any],
    no: Refusals,
) -> tuple[Instance, int]:
    """One engine, and into how many a layout's copies of experts divide it."""
    d = degrees_of(layout)
    tp, pp, dp = d["tp"], d["pp"], d["dp"]
    copies = 1
    if subject.spec.moe is not None:
        expert = d["ep"] * d["etp"]
        no.unless(
            expert % tp == 0,
            f"ep*etp = {d['ep']}*{d['etp']} = {expert} is no multiple of tp={tp}, so that a "
            "tensor-parallel group holds copies of experts",
        )
        if expert % tp == 0:
            copies = tp * dp // expert
            dp //= copies
    gpus = tp * pp * dp
    hosts, each = subject.hosts(gpus)
    no.unless(
        hosts * each == gpus,
        f"{gpus} GPUs of an instance do not fill {hosts} hosts of {each}",
    )
    # each stage holds its share of an instance's sequences, so that stages are not counted
    batch = int(found["batch"]) // copies if found["fits"] and found["batch"] else None
    stages = layout.split if isinstance(layout.split, tuple) else None
    if layout.split not in ("even",) and stages is None and pp > 1:
        no.unless(False, f"split={layout.split}: write the stages as a list, layers=8+8+...")
    total = None if count is None else count * copies
    ep, etp = (d["ep"], d["etp"]) if subject.spec.moe is not None else (1, 1)
    return Instance(role, tp, pp, dp, ep, etp, total, hosts, each, batch, stages), copies


def weight_format(spec: ModelSpec, job: ServingJob, known: Mapping[str, str], no: Refusals) -> str:
    """The engine's name for quantising weights while they load; empty: as the checkpoint has them.

    known: moeplan's formats to the engine's names.
    """
    stored = spec.checkpoint.quantised or spec.checkpoint.base
    if job.weights is None or job.weights == stored.name:
        return ""
    if spec.checkpoint.quantised is not None:
        no.unless(
            False,
            f"weights={job.weights}: the checkpoint holds {stored.name}, and only bf16 weights are "
            "quantised while they load; name a model with such a checkpoint",
        )
    else:
        no.unless(
            job.weights in known,
            f"weights={job.weights}: quantised while loading are {', '.join(known)}",
        )
    return known.get(job.weights, "")


def cache_format(spec: ModelSpec, job: ServingJob, known: Mapping[str, str], no: Refusals) -> str:
    """The engine's name for the format of the key-value cache; empty: the engine's own choice."""
    name = job.cache or (str(spec.checkpoint.cache) if spec.checkpoint.cache else None)
    if name is None:
        return ""
    no.unless(name in known, f"cache={name}: key-value caches are {', '.join(known)}")
    return known.get(name, "")


def sequences(one: Instance, job: ServingJob, *, low_latency: bool) -> tuple[int, list[str]]:
    """Sequences that a data-parallel rank decodes together (0: not known), with a note if fewer
    than planned: kernels of low latency take so many rows, and guesses are rows too."""
    if one.batch is None or one.role == "prefill":
        return 0, []
    wanted = -(-one.batch // one.dp)
    most = MOST_ROWS // (int(plain(job.draft)) + 1)
    if not low_latency or wanted <= most:
        return wanted, []
    return most, [
        f"DeepEP's kernels of low latency take at most {MOST_ROWS:,} rows of a GPU: {most:,} "
        f"sequences decode on a data-parallel rank, where the plan has {wanted:,}"
    ]


def has_dense(spec: ModelSpec) -> bool:
    """Whether any layer has an FFN that all tokens pass, in the place of experts."""
    return any(isinstance(block, DenseFFN) for group in spec.groups for block in group.blocks)


def new_tokens(job: ServingJob) -> int:
    """Tokens of a request that are computed, cached ones left out, rounded up."""
    return -int(-plain(job.input) * (1 - plain(job.cached)) // 1)


def common_notes(job: ServingJob, length: str) -> list[str]:
    """What no engine is told, of what a plan assumes. length: the option of a request's length."""
    notes = [
        f"{length} is the plan's {plain(job.input):,} + {plain(job.output):,} tokens: raise it for "
        "longer requests"
    ]
    if plain(job.cached):
        notes.append(
            f"the plan takes {plain(job.cached):.0%} of the input from the prefix cache, which is "
            "on unless it is switched off"
        )
    if plain(job.overlap):
        notes.append(
            f"how much of the exchange runs under compute is the engine's affair: the plan "
            f"assumes {plain(job.overlap):.0%}"
        )
    return notes


def heading(one: Instance) -> list[str]:
    """Comment lines that say what is started, how often and where."""
    what = {"both": "Prefill and decoding", "prefill": "Prefill", "decode": "Decoding"}[one.role]
    gpus = f"{one.gpus:,} GPU{'s' if one.gpus > 1 else ''}"
    where = f" on {one.hosts:,} hosts of {one.each}" if one.hosts > 1 else ""
    if one.count is None:
        return [f"# {what}: as many instances of {gpus}{where} as are needed."]
    many = "1 instance" if one.count == 1 else f"{one.count:,} instances"
    return [f"# {what}: {many} of {gpus}{where}."]


def served_command(
    engine: str, head: str, args: Arguments, environment: Mapping[str, Any] | None = None
) -> list[str]:
    """A command, one option a line, after the variables of its environment."""
    known = options(engine)
    set_ = [f"{name}={value}" for name, value in (environment or {}).items()]
    assert all(name in known for name in environment or {}), "a variable is not in the table"
    if not set_:
        return [continued(head, args.lines())]
    return [continued(set_[0], [*set_[1:], head, *args.lines()])]
