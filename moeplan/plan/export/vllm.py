"""A plan of serving as the arguments of `vllm serve`.

vLLM divides experts over all GPUs of a stage, tp*dp: whole with --enable-expert-parallel, in width
without. With dp=1 the rows of an exchange are summed over tp instead of being sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from moeplan.model.spec import ModelSpec
from moeplan.parallel.jobs import ServingJob
from moeplan.plan.export.engine import Arguments, Exported, Refusals, Subject, checkpoint
from moeplan.plan.export.serving import (
    MOST_ROWS,
    Instance,
    cache_format,
    common_notes,
    heading,
    instances,
    job_of,
    new_tokens,
    sequences,
    served_command,
    weight_format,
)
from moeplan.quantity import plain

__all__ = ["vllm"]

_WEIGHTS = {
    "fp8": "fp8_per_tensor",
    "fp8-block128": "fp8_per_block",
    "int8": "int8_per_channel_weight_only",
    "mxfp8": "mxfp8",
}
_CACHES = {"bf16": "bfloat16", "fp16": "float16", "fp8": "fp8"}
LOW_LATENCY = "deepep_low_latency"
_BACKENDS = {
    "copies": LOW_LATENCY,
    "per-gpu": "deepep_high_throughput",
    "per-node": "deepep_high_throughput",
}
"""What an exchange sends once -> kernels that send so; none sends once to each GPU."""


def vllm(subject: Subject) -> Exported:
    """The commands of a plan. `UserError` with all that vLLM cannot express."""
    spec, no = subject.spec, Refusals("vLLM")
    job = job_of(subject, no.engine)
    found, notes = instances(subject, no)
    for one in found:
        _divided(one, no)
    weights = weight_format(spec, job, _WEIGHTS, no)
    cache = cache_format(spec, job, _CACHES, no)
    no.stop()
    model, more = checkpoint(subject)
    notes += [*more, *_notes(job, spec, found), *common_notes(job, "--max-model-len")]
    head = f'vllm serve "{model}"' if model.startswith("$") else f"vllm serve {model}"
    script: list[str] = []
    arguments: dict[str, list[str]] = {}
    for one in found:
        script += heading(one)
        many, fewer = sequences(one, job, low_latency=_backend(one, job) == LOW_LATENCY)
        notes += fewer
        environment = {}
        if one.stages is not None:
            environment["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, one.stages))
        for name, comment, last in _hosts(one):
            args = _arguments(one, job, many, weights, cache)
            args.group("hosts")
            for option, *values in last:
                args.add(option, *values)
            script += [*comment, *served_command("vllm", head, args, environment), ""]
            arguments[name] = args.words
    return Exported("vllm", tuple(script[:-1]), arguments, tuple(notes))


def _divided(one: Instance, no: Refusals) -> None:
    pool = one.tp * one.dp
    no.unless(
        1 in (one.ep, one.etp) or pool == 1,
        f"ep={one.ep}, etp={one.etp}: experts are divided over the tp*dp = {pool} GPUs whole or "
        "in width, not both ways",
    )
    engine = one.tp * one.pp
    no.unless(
        one.hosts == 1 or one.each % engine == 0 or engine % one.each == 0,
        f"tp*pp = {one.tp}*{one.pp} = {engine} GPUs neither divide a host of {one.each} nor fill "
        "hosts",
    )


def _arguments(one: Instance, job: ServingJob, many: int, weights: str, cache: str) -> Arguments:
    args = Arguments("vllm")
    args.group("layout")
    args.add("--tensor-parallel-size", one.tp)
    args.flag(one.pp > 1, "--pipeline-parallel-size", one.pp)
    args.flag(one.dp > 1, "--data-parallel-size", one.dp)
    args.flag(one.ep > 1, "--enable-expert-parallel")
    if backend := _backend(one, job):
        args.add("--all2all-backend", backend)
        args.flag(bool(plain(job.overlap)), "--enable-dbo")
    args.group("sizes")
    args.add("--max-model-len", plain(job.input) + plain(job.output))
    args.flag(many > 0, "--max-num-seqs", many)
    if tokens := _batched_tokens(one, job, many):
        args.add("--max-num-batched-tokens", tokens)
    args.group("formats")
    args.flag(bool(weights), "--quantization", weights)
    args.flag(bool(cache), "--kv-cache-dtype", cache)
    args.group("more")
    if plain(job.draft):
        guess = {"method": "mtp", "num_speculative_tokens": int(plain(job.draft))}
        args.add("--speculative-config", json.dumps(guess))
    if one.role != "both":
        role = {"prefill": "kv_producer", "decode": "kv_consumer"}[one.role]
        transfer = {"kv_connector": "NixlConnector", "kv_role": role}
        args.add("--kv-transfer-config", json.dumps(transfer))
    return args


def _backend(one: Instance, job: ServingJob) -> str:
    """Kernels of the exchange; empty where rows are not sent."""
    return _BACKENDS[_policy(one, job)] if one.ep > 1 and one.dp > 1 else ""


def _batched_tokens(one: Instance, job: ServingJob, many: int) -> int:
    """Tokens of a pass on a data-parallel rank; 0 leaves vLLM's default (256 with low latency)."""
    tokens = many * (int(plain(job.draft)) + 1)
    if one.role != "decode":
        tokens = max(new_tokens(job) * plain(job.prefill_batch), tokens, 1)
    return min(tokens, MOST_ROWS) if _backend(one, job) == LOW_LATENCY else tokens


