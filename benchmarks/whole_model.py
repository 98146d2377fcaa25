"""Predict published training and serving speeds from layouts, and print the errors.

    python benchmarks/whole_model.py FOLDER [--json PATH] [--fit]

FOLDER holds training_throughput.csv (NVIDIA Megatron-Bridge performance summary). Every figure
comes from `moeplan.parallel`, as `moeplan layout` gives it: "ops" is the stack `calibrated`, which
adds nothing for software, and beside it stands the stack of the framework. A stack's figures
(`busy`, `host`) are fitted to some of the rows, those marked so, and judged by the others; --fit
finds them anew. No GPU of these rows is an H200, so all op times are assumed (datasheet ratios).
The training table does not say what was recomputed, so nothing is: memory that exceeds the GPU's
("fits" false) means that the run recomputed, or that the memory model is too high.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from moeplan.cluster.hardware import Cluster, cluster
from moeplan.cluster.layout import Layout
from moeplan.load import load_preset
from moeplan.model.spec import ModelSpec
from moeplan.parallel import BINDS, ServingJob, ServingPlan, TrainingJob, TrainingPlan
from moeplan.parallel.calibrated import CalibratedTimes
from moeplan.parallel.optime import STACKS, RowTimes, row_times

MODELS = {
    "Qwen3_30B_a3B": "qwen3-30b-a3b",
    "Qwen3_235B_a22B": "qwen3-235b-a22b",
    "GPT OSS 120B": "gpt-oss-120b",
    "LLAMA3_8B": "llama-3.1-8b",
    "LLAMA3_70B": "llama-3.1-70b",
    "LLAMA3.1_405B": "llama-3.1-405b",
    "DeepSeekV3": "deepseek-v3",
    "Nemotron_3_Nano": "nemotron-3-nano-30b-a3b",
}
SYSTEMS = {"DGX-H100": "h100", "DGX-B200": "b200"}
FITTED = "26"  # containers of the rows that the training stack is fitted to
OPS = "calibrated"


class Run(NamedTuple):
    """A published training run."""

    container: str
    name: str
    spec: ModelSpec
    layout: Layout
    machine: Cluster
    job: TrainingJob
    published: float

    def found(self, times: RowTimes) -> dict[str, Any]:
        """The step by these times of ops."""
        return TrainingPlan(self.spec, self.machine, self.job, times=times).evaluate(self.layout)


class Serving(NamedTuple):
    """A published serving speed of DeepSeek-V3 in FP8, tokens a second and node of eight GPUs.

    by: who runs it. fitted: the stack's `busy` comes from this row. context: tokens of a sequence
    while it decodes. note: what stands in for what is not known.
    """

    by: str
    phase: str
    fitted: bool
    gpu: str
    gpus: int
    batch: int
    context: int
    per_node: float
    note: str


SERVING = (
    Serving("SGLang", "prefill", True, "h100", 32, 4, 4096, 52_300, "four prompts of 4,096 a GPU"),
    Serving("SGLang", "decode", False, "h100", 64, 256, 2050, 22_300, "EP64 for EP72"),
    Serving("DeepSeek", "prefill", False, "h800", 32, 4, 4096, 73_700 * (1 - 0.563),
            "without the cached part of the input; a mean over a day, idle hours included"),
    Serving("DeepSeek", "decode", False, "h800", 128, 88, 4989, 14_800,
            "88 sequences a GPU: 1,850 tokens a second at 21 for each; EP128 for EP144"),
)  # fmt: skip
"""Sources: SGLang's report on 96 H100, and DeepSeek's inference overview. What DeepSeek's engine
adds cannot be told from its idle hours, so the factor of SGLang's prefill stands beside it."""


