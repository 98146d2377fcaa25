"""How fast moeplan is, beside something that runs in the same minute on the same machine.

    python benchmarks/speed.py [--pairs 15] [--points 1000000]

Three questions, each in processes of its own, and a limit for each. Exits with 1 past a limit.

command  `moeplan estimate --preset mixtral` against a Python that only imports the libraries which
         any such tool imports: the median of the ratios, pair by pair, and the peak memory.
estimate one estimate of DeepSeek-V3 from Python, beside a walk over all of its 45,000 tensors.
sweep    a million (tokens, ep, top-k, experts) points of parameters, weight memory and all-to-all
         through the code that answers for one, beside a loop over a sample of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ("-m", "moeplan", "estimate", "--preset", "mixtral")
IMPORTS = ("-c", "import numpy, pydantic, typer, rich")
LIMITS = {
    "command, times the imports": 1.5,
    "command, peak MB": 120.0,
    "estimate, ms": 5.0,
    "sweep, s": 2.0,
    "sweep, peak MB": 500.0,
}


class Ran(NamedTuple):
    """Seconds on the clock, seconds of the processor and peak memory in MB of a process."""

    wall: float
    cpu: float
    peak: float


def process(*arguments: str) -> Ran:
    """Run Python once. Its peak would include this process, which is why this one stays small."""
    # an installed package has its byte code; where none may be written, every run would compile
    around = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, *arguments],
        {**around, "COLUMNS": "80", "PYTHONPATH": str(ROOT)},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, used = os.wait4(child, 0)
    wall = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return Ran(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)


def command(pairs: int) -> dict[str, float]:
    """The command line beside bare imports, in turns, the first of each pair drawn by lot."""
    ours: list[Ran] = []
    bare: list[Ran] = []
    kinds = [(COMMAND, ours), (IMPORTS, bare)]
    for arguments, _ in kinds:
        process(*arguments)  # fills the file cache and writes the byte code
    for _ in range(pairs):
        for arguments, runs in random.sample(kinds, 2):
            runs.append(process(*arguments))
    walls = [a.wall / b.wall for a, b in zip(ours, bare, strict=True)]
    cpus = [a.cpu / b.cpu for a, b in zip(ours, bare, strict=True)]
    show("command", f"{1e3 * median(r.wall for r in ours):.0f} ms", f"{pairs} pairs")
    show("imports alone", f"{1e3 * median(r.wall for r in bare):.0f} ms")
    show("ratio", f"{median(walls):.2f}", f"from {min(walls):.2f} to {max(walls):.2f}")
    show("ratio of processor time", f"{median(cpus):.2f}")
    peak = max(r.peak for r in ours)
    show("peak memory", f"{peak:.0f} MB", f"imports alone {max(r.peak for r in bare):.0f} MB")
    return {"command, times the imports": median(walls), "command, peak MB": peak}


def timed(work: Callable[[], Any], times: int) -> float:
    """Median seconds of a call."""
    runs = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        runs.append(time.perf_counter() - start)
    return median(runs)


def every_tensor(spec: Any) -> int:
    """Parameters as one would count them from a list of all tensors: layers, experts and all."""
    from moeplan.quantity import evaluate

    total = 0
    for group in spec.groups:
        for block in group.blocks if group.role != "mtp" else ():
            for weight in block.weights():
                if weight.tied is not None or weight.buffer:
                    continue
                for _ in group.tensor_names(weight):
                    for _ in range(evaluate(weight.copies, block.values)):
                        elements = 1
                        for dim in weight.dims:
                            elements *= evaluate(dim, block.values)
                        total += elements
    return total


def estimate() -> dict[str, float]:
    """A whole estimate of DeepSeek-V3 beside the parameters alone, tensor by tensor."""
    from moeplan import api
    from moeplan.load import load_preset

    start = time.perf_counter()
    first = api.estimate("deepseek-v3")
    cold = time.perf_counter() - start
    spec = load_preset("deepseek-v3")
    assert every_tensor(spec) == first["params.total"].value
    warm = timed(lambda: api.estimate("deepseek-v3"), 101)
    naive = timed(lambda: every_tensor(spec), 5)
    show("estimate", f"{1e3 * warm:.2f} ms", f"the first one {1e3 * cold:.1f} ms")
    show("parameters by tensor", f"{1e3 * naive:.1f} ms", f"{naive / warm:.1f} times as long")
    return {"estimate, ms": 1e3 * warm}


def answers(spec: Any, T: Any, ep: Any, k: Any, E: Any) -> tuple[Any, ...]:
    """Parameters, weight bytes and bytes of dispatch and combine, for numbers or arrays."""
    from moeplan.estimation.all_to_all import all_to_all
    from moeplan.estimation.memory import weight_bytes
    from moeplan.estimation.parameters import count
    from moeplan.model.ffn import MoE

    varied = spec.vary(MoE, E=E, k=k)
    exchange = all_to_all(T, spec.hidden, E, k, ep, 8)
    sent = (exchange.dispatch.total_sent.value, exchange.combine.total_sent.value)
    return (count(varied), weight_bytes(varied), *sent)


def sweep(points: int) -> dict[str, float]:
    """Arrays beside a loop; both must say the same."""
    import resource

    import numpy as np

    from moeplan.load import load_preset

    spec = load_preset("deepseek-v3")
    rng = np.random.default_rng(0)
    E = 2.0 ** rng.integers(5, 11, points)
    k = rng.integers(1, 17, points).astype(float)
    ep = 2.0 ** rng.integers(3, 6, points)
    T = rng.integers(1, 16_385, points).astype(float)
    runs: list[tuple[Any, ...]] = []
    together = timed(lambda: runs.append(answers(spec, T, ep, k, E)), 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    sample = [int(i) for i in rng.integers(0, points, 300)]
    start = time.perf_counter()
    apart = [answers(spec, *(int(x[i]) for x in (T, ep, k, E))) for i in sample]
    each = (time.perf_counter() - start) / len(sample)
    for column, found in enumerate(runs[-1]):
        expected = [float(row[column]) for row in apart]
        assert np.allclose(found[sample], expected, rtol=1e-9), column
    show("sweep", f"{together:.2f} s", f"{points:,} points")
    show(
        "one by one",
        f"{each * points:.0f} s",
        f"extrapolated, {each * points / together:.0f} times",
    )
    show("peak memory", f"{peak:.0f} MB")
    return {"sweep, s": together, "sweep, peak MB": peak}


def show(what: str, value: str, more: str = "") -> None:
    """One line of the report, at once."""
    print(f"  {what:<26}{value:>10}   {more}".rstrip(), file=sys.stderr, flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "command": lambda options: command(options.pairs),
    "estimate": lambda options: estimate(),
    "sweep": lambda options: sweep(options.points),
}


def main() -> int:
    """Run the parts, compare with the limits."""
    parser = argparse.ArgumentParser(description="How fast moeplan is.")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of processes (15)")
    parser.add_argument("--points", type=int, default=1_000_000, help="points of the sweep")
    parser.add_argument("--part", choices=PARTS, help="one part only, as JSON on stdout")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return 0
    found: dict[str, float] = {}
    for part in PARTS:
        print(part, flush=True)
        arguments = ("--part", part, "--pairs", str(options.pairs), "--points", str(options.points))
        done = subprocess.run(
            [sys.executable, __file__, *arguments],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )
        found |= json.loads(done.stdout)
    late = {name: value for name, value in found.items() if value > LIMITS[name]}
    for name, value in found.items():
        print(f"{name:<28}{value:>9.2f}  of {LIMITS[name]:g}{'  TOO MUCH' * (name in late)}")
    return 1 if late else 0


if __name__ == "__main__":
    raise SystemExit(main())
