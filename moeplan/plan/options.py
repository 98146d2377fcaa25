"""Texts of options to what a search takes: a space of layouts, a cluster, a batch, sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from moeplan.cluster.hardware import Cluster, Gpu, cluster, gpu
from moeplan.cluster.layout import Layout, Order, Overlap, Recompute, Schedule
from moeplan.errors import UserError, near_miss
from moeplan.plan.space import PINNED, Space
from moeplan.quantity import plain
from moeplan.units import parse

__all__ = [
    "counted",
    "gpus_of",
    "listed",
    "machine",
    "machine_counts",
    "memory_of",
    "numbers",
    "pins",
    "requests_of",
    "space",
]

_MOST = 1 << 20
_ALIASES = {"mbs": "microbatch", "mb": "microbatch"}
_WORDS: dict[str, tuple[str, ...]] = {
    "schedule": get_args(Schedule),
    "overlap": get_args(Overlap),
    "order": get_args(Order),
    "split": ("even", "full", "balanced"),
    "sp": ("0", "1"),
}


def numbers(text: str, where: str, least: int = 1) -> tuple[int, ...]:
    """Whole numbers such as ``1,2,4`` or ``2048`` or ``8:64:8`` (from, to, step)."""
    out: list[int] = []
    for item in text.split(","):
        ends = [parse(part.strip(), "count", where=where) for part in item.split(":")]
        if len(ends) > 3:
            raise UserError(f"{where} {item!r} must be a number, or first:last:step")
        for number in ends:
            if not least <= number <= _MOST:
                raise UserError(f"{where} is {number}, and must be from {least} to {_MOST}")
        first, last = int(ends[0]), int(ends[-1] if len(ends) == 1 else ends[1])
        out += range(first, last + 1, int(ends[2]) if len(ends) == 3 else 1)
        if last < first:
            raise UserError(f"{where} {item!r}: the last must not be less than the first")
    return tuple(dict.fromkeys(out))


def pins(
    given: Mapping[str, str], fix: str | None, allowed: Sequence[str] = PINNED
) -> dict[str, tuple[int, ...]]:
    """Pinned degrees of options of their own, and of ``--fix tp=1,zero=1``."""
    out = {}
    for name, text in given.items():
        out[name] = numbers(text, f"--{name}", 0 if name == "zero" else 1)
    for item in filter(None, (part.strip() for part in (fix or "").split(","))):
        key, equals, number = (part.strip() for part in item.partition("="))
        name = _ALIASES.get(key, key)
        if not equals or not number:
            raise UserError(f"--fix: {item!r} must be written name=value, such as tp=1")
        if name not in allowed:
            raise UserError(
                f"--fix: unknown name {key!r}, it is one of {', '.join(allowed)}"
                f"{near_miss(key, allowed)}"
            )
        if name in out:
            raise UserError(f"--fix: {key!r} is given twice")
        out[name] = numbers(number, f"--fix {name}", 0 if name == "zero" else 1)
    if bad := [z for z in out.get("zero", ()) if z > 3]:
        raise UserError(f"--zero is {bad[0]}, and must be 0, 1, 2 or 3")
    return out


def space(kinds: Mapping[str, str], pinned: Mapping[str, tuple[int, ...]]) -> Space:
    """A space of the kinds that options name (all of them, or the usual ones, where none does)."""
    found: dict[str, Any] = {"pins": pinned}
    names = {"schedule": "schedules", "overlap": "overlaps", "order": "orders", "split": "splits"}
    for name, text in kinds.items():
        if name == "recompute":
            words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
            for word in words:
                if word.partition(":")[0] not in get_args(Recompute):
                    _unknown("recompute", word, get_args(Recompute))
                Layout.parse(f"recompute={word}")
            found["recompute"] = words
            continue
        words = listed(text, name, _WORDS[name])
        found[names.get(name, name)] = words if name != "sp" else tuple(w == "1" for w in words)
    return Space(**found)


def listed(text: str, where: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """Words of a list such as ``a,b``, each one of some."""
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in allowed:
            _unknown(where.removeprefix("--"), word, allowed)
    return words


def _unknown(name: str, word: str, allowed: Sequence[str]) -> None:
    raise UserError(
        f"--{name}: {word!r} is not known, it is one of {', '.join(allowed)}"
        f"{near_miss(word, allowed)}"
    )


def memory_of(device: Gpu) -> float:
    """Bytes that a GPU has, as the driver reports them where that is known."""
    found = device.memory_bytes if device.memory_reported is None else device.memory_reported
    return float(plain(found))


def gpus_of(count: int) -> str:
    """A number of GPUs in words."""
    return f"{count:,} GPU{'' if count == 1 else 's'}"


def requests_of(rate: float) -> str:
    """Requests per second in words."""
    return f"{rate:g} request{'' if rate == 1 else 's'}/s"


def machine(name: str, gpus: int | None) -> Cluster:
    """A machine by its name, or this many GPUs of a name; `UserError` where they disagree."""
    sized = re.fullmatch(r"(.+)x([1-9]\d*)", name.strip())
    if gpus is None:
        return cluster(name)
    try:
        found = cluster(name)
    except UserError:
        found = None
    if found is not None and sized is not None:
        if found.gpus.value != gpus:
            raise UserError(f"--cluster {name} has {found.gpus.value} GPUs, and --gpus is {gpus}")
        return found
    device = found.gpu.id if found is not None else gpu(name).id
    return cluster(f"{name if name.partition('#')[0].endswith('.toml') else device}x{gpus}")


def machine_counts(name: str, text: str | None) -> tuple[int, ...]:
    """The numbers of GPUs that options name: --gpus, else those of the machine."""
    if text is not None:
        return numbers(text, "--gpus")
    try:
        return (int(cluster(name).gpus.value),)
    except UserError:
        gpu(name)  # its own message where there is no such GPU
        return ()


def counted(text: str | None, where: str) -> int | None:
    """A whole number of at least 1, or None."""
    if text is None:
        return None
    number = parse(text, "count", where=where)
    if not 1 <= number <= 10**9:
        raise UserError(f"{where} is {number}, and must be from 1 to 10^9")
    return int(number)
