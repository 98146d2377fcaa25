"""Searches: layouts a second beside a loop over single evaluations, and the command from the shell.

    python benchmarks/plan.py [WORKERS]

DeepSeek-V3 on 2,048 H100. The search's tables are built within the measured time. A machine that is
busy with other things shows in the difference between wall and processor time, so both are printed.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

from moeplan.cluster.hardware import cluster
from moeplan.load import load_preset
from moeplan.parallel import ServingJob, ServingPlan, TrainingJob, TrainingPlan
from moeplan.plan.serving import DEGREES, Demand, search_serving
from moeplan.plan.space import Space
from moeplan.plan.training import search_training

GPUS, BATCH = 2048, 4096
SAMPLE = 200
COMMAND = (
    "plan", "train", "--preset", "deepseek-v3", "--cluster", "h100", "--gpus", "2048",
    "--tokens", "14.8T",
)  # fmt: skip


def timed(call: Any) -> tuple[Any, float, float]:
    """A result, wall seconds, and processor seconds of this process and its children."""
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    found = call()
    return found, time.perf_counter() - start, sum(os.times()[:4]) - cpu


def training(workers: int) -> None:
    """The search against single evaluations of layouts that it kept."""
    plan = TrainingPlan(load_preset("deepseek-v3"), cluster(f"h100x{GPUS}"), TrainingJob())
    found, wall, cpu = timed(lambda: search_training(plan, Space(), GPUS, BATCH, workers=workers))
    legal = found.tally.legal
    print(f"plan train, {workers} worker(s): {legal:,} legal layouts in {wall:.2f} s, ", end="")
    print(f"{cpu:.2f} s of processor time: {legal / cpu:,.0f} a second and processor")
    picked = np.random.default_rng(0).choice(found.tally.near.shape[1], SAMPLE)
    layouts = [found.layout(found.tally.near[:, i]) for i in picked]
    _, _, loop = timed(lambda: [plan.evaluate(layout, GPUS) for layout in layouts])
    rate = SAMPLE / loop
    print(f"loop: {rate:,.0f} a second; the search is {legal / cpu / rate:,.0f} times as fast")


def serving() -> None:
    """The search of instances against single evaluations."""
    spec, machine = load_preset("qwen3-235b"), cluster("h200x64")
    job = ServingJob(input=4000, output=1000, tpot=0.05)
    sizes = [*range(1, 8), *range(8, 65, 8)]
    found, wall, cpu = timed(
        lambda: search_serving(spec, machine, [job], Demand(20, 2.0, 0.05), sizes)
    )
    legal = sum(counts["legal"] for counts in found.counts.values())
    print(f"plan serve: {legal:,} legal instances in {wall:.2f} s, {cpu:.2f} s of ", end="")
    print(f"processor time: {legal / cpu:,.0f} a second and processor")
    plan = ServingPlan(spec, machine, job)
    legal_rows = np.flatnonzero(found.answers["aggregated", 0]["legal"])
    rows = np.random.default_rng(0).choice(legal_rows, SAMPLE // 4)

    def single() -> None:
        for row in rows:
            layout = found.layout(int(row))
            degrees = {name: int(found.columns[name][row]) for name in DEGREES}
            plan.evaluate(layout, int(np.prod([degrees[n] for n in ("tp", "pp", "dp")])))

    _, _, loop = timed(single)
    rate = len(rows) / loop
    print(f"loop: {rate:,.0f} a second; the search is {legal / cpu / rate:,.0f} times as fast")


def shell() -> None:
    """The command as a process of its own."""
    words = [sys.executable, "-m", "moeplan.cli", *COMMAND]
    _, wall, cpu = timed(lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"moeplan {' '.join(COMMAND)}:")
    print(f"  {wall:.2f} s from the shell, {cpu:.2f} s of processor time, {peak:,.0f} MB at most")
    least, each = [], [sys.executable, "-c", "import numpy, pydantic, typer, rich"]
    for _ in range(3):
        _, start, _ = timed(lambda: subprocess.run(each, check=True))
        least.append(start)
    print(f"  of which {min(least):.2f} s would import numpy, pydantic, typer and rich alone")


def main() -> None:
    """Print all rates."""
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    shell()
    training(1)
    if workers > 1:
        training(workers)
    serving()


if __name__ == "__main__":
    main()
