"""A job of values that a user wrote: units read, words and ranges checked, each error at its place.

Options of the command line and keys of a plan file come through here alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from moeplan.errors import UserError, near_miss
from moeplan.parallel.jobs import Overheads, ServingJob, TrainingJob
from moeplan.units import Kind, parse

__all__ = ["job_of"]

_READ: dict[str, Kind] = {
    **dict.fromkeys(("sequence", "tokens", "input", "output", "batch", "prefill_batch"), "count"),
    "tpot": "time",
    "power": "power",
    "framework": "bytes",
}
_RANGES = {  # least, and what the number stays below
    "imbalance": (1, math.inf),
    "queueing": (1, math.inf),
    "draft": (0, math.inf),
    "acceptance": (0, 1),
    "cached": (0, 1),
    "fragmentation": (0, 1),
    "framework": (0, math.inf),
    **dict.fromkeys(("sequence", "tokens", "input", "output", "batch", "prefill_batch"),
                    (1, math.inf)),
}  # fmt: skip
_MOST = 10**18  # of anything that is counted
_POSITIVE = ("tpot", "power")


def job_of(
    given: Mapping[str, Any], *, training: bool, where: Callable[[str], str]
) -> TrainingJob | ServingJob:
    """A training or serving job of its fields, with `framework` and `fragmentation` among them.

    Numbers are SI; texts are read with their unit. `where` names a field as the user wrote it.
    Raises `UserError` for a number or word out of range.
    """
    read: dict[str, Any] = {}
    words = _words(training=training)
    for name, text in given.items():
        is_text = isinstance(text, str) and name in _READ
        number = parse(text, _READ[name], where=where(name)) if is_text else text
        share = name == "overlap" and not training
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            _in_range(name, number, where(name), share=share)
        if name in words:
            _known(where(name), str(number), words[name])
        read[name] = number
    overheads = {n: read.pop(n) for n in ("framework", "fragmentation") if n in read}
    job = TrainingJob(**read) if training else ServingJob(**read)
    return replace(job, overheads=Overheads(**overheads)) if overheads else job


def _words(*, training: bool) -> dict[str, tuple[str, ...]]:
    """Fields that are one of some words, and those words."""
    from moeplan.estimation.all_to_all import ROW_FORMATS
    from moeplan.parallel.account import ACCOUNTS
    from moeplan.parallel.optime import STACKS

    formats, rows, sent = ("bf16", "fp8"), tuple(ROW_FORMATS), ("copies", "per-gpu", "per-node")
    both = {"dispatch": rows, "combine": rows, "stack": tuple(STACKS)}
    if training:
        return {**both, "precision": formats, "kept": formats, "policy": sent,
                "account": tuple(ACCOUNTS)}  # fmt: skip
    return {**both, "decode_policy": sent, "prefill_policy": sent}


def _known(where: str, word: str, allowed: tuple[str, ...]) -> None:
    if word not in allowed:
        raise UserError(
            f"{where} {word!r} is not known, it is one of {', '.join(allowed)}"
            f"{near_miss(word, allowed)}"
        )


def _in_range(name: str, number: float, where: str, *, share: bool) -> None:
    if number > _MOST:
        raise UserError(f"{where} is too large, the most is {_MOST:.0e}")
    if share and not 0 <= number <= 1:
        raise UserError(f"{where} is {number}, and a share is from 0 to 1")
    if name in _POSITIVE and not number > 0:
        raise UserError(f"{where} is {number}, and must be more than 0")
    if name in _RANGES:
        least, below = _RANGES[name]
        if not least <= number < below:
            most = f" and below {below}" if below < math.inf else ""
            raise UserError(f"{where} is {number}, and must be at least {least}{most}")
    if _READ.get(name) == "count" and number != int(number):
        raise UserError(f"{where} is {number}: a count is a whole number")
