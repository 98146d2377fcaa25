"""Work spread over processes of this machine, which find it by being forked."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["processors", "spread", "together"]

T = TypeVar("T")

_calls: dict[int, Callable[[Any], Any]] = {}  # what a forked process calls; nothing is sent to it


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spread(call: Callable[[Any], T], given: Sequence[Any], workers: int) -> Iterator[T]:
    """Results of a call for each of some arguments, in their order, whatever the workers.

    Only arguments and results are sent: what `call` refers to is shared with forked processes.
    """
    if workers == 1 or len(given) < 2:
        yield from map(call, given)
        return
    key = id(call)
    _calls[key] = call
    try:
        with _executor(min(workers, len(given))) as pool:
            try:  # no pool.map, whose cancelled futures a stopped pool trips over
                waiting = [pool.submit(_run, key, argument) for argument in given]
                yield from (future.result() for future in waiting)
            except BaseException:  # an interrupt: what runs would be waited for
                _stop()
                raise
    finally:
        del _calls[key]


def together(calls: Sequence[Callable[[], T]], workers: int) -> list[T]:
    """Results of some calls, in their order."""
    return list(spread(lambda i: calls[i](), range(len(calls)), workers))


def _executor(workers: int) -> Executor:
    """Forked processes; threads where a system cannot fork."""
    if "fork" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("fork")
        return ProcessPoolExecutor(workers, context, initializer=_deaf)
    return ThreadPoolExecutor(workers)


def _deaf() -> None:
    """Leave a terminal's interrupt to the parent, which ends its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop() -> None:
    for process in multiprocessing.active_children():
        process.terminate()


def _run(key: int, argument: Any) -> Any:
    return _calls[key](argument)