# ------------------------------------------------------------------------------------- training
def layout_of(row: dict[str, str]) -> Layout:
    """The layout of a row. FSDP is ZeRO-3, otherwise the distributed optimizer runs."""
    gpus, tp, pp, cp = (int(row[name]) for name in ("gpus", "TP", "PP", "CP"))
    vpp = int(row["VP"] or 1) if pp > 1 else 1
    return Layout(
        tp=tp,
        pp=pp,
        cp=cp,
        vpp=vpp,
        dp=gpus // (tp * pp * cp),
        ep=int(float(row["EP"] or 1)),
        zero=3 if row["FSDP"] not in ("0", "") else 1,
        microbatch=int(row["MBS"]),
        batch=int(row["GBS"]),
        schedule="interleaved" if vpp > 1 else "1f1b",
    )


def runs(path: Path) -> Iterator[Run]:
    """Every row of the training table."""
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = row["model"].partition(" (")[0]
            # the oldest rows leave the precision out; they exceed what bf16 could reach
            precision: Any = "bf16" if row["precision"] == "BF16" else "fp8"
            job = TrainingJob(
                sequence=int(row["seq"]), precision=precision, mtp=name == "DeepSeekV3"
            )
            machine = cluster(f"{SYSTEMS[row['system']]}x{row['gpus']}")
            spec, layout = load_preset(MODELS[name]), layout_of(row)
            yield Run(row["container"].split()[0], name, spec, layout, machine, job,
                      float(row["tok_s_gpu"]))  # fmt: skip


def training(path: Path) -> Iterator[dict[str, Any]]:
    """One entry for each row of the table: speeds over the published one, minus one."""
    for run in runs(path):
        gpu = run.machine.gpu
        found = {s: run.found(row_times(gpu, s)) for s in ("datasheet", OPS, "megatron-bridge")}
        last, ops = found["megatron-bridge"], found[OPS]
        yield {
            "container": run.container,
            "model": run.name,
            "gpus": f"{run.machine.gpus.value} {gpu.id.partition('-')[0].upper()}",
            "precision": run.job.precision,
            "layout": str(run.layout),
            "published": run.published,
            "predicted": last["tokens_per_second_per_gpu"],
            **{s: f["tokens_per_second_per_gpu"] / run.published - 1 for s, f in found.items()},
            "slow": ops["tokens_per_second_per_gpu"] * ops["step"] / ops["step_upper"],
            "fast": ops["tokens_per_second_per_gpu"] * ops["step"] / ops["step_lower"],
            "fitted": run.container.startswith(FITTED),
            "fits": bool(last["fits"]),
            "flops_per_token": last["step_flops"] / (run.layout.batch * run.job.sequence),
            "largest": BINDS[last["binds"]],
        }


Figures = tuple[float, float]
GRID: tuple[Figures, ...] = tuple(
    itertools.product((0.85, 0.9, 0.95, 1.0), (1e-3 * ms for ms in range(8)))
)


def fit(path: Path, grid: Sequence[Figures] = GRID) -> Figures:
    """(busy, host) with the least mean |log(predicted / published)| on the fitted rows."""
    chosen = [run for run in runs(path) if run.container.startswith(FITTED)]
    base = STACKS["megatron-bridge"]

    def loss(at: Figures) -> float:
        stack = replace(base, busy=at[0], host=at[1])
        speeds = [
            run.found(CalibratedTimes(run.machine.gpu, stack))["tokens_per_second_per_gpu"]
            for run in chosen
        ]
        return mean(abs(math.log(s / r.published)) for s, r in zip(speeds, chosen, strict=True))

    return min(grid, key=loss)


def bill() -> dict[str, Any]:
    """DeepSeek-V3's pre-training: 14.8 T tokens, 2.664 M H800-hours."""
    layout = Layout.parse(
        "pp=16,ep=64,schedule=dualpipe,overlap=dualpipe,batch=15360,"
        "recompute=selective:norm+activation+up_projection+permute",
        gpus=2048,
    )
    out: dict[str, Any] = {"layout": str(layout), "published_hours": 2.664e6}
    for stack in ("datasheet", OPS, "megatron-bridge"):
        job = TrainingJob(
            tokens=14.8e12, precision="fp8", dispatch="fp8", kept="fp8", stack=stack,
            optimizer="adamw-bf16-moments",
        )  # fmt: skip
        plan = TrainingPlan(load_preset("deepseek-v3"), cluster("h800x2048"), job)
        found = plan.evaluate(layout)
        out[stack] = {
            key: found[key]
            for key in ("gpu_hours", "dollars", "tokens_per_second_per_gpu", "mfu", "memory")
        }
        out[stack]["error"] = found["gpu_hours"] / out["published_hours"] - 1
    return out


