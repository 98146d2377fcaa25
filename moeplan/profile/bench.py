"""Time one case: the passes of a layer at one size, phase by phase and as a whole.

The protocol: random data, warm-up, buffers in turn over more than three times the last cache, at
least 20 samples, raw seconds kept; forward and backward in one pass, never by difference. On a GPU
there are three times: kernels (traced by kineto), a replayed CUDA graph, and the wall clock of a
plain call. On a CPU there is the wall clock. The GPU parts have not been run on a GPU yet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from moeplan.model.ffn import MoE
from moeplan.profile.assignment import Ids, rotated, rows_per_expert
from moeplan.profile.device import read_clocks
from moeplan.profile.kineto import Unavailable, kernel_seconds
from moeplan.profile.layer import Layer
from moeplan.profile.numerics import relative_error
from moeplan.profile.record import Clocks, Direction, Measurement, Phase, Stage, Timing, quantile
from moeplan.profile.tracking import TrackedMemory

__all__ = [
    "DTYPES",
    "MOST_GRAPHS",
    "OutOfTime",
    "Passes",
    "Turns",
    "make_layers",
    "measure",
    "noise_flags",
    "turns_needed",
]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CACHES = 3  # buffers in turn cover so many times the last cache
NOISY = 0.15  # spread from p10 to p90 over the median that is worth a flag
_MOST_TURNS = 64
_SAME_OUTPUT = {torch.float32: 1e-5, torch.bfloat16: 3e-3, torch.float16: 1e-3}
MOST_GRAPHS = 8

Names: TypeAlias = tuple[tuple[str, Stage], ...]
Tick: TypeAlias = Callable[[], None]
Clock: TypeAlias = Literal["kernels", "events", "wall"]


class OutOfTime(Exception):
    """The passes that a case still needs would end after the deadline."""


class Turns(NamedTuple):
    """How many layers, and how many sets of buffers, a case takes in turn."""

    layers: int
    passes: int


def turns_needed(weights: int, touched: int, cache_bytes: int) -> Turns:
    """Turns in which weights, and the bytes that passes touch, exceed three last caches."""
    layers = max(math.ceil(CACHES * cache_bytes / max(weights, 1)), 1)
    passes = math.ceil(CACHES * cache_bytes / max(touched, 1))
    return Turns(layers, min(max(layers, passes), _MOST_TURNS))


def make_layers(
    block: MoE, backend: str, dtype: str, device: torch.device, seed: int, cache_bytes: int
) -> list[Layer]:
    """As many equal layers as make their weights more than three times the last cache."""

    def make(number: int) -> Layer:
        how = {"backend": backend, "dtype": DTYPES[dtype], "device": device}
        return Layer(block, seed=seed + number, **how)  # type: ignore[arg-type]

    first = make(0)
    size = sum(weight.nbytes for weight in first.parameters())
    return [first, *(make(n) for n in range(1, turns_needed(size, size, cache_bytes).layers))]


class _Turn(NamedTuple):
    """One set of buffers. d_TD: the gradient of the output, where there is a backward pass."""

    layer: Layer
    x_TD: Tensor
    ids_TK: Tensor
    d_TD: Tensor | None


class Passes:
    """The passes of a case, each on the next of its buffers in turn.

    Turns differ in layer, input, and in which experts have which load: the histogram of rows is the
    same set of numbers in each. touched: bytes that a pass moves, to know how many turns it takes
    to leave the caches behind. Raises ValueError where the layer runs another histogram.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        ids: Ids,
        direction: Direction,
        *,
        cache_bytes: int,
        touched: int,
        seed: int,
    ) -> None:
        self.backward = direction == "forward+backward"
        self.device = layers[0].router_ED.device
        experts = layers[0].router_ED.shape[0]
        size = sum(weight.nbytes for weight in layers[0].parameters())
        count = max(turns_needed(size, touched, cache_bytes).passes, len(layers))
        self.turns: list[_Turn] = []
        for number in range(count):
            layer = layers[number % len(layers)]
            x_TD = layer.input(len(ids), seed=seed + number).requires_grad_(self.backward)
            d_TD = layer.input(len(ids), seed=seed + count + number) if self.backward else None
            ids_TK = torch.from_numpy(rotated(ids, number, count, experts)).to(self.device)
            self.turns.append(_Turn(layer, x_TD, ids_TK, d_TD))
        stages: tuple[Stage, ...] = ("forward", "backward") if self.backward else ("forward",)
        phases = layers[0].phase_names
        self.names: Names = tuple((name, stage) for stage in stages for name in phases)
        self._check_rows(rows_per_expert(ids, experts))

    def _check_rows(self, expected: list[int]) -> None:
        turn = self.turns[0]
        with torch.no_grad():
            _, rows_E = turn.layer.run(turn.x_TD, routing_override=turn.ids_TK)
        if rows_E.tolist() != expected:
            raise ValueError(f"the layer ran rows {rows_E.tolist()} instead of {expected}")

    def run(self, number: int, hook: Any = None) -> Any:
        """One pass; what it returns is to be held until it has been timed."""
        layer, x_TD, ids_TK, d_TD = self.turns[number % len(self.turns)]
        if d_TD is None:
            with torch.no_grad():
                return layer(x_TD, hook, ids_TK)
        y_TD = layer(x_TD, hook, ids_TK)
        return y_TD, torch.autograd.grad(y_TD, [x_TD, *layer.parameters()], d_TD)

    def sync(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def own_bytes(self, number: int) -> int:
        """Bytes of the weights and buffers that a pass uses."""
        layer, x_TD, _, d_TD = self.turns[number % len(self.turns)]
        held = [*layer.parameters(), *layer.buffers(), x_TD, *([] if d_TD is None else [d_TD])]
        return sum(tensor.nbytes for tensor in held)


def measure(
    passes: Passes,
    samples: int,
    *,
    tick: Tick = lambda: None,
    deadline: float = math.inf,
    traced: bool = True,
) -> Measurement:
    """Warm up, then time the passes. deadline: a value of time.monotonic().

    Raises OutOfTime before it would miss the deadline, and whatever the passes raise.
    """
    before = read_clocks(passes.device)
    warmup = _warm_up(passes, samples, tick, deadline)
    phases, eager, clock = _eager(passes, samples, tick)
    kernels = Timing(absent="a CPU runs no kernels of its own: its phases are timed by wall clock")
    graph = Timing(absent="CUDA graphs are for GPUs")
    if passes.device.type == "cuda":
        if traced:
            try:
                phases, totals = kernel_seconds(passes.run, samples, passes.names, passes.sync)
                kernels, clock = Timing(samples=totals), "kernels"
            except (Unavailable, ValueError) as problem:  # the phases themselves have been timed
                kernels = Timing(absent=str(problem))
        graph = _graph(passes, samples)
    peak, source = _peak(passes)
    tick()
    after = read_clocks(passes.device)
    found = Measurement(
        phase_clock=clock,
        phases=[Phase(name=n, stage=s, samples=_rounded(phases[n, s])) for n, s in passes.names],
        kernels=kernels,
        graph=graph,
        eager=Timing(samples=_rounded(eager)),
        peak_bytes=peak,
        peak_source=source,
        rotations=len(passes.turns),
        warmup=warmup,
        before=before,
        after=after,
    )
    found.flags = noise_flags(found)
    return found


def _rounded(seconds: Sequence[float]) -> list[float]:
    return [round(value, 9) for value in seconds]  # a nanosecond is finer than any clock here


def noise_flags(found: Measurement) -> list[str]:
    """What a reader should know before believing the figures."""
    flags = []
    samples = found.layer.samples
    spread = (quantile(samples, 0.9) - quantile(samples, 0.1)) / found.layer.median
    if spread > NOISY:
        flags.append(f"noisy: {spread:.0%} of the median from p10 to p90")
    held = sorted({*found.before.throttle, *found.after.throttle})
    if held:
        flags.append(f"throttled: {', '.join(held)}")
    if _drops(found.before, found.after):
        flags.append(f"clock fell from {found.before.clock_mhz:g} to {found.after.clock_mhz:g} MHz")
    return flags


def _drops(before: Clocks, after: Clocks) -> bool:
    if before.source != "NVML" and before.source != "nvidia-smi":
        return False  # a CPU's clock varies with whatever else is running
    return bool(before.clock_mhz and after.clock_mhz and after.clock_mhz < 0.95 * before.clock_mhz)


def _warm_up(passes: Passes, samples: int, tick: Tick, deadline: float) -> int:
    """Run until kernels are loaded and clocks are up; return the number of passes."""
    least, seconds = (3, 0.5) if passes.device.type == "cuda" else (2, 0.05)
    started, count, last = time.monotonic(), 0, 0.0
    while count < least or (time.monotonic() - started < seconds and count < 200):
        begun = time.monotonic()
        held = passes.run(count)
        passes.sync()
        del held
        last, count = time.monotonic() - begun, count + 1
        tick()
        needed = last * (2 * samples + least - count)
        # the first pass loads code and touches fresh memory: it says little about the others
        if count > 1 and time.monotonic() + needed > deadline:
            raise OutOfTime(f"its passes would take {needed:.0f} s more")
    return count


def _eager(
    passes: Passes, samples: int, tick: Tick
) -> tuple[dict[tuple[str, Stage], list[float]], list[float], Clock]:
    """Plain passes and passes with timed phases, one after the other so that drift meets both."""
    phases: dict[tuple[str, Stage], list[float]] = {name: [] for name in passes.names}
    eager = []
    for number in range(samples):
        passes.sync()
        start = time.perf_counter()
        held = passes.run(number)
        passes.sync()
        eager.append(time.perf_counter() - start)
        del held
        tick()
        for name, seconds in _phase_seconds(passes, number).items():
            phases[name].append(seconds)
        tick()
    return phases, eager, "events" if passes.device.type == "cuda" else "wall"


def _phase_seconds(passes: Passes, number: int) -> dict[tuple[str, Stage], float]:
    """Seconds of each phase in one pass. Raises ValueError for a phase that did not run."""
    scopes: list[tuple[str, Stage, Any, Any]] = []
    mark = _event if passes.device.type == "cuda" else time.perf_counter

    @contextmanager
    def hook(name: str, stage: Stage) -> Iterator[None]:
        begin = mark()
        yield
        scopes.append((name, stage, begin, mark()))

    held = passes.run(number, hook)
    passes.sync()
    del held
    out: dict[tuple[str, Stage], float] = {}
    for name, stage, begin, end in scopes:
        seconds = end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1e3
        out[name, stage] = out.get((name, stage), 0.0) + seconds
    if out.keys() != set(passes.names):
        alone = sorted(out.keys() ^ set(passes.names))
        raise ValueError(f"phases and rows do not match: {alone}")
    return out


def _event() -> Any:
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


# ---------------------------------------------------------------------------- CUDA graphs
_UNCAPTURED: dict[tuple[str, torch.dtype], str] = {}
"""Why passes of a backend could not be captured: one that waits for the device never can, and a
capture that fails is not without risk for what runs after it."""


def _graph(passes: Passes, samples: int) -> Timing:
    """Replay of captured passes, or why there is none."""
    layer, stream = passes.turns[0].layer, torch.cuda.current_stream(passes.device)
    who = layer.backend.name, layer.router_ED.dtype
    if who in _UNCAPTURED:
        return Timing(absent=_UNCAPTURED[who])
    try:
        graphs = _captured(passes)
    except torch.OutOfMemoryError:
        torch.cuda.set_stream(stream)
        return Timing(absent="no memory left for the capture")
    except (RuntimeError, ValueError) as problem:
        torch.cuda.set_stream(stream)  # a capture that ends in an error leaves its own behind
        torch.cuda.synchronize(passes.device)
        said = next(iter(str(problem).splitlines()), type(problem).__name__)
        _UNCAPTURED[who] = f"capture failed: {said}"
        return Timing(absent=_UNCAPTURED[who])
    for graph in graphs:
        graph.replay()
    passes.sync()
    begin = _event()
    graphs[0].replay()
    end = _event()
    passes.sync()
    # short passes are timed many at a time: an event costs some microseconds itself
    each = max(len(graphs), math.ceil(2e-4 / max(begin.elapsed_time(end) / 1e3, 1e-6)))
    taken = []
    for _ in range(samples):
        begin = _event()
        for number in range(each):
            graphs[number % len(graphs)].replay()
        end = _event()
        passes.sync()
        taken.append(begin.elapsed_time(end) / 1e3 / each)
    return Timing(samples=_rounded(taken), passes=each)


def _captured(passes: Passes) -> list[torch.cuda.CUDAGraph]:
    """A graph for each turn, checked: its replay gives what the plain pass gives."""
    graphs: list[torch.cuda.CUDAGraph] = []
    pool = torch.cuda.graph_pool_handle()
    for number in range(min(len(passes.turns), MOST_GRAPHS)):
        plain = _output(passes.run(number)).clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            held = passes.run(number)
        graph.replay()
        passes.sync()
        # another workspace may make a library sum in another order
        if relative_error(_output(held), plain) > _SAME_OUTPUT[plain.dtype]:
            raise ValueError("the replayed graph gives another output than the plain call")
        graphs.append(graph)
        del held, plain
    return graphs


def _output(held: Any) -> Tensor:
    output: Tensor = held[0] if isinstance(held, tuple) else held
    return output.detach()


# ---------------------------------------------------------------------------------- memory
def _peak(passes: Passes) -> tuple[int, str]:
    """Bytes at most held by one pass with its weights and buffers, and who counted them."""
    if passes.device.type == "cuda":
        torch.cuda.synchronize(passes.device)
        base = torch.cuda.memory_allocated(passes.device)
        torch.cuda.reset_peak_memory_stats(passes.device)
        held = passes.run(0)
        passes.sync()
        more = torch.cuda.max_memory_allocated(passes.device) - base
        del held
        return passes.own_bytes(0) + more, "CUDA allocator"
    layer, x_TD, _, d_TD = passes.turns[0]
    with TrackedMemory() as memory:
        memory.watch(*layer.parameters(), *layer.buffers(), x_TD, *([] if d_TD is None else [d_TD]))
        held = passes.run(0)
        del held
    return memory.peak, "tracked tensors"
