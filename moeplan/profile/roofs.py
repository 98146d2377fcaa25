"""What the device itself reaches in this run: matmul, copy, reduction, launch.

Predictions and "% of roof" are against these, not against a datasheet. All data is random, since
constants and zeros run faster; operands of matmuls are scaled by (inner dimension)^-1/2. Sizes
exceed the caches, or buffers take turns until they do. The CUDA paths have not been run on a GPU
yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from moeplan.profile.bench import DTYPES
from moeplan.profile.host import FRESH, ROWS, SMALL
from moeplan.profile.record import Roof, now

__all__ = ["Sizes", "measure_roofs", "sizes_for"]

GIB = 2**30
BY_ROWS = (1, 4, 16, 64, 256)


class Sizes(NamedTuple):
    """gemm: side of the square matmul. stream: bytes that a copy or reduction reads.

    matrices: operands that take turns. samples: of each roof. launches: in one sample. side: of the
    weights of matmuls by rows.
    """

    gemm: int
    stream: int
    matrices: int
    samples: int
    launches: int
    side: int = 1024


def sizes_for(device: torch.device, *, quick: bool = False) -> Sizes:
    """A matmul of 8192³ and streams of 4 GiB (less where memory is short) on a GPU.

    On a CPU 1024³ and 256 MiB, well past its last cache. quick: fewer samples, shorter streams.
    """
    if device.type != "cuda":
        return Sizes(1024, GIB // 4, 6, 10, 2000) if not quick else Sizes(768, GIB // 8, 4, 5, 500)
    free, _ = torch.cuda.mem_get_info(device)
    stream = min(GIB if quick else 4 * GIB, free // 4) // 4096 * 4096
    return Sizes(8192, stream, 3, 10 if quick else 20, 1000)


def measure_roofs(
    device: torch.device, dtype: str, *, quick: bool = False, sizes: Sizes | None = None
) -> list[Roof]:
    """Measure gemm (in dtype, FLOP/s), copy and reduce (B/s), launch (s).

    On CUDA also dispatch; on a CPU also what `host` predicts with.

    gemm: square matmul. copy: bytes read and written by a copy. reduce: bytes read by a sum.
    launch: of an operation that does nothing worth mentioning, from a replayed CUDA graph; on a CPU
    that is what torch's dispatcher takes. dispatch: the same from Python, call by call.
    """
    sizes = sizes or sizes_for(device, quick=quick)
    generator = torch.Generator(device).manual_seed(11)
    roofs = [
        _gemm(device, DTYPES[dtype], sizes, generator),
        _copy(device, sizes, generator),
        _reduce(device, sizes, generator),
    ]
    if device.type != "cuda":
        return [*roofs, _dispatch(device, sizes, "launch"), *_host(DTYPES[dtype], sizes, generator)]
    return [*roofs, _graph_launch(device, sizes), _dispatch(device, sizes, "dispatch")]


def _random(
    device: torch.device,
    generator: torch.Generator,
    *shape: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    return torch.empty(shape, device=device, dtype=dtype).normal_(generator=generator)


def _gemm(
    device: torch.device, dtype: torch.dtype, sizes: Sizes, generator: torch.Generator
) -> Roof:
    n = sizes.gemm
    run = _matmul(device, dtype, n, sizes.matrices, generator)
    while device.type != "cuda" and n > 256 and _once(run) > 0.3:  # a CPU without bf16 units
        n //= 2
        run = _matmul(device, dtype, n, sizes.matrices, generator)
    seconds = _sampled(run, device, sizes.samples)
    note = f"{n} x {n} x {n} in {str(dtype).removeprefix('torch.')}, random data"
    return _rate("gemm", "FLOP/s", 2 * n**3, seconds, note)


def _matmul(
    device: torch.device, dtype: torch.dtype, n: int, matrices: int, generator: torch.Generator
) -> Callable[[int], object]:
    """A square matmul on the next of its operands in turn."""
    operands = [
        (_random(device, generator, n, n, dtype=dtype) * n**-0.5,
         _random(device, generator, n, n, dtype=dtype),
         torch.empty(n, n, device=device, dtype=dtype))
        for _ in range(matrices)
    ]  # fmt: skip

    def run(turn: int) -> None:
        a, b, out = operands[turn % matrices]
        torch.mm(a, b, out=out)

    return run


def _once(run: Callable[[int], object]) -> float:
    start = time.perf_counter()
    run(0)
    return time.perf_counter() - start


def _copy(device: torch.device, sizes: Sizes, generator: torch.Generator) -> Roof:
    source = _random(device, generator, sizes.stream // 4)
    target = torch.empty_like(source)
    seconds = _sampled(lambda _: target.copy_(source), device, sizes.samples)
    return _rate("copy", "B/s", 2 * source.nbytes, seconds, f"{_size(source)} to another place")


def _reduce(device: torch.device, sizes: Sizes, generator: torch.Generator) -> Roof:
    source = _random(device, generator, sizes.stream // 4)
    seconds = _sampled(lambda _: torch.sum(source), device, sizes.samples)
    return _rate("reduce", "B/s", source.nbytes, seconds, f"sum of {_size(source)}, read only")


def _size(tensor: Tensor) -> str:
    return f"{tensor.nbytes / GIB:.3g} GiB of fp32"


def _dispatch(device: torch.device, sizes: Sizes, name: str) -> Roof:
    """What a call from Python takes, many in a row, on one number."""
    one = torch.ones(1, device=device)

    def run(_: int) -> None:
        for _ in range(sizes.launches):
            one.neg_()

    seconds = _sampled(run, device, sizes.samples, wall=True)
    note = f"mean of {sizes.launches} calls on one number"
    return _time(name, [second / sizes.launches for second in seconds], note)


def _host(dtype: torch.dtype, sizes: Sizes, generator: torch.Generator) -> list[Roof]:
    """What `host` needs: matmuls by their rows, first writes to new pages, small operations."""
    return [
        *_by_rows(dtype, sizes, generator),
        _fresh(sizes),
        _small(sizes, generator),
    ]


def _by_rows(dtype: torch.dtype, sizes: Sizes, generator: torch.Generator) -> list[Roof]:
    """FLOP/s of matmuls of few to many rows, each with the next weights: none are in a cache."""
    cpu, n = torch.device("cpu"), sizes.side
    weights = _random(cpu, generator, max(sizes.stream // (8 * n * n), 4), n, n).to(dtype)
    found, place = [], 0
    for rows in BY_ROWS:
        x = _random(cpu, generator, rows, n).to(dtype)
        each = max(min(16 // rows, len(weights)), 1)  # short ones: several in a sample

        def run(_: int, x: Tensor = x, each: int = each) -> None:
            nonlocal place
            for _ in range(each):
                torch.mm(x, weights[place].t())
                place = (place + 1) % len(weights)

        seconds = _sampled(run, cpu, sizes.samples)
        note = f"{rows} x {n} x {n}, the next weights each time" if rows == BY_ROWS[0] else ""
        found.append(_rate(f"{ROWS}{rows}", "FLOP/s", 2 * rows * n * n * each, seconds, note))
    return found


def _fresh(sizes: Sizes) -> Roof:
    """Bytes written to memory that the system has just given."""
    size = sizes.stream // 2
    seconds = _sampled(lambda _: torch.empty(size, dtype=torch.uint8).fill_(1), torch.device("cpu"),
                       sizes.samples)  # fmt: skip
    return _rate(FRESH, "B/s", size, seconds, "first write to new memory")


def _small(sizes: Sizes, generator: torch.Generator) -> Roof:
    """A small operation with a new result, after something else has had the caches."""
    cpu, calls = torch.device("cpu"), 16
    sweep = _random(cpu, generator, sizes.stream // 16)
    x, at = _random(cpu, generator, 64, 256), torch.arange(8)
    taken = []
    for _ in range(sizes.samples + 2):
        sweep.add_(1)
        start = time.perf_counter()
        for _ in range(calls):
            x.index_select(0, at)
        taken.append((time.perf_counter() - start) / calls)
    return _time(SMALL, taken[2:], f"mean of {calls} calls after the caches were used for others")


def _graph_launch(device: torch.device, sizes: Sizes) -> Roof:
    """What a kernel that does nothing takes in a replayed CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda._sleep(1)  # type: ignore[no-untyped-call] # loads the kernel before the capture
    torch.cuda.synchronize(device)
    with torch.cuda.graph(graph):
        for _ in range(sizes.launches):
            torch.cuda._sleep(0)  # type: ignore[no-untyped-call]
    seconds = _sampled(lambda _: graph.replay(), device, sizes.samples)
    note = f"mean of {sizes.launches} empty kernels in a replayed graph"
    return _time("launch", [second / sizes.launches for second in seconds], note)


def _sampled(
    run: Callable[[int], object], device: torch.device, samples: int, *, wall: bool = False
) -> list[float]:
    """Seconds of each run after three to warm up: by events on CUDA, by the clock elsewhere."""
    for turn in range(3):
        run(turn)
    taken = []
    for turn in range(samples):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if device.type != "cuda" or wall:
            start = time.perf_counter()
            run(turn)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - start)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        run(turn)
        end.record()
        torch.cuda.synchronize(device)
        taken.append(begin.elapsed_time(end) / 1e3)
    return taken


def _rate(
    name: str, unit: Literal["FLOP/s", "B/s"], amount: int, seconds: list[float], note: str
) -> Roof:
    return Roof(
        name=name,
        unit=unit,
        value=amount / median(seconds),
        amount=amount,
        samples=seconds,
        measured=now(),
        note=note,
    )


def _time(name: str, seconds: list[float], note: str) -> Roof:
    return Roof(
        name=name, unit="s", value=median(seconds), samples=seconds, measured=now(), note=note
    )