# -------------------------------------------------------------------------------------- serving
def served(s: Serving, stack: str) -> float:
    """Tokens a second and GPU of one phase on GPUs of its own."""
    job = ServingJob(
        input=s.context if s.phase == "prefill" else s.context - 64, output=128,
        batch=s.batch * s.gpus, prefill_batch=s.batch, overlap=1.0, disaggregated=True,
        stack=stack, decode_policy="copies",
    )  # fmt: skip
    plan = ServingPlan(load_preset("deepseek-v3"), cluster(f"{s.gpu}x{s.gpus}"), job)
    found = plan.evaluate(Layout(dp=s.gpus, ep=s.gpus))
    speed: float = found[f"{s.phase}_tokens_per_second_per_gpu"]
    return speed


def serving() -> Iterator[dict[str, Any]]:
    """The published serving speeds, by the ops alone and with SGLang's factor."""
    for s in SERVING:
        published = s.per_node / 8
        found = {stack: served(s, stack) for stack in ("datasheet", OPS, "sglang")}
        yield {
            "by": s.by,
            "phase": s.phase,
            "what": f"{s.gpu} EP{s.gpus}, {s.batch} sequences a GPU",
            "note": s.note,
            "published": published,
            "predicted": found["sglang"],
            **{stack: speed / published - 1 for stack, speed in found.items()},
            "fitted": s.fitted,
        }


def summary(rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Mean, median and largest error of some rows."""
    errors = [abs(row[key]) for row in rows]
    return {"rows": len(errors), "mean": mean(errors), "median": median(errors),
            "largest": max(errors)}  # fmt: skip


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where training_throughput.csv lies")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    parser.add_argument("--fit", action="store_true", help="fit the training stack anew")
    options = parser.parse_args()
    path = options.folder / "training_throughput.csv"
    if options.fit:
        busy, host = fit(path)
        print(f"megatron-bridge: busy {busy:g}, host {1e3 * host:g} ms")
        return
    rows = list(training(path))
    for row in rows:
        errors = "  ".join(f"{s} {row[s]:+.0%}" for s in ("datasheet", OPS, "megatron-bridge"))
        print(f"{row['container']:9}{row['model']:17}{row['gpus']:10}{row['published']:8.0f}  "
              f"{errors}{'  (fitted)' if row['fitted'] else ''}")  # fmt: skip
    for fitted in (True, False):
        for stack in (OPS, "megatron-bridge"):
            found = summary([r for r in rows if r["fitted"] is fitted], stack)
            print(f"{stack}, {'fitted' if fitted else 'other'} rows: mean {found['mean']:.0%}, "
                  f"median {found['median']:.0%}, largest {found['largest']:.0%}")  # fmt: skip
    lines = list(serving())
    for row in lines:
        print(f"{row['by']} {row['phase']}, {row['what']}: {row['published']:,.0f} published, "
              f"ops {row[OPS]:+.0%}, stack sglang {row['sglang']:+.0%}"
              f"{' (fitted)' if row['fitted'] else ''}")  # fmt: skip
    money = bill()
    print(f"DeepSeek-V3: {money['published_hours']:,.0f} hours published;", end=" ")
    told = (f"{s} {money[s]['gpu_hours']:,.0f} ({money[s]['error']:+.0%})"
            for s in (OPS, "megatron-bridge"))  # fmt: skip
    print(", ".join(told))
    if options.json:
        text = json.dumps({"training": rows, "serving": lines, "bill": money}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
