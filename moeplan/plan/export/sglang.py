"""A plan of serving as the arguments of SGLang's `launch_server`.

SGLang's tensor-parallel size counts all GPUs of a stage, tp*dp of the plan, of which attention has
--attn-dp-size groups; experts are divided over it, --ep-size whole and the rest in width.
"""

from __future__ import annotations

from typing import Any

from moeplan.model.spec import ModelSpec
from moeplan.parallel.jobs import ServingJob
from moeplan.plan.export.engine import Arguments, Exported, Refusals, Subject, checkpoint
from moeplan.plan.export.serving import (
    Instance,
    cache_format,
    common_notes,
    has_dense,
    heading,
    instances,
    job_of,
    new_tokens,
    sequences,
    served_command,
    weight_format,
)
from moeplan.quantity import plain

__all__ = ["sglang"]

_WEIGHTS = {"fp8": "fp8", "mxfp8": "mxfp8", "nvfp4": "nvfp4_online"}
_CACHES = {"bf16": "bf16", "fp8": "fp8_e4m3", "mxfp8": "mxfp8"}
_ROWS = {"bf16": "bf16", "fp8": "fp8", "nvfp4": "nvfp4"}
_PORT = 20000
_USUAL_ROWS = 128  # that DeepEP has room for on a GPU, unless a variable says more


def sglang(subject: Subject) -> Exported:
    """The commands of a plan. `UserError` with all that SGLang cannot express."""
    spec, no = subject.spec, Refusals("SGLang")
    job = job_of(subject, no.engine)
    found, notes = instances(subject, no)
    moe = spec.moe is not None
    for one in found:
        no.unless(
            moe or one.dp == 1 or one.hosts == 1,
            f"dp={one.dp}: replicas of a model without experts stay on one host; write the layout "
            "of one replica, dp=1, and start that many",
        )
    if _sends(found):
        no.unless(
            job.dispatch in _ROWS,
            f"dispatch={job.dispatch}: DeepEP sends rows in {', '.join(_ROWS)}",
        )
    weights = weight_format(spec, job, _WEIGHTS, no)
    cache = cache_format(spec, job, _CACHES, no)
    no.stop()
    model, more = checkpoint(subject)
    notes += [*more, *_notes(job, spec, found), *common_notes(job, "--context-length")]
    script: list[str] = []
    arguments: dict[str, list[str]] = {}
    for one in found:
        low = bool(_sends([one])) and _mode(one, job) != "normal"
        many, fewer = sequences(one, job, low_latency=low)
        notes += fewer
        args = _arguments(one, model, job, many, spec)
        _formats(args, job, weights, cache)
        args.flag(one.role != "both", "--disaggregation-mode", one.role)
        script += heading(one)
        if one.hosts > 1:
            script.append(
                f"# On each of its hosts: NODE_RANK is 0 to {one.hosts - 1}, MASTER_ADDR the "
                "address of the first."
            )
        environment: dict[str, Any] = {}
        if one.stages is not None:
            environment["SGLANG_PP_LAYER_PARTITION"] = ",".join(map(str, one.stages))
        rows = many * (int(plain(job.draft)) + 1)
        if low and rows > _USUAL_ROWS:
            environment["SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"] = rows
        script += [
            *served_command("sglang", "python -m sglang.launch_server", args, environment),
            "",
        ]
        arguments[one.role] = args.words
    return Exported("sglang", tuple(script[:-1]), arguments, tuple(notes))


def _sends(found: list[Instance]) -> list[Instance]:
    """Instances whose exchange is DeepEP's: experts whole, one group over all GPUs of a stage."""
    return [one for one in found if one.ep > 1 and one.etp == 1]


