"""The all-to-all for real: an MoE layer over ranks, its bytes counted and its times taken.

    torchrun --nproc-per-node N -m moeplan.profile --preset olmoe --tokens 512

runs dispatch, experts and combine with uneven splits, with gloo on CPUs and NCCL on GPUs, and
shows (with --json or --out: as one document) the bytes that each rank sent beside those that the
routing and the estimate say, whether the output is the unsharded layer's, the time of each phase,
and the times of the bare collective by size with a latency-bandwidth fit. Forward only. Where it
is wrong, or bytes do not agree, the exit code is 1. The NCCL path has not been run yet.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from moeplan.errors import UserError, near_miss
from moeplan.estimation.all_to_all import ROW_FORMATS, all_to_all
from moeplan.load import load_model
from moeplan.model.ffn import MoE
from moeplan.profile.assignment import Assignment
from moeplan.profile.bench import DTYPES
from moeplan.profile.expert_parallel import ExpertParallel, sharded_layer, unsharded_layer
from moeplan.profile.layer import Layer
from moeplan.quantity import evaluate

__all__ = ["fit_times", "main", "options_of", "rows_between", "run", "start"]

SCHEMA = 1
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 1e-2}
ROUTER = "router"  # the routing that the layer's own router makes


def rows_between(ids: Sequence[Any], experts: int) -> Any:
    """Rows from each rank to each, [n, n] whole numbers, read off the experts that tokens chose.

    ids: for each rank, the expert ids of its tokens, [T, K].
    """
    ranks = len(ids)
    owner = [np.asarray(chosen) // (experts // ranks) for chosen in ids]
    return np.array([np.bincount(to.ravel(), minlength=ranks) for to in owner])


def fit_times(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """Latency (s) and bandwidth (B/s) of t = latency + bytes/bandwidth, errors counted as ratios.

    Both are at least zero; the bandwidth is None where time does not grow with size.
    """
    x, t = np.asarray(sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    rows = np.stack([1 / t, x / t], axis=1)
    latency, slope = np.linalg.lstsq(rows, np.ones_like(t), rcond=None)[0]
    if latency < 0:
        latency, slope = 0.0, float(rows[:, 1].sum() / (rows[:, 1] ** 2).sum())
    if slope <= 0:
        latency, slope = float(rows[:, 0].sum() / (rows[:, 0] ** 2).sum()), 0.0
    errors = (latency + slope * x) / t - 1
    return {
        "latency_s": float(latency),
        "bandwidth_Bps": 1 / float(slope) if slope > 0 else None,
        "relative_errors": [round(float(error), 4) for error in errors],
    }


# ------------------------------------------------------------------------------------ measuring
class _Clock:
    """Wall time of each phase, the device's work included; pass it as a layer's phase hook."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def __call__(self, name: str, _stage: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start


def _phase_times(layer: Layer, x_TD: Tensor, ids_TK: Tensor | None, samples: int) -> dict[str, Any]:
    """Raw seconds of each phase and of the whole pass; ranks start together."""
    taken: dict[str, list[float]] = {name: [] for name in (*layer.phase_names, "layer")}
    for sample in range(samples + 2):
        dist.barrier()
        clock = _Clock(x_TD.device)
        start = clock.now()
        layer(x_TD, phase_hook=clock, routing_override=ids_TK)
        clock.seconds["layer"] = clock.now() - start
        if sample >= 2:
            for name, seconds in clock.seconds.items():
                taken[name].append(seconds)
    return taken


