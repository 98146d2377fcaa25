"""Errors a user can act on, and the near miss that goes with them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["UserError", "near_miss"]


class UserError(Exception):
    """A mistake in what the user gave: one sentence that says what to type instead.

    The command line prints the sentence and exits with code 2; it never shows a traceback.
    """


def near_miss(word: str, choices: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest of `choices`, or an empty string."""
    lowered = {choice.lower(): choice for choice in choices}
    found = get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return f" (did you mean {lowered[found[0]]!r}?)" if found else ""
