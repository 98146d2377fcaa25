"""Work spread over processes of this machine, which find it by being forked."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence, Sized
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from typing import Any, TypeVar

from moeplan.errors import UserError

__all__ = ["processors", "spread", "together"]

T = TypeVar("T")

_AHEAD = 4  # arguments sent out for each process: none waits, and few results do
_calls: dict[int, Callable[[Any], Any]] = {}  # what a forked process calls; nothing is sent to it


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spread(
    call: Callable[[Any], T], given: Iterable[Any], workers: int
) -> Generator[T, None, None]:
    """Results of a call for each of some arguments, in their order, whatever the workers.

    Only arguments and results are sent: what `call` refers to is shared with forked processes.
    Arguments are taken as they are needed, so that few results wait at a time. Ctrl-C reaches this
    process only. `UserError` where a process was ended from outside.
    """
    if isinstance(given, Sized):
        workers = min(workers, len(given))
    if workers <= 1:
        yield from map(call, given)
        return
    key = id(call)
    _calls[key] = call
    pool = _executor(workers)
    waiting: deque[Future[T]] = deque()
    try:
        for argument in given:
            waiting.append(pool.submit(_run, key, argument))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenExecutor:
        raise UserError(
            "one of the --workers was ended by the system, as it does where memory runs out: give "
            "fewer"
        ) from None
    except BaseException:  # an interrupt, or enough of it: what runs would be waited for
        _stop()
        raise
    finally:  # nothing is cancelled, a stopped pool trips over that
        pool.shutdown()
        del _calls[key]


def together(calls: Sequence[Callable[[], T]], workers: int) -> list[T]:
    """Results of some calls, in their order."""
    return list(spread(lambda i: calls[i](), range(len(calls)), workers))


def _executor(workers: int) -> Executor:
    """Forked processes; threads where a system cannot fork."""
    if "fork" in multiprocessing.get_all_start_methods():
        return ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _deaf)
    return ThreadPoolExecutor(workers)


def _deaf() -> None:
    """Leave a terminal's interrupt to the parent, which ends its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop() -> None:
    for process in multiprocessing.active_children():
        process.terminate()


def _run(key: int, argument: Any) -> Any:
    return _calls[key](argument)
