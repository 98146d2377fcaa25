"""Megatron-LM: the arguments of pretrain_gpt.py under torchrun."""

from __future__ import annotations

from itertools import groupby

from moeplan.cluster.layout import Layout
from moeplan.parallel.costs import HIDDEN
from moeplan.parallel.jobs import TrainingJob
from moeplan.parallel.stages import divide_layers
from moeplan.plan.export.engine import Arguments, Exported, Refusals, Subject, continued
from moeplan.plan.export.megatron_model import model_arguments
from moeplan.quantity import plain

__all__ = ["megatron"]

NAME = "megatron-lm"
# What a group of selective recomputation is called; those that are missing have no module.
_MODULES = {"norm": "layernorm", "activation": "moe_act", "up_projection": "mla_up_proj"}
_MOMENTS = {"adamw-bf16-moments": "bf16", "adamw-8bit": "fp8"}
_SHARDING = {2: "optim_grads", 3: "optim_grads_params"}


def megatron(subject: Subject) -> Exported:
    """The training of a choice as a command. `UserError` for what Megatron-LM cannot express."""
    job = subject.chosen.job
    assert isinstance(job, TrainingJob)
    no, args = Refusals("Megatron-LM"), Arguments(NAME)
    notes = model_arguments(subject.spec, args, no, mtp=job.mtp)
    notes += _parallel(subject, args, no)
    notes += _pipeline(subject, job, args, no)
    notes += _step(subject, job, args)
    notes += _recompute(subject, args, no)
    notes += _exchange(subject, job, args)
    no.stop()
    hosts, each = subject.hosts(subject.degrees["world"])
    launch = continued(
        "torchrun",
        [
            f"--nnodes {hosts} --nproc-per-node {each} --node-rank $NODE_RANK",
            "--master-addr $MASTER_ADDR --master-port $MASTER_PORT",
            "pretrain_gpt.py",
            *args.lines(),
            '"${MORE[@]}"',
        ],
    )
    script = (_connections(subject, args), launch)
    return Exported(NAME, script, {"train": args.words}, tuple(notes))


def _connections(subject: Subject, args: Arguments) -> str:
    """Work queues of a GPU, as release 0.19.2 asks for them (validate_args in arguments.py).

    One keeps the order in which tp and cp overlap before Blackwell; Megatron-FSDP refuses one, and
    the overlap of all-to-all wants many.
    """
    v, words = subject.degrees, args.words
    if "--use-megatron-fsdp" in words:
        return "unset CUDA_DEVICE_MAX_CONNECTIONS"
    many = "--overlap-moe-expert-parallel-comm" in words and v["tp"] * v["cp"] == 1
    return f"export CUDA_DEVICE_MAX_CONNECTIONS={32 if many else 1}"


def _parallel(subject: Subject, args: Arguments, no: Refusals) -> list[str]:
    v, layout, notes = subject.degrees, subject.layout, []
    args.group("parallel")
    for option, name in (
        ("tensor-model", "tp"), ("pipeline-model", "pp"), ("context", "cp"),
    ):  # fmt: skip
        args.add(f"--{option}-parallel-size", v[name])
    if subject.spec.moe is not None:
        args.add("--expert-model-parallel-size", v["ep"])
        args.add("--expert-tensor-parallel-size", v["etp"])
        no.unless(
            v["tp"] == 1 or layout.sp, "experts beside tp > 1 need sequence parallelism, sp=1"
        )
    args.flag(layout.sp and v["tp"] > 1, "--sequence-parallel")
    no.unless(layout.order == "tp-cp-ep-dp-pp", f"ranks in the order {layout.order}: "
              "--use-tp-pp-dp-mapping leaves out ep and cp")  # fmt: skip
    if v["zero"] == 1:
        args.add("--use-distributed-optimizer")
    elif v["zero"] > 1:
        args.add("--use-distributed-optimizer")
        args.add("--use-megatron-fsdp")
        args.add("--data-parallel-sharding-strategy", _SHARDING[v["zero"]])
        args.add("--ckpt-format", "fsdp_dtensor")
        job = subject.chosen.job
        no.unless(getattr(job, "optimizer", "") != "muon", f"zero={v['zero']} with muon: "
                  "Megatron-FSDP has Adam and SGD only")  # fmt: skip
        if v["pp"] > 1:
            notes.append("whether Megatron-FSDP (zero >= 2) runs with pipeline parallelism in your "
                         "version was not verified")  # fmt: skip
    return notes


def _pipeline(subject: Subject, job: TrainingJob, args: Arguments, no: Refusals) -> list[str]:
    v, layout = subject.degrees, subject.layout
    notes: list[str] = []
    if layout.schedule in ("zero-bubble", "dualpipe"):
        no.unless(False, f"schedule {layout.schedule}: it runs 1f1b and interleaved (and "
                  "overlaps all-to-all in interleaved with overlap=all-to-all), so plan with "
                  "--schedule 1f1b,interleaved")  # fmt: skip
        return notes
    if v["pp"] == 1:
        return notes
    modules = int(sum(g.number for g in subject.spec.groups if g.role == "mtp")) * job.mtp
    args.add("--pipeline-model-parallel-layout", stage_text(layout, int(subject.spec.layers),
                                                            modules))  # fmt: skip
    if v["vpp"] > 1:
        hidden = HIDDEN[layout.overlap]["pp"]
        args.flag(not hidden, "--no-overlap-p2p-communication")
    return notes


