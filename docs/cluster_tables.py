"""Tables of docs/cluster.md: published memory accounts, stacks and overlaps."""

from __future__ import annotations

from generated import section, table
from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import Layout
from moeplan.load import load_preset
from moeplan.parallel import Overheads, TrainingJob, TrainingPlan
from moeplan.parallel.costs import HIDDEN
from moeplan.parallel.optime import STACKS

__all__: list[str] = []

_NONE = Overheads(framework=0, fragmentation=0)


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


@section("cluster-stacks")
def stacks() -> str:
    """Return what each stack of kernels is taken to reach."""
    rows = []
    for s in STACKS.values():
        parts = (s.linear, s.grouped, s.attention, s.memory, s.low)
        reached = ["calibration"] * 5 if s.calibrated else [f"{x:.2f}" for x in parts]
        rows.append([f"`{s.name}`", *reached, f"{s.busy:.2f}", f"{1e3 * s.host:g} ms", s.source])
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
