"""Ctrl-C as an ordinary end: cleaned up, one line, exit code 130."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["CODE", "Interrupted", "interruptible"]

CODE = 128 + signal.SIGINT
"""What a shell gives for a command that this signal ended."""


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