def stage_text(layout: Layout, layers: int, modules: int) -> str:
    """The (virtual) stages in Megatron-LM's words: E, t, m, L for embedding, layer, MTP, loss.

    Stage i is chunk i // pp of rank i % pp, as in `moeplan.parallel.stages`.
    """
    v = layout.values
    counts = divide_layers(layers, int(v["pp"] * v["vpp"]), layout.split)
    stages = ["t" * n for n in counts]
    stages[0] = f"E{stages[0]}"
    stages[-1] += "m" * modules + "L"
    return "|".join(_short(stage) for stage in stages)


def _short(stage: str) -> str:
    """tttt as t*4."""
    runs = ((letter, len(list(same))) for letter, same in groupby(stage))
    return "".join(letter if n == 1 else f"{letter}*{n}" for letter, n in runs)


def _step(subject: Subject, job: TrainingJob, args: Arguments) -> list[str]:
    v, notes = subject.degrees, []
    args.group("step")
    args.add("--seq-length", plain(job.sequence))
    args.add("--max-position-embeddings", plain(job.sequence))
    args.add("--micro-batch-size", v["microbatch"])
    args.add("--global-batch-size", v["batch"])
    if job.tokens is not None:
        args.add("--train-samples", -(-int(plain(job.tokens)) // int(plain(job.sequence))))
    args.add("--bf16")
    if job.precision == "fp8":
        blackwell = any(name.endswith("fp4") for name in subject.cluster.gpu.peaks)
        args.add("--fp8-format", "e4m3")
        args.add("--fp8-recipe", "mxfp8" if blackwell else "blockwise")
    notes += _optimizer(job, args)
    if job.kept == "fp8":
        notes.append("kept=fp8 is no option of its own: Transformer Engine keeps the inputs of fp8 "
                     "matmuls in fp8, and the rest in bf16")  # fmt: skip
    hidden = HIDDEN[subject.layout.overlap]
    if hidden["dp"] and v["dp"] * v["cp"] > 1:
        args.add("--overlap-grad-reduce")
        args.flag(v["zero"] > 0, "--overlap-param-gather")
    return notes


def _optimizer(job: TrainingJob, args: Arguments) -> list[str]:
    if job.optimizer in _MOMENTS:
        dtype = _MOMENTS[job.optimizer]
        args.add("--use-precision-aware-optimizer")
        args.flag(job.optimizer == "adamw-8bit", "--main-grads-dtype", "bf16")
        args.add("--exp-avg-dtype", dtype)
        args.add("--exp-avg-sq-dtype", dtype)
    elif job.optimizer == "adamw-bf16-grads":
        args.add("--grad-reduce-in-bf16")
    elif job.optimizer == "muon":
        args.add("--optimizer", "muon")
    elif job.optimizer == "sgd-momentum":
        args.add("--optimizer", "sgd")
    elif job.optimizer != "adamw-fp32":
        return [f"optimizer {job.optimizer} has no option here: Adam with fp32 state is launched, "
                "which needs more memory than planned"]  # fmt: skip
    return []


def _recompute(subject: Subject, args: Arguments, no: Refusals) -> list[str]:
    layout, notes = subject.layout, []
    if layout.recompute == "full":
        args.add("--recompute-granularity", "full")
        args.add("--recompute-method", "uniform")
        args.add("--recompute-num-layers", 1)
    elif layout.recompute == "selective":
        unknown = [group for group in layout.selective if group not in _MODULES]
        no.unless(not unknown, f"recomputing {', '.join(unknown)} alone: modules are layernorm, "
                  "moe_act and mla_up_proj, or the whole moe")  # fmt: skip
        latent = any(name == "--multi-latent-attention" for name in args.words)
        groups = [g for g in layout.selective if latent or g != "up_projection"]
        if subject.spec.moe is None and "activation" in groups:
            groups.remove("activation")  # moe_act is refused where there are no experts
            notes.append("the activation of FFNs that all tokens pass is kept: no module "
                         "recomputes it alone, which the plan does not count")  # fmt: skip
        no.unless(bool(groups), "recomputing the activation of dense FFNs alone")
        args.add("--recompute-granularity", "selective")
        args.add("--recompute-modules", *(_MODULES[g] for g in groups if g in _MODULES))
        if "activation" in groups:
            notes.append("moe_act recomputes the activation in experts; those of dense layers and "
                         "shared experts are kept, which the plan does not count")  # fmt: skip
    return notes


def _exchange(subject: Subject, job: TrainingJob, args: Arguments) -> list[str]:
    v, layout = subject.degrees, subject.layout
    notes: list[str] = []
    if subject.spec.moe is None or v["ep"] * v["etp"] == 1:
        return notes
    args.group("exchange")
    if job.policy == "copies" or v["ep"] == 1:
        args.add("--moe-token-dispatcher-type", "alltoall")
    else:  # DeepEP sends a token once to a node, and there once to a GPU
        args.add("--moe-token-dispatcher-type", "flex")
        args.add("--moe-flex-dispatcher-backend", "deepep")
        if job.policy == "per-gpu":
            notes.append("policy per-gpu: DeepEP sends once to a node, too, so less leaves a node")
    if job.dispatch != "bf16" or job.combine != "bf16":
        notes.append(f"rows dispatched in {job.dispatch} and combined in {job.combine} are no "
                     "option: bf16 rows are sent")  # fmt: skip
    if HIDDEN[layout.overlap]["ep"]:
        args.add("--overlap-moe-expert-parallel-comm")
        if v["pp"] > 1 and v["vpp"] == 1:
            notes.append("--overlap-moe-expert-parallel-comm needs interleaving where pp > 1")
    if layout.overlap == "dualpipe":
        notes.append("overlap=dualpipe is written as the overlap of all-to-all in 1f1b")
    return notes
