"""Time of GPU kernels by phase, from a trace of the profiler.

Each kernel belongs to the phase whose scope was open on the host when the kernel was launched. The
trace is read through the profiler's raw events, since those of the autograd profiler do not link
kernels that are launched from Python. Not run on a GPU yet; the attribution is tested on events.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from moeplan.profile.record import Stage

__all__ = ["Event", "Unavailable", "attribute", "kernel_seconds"]

PASS = "moeplan.pass"
FORWARD, BACKWARD = "moeplan::", "moeplan.backward::"
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_CALLS = ("cuda_runtime", "cuda_driver")  # they bear the correlation of what they launch


class Unavailable(Exception):
    """Why no kernel times could be had."""


class Event(NamedTuple):
    """An event of the trace: times in nanoseconds; `link` joins a kernel with its launch."""

    name: str
    kernel: bool
    start: int
    end: int
    link: int
    scope: bool = False


Phases = dict[tuple[str, Stage], list[float]]


def attribute(
    events: Iterable[Event], names: Sequence[tuple[str, Stage]], passes: int
) -> tuple[Phases, list[float]]:
    """Seconds of kernels in each phase and in all, for each pass of a trace.

    Kernels between phases count in the total alone. Raises ValueError for a phase without a scope,
    and Unavailable where the trace is not of so many passes, or has no kernels or launches.
    """
    kernels, launches, scopes = [], {}, []
    for event in events:
        if event.kernel:
            kernels.append(event)
        elif event.scope:
            scopes.append(event)
        elif event.link:
            launches[event.link] = event.start
    runs = sorted((s for s in scopes if s.name == PASS), key=lambda s: s.start)
    if len(runs) != passes:
        raise Unavailable(f"the trace holds {len(runs)} passes of {passes}")
    if not kernels:
        raise Unavailable("the profiler saw no kernel (is another profiler attached?)")
    found = sorted((s.start, s.end, phase) for s in scopes if (phase := _phase(s.name)))
    if {phase for _, _, phase in found} != set(names):
        alone = sorted({phase for _, _, phase in found} ^ set(names))
        raise ValueError(f"phases and rows do not match: {alone}")
    phases: Phases = {name: [0.0] * passes for name in names}
    totals = [0.0] * passes
    run_starts, phase_starts = [r.start for r in runs], [s for s, _, _ in found]
    for kernel in kernels:
        at = launches.get(kernel.link)
        if at is None:
            raise Unavailable(f"the trace does not say who launched {kernel.name!r}")
        number = bisect_right(run_starts, at) - 1
        if number < 0 or at > runs[number].end:
            continue  # not of a timed pass
        seconds = (kernel.end - kernel.start) / 1e9
        totals[number] += seconds
        place = bisect_right(phase_starts, at) - 1
        if place >= 0 and at <= found[place][1]:
            phases[found[place][2]][number] += seconds
    return phases, totals


def _phase(name: str) -> tuple[str, Stage] | None:
    if name.startswith(FORWARD):
        return name.removeprefix(FORWARD), "forward"
    if name.startswith(BACKWARD):
        return name.removeprefix(BACKWARD), "backward"
    return None


def kernel_seconds(
    run: Callable[..., Any],
    passes: int,
    names: Sequence[tuple[str, Stage]],
    sync: Callable[[], None],
) -> tuple[Phases, list[float]]:
    """Trace passes of `run(number, hook)` and attribute their kernels. Raises Unavailable."""
    from torch.profiler import ProfilerActivity, profile, record_function

    @contextmanager
    def hook(name: str, stage: Stage) -> Iterator[None]:
        if stage == "forward":  # the layer opens these scopes itself while a profiler records
            yield
            return
        with record_function(f"{BACKWARD}{name}"):
            yield

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    try:
        with profile(activities=activities) as trace:
            for number in range(passes):
                with record_function(PASS):
                    held = run(number, hook)
                    sync()
                del held
    except RuntimeError as problem:
        raise Unavailable(f"the profiler failed: {str(problem).splitlines()[0]}") from problem
    return attribute(_events(trace), names, passes)


def _events(trace: Any) -> Iterator[Event]:
    """The raw events: kernels and their runtime calls by correlation, scopes by their name."""
    for event in trace.profiler.kineto_results.events():
        kind = event.activity_type()
        kernel, launch = kind in _ON_DEVICE, kind in _CALLS
        if kernel or launch or kind == "user_annotation":
            link = event.correlation_id() if kernel or launch else 0
            scope = kind == "user_annotation"
            yield Event(event.name(), kernel, event.start_ns(), event.end_ns(), link, scope)
