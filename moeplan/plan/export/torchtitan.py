"""torchtitan: a configuration, which is a Python function since its command line was frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeplan.errors import UserError
from moeplan.parallel.jobs import TrainingJob
from moeplan.parallel.stages import divide_layers
from moeplan.plan.export.engine import Exported, Refusals, Subject, continued, options
from moeplan.presets import preset
from moeplan.quantity import plain

__all__ = ["torchtitan"]

NAME = "torchtitan"
_RECIPES = {
    "deepseek-v3": "torchtitan_recipes.models.deepseek_v3:deepseek_v3_671b",
    "qwen3-32b": "torchtitan.models.qwen3.config_registry:qwen3_32b",
    "qwen3-30b-a3b": "torchtitan.models.qwen3.config_registry:qwen3_30b_a3b",
}
"""Presets of which torchtitan has a configuration, as module:function."""
_SCHEDULES = {"1f1b": "1F1B", "interleaved": "Interleaved1F1B"}


def torchtitan(subject: Subject, base: str | None = None) -> Exported:
    """The training of a choice as a configuration and the command that runs it.

    base: module:function of the configuration that it starts from. `UserError` for what torchtitan
    cannot express.
    """
    job = subject.chosen.job
    assert isinstance(job, TrainingJob)
    module, function = _base(subject, base)
    no = Refusals("torchtitan")
    settings, notes = _settings(subject, job, no)
    no.stop()
    name = "moeplan_plan"
    known = options(NAME)
    lines = []
    for key, value in settings.items():
        assert key in known, f"{key} is not in the table of options"
        lines.append(f"    config.{key} = {_written(key, value)}")
    imports = [f"from {module} import {function}"]
    remat = str(settings["activation_checkpoint"]).removesuffix("()")
    if remat != "None":
        where = "torchtitan.distributed.activation_checkpoint"
        imports.insert(0, f"from {where} import {remat}")
    text = "\n".join([*imports, "", "", f"def {name}():", f"    config = {function}()", *lines,
                      "    return config"])  # fmt: skip
    hosts, each = subject.hosts(subject.degrees["world"])
    launch = continued(
        "torchrun",
        [
            f"--nnodes {hosts} --nproc-per-node {each} --rdzv-backend c10d",
            '--rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT"',
            f"-m torchtitan.train --module {name} --config {name}",
        ],
    )
    return Exported(
        NAME,
        ('export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"', launch),
        {"train": [f"{key}={value!r}" for key, value in settings.items()]},
        tuple(notes),
        {f"{name}.py": text},
    )


def _written(key: str, value: Any) -> str:
    """A value as Python source; stages on a line each."""
    if key == "activation_checkpoint":
        return str(value)
    if isinstance(value, list):
        return "\n".join(["[", *(f"        {part!r}," for part in value), "    ]"])
    return repr(value)


def _base(subject: Subject, base: str | None) -> tuple[str, str]:
    if base is None:
        from moeplan.load import looks_like_path

        model = subject.chosen.model
        found = model if looks_like_path(model) else preset(model).name
        base = _RECIPES.get(found)
        if base is None:
            raise UserError(
                f"torchtitan has no configuration of {model} that is known here (known are "
                f"{', '.join(_RECIPES)}): name yours with --base MODULE:FUNCTION"
            )
    module, colon, function = base.partition(":")
    if not (colon and module and function.isidentifier()):
        raise UserError(f"--base {base!r} must be MODULE:FUNCTION, such as my_runs:my_model")
    return module, function


def _settings(subject: Subject, job: TrainingJob, no: Refusals) -> tuple[dict[str, Any], list[str]]:
    """Fields of the configuration, in order, and notes."""
    v, layout = subject.degrees, subject.layout
    sequence = int(plain(job.sequence))
    out, notes = _sharding(subject, no)
    out["parallelism.tensor_parallel_degree"] = v["tp"]
    if v["tp"] > 1:
        out["parallelism.enable_sequence_parallel"] = layout.sp
    out["parallelism.context_parallel_degree"] = v["cp"]
    out["parallelism.expert_parallel_degree"] = v["ep"]
    no.unless(v["etp"] == 1, f"etp={v['etp']}: it has no tensor parallelism of experts")
    no.unless(subject.spec.moe is None or v["ep"] >= v["tp"],
              f"ep={v['ep']} below tp={v['tp']}: experts need at least tp")  # fmt: skip
    no.unless(layout.order == "tp-cp-ep-dp-pp", f"ranks in the order {layout.order}")
    out |= _pipeline(subject, no)
    out["training.num_tokens_per_microbatch_per_dp_rank"] = v["microbatch"] * sequence
    out["training.num_tokens_per_train_step"] = v["batch"] * sequence
    out["training.max_context_length"] = sequence
    if job.tokens is not None:
        out["training.steps"] = -(-int(plain(job.tokens)) // (v["batch"] * sequence))
    kinds = {"none": "None", "selective": "SelectiveActivationRematConfig()",
             "full": "FullActivationRematConfig()"}  # fmt: skip
    out["activation_checkpoint"] = kinds[layout.recompute]
    return out, notes + _notes(subject, job)


def _sharding(subject: Subject, no: Refusals) -> tuple[dict[str, Any], list[str]]:
    v = subject.degrees
    notes: list[str] = []
    if v["zero"] == 0:
        no.unless(
            v["ep"] == 1, "zero=0 with ep > 1: experts are divided over sharded data parallel"
        )
        return {
            "parallelism.data_parallel_replicate_degree": v["dp"],
            "parallelism.data_parallel_shard_degree": 1,
        }, notes
    if v["zero"] == 1:
        notes.append("zero=1 is written as FSDP that keeps weights between passes, which divides "
                     "gradients too (zero=2): less memory than planned")  # fmt: skip
    return {
        "parallelism.data_parallel_replicate_degree": 1,
        "parallelism.data_parallel_shard_degree": v["dp"],
        "parallelism.fsdp_reshard_after_forward": "always" if v["zero"] == 3 else "never",
    }, notes


def _pipeline(subject: Subject, no: Refusals) -> dict[str, Any]:
    v, layout = subject.degrees, subject.layout
    out: dict[str, Any] = {"parallelism.pipeline_parallel_degree": v["pp"]}
    if layout.schedule not in _SCHEDULES:
        instead = "ZBVZeroBubble" if layout.schedule == "zero-bubble" else "DualPipeV"
        no.unless(False, f"schedule {layout.schedule}: it has the V-shaped {instead}, which places "
                  "layers and memory otherwise; plan with --schedule 1f1b,interleaved")  # fmt: skip
        return out
    if v["pp"] == 1:
        return out
    counts = divide_layers(int(subject.spec.layers), v["pp"] * v["vpp"], layout.split)
    out["parallelism.pipeline_parallel_schedule"] = _SCHEDULES[layout.schedule]
    out |= _stages(counts)
    out["parallelism.num_pp_microbatches"] = v["m"]
    return out


def _stages(counts: Sequence[int]) -> dict[str, Any]:
    """Layers of each stage: by their number where all but the ends have the same, else by name."""
    most = max(counts)
    names = "parallelism.pipeline_parallel_module_fqns_per_model_part"
    each = "parallelism.pipeline_parallel_layers_per_stage"
    if all(n == most for n in counts[1:-1]):
        return {
            names: None,
            each: most,
            "parallelism.pipeline_parallel_first_stage_less_layers": most - counts[0],
            "parallelism.pipeline_parallel_last_stage_less_layers": most - counts[-1],
        }
    starts = [sum(counts[:i]) for i in range(len(counts))]
    parts = [
        [f"layers.{layer}" for layer in range(start, start + n)]
        for start, n in zip(starts, counts, strict=True)
    ]
    parts[0].insert(0, "tok_embeddings")
    parts[-1] += ["norm", "lm_head"]
    return {each: None, names: parts}


def _notes(subject: Subject, job: TrainingJob) -> list[str]:
    layout, notes = subject.layout, []
    if layout.recompute == "selective":
        notes.append("selective recomputation is torchtitan's own choice of operations, not "
                     f"{', '.join(layout.selective)}")  # fmt: skip
    if job.mtp and any(g.role == "mtp" for g in subject.spec.groups):
        notes.append("the configuration that this starts from trains no MTP modules")
    if job.precision == "fp8":
        notes.append("fp8 is a converter of the model's configuration: choose it in the base")
    if job.optimizer != "adamw-fp32":
        notes.append(f"optimizer {job.optimizer}: torchtitan's is set in the base")
    if layout.overlap in ("all-to-all", "dualpipe"):
        notes.append(f"overlap={layout.overlap}: the exchange's backend is chosen in the base")
    if job.policy != "copies":
        notes.append(f"policy {job.policy} needs a base with DeepEP; else every copy is sent")
    return notes
