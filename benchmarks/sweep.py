"""Points a second: a sweep beside a loop of single estimates, and its memory beside its size.

    python benchmarks/sweep.py [POINTS]

Workload and expert parallelism of Qwen3-30B-A3B, of which four designs; the loop runs over a
sample of the same points and must give the same figures. Then the columns of `moeplan sweep`
without --show, layouts of DeepSeek-V3, and the memory of commands that write files, each in a
process of its own.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import moeplan
from moeplan.presets import preset

MODEL = "qwen3-30b-a3b"
SAMPLE = 200
SHOWN = (
    "all_to_all.forward_step.dispatch.sent",
    "kv_cache.bytes",
    "time.prefill.sequential",
    "time.decode.sequential",
)
DESIGNS = {"experts": [64, 128, 256, 512], "ep": [4, 8, 16, 32]}


def peak() -> float:
    """The most memory so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def swept(points: int) -> tuple[dict[str, np.ndarray], float]:
    """The columns of about so many points, and the seconds they took."""
    contexts = np.unique(np.linspace(1000, 131_072, max(1, points // 64)).round())
    vary = {**DESIGNS, "batch": [1, 8, 64, 256], "context": contexts}
    start = time.perf_counter()
    columns = moeplan.sweep(MODEL, vary=vary, show=SHOWN, max_points=10**8)
    return columns, time.perf_counter() - start


def main() -> None:
    """Print rates, their ratio, and memory at a tenth of the points and at all of them."""
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    files = [written(option) for option in ("--csv", "--parquet", "--json")]  # while this is small
    swept(1000)  # what is loaded once
    before = peak()
    swept(points // 10)
    tenth = peak()
    columns, seconds = swept(points)
    count = len(columns["reason"])
    rate = count / seconds
    print(f"{len(SHOWN)} columns: {count:,} points in {seconds:.2f} s: {rate:,.0f} a second")
    loop(columns, rate)
    held = sum(column.nbytes for column in columns.values()) / 2**20
    print(f"peak memory: {before:,.0f} MB before, {tenth:,.0f} MB with {points // 10:,} points,")
    print(f"  {peak():,.0f} MB with {count:,}, of which the columns are {held:,.0f} MB")
    defaults()
    layouts()
    print("memory of a command with default columns, at most:")
    print("\n".join(files))


def loop(columns: dict[str, np.ndarray], rate: float) -> None:
    """The same points one estimate at a time, of which some must be equal."""
    count = len(columns["reason"])
    configs = preset(MODEL).config
    picked = np.random.default_rng(0).choice(count, SAMPLE, replace=False)
    start = time.perf_counter()
    for i in picked:
        edited = {**configs, "num_experts": int(columns["experts"][i])}
        given = {name: int(columns[name][i]) for name in ("ep", "batch", "context")}
        found = moeplan.estimate(edited, **given)
        for path in SHOWN:
            np.testing.assert_allclose(columns[path][i], found[path].value, rtol=1e-12)
    single = SAMPLE / (time.perf_counter() - start)
    print(f"loop: {single:,.0f} a second; the sweep is {rate / single:,.0f} times as fast")


def defaults() -> None:
    """The columns that nobody asked for, with expected times and their bands."""
    start = time.perf_counter()
    columns = moeplan.sweep("mixtral", vary={"batch": "1:200", "context": "1k:500k:1k"})
    seconds, count = time.perf_counter() - start, len(columns["reason"])
    print(f"default columns: {count:,} points in {seconds:.2f} s: {count / seconds:,.0f} a second")


def written(option: str) -> str:
    """Peak memory of a command with default columns that writes a file: few points, and many.

    A process counts the memory of the one that started it as its own, so that one must be small.
    """
    said = []
    for contexts in (10, 1000):
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "sweep")
            arguments = ("sweep", "mixtral", "--vary", "batch=1:1000", "--vary",
                         f"context=1k:{contexts}k:1k", option, file)  # fmt: skip
            memory, seconds = command(*arguments)
        points = 1000 * contexts
        said.append(f"{memory:,.0f} MB with {points:,} points ({seconds:.1f} s)")
    return f"  {option}: {', '.join(said)}"


def command(*arguments: str) -> tuple[float, float]:
    """The most memory of a command (MB), and its seconds."""
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.execv(sys.executable, [sys.executable, "-m", "moeplan", *arguments])
    _, status, usage = os.wait4(child, 0)
    assert status == 0, arguments
    return usage.ru_maxrss / 1024, time.perf_counter() - start


def layouts() -> None:
    """The same for layouts on 2,048 GPUs."""
    vary = {"tp": "1:8:x2", "pp": "1:32:x2", "ep": "1:256:x2", "zero": [0, 1, 2, 3],
            "microbatch": "1:8:x2", "cp": "1:4:x2", "recompute": ["none", "full"]}  # fmt: skip
    start = time.perf_counter()
    columns = moeplan.sweep(
        "deepseek-v3", vary=vary, set={"batch": 16384}, cluster="h800x2048", job="train"
    )
    seconds = time.perf_counter() - start
    count, legal = len(columns["reason"]), int((columns["reason"] == "").sum())
    print(f"layouts: {count:,} points ({legal:,} legal) in {seconds:.2f} s: ", end="")
    print(f"{count / seconds:,.0f} a second")


if __name__ == "__main__":
    main()