def _policy(one: Instance, job: ServingJob) -> str:
    return job.prefill_policy if one.role == "prefill" else job.decode_policy


def _hosts(one: Instance) -> Iterator[tuple[str, list[str], list[tuple[str, ...]]]]:
    """Of each command of an instance its name, comment and options.

    One is for the first of several hosts, one for the others; what differs between instances and
    between hosts are the shell's variables MASTER_ADDR and NODE_RANK.
    """
    if one.hosts == 1:
        yield one.role, [], []
        return
    first = ["# On its first host; MASTER_ADDR is the address of that host:"]
    others = [f"# On each of its other hosts, where NODE_RANK is 1 to {one.hosts - 1}:"]
    if one.hosts == 2:
        others = ["# On its other host, where NODE_RANK is 1:"]
    local = one.each // (one.tp * one.pp)
    if local:  # whole data-parallel ranks on a host
        same: list[tuple[str, ...]] = [("--data-parallel-size-local", str(local)),
                                       ("--data-parallel-address", "$MASTER_ADDR")]  # fmt: skip
        start = f"$((NODE_RANK * {local}))"
        more = [("--data-parallel-start-rank", start), ("--headless",)]
        yield one.role, first, same
        yield f"{one.role}, other hosts", others, [*same, *more]
        return
    same = [("--nnodes", str(one.hosts)), ("--master-addr", "$MASTER_ADDR")]
    yield one.role, first, [*same, ("--node-rank", "0")]
    yield (
        f"{one.role}, other hosts",
        others,
        [*same, ("--node-rank", "$NODE_RANK"), ("--headless",)],
    )


def _notes(job: ServingJob, spec: ModelSpec, found: list[Instance]) -> list[str]:
    notes = []
    wide = [one for one in found if one.ep > 1]
    if any(one.dp == 1 for one in wide):
        notes.append(
            "with dp=1 vLLM sums experts' outputs over the tp GPUs (all-reduce), where the plan "
            "counts an all-to-all"
        )
    sent = [one for one in wide if one.dp > 1]
    if sent:
        notes += _exchange(job, spec, sent)
    elif plain(job.overlap):
        notes.append("two batches overlap where rows are sent (ep and dp above 1): not enabled")
    if any(one.pp > 1 and one.dp > 1 for one in found):
        notes.append(
            "the stages of a data-parallel rank stand beside each other in vLLM; the plan places "
            "data-parallel ranks beside each other, then stages"
        )
    if job.disaggregated:
        notes.append(
            "a router in front pairs prefill with decoding, and VLLM_NIXL_SIDE_CHANNEL_HOST is "
            "to be each host's own address"
        )
    return notes


def _exchange(job: ServingJob, spec: ModelSpec, sent: list[Instance]) -> list[str]:
    """What differs between the planned exchange and the kernels' own."""
    notes = []
    both = _BACKENDS[job.decode_policy] != _BACKENDS[job.prefill_policy]
    if both and any(one.role == "both" for one in sent):
        notes.append(
            f"an instance has one kind of exchange: it is decoding's ({job.decode_policy}), and "
            f"prefill, planned as {job.prefill_policy}, uses it too"
            + f", in chunks of at most {MOST_ROWS:,} tokens"
            * (job.decode_policy == "copies")
        )
    if "per-gpu" in {_policy(one, job) for one in sent}:
        notes.append("no exchange of vLLM sends a row once to each GPU: the nearest is per node")
    stored = spec.checkpoint.quantised or spec.checkpoint.base
    name = job.weights or stored.name
    sent_in = {"fp8-block128": "fp8", "fp8": "bf16", "bf16": "bf16", "fp16": "fp16"}.get(name)
    if sent_in != job.dispatch:
        rule = f"{sent_in} with" if sent_in else "in a format of its own with"
        notes.append(
            f"rows are dispatched {rule} experts in {name}, and no option says otherwise: the plan "
            f"counts {job.dispatch}"
        )
    if job.combine != "bf16":
        notes.append(f"rows come back in bf16, and the plan counts {job.combine}")
    return notes