def _size_table(device: torch.device, largest: int, samples: int) -> list[dict[str, Any]]:
    """Times of the bare all-to-all with even splits, for bytes that leave a rank, by fours.

    The slowest rank's median counts. Data is random; buffers take turns.
    """
    ranks, clock = dist.get_world_size(), _Clock(device)
    table, size = [], 1024
    while size <= largest:
        each = max(size // (ranks - 1), 1)  # to every other rank, and as much to itself
        buffers = [
            torch.randint(0, 256, (ranks * each,), dtype=torch.uint8, device=device)
            for _ in range(3)
        ]
        out, seconds = torch.empty_like(buffers[0]), []
        for sample in range(samples + 2):
            dist.barrier()
            start = clock.now()
            dist.all_to_all_single(out, buffers[sample % 3])
            seconds.append(clock.now() - start)
        slowest = max(_gathered(median(seconds[2:])))
        table.append({"bytes": each * (ranks - 1), "seconds": slowest})
        size *= 4
    return table


def _gathered(value: Any) -> list[Any]:
    """Every rank's value, on every rank."""
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def _checked(layer: Layer, x_TD: Tensor, ids_TK: Tensor, dtype: str) -> dict[str, Any]:
    """The sharded layer's output against the unsharded one's, on each rank's own tokens."""
    whole = unsharded_layer(layer)
    found = layer(x_TD, routing_override=ids_TK).double()
    wanted = whole(x_TD, routing_override=ids_TK).double()
    error = float((found - wanted).norm() / wanted.norm())
    worst = float(np.max(_gathered(error)))  # nan where any is
    return {
        "relative_error": worst if math.isfinite(worst) else None,
        "tolerance": TOLERANCE[dtype],
        "passed": worst <= TOLERANCE[dtype],
    }


def _traffic(layer: Layer, ids: Sequence[Any], dtype: str, tokens: int) -> dict[str, Any]:
    """Bytes that left each rank: counted, as the routing says, and as the estimate expects."""
    backend = cast(ExpertParallel, layer.backend)
    sizes, ranks, width = layer.block.values, backend.ranks, layer.up_EHL.shape[2]
    row = evaluate(ROW_FORMATS[dtype], {"H": width})
    between = rows_between(ids, int(sizes["E"]))
    away = between - np.diag(np.diag(between))
    predicted = {"dispatch": away.sum(1) * row, "return": away.sum(0) * row}
    rule = layer.block.routing
    node = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    expected = all_to_all(
        tokens, width, int(sizes["E"]), layer.k, ranks, node,
        n_group=rule.groups, topk_group=rule.group_limit,
        dispatch=dtype, combine=dtype, policy="copies",
    )  # fmt: skip
    counted = _gathered(backend.sent)
    out: dict[str, Any] = {"row_bytes": int(row), "rows_between_ranks": between.tolist()}
    for phase, part in (("dispatch", expected.dispatch), ("return", expected.combine)):
        sent = [rank[phase] for rank in counted]
        out[phase] = {
            "sent": sent,
            "by_routing": predicted[phase].tolist(),
            "equal": sent == predicted[phase].tolist(),
            "mean": float(np.mean(sent)),
            "estimate": float(part.total_sent.value),
        }
    out["counts"] = [rank["counts"] for rank in counted]
    return out


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Build, check, count and time on every rank; the document is the same on all of them."""
    block, name = _block(options)
    ranks, rank, device = dist.get_world_size(), dist.get_rank(), _device()
    dtype, tokens = options.dtype, options.tokens
    layer = sharded_layer(block, ranks, rank, DTYPES[dtype], device, options.seed)
    x_TD = layer.input(tokens, seed=options.seed + 100 + rank)
    with torch.no_grad():
        ids_TK = _ids(options.routing, layer, x_TD, options.seed + rank)
        check = _checked(layer, x_TD, ids_TK, dtype) if options.check else None
        times = _phase_times(layer, x_TD, ids_TK, options.samples)
        traffic = _traffic(layer, _gathered(ids_TK.cpu().numpy()), dtype, tokens)
        table = _size_table(device, options.largest, options.samples) if ranks > 1 else []
    everyone = _gathered(times)
    fitted = [(row["bytes"], row["seconds"]) for row in table]
    return {
        "schema": SCHEMA,
        "model": name,
        "sizes": {symbol: float(n) if n % 1 else int(n) for symbol, n in block.values.items()},
        "ranks": ranks,
        "collectives": dist.get_backend(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "dtype": dtype,
        "tokens_per_rank": tokens,
        "routing": options.routing,
        "seed": options.seed,
        "check": check,
        "traffic": traffic,
        "seconds": {  # the median of the slowest rank, and the raw samples of each
            phase: {"slowest": max(median(own[phase]) for own in everyone),
                    "samples": [[round(t, 9) for t in own[phase]] for own in everyone]}
            for phase in times
        },
        "table": table,
        "fit": fit_times(*zip(*fitted, strict=True)) if len(fitted) > 1 else None,
    }  # fmt: skip


# -------------------------------------------------------------------------------------- options
def _block(options: argparse.Namespace) -> tuple[MoE, str]:
    """The MoE block of the preset or config, with the sizes that were set."""
    spec = load_model(options.preset or Path(options.config))
    if spec.moe is None:
        raise UserError(f"{spec.name} has no experts: there is nothing to exchange")
    block, changes = spec.moe, dict[str, Any]()
    for setting in options.set:
        symbol, _, number = setting.partition("=")
        if symbol not in block.values:
            hint = near_miss(symbol, block.values)
            allowed = ", ".join(block.values)
            raise UserError(
                f"--set {setting}: {symbol!r} is no size of the layer ({allowed}){hint}"
            )
        if not number.isdigit() or int(number) < 1:
            raise UserError(f"--set {setting}: expected a whole number of at least 1, as in D=512")
        changes[symbol] = int(number)
    return replace(block, **changes), spec.name


def _ids(routing: str, layer: Layer, x_TD: Tensor, seed: int) -> Tensor:
    if routing == ROUTER:
        return layer.route(x_TD).ids_TK
    experts = int(layer.block.values["E"])
    ids = Assignment.parse(routing).ids(len(x_TD), experts, layer.k, seed)
    return torch.from_numpy(ids).to(x_TD.device)


def _device() -> torch.device:
    if dist.get_backend() != "nccl":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options. Raises UserError for what cannot be, SystemExit as argparse."""
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m moeplan.profile", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--preset", help="a preset's name")
    model.add_argument("--config", help="a config.json or its folder")
    parser.add_argument("--set", action="append", default=[], metavar="SYMBOL=N",
                        help="another size of the layer, such as D=512 (repeatable)")  # fmt: skip
    parser.add_argument("--tokens", type=int, default=512, help="tokens of each rank")
    parser.add_argument("--routing", default="uniform",
                        help="uniform, balanced, zipf:EXPONENT, or router (its own)")  # fmt: skip
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="bf16")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--largest", type=int, default=2**24, help="bytes that the table ends at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-check", dest="check", action="store_false",
                        help="do not build the unsharded layer on every rank")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the document, not tables")
    parser.add_argument("--out", type=Path, help="write the document to this file as well")
    options = parser.parse_args(arguments)
    for name in ("tokens", "samples"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: at least 1")
    if "RANK" not in os.environ:
        raise UserError(f"several processes are needed: start with {parser.prog}")
    return options


def start(device: str) -> None:
    """Join the group that torchrun describes in the environment."""
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    own = None
    if cuda:
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(own)
    timeout = timedelta(seconds=120)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout, device_id=own)


def _show(document: dict[str, Any], options: argparse.Namespace) -> None:
    text = json.dumps(document, indent=1)
    if options.out is not None:
        beside = options.out.with_name(f".{options.out.name}.{os.getpid()}")
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(options.out)
    if options.json:
        print(text)
        return
    from rich.console import Console

    from moeplan.profile.view_exchange import exchange_tables
    from moeplan.report.tables import print_tables

    print_tables(exchange_tables(document), Console(highlight=False))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program: 0 where all agrees, 1 where something does not, 2 for a mistake."""
    first = os.environ.get("RANK", "0") == "0"
    try:
        options = options_of(arguments)
        start(options.device)
        document = run(options)
    except UserError as mistake:
        if first:
            print(f"error: {mistake}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if first:
        _show(document, options)
    passed = document["check"] is None or document["check"]["passed"]
    agrees = all(document["traffic"][phase]["equal"] for phase in ("dispatch", "return"))
    return 0 if passed and agrees else 1


if __name__ == "__main__":
    sys.exit(main())
