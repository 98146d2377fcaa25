"""Predict published training runs from their layouts, and print the errors.

    python benchmarks/training_rows.py FOLDER [--json PATH]

FOLDER holds training_throughput.csv (NVIDIA Megatron-Bridge performance summary). The stack
"kernels" was fitted to none of its rows; "megatron-bridge" has two fitted figures, from the
containers 26.x, so the 25.x rows are the test of it. The table does not say what was recomputed,
so nothing is: memory that exceeds the GPU's ("fits" false) means that the run recomputed, or that
the memory model is too high, and the table cannot tell which.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import Layout
from moeplan.load import load_preset
from moeplan.parallel import BINDS, TrainingJob, evaluate_training

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
STACKS = ("kernels", "calibrated", "megatron-bridge")


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


def predictions(path: Path) -> Iterator[dict[str, Any]]:
    """One entry for each row of the table."""
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = row["model"].partition(" (")[0]
            layout = layout_of(row)
            # the oldest rows leave the precision out; they exceed what bf16 could reach
            precision: Any = "bf16" if row["precision"] == "BF16" else "fp8"
            found = {}
            for stack in STACKS:
                job = TrainingJob(
                    sequence=int(row["seq"]), precision=precision, stack=stack,
                    mtp=name == "DeepSeekV3",
                )  # fmt: skip
                machine = cluster(f"{SYSTEMS[row['system']]}x{row['gpus']}")
                found[stack] = evaluate_training(load_preset(MODELS[name]), layout, machine, job)
            published = float(row["tok_s_gpu"])
            last = found["megatron-bridge"]
            yield {
                "container": row["container"].split()[0],
                "model": name,
                "gpus": f"{row['gpus']} {row['system'][4:]}",
                "precision": precision,
                "layout": str(layout),
                "published": published,
                **{s: f["tokens_per_second_per_gpu"] / published - 1 for s, f in found.items()},
                "fits": bool(last["fits"]),
                "flops_per_token": last["step_flops"] / (layout.batch * int(row["seq"])),
                "share_compute": last["time_compute"] / last["step"],
                "largest": BINDS[last["binds"]],
            }


def bill() -> dict[str, Any]:
    """DeepSeek-V3's pre-training: 14.8 T tokens, 2.664 M H800-hours."""
    layout = Layout.parse(
        "pp=16,ep=64,schedule=dualpipe,overlap=dualpipe,batch=15360,"
        "recompute=selective:norm+activation+up_projection+permute",
        gpus=2048,
    )
    out: dict[str, Any] = {"layout": str(layout), "published_hours": 2.664e6}
    for stack in STACKS:
        job = TrainingJob(
            tokens=14.8e12, precision="fp8", dispatch="fp8", kept="fp8", stack=stack,
            optimizer="adamw-bf16-moments",
        )  # fmt: skip
        found = evaluate_training(load_preset("deepseek-v3"), layout, cluster("h800x2048"), job)
        out[stack] = {
            key: found[key]
            for key in ("gpu_hours", "dollars", "tokens_per_second_per_gpu", "mfu", "memory")
        }
        out[stack]["error"] = found["gpu_hours"] / out["published_hours"] - 1
    return out


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = list(predictions(given.folder / "training_throughput.csv"))
    for row in rows:
        errors = "  ".join(f"{stack} {row[stack]:+.0%}" for stack in STACKS)
        print(f"{row['container']:9}{row['model']:17}{row['gpus']:10}", end="")
        print(f"{row['published']:8.0f}  {errors}")
    for stack in STACKS:
        for what, chosen in (("26.x", True), ("25.x", False)):
            errors = [abs(r[stack]) for r in rows if r["container"].startswith("26") == chosen]
            print(f"{stack}, {what}: median |error| {statistics.median(errors):.0%}")
    found = bill()
    print(f"DeepSeek-V3: {found['published_hours']:,.0f} hours published;", end=" ")
    print(", ".join(f"{s} {found[s]['gpu_hours']:,.0f} ({found[s]['error']:+.0%})" for s in STACKS))
    if given.json:
        text = json.dumps({"rows": rows, "bill": found}, indent=1)
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
