"""vLLM: the arguments of `vllm serve`, for each host of an instance."""

from __future__ import annotations

import json

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

__all__ = ["vllm"]

NAME = "vllm"
_BACKENDS = {"prefill": "deepep_high_throughput", "decode": "deepep_low_latency"}
_CACHE = {"fp8": "fp8", "fp8-e4m3": "fp8", "bf16": "bfloat16"}


def vllm(subject: Subject) -> Exported:
    """An instance as commands. `UserError` for what vLLM cannot express."""
    job = subject.chosen.job
    assert isinstance(job, ServingJob)
    model, notes = checkpoint(subject)
    no = Refusals("vLLM")
    script, arguments = [], {}
    for phase, layout in phases(subject.chosen):
        args = Arguments(NAME)
        _parallel(subject, layout, args, no)
        notes += _run(subject, job, layout, phase, args, no)
        script += _commands(subject, layout, phase, model, args)
        arguments[phase or "serve"] = args.words
    no.stop()
    notes += instance_notes(subject.chosen, "vLLM")
    return Exported(NAME, tuple(script), arguments, tuple(dict.fromkeys(notes)))


def _parallel(subject: Subject, layout: Layout, args: Arguments, no: Refusals) -> None:
    v = {name: int(x) for name, x in layout.values.items()}
    attention, experts = v["tp"] * v["dp"], v["ep"] * v["etp"]
    no.unless(v["cp"] == 1, f"cp={v['cp']}: its context parallelism divides no prefill as planned")
    if subject.spec.moe is not None:
        no.unless(v["ep"] == 1 or v["etp"] == 1, f"ep={v['ep']} beside etp={v['etp']}: experts are "
                  "divided whole (etp=1), or each by its width (ep=1)")  # fmt: skip
        no.unless(experts == attention, f"ep*etp = {experts} beside tp*dp = {attention}: experts "
                  "are divided over all of tp*dp; run independent copies as instances")  # fmt: skip
    args.group("parallel")
    args.add("--tensor-parallel-size", v["tp"])
    args.add("--pipeline-parallel-size", v["pp"])
    args.add("--data-parallel-size", v["dp"])
    args.flag(v["ep"] > 1, "--enable-expert-parallel")


def _run(
    subject: Subject, job: ServingJob, layout: Layout, phase: str, args: Arguments, no: Refusals
) -> list[str]:
    v, notes = layout.values, []
    policy = job.prefill_policy if phase == "prefill" else job.decode_policy
    if v["ep"] > 1 and v["dp"] > 1:
        args.add("--all2all-backend", _BACKENDS[phase or "decode"])
        if phase == "":
            notes.append("one backend serves both phases: deepep_low_latency sends every copy, in "
                         "prefill too")  # fmt: skip
    elif v["ep"] > 1:
        notes.append(
            f"with dp=1 experts take the tokens by all-reduce, not by an exchange ({policy})"
        )
    args.flag(plain(job.overlap) > 0, "--enable-dbo")
    args.group("run")
    args.add("--max-model-len", tokens(job))
    args.add("--max-num-seqs", per_replica(subject, job, layout, phase))
    if job.cache is not None:
        kind = _CACHE.get(job.cache)
        no.unless(kind is not None, f"a cache in {job.cache}")
        args.flag(kind is not None, "--kv-cache-dtype", kind)
    notes += cache_notes(job)
    weight_format(subject, job, args, no)
    if plain(job.draft) and phase != "prefill":
        spec = {"method": "mtp", "num_speculative_tokens": int(plain(job.draft))}
        args.add("--speculative-config", json.dumps(spec))
    if phase:
        transfer = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
        args.add("--kv-transfer-config", json.dumps(transfer))
    return notes


def _commands(
    subject: Subject, layout: Layout, phase: str, model: str, args: Arguments
) -> list[str]:
    """One command for the first host, and one for the others where there are any."""
    v = {name: int(x) for name, x in layout.values.items()}
    hosts, each = subject.hosts(v["world"])
    title = f"# {phase or 'one'} instance: {v['world']} GPUs on {hosts} host{'s' * (hosts > 1)}"
    head = f'vllm serve "{model}"' if model.startswith("$") else f"vllm serve {model}"
    if hosts == 1:
        return [title, continued(head, args.lines()), ""]
    inner = v["tp"] * v["pp"]
    if inner > each:  # an engine of its own spans hosts
        more = [f"--nnodes {hosts} --node-rank $NODE_RANK", '--master-addr "$MASTER_ADDR"']
        if v["dp"] > 1:
            more.insert(0, "--data-parallel-backend ray")
        return [f"{title} (run on each)", continued(head, [*args.lines(), *more]), ""]
    local = each // inner
    shared = [
        *args.lines(),
        f"--data-parallel-size-local {local}",
        '--data-parallel-address "$MASTER_ADDR"',
        "--data-parallel-rpc-port 13345",
    ]
    first = continued(head, shared)
    start = f"--data-parallel-start-rank $(({local} * NODE_RANK))"
    other = continued(head, [*shared, start, "--headless"])
    return [title, first, "", "# on every other host, NODE_RANK = 1, 2, ...", other, ""]
