"""Points of a sweep a second: arrays in chunks beside a loop over single estimates.

    python benchmarks/sweep.py [COUNT]

Granularity, expert parallelism and tokens of DeepSeek-V3: parameters, memory, FLOPs, all-to-all
bytes and floor times of each point. The loop runs over a sample of the same points.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from moeplan import api
from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.sweep import Sweep

SAMPLE = 100
METRICS = ["params.total", "memory.training.total", "flops.forward_per_token",
           "all_to_all.forward_step.dispatch.busiest", "time.decode.lower"]  # fmt: skip


def main() -> None:
    """Print both rates, that the values agree, and the memory that was used."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    sweep = Sweep.of(
        "deepseek-v3",
        vary=["g=0.5,1,2,4", "ep=1:64:x2", f"tokens=1:{count // 28}:+1"],
        sets=["experts=256*g", "width=2048/g", "top_k=8*g"],
        metrics=METRICS,
    )
    start, rows, kept = time.perf_counter(), 0, []
    for table in sweep.tables():
        rows += len(table["reason"])
        kept.append({name: np.asarray(table[name])[::97].copy() for name in sweep.columns})
    wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"arrays: {rows:,} points in {wall:.2f} s: {rows / wall:,.0f} a second, {peak:,.0f} MB")
    some = {name: np.concatenate([k[name] for k in kept]) for name in sweep.columns}
    good = np.flatnonzero(some["reason"] == "")
    picked = np.random.default_rng(0).choice(good, SAMPLE, replace=False)
    spec, worst = load_preset("deepseek-v3"), 0.0
    start = time.perf_counter()
    for i in picked:
        one = {name: int(some[name][i]) for name in ("experts", "width", "top_k", "ep", "tokens")}
        varied = spec.vary(MoE, E=one["experts"], F=one["width"], k=one["top_k"])
        found = api.estimate(varied, ep=one["ep"], tokens=one["tokens"])
        values = [found[name].value for name in METRICS]
        for name, value in zip(METRICS, values, strict=True):
            worst = max(worst, abs(float(some[name][i]) / value - 1) if value else 0.0)
    single = SAMPLE / (time.perf_counter() - start)
    print(f"loop: {single:,.0f} a second; arrays are {rows / wall / single:,.0f} times as fast")
    print(f"largest relative difference of {SAMPLE} points: {worst:.1e}")


if __name__ == "__main__":
    main()
