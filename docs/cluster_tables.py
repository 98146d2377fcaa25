"""Tables of docs/cluster.md: published memory accounts and training runs beside the predictions.

The training runs are no part of the project, so what benchmarks/training_rows.py printed last is
kept in benchmarks/results; a test compares it with a new run.
"""

from __future__ import annotations

import json
from typing import Any

from generated import ROOT, section, table
from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import Layout
from moeplan.load import load_preset
from moeplan.parallel import Overheads, TrainingJob, TrainingPlan
from moeplan.parallel.optime import STACKS
from moeplan.parallel.table import HIDDEN

__all__: list[str] = []

_NONE = Overheads(framework=0, fragmentation=0)


def _results() -> dict[str, Any]:
    path = ROOT / "benchmarks" / "results" / "training_rows.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _median(numbers: list[float]) -> float:
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else sum(ordered[middle - 1 : middle + 1]) / 2


@section("cluster-accounts")
def accounts() -> str:
    """Return DeepSeek-V3's second published memory account by pipeline rank."""
    job = TrainingJob(account="arxiv-2603.07685", overheads=_NONE)
    plan = TrainingPlan(load_preset("deepseek-v3"), cluster("h100x256"), job)
    layout = Layout(pp=4, vpp=4, dp=64, ep=64, schedule="interleaved", batch=4096, split="full")
    rows = []
    for rank in plan.by_rank(layout):
        state = rank["memory_weights"] + rank["memory_gradients"]
        sizes = (state, rank["memory_optimizer"], rank["memory_activations"], rank["memory"])
        layers = sum(n for name, n in rank["alive"].items() if name.startswith("attention"))
        rows.append([str(rank["rank"]), f"{layers:g}", *(f"{size / 2**30:.1f}" for size in sizes)])
    header = ["rank", "layers in flight", "weights, gradients", "main, optimizer", "activations"]
    return table([*header, "total, GiB"], rows)


@section("cluster-training")
def training() -> str:
    """Return published training rows with the errors of both stacks."""
    rows = []
    for row in _results()["rows"]:
        rows.append(
            [
                row["container"],
                row["model"],
                row["gpus"],
                row["precision"],
                f"{row['published']:,.0f}",
                f"{row['kernels']:+.0%}",
                f"{row['megatron-bridge']:+.0%}",
                "" if row["fits"] else "over",
            ]
        )
    header = ["container", "model", "GPUs", "", "token/s/GPU", "kernels", "megatron-bridge"]
    return table([*header, "memory"], rows)


@section("cluster-errors")
def errors() -> str:
    """Return median and largest errors by stack and by what was fitted."""
    rows = []
    for stack in ("kernels", "megatron-bridge"):
        for what, chosen in (("26.x", True), ("25.x", False)):
            found = [r for r in _results()["rows"] if r["container"].startswith("26") == chosen]
            sizes = [abs(r[stack]) for r in found]
            dense = [abs(r[stack]) for r in found if r["model"].startswith("LLAMA")]
            fitted = "fitted" if stack == "megatron-bridge" and chosen else "not seen"
            rows.append(
                [stack, what, fitted, str(len(sizes)), f"{_median(sizes):.0%}",
                 f"{max(sizes):.0%}", f"{_median(dense):.0%}"]
            )  # fmt: skip
    header = ["stack", "containers", "", "rows", "median", "largest", "median of dense models"]
    return table(header, rows)


@section("cluster-bill")
def bill() -> str:
    """Return DeepSeek-V3's pre-training as predicted."""
    found = _results()["bill"]
    rows = [["published", f"{found['published_hours'] / 1e6:.3f} M", "$5.328 M", "", "", ""]]
    for stack in ("kernels", "megatron-bridge"):
        own = found[stack]
        rows.append(
            [stack, f"{own['gpu_hours'] / 1e6:.3f} M", f"${own['dollars'] / 1e6:.3f} M",
             f"{own['tokens_per_second_per_gpu']:,.0f}", f"{own['memory'] / 2**30:.1f} GiB",
             f"{own['error']:+.0%}"]
        )  # fmt: skip
    return table(["", "H800-hours", "at $2/h", "token/s/GPU", "memory", "error"], rows)


@section("cluster-stacks")
def stacks() -> str:
    """Return what each stack of kernels is taken to reach."""
    rows = [
        [f"`{s.name}`", *(f"{x:.2f}" for x in (s.linear, s.grouped, s.attention, s.memory, s.low,
                                              s.busy)), f"{1e3 * s.host:g} ms", s.source]
        for s in STACKS.values()
    ]  # fmt: skip
    header = ["stack", "linear", "grouped", "attention", "memory", "8 bit", "busy", "host"]
    return table([*header, "from"], rows)


@section("cluster-overlaps")
def overlaps() -> str:
    """Return which messages each overlap assumption hides."""
    groups = ("tp", "ep", "cp", "pp", "dp")
    rows = [
        [f"`{name}`", *("hidden" if hidden[g] else "" for g in groups)]
        for name, hidden in HIDDEN.items()
    ]
    return table(["overlap", *groups], rows)
