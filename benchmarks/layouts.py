"""Layouts a second: arrays beside a loop over single evaluations.

    python benchmarks/layouts.py [COUNT]

Memory, traffic, time and money of DeepSeek-V3 on 2,048 GPUs. Tables are built within the measured
time; the loop runs over a sample.
"""

from __future__ import annotations

import itertools
import resource
import sys
import time

import numpy as np

from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import NUMBERS, Layout
from moeplan.load import load_preset
from moeplan.parallel import TrainingJob, TrainingPlan

GPUS = 2048
SAMPLE = 200


def layouts(count: int) -> Layout:
    """All legal 1F1B layouts of some degrees, again with other batches until there are enough."""
    plan = TrainingPlan(load_preset("deepseek-v3"), cluster(f"h800x{GPUS}"), TrainingJob())
    powers = [2**i for i in range(9)]
    grid = itertools.product(
        powers[:4], (1, 2, 4, 8, 16, 32), powers[:3], powers, powers[:3], range(4), powers[:4]
    )
    rows = [(tp, pp, 1, GPUS // (tp * pp * cp), cp, *rest) for tp, pp, cp, *rest in grid]
    numbers = np.array(rows, float).T
    found = Layout(*numbers, batch=GPUS * 8)
    numbers = numbers[:, plan.legal(found)]
    times = -(-count // numbers.shape[1])
    batches = np.repeat(GPUS * 8 * (1 + np.arange(times)), numbers.shape[1])
    return Layout(*np.tile(numbers, times)[:, :count], batch=batches[:count].astype(float))


def main() -> None:
    """Print both rates and the memory that was used."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    given = layouts(count)
    plan = TrainingPlan(load_preset("deepseek-v3"), cluster(f"h800x{GPUS}"), TrainingJob())
    start, cpu = time.perf_counter(), time.process_time()
    found = plan.evaluate(given)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"arrays: {count:,} layouts in {wall:.2f} s: {count / wall:,.0f} a second, ", end="")
    print(f"{count / cpu:,.0f} a second of processor time; {found['fits'].sum():,} fit")
    picked = np.random.default_rng(0).choice(count, SAMPLE, replace=False)
    start = time.perf_counter()
    for i in picked:
        one = given.at({n: int(np.broadcast_to(getattr(given, n), (count,))[i]) for n in NUMBERS})
        plan.evaluate(one)
    single = SAMPLE / (time.perf_counter() - start)
    print(f"loop: {single:,.0f} a second; arrays are {count / wall / single:,.0f} times as fast")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:,.0f} MB")


if __name__ == "__main__":
    main()
