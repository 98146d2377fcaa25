"""SGLang: the arguments of `python -m sglang.launch_server`, for each kind of instance."""

from __future__ import annotations

from moeplan.cluster.layout import Layout
from moeplan.parallel.jobs import ServingJob
from moeplan.plan.export.engine import Arguments, Exported, Refusals, Subject, checkpoint, continued
from moeplan.plan.export.serving import (
    cache_notes,
    instance_notes,
    per_replica,
    phases,
    tokens,
    weight_format,
)
from moeplan.quantity import plain

__all__ = ["sglang"]

NAME = "sglang"
_CACHE = {"fp8": "fp8_e4m3", "fp8-e4m3": "fp8_e4m3", "bf16": "bf16"}
_MODES = {"": "auto", "prefill": "normal", "decode": "low_latency"}


def sglang(subject: Subject) -> Exported:
    """An instance as commands. `UserError` for what SGLang cannot express."""
    job = subject.chosen.job
    assert isinstance(job, ServingJob)
    model, notes = checkpoint(subject)
    no = Refusals("SGLang")
    script, arguments = [], {}
    for phase, layout in phases(subject.chosen):
        args = Arguments(NAME)
        args.group("model")
        args.add("--model-path", model)
        notes += _parallel(subject, layout, phase, args, no)
        notes += _run(subject, job, layout, phase, args, no)
        script += _commands(subject, layout, phase, args)
        arguments[phase or "serve"] = args.words
    no.stop()
    notes += instance_notes(subject.chosen, "SGLang")
    return Exported(NAME, tuple(script), arguments, tuple(dict.fromkeys(notes)))


def _parallel(
    subject: Subject, layout: Layout, phase: str, args: Arguments, no: Refusals
) -> list[str]:
    """tp-size is all GPUs of a pipeline stage where data-parallel ranks share the experts."""
    v, notes = {name: int(x) for name, x in layout.values.items()}, []
    experts, both = v["ep"] * v["etp"], v["tp"] * v["dp"]
    no.unless(v["cp"] == 1, f"cp={v['cp']}: its context parallelism is of prefill alone")
    dense = subject.spec.moe is None
    shared = v["dp"] > 1 and experts == both and not dense
    no.unless(dense or shared or experts == v["tp"],
              f"ep*etp = {experts} beside tp*dp = {v['tp']}*{v['dp']}: experts are divided over "
              "tp, or over all of tp*dp")  # fmt: skip
    args.group("parallel")
    args.add("--tp-size", both if shared else v["tp"])
    args.add("--pp-size", v["pp"])
    args.add("--dp-size", v["dp"])
    args.flag(shared, "--enable-dp-attention")
    args.flag(not dense, "--ep-size", v["ep"])
    if shared and v["etp"] == 1 and v["ep"] > 1:
        args.add("--moe-a2a-backend", "deepep")
        args.add("--deepep-mode", _MODES[phase])
    elif v["ep"] > 1:
        notes.append("experts take the tokens by all-gather and all-reduce, not by an exchange")
    return notes


def _run(
    subject: Subject, job: ServingJob, layout: Layout, phase: str, args: Arguments, no: Refusals
) -> list[str]:
    replicas = int(layout.values["dp"])
    args.flag(plain(job.overlap) > 0, "--enable-two-batch-overlap")
    args.group("run")
    args.add("--context-length", tokens(job))
    args.add("--max-running-requests", per_replica(subject, job, layout, phase) * replicas)
    if job.cache is not None:
        kind = _CACHE.get(job.cache)
        no.unless(kind is not None, f"a cache in {job.cache}")
        args.flag(kind is not None, "--kv-cache-dtype", kind)
    weight_format(subject, job, args, no)
    draft = int(plain(job.draft))
    if draft and phase != "prefill":
        args.add("--speculative-algorithm", "NEXTN")
        args.add("--speculative-num-steps", draft)
        args.add("--speculative-eagle-topk", 1)
        args.add("--speculative-num-draft-tokens", draft + 1)
    args.flag(bool(phase), "--disaggregation-mode", phase)
    return cache_notes(job)


def _commands(subject: Subject, layout: Layout, phase: str, args: Arguments) -> list[str]:
    gpus = int(layout.values["world"])
    hosts, _ = subject.hosts(gpus)
    title = f"# {phase or 'one'} instance: {gpus} GPUs on {hosts} host{'s' * (hosts > 1)}"
    lines = args.lines()
    if hosts > 1:
        title += " (run on each, NODE_RANK = 0, 1, ...)"
        lines += [
            f"--nnodes {hosts} --node-rank $NODE_RANK",
            '--dist-init-addr "$MASTER_ADDR:5000"',
        ]
    return [title, continued("python -m sglang.launch_server", lines), ""]
