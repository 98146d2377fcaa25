"""The values of an axis as users write them: `64,128,256`, `1k:64k:x2`, `1:4:0.5`, `bf16,fp8`.

Items stand between commas. `a:b` counts from a to b by ones, `a:b:s` by steps of s, `a:b:xF` by
factors of F; b is included where it is reached. Numbers take the suffixes and units that the
options of the same name take.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias, get_args

from moeplan.errors import UserError
from moeplan.units import Kind, parse

__all__ = ["ValueKind", "axis_values", "read_value"]

ValueKind: TypeAlias = Kind | Literal["number", "json", "word", "flag", "amount"]
"""What a value is: one of `units.Kind`; any number; JSON; a word; true or false; a price in
dollars per GPU-hour or a kind of price."""

_FLAGS = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}
_SLACK = 1e-9  # of a step: 0.1 added ten times reaches 1


def axis_values(where: str, given: Any, kind: ValueKind, most: int) -> list[Any]:
    """The values of an axis, each once, in the order given.

    given: a text as above, a number, or a sequence of numbers and texts. most: how many there may
    be. `where` names the option in messages. Raises `UserError`.
    """
    out: list[Any] = []
    for item in _items(where, given):
        parts = [part.strip() for part in item.split(":")] if isinstance(item, str) else []
        if len(parts) in (2, 3) and _is_range(parts, kind):
            out += _range(where, item, parts, kind, most)
        else:
            out.append(read_value(where, item, kind))
        if len(out) > most:
            raise UserError(f"{where}: more than {most:,} values; --max-points allows more")
    return _once(out)


def read_value(where: str, given: Any, kind: ValueKind) -> Any:
    """One value. Numbers of Python pass as they are; whole ones are ints."""
    if hasattr(given, "item"):  # a scalar of numpy
        given = given.item()
    if kind == "flag" and str(given).lower() in _FLAGS:
        return _FLAGS[str(given).lower()]
    if kind == "flag":
        raise UserError(f"{where}: {given!r} is given, and 0 or 1 is needed")
    if not isinstance(given, str):
        whole = isinstance(given, float) and given.is_integer() and kind != "json"
        return int(given) if whole else given
    text = given.strip()
    if kind == "word":
        return text
    if kind == "json":
        return _json(text)
    if kind == "amount":
        return text if text[:1].isalpha() else parse(text, "money", where=where)
    if kind == "number":
        return _number(where, text)
    return parse(text, kind, where=where)


def _items(where: str, given: Any) -> Sequence[Any]:
    if isinstance(given, str):
        items = _split(given)
        if any(not item for item in items):
            raise UserError(f"{where}={given}: a value is missing; write it like 64,128 or 1:8:x2")
        return items
    if isinstance(given, Iterable):
        items = list(given)
        if not items:
            raise UserError(f"{where}: no values are given")
        return items
    return [given]


def _split(text: str) -> list[str]:
    """Parts between commas that stand outside of brackets and quotes."""
    out, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        depth += (letter in "[{") - (letter in "]}") if not quoted else 0
        if letter == "," and depth <= 0 and not quoted:
            out.append("")
        else:
            out[-1] += letter
    return [part.strip() for part in out]


def _json(text: str) -> Any:
    """A value as JSON has it, a count such as 128k, or a word."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return parse(text, "count")
    except UserError:
        return text


def _number(where: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        return parse(text, "count", where=where)
    if not math.isfinite(found):
        raise UserError(f"{where}: {text!r} is given, and a finite number is needed")
    return int(found) if found.is_integer() and abs(found) < 2**53 else found


def _is_range(parts: list[str], kind: ValueKind) -> bool:
    """Whether both ends are numbers; `selective:norm` and a path are words."""
    if kind in ("word", "flag"):
        return False
    ends = parts[:2]
    return kind in get_args(Kind) or kind == "number" or all(e[:1].isdigit() for e in ends)


def _range(where: str, item: str, parts: list[str], kind: ValueKind, most: int) -> list[Any]:
    here = f"{where}={item}"
    first, last = (read_value(here, end, kind) for end in parts[:2])
    if not all(isinstance(end, (int, float)) for end in (first, last)):
        raise UserError(f"{here}: a range goes from a number to a number")
    if first > last:
        raise UserError(f"{here}: a range goes upwards, write {parts[1]}:{parts[0]}")
    step = parts[2] if len(parts) == 3 else "1"
    if step.startswith("x"):
        return _factors(here, first, last, _number(here, step[1:]), kind, most)
    stride = _number(here, step) if len(parts) == 2 else read_value(here, step, kind)
    if not isinstance(stride, (int, float)) or not stride > 0:
        raise UserError(f"{here}: the step {step} must be more than 0; write x2 for a factor")
    count = math.floor((last - first) / stride + _SLACK) + 1
    _few(here, count, most)
    return [first + i * stride for i in range(count)]


def _factors(
    here: str, first: float, last: float, factor: float, kind: ValueKind, most: int
) -> list[Any]:
    if not factor > 1 or not first > 0:
        raise UserError(f"{here}: a factor is more than 1, and what it multiplies more than 0")
    count = math.floor(math.log(last / first) / math.log(factor) + _SLACK) + 1
    _few(here, count, most)
    found = [first * factor**i for i in range(count)]
    return [round(x) for x in found] if kind == "count" else found


def _few(here: str, count: int, most: int) -> None:
    if count > most:
        raise UserError(
            f"{here}: {count:,} values are more than {most:,}; --max-points allows more"
        )


def _once(values: list[Any]) -> list[Any]:
    """Each value once: ranges and lists overlap."""
    seen: dict[str, Any] = {}
    for value in values:
        seen.setdefault(repr(value), value)
    return list(seen.values())
