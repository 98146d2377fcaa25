"""Predict published training and serving speeds from the calibrated ops, and print the errors.

    python benchmarks/whole_model.py FOLDER [--json PATH]

FOLDER holds training_throughput.csv. A step is the rows of the model on one GPU by calibration, the
collectives of tensor and expert parallelism one after the other with them, and the bubble of the
pipeline; data-parallel traffic and the optimizer are taken as hidden. What the software adds is one
factor per stack, the geometric mean of measured / predicted time on every other row; the errors are
those of the rest. None of these GPUs is an H200, so all op times are assumed (datasheet ratios).
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moeplan.calibration.collectives import network
from moeplan.calibration.derived import for_gpu
from moeplan.calibration.rows import Degrees, row_times
from moeplan.estimation.fold import lines
from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.model.routing import expected_distinct
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Phase, Workload
from moeplan.quantity import plain

PRESETS = {
    "DeepSeekV3": "deepseek-v3",
    "GPT OSS 120B": "gpt-oss-120b",
    "LLAMA3.1_405B": "llama-3.1-405b",
    "LLAMA3_70B": "llama-3.1-70b",
    "LLAMA3_8B": "llama-3.1-8b",
    "Nemotron_3_Nano": "nemotron-3-nano-30b-a3b",
    "Qwen3_235B_a22B": "qwen3-235b-a22b",
    "Qwen3_30B_a3B": "qwen3-30b-a3b",
}
SYSTEMS = {"DGX-B200": "b200", "DGX-H100": "h100-sxm"}
HOST = 8  # GPUs that share NVLink
EXCHANGES = {False: 2, True: 4}  # dispatch and combine, and again in the backward pass
GATHERS = {False: 4, True: 8}  # two all-gathers and two reduce-scatters a layer and direction


@dataclass(frozen=True)
class Line:
    """A published speed and the predicted one, tokens a second and GPU, before the stack's factor.

    lower, upper: with the band of the ops.
    """

    stack: str
    what: str
    published: float
    predicted: float
    lower: float
    upper: float

    @property
    def ratio(self) -> float:
        """Measured time over predicted time."""
        return self.predicted / self.published


@dataclass(frozen=True)
class Serving:
    """A published serving speed a node: the phase, tokens a GPU and pass, and the layout."""

    stack: str
    phase: Phase
    gpu: str
    ep: int
    batch: int
    new: int
    context: int
    per_node: float


SERVING = (
    Serving("DeepSeek", "prefill", "h800", 32, 4, 4096, 4096, 73_700 * (1 - 0.563)),
    Serving("DeepSeek", "decode", "h800", 144, 88, 1, 4989, 14_800),
    Serving("SGLang", "prefill", "h100", 32, 4, 4096, 4096, 52_300),
    Serving("SGLang", "decode", "h100", 72, 256, 1, 2100, 22_300),
)
"""DeepSeek-V3 in FP8. DeepSeek's prefill speed is without the cached part of its input."""


def pass_seconds(
    spec: ModelSpec, work: Workload, gpu: str, number_format: str, degrees: Degrees
) -> tuple[float, float, float]:
    """(lower, expected, upper) seconds of all layers on one GPU, with their collectives."""
    rows = lines(spec, work)
    times = row_times(rows, for_gpu(gpu, number_format), degrees)
    out = np.zeros(3)
    for row, time in zip(rows, times, strict=True):
        if time is not None:
            out += plain(row.count) * np.array([time.lower, time.expected, time.upper])
    tokens, hidden = plain(work.values["T"]), plain(spec.hidden)
    if degrees.tp > 1:
        moved = network("h200-nccl").took("all_gather", degrees.tp, 2 * tokens * hidden)
        sent = np.array([moved.lower, moved.expected, moved.upper], dtype=float)
        out += GATHERS[degrees.training] * plain(spec.layers) * sent
    if degrees.ep > 1 and spec.moe is not None:
        out += (
            EXCHANGES[degrees.training]
            * plain(spec.moe_layers)
            * _exchange(spec.moe, tokens, degrees)
        )
    return float(out[0]), float(out[1]), float(out[2])