def _arguments(one: Instance, model: str, job: ServingJob, many: int, spec: ModelSpec) -> Arguments:
    args = Arguments("sglang")
    moe = spec.moe is not None
    args.group("model")
    args.add("--model-path", model)
    args.group("layout")
    args.add("--tp-size", one.tp * one.dp if moe else one.tp)
    args.flag(one.pp > 1, "--pp-size", one.pp)
    args.flag(one.dp > 1, "--attn-dp-size" if moe else "--dp-size", one.dp)
    args.flag(one.ep > 1, "--ep-size", one.ep)
    if moe and one.dp > 1:  # the head over an attention group, dense FFNs whole, as the plan has
        args.add("--enable-dp-lm-head")
        args.flag(one.tp == 1 and has_dense(spec), "--moe-dense-tp-size", 1)
    if _sends([one]):
        args.add("--moe-a2a-backend", "deepep")
        args.add("--deepep-mode", _mode(one, job))
        args.add("--deepep-dispatcher-output-dtype", _ROWS[job.dispatch])
        args.flag(bool(plain(job.overlap)), "--enable-two-batch-overlap")
    _hosts(one, args)
    args.group("sizes")
    args.add("--context-length", plain(job.input) + plain(job.output))
    args.flag(many > 0, "--max-running-requests", many * one.dp)
    if one.role != "decode":  # SGLang divides it by the attention groups
        tokens = new_tokens(job) * plain(job.prefill_batch)
        args.add("--chunked-prefill-size", max(1, tokens) * (one.dp if moe else 1))
    return args


def _formats(args: Arguments, job: ServingJob, weights: str, cache: str) -> None:
    args.group("formats")
    args.flag(bool(weights), "--quantization", weights)
    args.flag(bool(cache), "--kv-cache-dtype", cache)
    _guesses(job, args)


def _hosts(one: Instance, args: Arguments) -> None:
    args.group("hosts")
    if one.hosts > 1:
        args.add("--nnodes", one.hosts)
        args.add("--node-rank", "$NODE_RANK")
        args.add("--dist-init-addr", f"$MASTER_ADDR:{_PORT}")


def _guesses(job: ServingJob, args: Arguments) -> None:
    """Tokens that MTP modules guess: one after another, and one more is checked than is guessed."""
    args.group("guesses")
    draft = int(plain(job.draft))
    if draft:
        args.add("--speculative-algorithm", "EAGLE")
        args.add("--speculative-num-steps", draft)
        args.add("--speculative-eagle-topk", 1)
        args.add("--speculative-num-draft-tokens", draft + 1)


def _mode(one: Instance, job: ServingJob) -> str:
    """DeepEP's kernels: low latency sends every copy, normal sends once to a node."""
    modes = {
        "prefill": {_kernels(job.prefill_policy)},
        "decode": {_kernels(job.decode_policy)},
        "both": {_kernels(job.prefill_policy), _kernels(job.decode_policy)},
    }[one.role]
    return modes.pop() if len(modes) == 1 else "auto"


def _kernels(policy: str) -> str:
    return "low_latency" if policy == "copies" else "normal"


def _notes(job: ServingJob, spec: ModelSpec, found: list[Instance]) -> list[str]:
    notes = []
    sent = _sends(found)
    if has_dense(spec) and any(one.dp > 1 and one.tp > 1 for one in found if spec.moe):
        notes.append(
            "dense FFNs are divided over all tp*dp GPUs of a stage, where the plan divides by tp"
        )
    if any(one.ep > 1 and one.etp > 1 for one in found):
        notes.append(
            "experts divided in width too exchange by all-gather and all-reduce over the stage; "
            "the plan counts an all-to-all"
        )
    if sent:
        planned = (job.prefill_policy, job.decode_policy)
        both = any(one.role == "both" for one in sent)
        if both and tuple(map(_kernels, planned)) == ("low_latency", "normal"):
            notes.append(
                "DeepEP's automatic mode prefills with normal kernels and decodes with those of "
                "low latency, the reverse of the plan"
            )
        if "per-gpu" in planned:
            notes.append("no kernels of DeepEP send a row once to each GPU: normal sends per node")
        if job.combine != "bf16":
            notes.append(f"rows come back in bf16, and the plan counts {job.combine}")
    elif plain(job.overlap):
        notes.append("two batches overlap where experts are exchanged by DeepEP only: not enabled")
    if job.disaggregated:
        notes.append(
            "a router in front pairs prefill with decoding; --disaggregation-ib-device names the "
            "network devices that carry the cache, if not all do"
        )
    return notes
