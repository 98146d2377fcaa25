"""Fit the calibrations that ship with the package from CSV files of measurements.

    python benchmarks/ship_calibrations.py FOLDER [--date YYYY-MM-DD]

FOLDER holds the files that docs/accuracy.md names. What comes out is written to
moeplan/data/calibrations; the same files give the same constants.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

from moeplan.calibration.calibrate import calibrate
from moeplan.calibration.collectives import (
    Network,
    Table,
    line,
    network_dict,
    network_of,
)
from moeplan.calibration.messages import message_tables, read_messages
from moeplan.calibration.optime import device_of
from moeplan.calibration.reader import read_points
from moeplan.calibration.records import calibrate_records
from moeplan.calibration.store import FOLDER, Calibration, OpFit, save
from moeplan.cluster.hardware import cluster, gpu

ROOT = Path(__file__).resolve().parents[1]
AICONFIGURATOR = "NVIDIA aiconfigurator (Apache-2.0), collected 2026-08 on H200"
DEEPEP = "DeepEP's published bandwidths on H800, FP8 dispatch and BF16 combine"


def main() -> None:
    """Write every shipped calibration and network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the CSV files lie")
    parser.add_argument("--date", default=dt.datetime.now(dt.UTC).date().isoformat())
    options = parser.parse_args()
    made_today = (_moe(options.folder), _gemm(options.folder), _kernels())
    for made in (*(replace(made, date=options.date) for made in made_today), _cpu()):
        save(made, FOLDER / f"{made.name}.json")
        print(made.name)
    for network in _networks(options.folder, options.date):
        path = FOLDER / f"network-{network.name}.json"
        path.write_text(json.dumps(network_dict(network), indent=1) + "\n", encoding="utf-8")
        print(f"network {network.name}")


def _moe(folder: Path) -> Calibration:
    points = read_points(folder / "h200_moe_vllm024_bf16.csv")
    return calibrate(
        points, "vllm-triton", "h200", name="h200-vllm-triton",
        source=f"{AICONFIGURATOR}: fused MoE of vLLM in a CUDA graph, constant weights",
        versions={"vllm": "0.24.0"},
    )  # fmt: skip


def _gemm(folder: Path) -> Calibration:
    points = read_points(folder / "h200_gemm_bf16.csv")
    return calibrate(
        points, "cublas", "h200", name="h200-cublas",
        source=f"{AICONFIGURATOR}: torch linear in a CUDA graph",
    )  # fmt: skip


def _kernels() -> Calibration:
    """What no table covers: the copy curve of an H200, and attention by published rates."""
    copy = OpFit(
        "bytes",
        {"launch": 2.0e-6, "bandwidth": 4.3e12, "half": 17.5e6, "shape": 0.8},
        "assumed",
        note="copies on an H200: 2.05 TB/s at 16 MB, 3.1 at 64 MB, 3.8 at 256 MB, 4.1 to 4.3 from "
        "1 GB; a kernel in a CUDA graph costs what the smallest dense GEMM's fixed cost is",
    )
    attention = OpFit(
        "attention",
        {"launch": 5.0e-6, "matrix_rate": 5.5e14, "bandwidth": 3.6e12},
        "assumed",
        note="FlashAttention-3 reaches 55 to 65 % of the peak on causal prefill with heads of 128 "
        "(arXiv 2407.08608); decoding reads keys and values at three quarters of the bandwidth",
    )
    return Calibration(
        "h200-kernels", device_of(gpu("h200")), "fused kernels",
        {"bytes": copy, "attention": attention}, "published rates, see each kind's note", "",
    )  # fmt: skip


def _cpu() -> Calibration:
    """Our own record of a calibration grid on one core."""
    record = ROOT / "profiles" / "cpu-amd-epyc" / "calibration-grid_2026-11-27.json"
    return calibrate_records([record], "torch", "cpu-amd-epyc-torch")


def _networks(folder: Path, date: str) -> list[Network]:
    def tables(name: str, source: str) -> list[Table]:
        return message_tables(read_messages(folder / name), "nvlink", f"{AICONFIGURATOR}: {source}")

    nccl = tables("h200_nccl_nvlink.csv", "NCCL")
    deepep = tables("h200_deepep_normal_ep8.csv", "DeepEP, fp8 rows there and bf16 rows back")
    made = network_of("h200-nccl", nccl, f"{AICONFIGURATOR}: NCCL over NVLink, 2 to 8 GPUs", date)
    kernels = network_of(
        "h200-deepep", deepep,
        f"{AICONFIGURATOR}: DeepEP normal mode, 8 H200 of one node, 20 multiprocessors", date,
    )  # fmt: skip
    return [made, replace(kernels, tables=(*kernels.tables, *_rdma()))]


def _rdma() -> list[Table]:
    """Dispatch and combine across nodes: published bandwidths, latency from NVLink and fabric."""
    fabric = cluster("h800x2048").scale_out
    far = fabric.latency if fabric.latency_far is None else fabric.latency_far
    published = {16: (43e9, 43e9), 32: (58e9, 57e9), 64: (51e9, 50e9)}
    latency = {"dispatch": 27e-6 + 4 * far.value, "combine": 47e-6 + 4 * far.value}
    return [
        line(name, fabric.id, gpus, latency[name], rate, f"{DEEPEP}, {gpus} GPUs; latency assumed")
        for gpus, rates in published.items()
        for name, rate in zip(("dispatch", "combine"), rates, strict=True)
    ]


if __name__ == "__main__":
    main()