def _exchange(block: MoE, tokens: float, degrees: Degrees) -> np.ndarray:
    """Seconds of one exchange in bf16: every token once to each GPU, beyond a host to each host."""
    values, rule = block.values, block.routing
    experts, top_k = int(values["E"]), round(float(values[block.each]))
    wanted = degrees.ep if degrees.ep <= HOST else degrees.ep // HOST
    places = max(n for n in range(1, wanted + 1) if experts % n == 0)
    reached = expected_distinct(experts, top_k, places, rule.groups, rule.group_limit, "max")
    took = network("h200-deepep").took(
        "combine", degrees.ep, tokens * float(reached) * values[block.width] * 2
    )
    return np.array([took.lower, took.expected, took.upper], dtype=float)


def training(folder: Path) -> Iterator[Line]:
    """Every published training row of a model that has a preset."""
    with (folder / "training_throughput.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = row["model"].split(" (")[0]
            if name in PRESETS:
                yield _step(row, name)


def _step(row: dict[str, str], name: str) -> Line:
    spec = load_preset(PRESETS[name])
    gpus, gbs, mbs, seq, tp, pp, cp = (
        int(float(row[c])) for c in ("gpus", "GBS", "MBS", "seq", "TP", "PP", "CP")
    )
    chunks, ep = (int(float(row[c] or 1)) for c in ("VP", "EP"))
    replicas = gpus // (tp * pp * cp)
    microbatches = gbs / (replicas * mbs)
    work = Workload("train", B=mbs / cp, S=seq, C=seq)
    number_format = "bf16" if row["precision"] == "BF16" else "fp8"
    degrees = Degrees(tp=tp, ep=ep if spec.moe is not None else 1, training=True)
    once = pass_seconds(spec, work, SYSTEMS[row["system"]], number_format, degrees)
    slots = (microbatches + (pp - 1) / chunks) / pp
    speeds = [gbs * seq / gpus / (slots * seconds) for seconds in once]
    layout = f"TP{tp} PP{pp} EP{ep} VP{chunks} MBS{mbs}"
    where = f"{gpus} x {row['system'][4:]} {number_format}"
    what = f"{row['container'].split()[0]} {name}, {where} {layout}"
    return Line("Megatron-Bridge", what, float(row["tok_s_gpu"]), speeds[1], speeds[2], speeds[0])


def serving() -> Iterator[Line]:
    """The published serving speeds of DeepSeek-V3."""
    spec = load_preset("deepseek-v3")
    for s in SERVING:
        work = Workload(s.phase, B=s.batch, S=s.new, C=s.context)
        once = pass_seconds(spec, work, s.gpu, "fp8", Degrees(ep=s.ep))
        speeds = [s.batch * s.new / seconds for seconds in once]
        what = f"{s.phase}, {s.gpu} EP{s.ep}, {s.batch} x {s.new} new tokens a GPU"
        yield Line(f"{s.stack} serving", what, s.per_node / 8, speeds[1], speeds[2], speeds[0])


def judged(found: list[Line]) -> list[dict[str, Any]]:
    """Each line with its stack's factor; `error` is None where the line made the factor.

    A factor is the geometric mean of measured / predicted time on every other line of its stack.
    """
    out = []
    for stack in dict.fromkeys(line.stack for line in found):
        own = [line for line in found if line.stack == stack]
        factor = float(np.exp(np.mean(np.log([line.ratio for line in own[::2]]))))
        for place, line in enumerate(own):
            speed = line.predicted / factor
            error = speed / line.published - 1 if place % 2 else None
            out.append({**asdict(line), "factor": factor, "with_factor": speed, "error": error})
    return out


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """A sentence for each stack."""
    out = []
    for stack in dict.fromkeys(row["stack"] for row in rows):
        errors = np.abs(
            [r["error"] for r in rows if r["stack"] == stack and r["error"] is not None]
        )
        factor = next(row["factor"] for row in rows if row["stack"] == stack)
        out.append(
            f"{stack}: software factor {factor:.2f}; on {errors.size} rows that were not used for "
            f"it, the error is {errors.mean():.0%} in the mean and {np.median(errors):.0%} in the "
            "median"
        )
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where training_throughput.csv lies")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    rows = judged([*training(options.folder), *serving()])
    print(f"{'tokens a second and GPU':78}{'published':>10}{'ops':>8}{'x factor':>10}{'error':>8}")
    for row in rows:
        error = "used" if row["error"] is None else f"{row['error']:+.0%}"
        numbers = f"{row['published']:>10,.0f}{row['predicted']:>8,.0f}{row['with_factor']:>10,.0f}"
        print(f"{row['what']:78}{numbers}{error:>8}")
    print("", *summary(rows), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
