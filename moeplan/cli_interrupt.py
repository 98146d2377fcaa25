"""Ctrl-C as an ordinary end: cleaned up, one line, exit code 130."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

__all__ = ["CODE", "Interrupted", "interruptible", "stoppable"]

CODE = 128 + signal.SIGINT
"""What a shell gives for a command that this signal ended."""

_PATIENCE = 1.0  # seconds


class Interrupted(BaseException):
    """Raised where the signal came; not a KeyboardInterrupt, for which the parser of the command
    line prints words and a code of its own.
    """


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the signal into `Interrupted` meanwhile; a second one during the clean-up kills."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise Interrupted

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def stoppable() -> Iterator[Callable[[], int]]:
    """Within, Ctrl-C or SIGTERM is only noted, so that what is done can be kept.

    Gives a function that returns the signal's number, or 0. Another one a second later, when a user
    loses patience, does what it did before; what started this process may pass a signal on twice.
    """
    came, since = 0, 0.0
    if threading.current_thread() is not threading.main_thread():  # signals stay as they are
        yield lambda: 0
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came, since
        if came and monotonic() - since > _PATIENCE:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        came, since = came or number, since or monotonic()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
