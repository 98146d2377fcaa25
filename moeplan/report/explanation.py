"""The tree behind a number: formula, inputs, and where each input came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

from moeplan.arrays import is_array
from moeplan.quantity import Later, Quantity

__all__ = ["explain_lines", "pretty", "unit_for"]


def pretty(formula: str) -> str:
    """A formula as the field writes it: · for *, ² for squares, no spaces around products."""
    text = formula.replace("**2", "²")
    text = re.sub(r"\*\*(\w+|\([^()]*\))", r"^\1", text)
    return re.sub(r"\s*\*\s*", "·", text)


def _number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:,.6g}"
    return str(value)


def unit_for(value: Any, unit: str) -> str:
    """A unit beside its number: 1 GPU, 2 GPUs."""
    one = not is_array(value) and value == 1 and len(unit) > 1 and unit.isalpha()
    return unit.removesuffix("s") if one else unit


def _headline(name: str, q: Quantity) -> str:
    unit = f" {unit_for(q.value, q.unit)}" if q.unit else ""
    text = f"{name} = {_number(q.value)}{unit}"
    if q.source is not None:
        return f"{text}   [{q.source.kind}: {q.source.where}]"
    if q.formula and q.formula not in ("0", name, _number(q.value)):
        text += f"   = {pretty(q.formula)}"
    return f"{text}   ({q.note})" if q.note else text


def explain_lines(
    name: str, found: Any, depth: int | None = None, width: int | None = None
) -> Iterator[str]:
    """Lines of text, indented with branches; sections list what they hold.

    Inputs that appeared above in full are not opened again. Lines longer than `width` columns are
    continued under their own text.
    """
    for lead, follow, text in _node(name, found, "", "", depth, set()):
        room = None if width is None else max(width - len(follow), _LEAST_ROOM)
        if room is None or len(text) <= room:
            yield lead + text
            continue
        first, *rest = wrap(text, room - len(_INDENT), break_on_hyphens=False)
        yield lead + first
        yield from (follow + _INDENT + line for line in rest)


_INDENT = "    "  # of what continues a line
_LEAST_ROOM = 24  # columns for the text of a very deep branch


def _node(
    name: str, found: Any, lead: str, follow: str, depth: int | None, seen: set[int]
) -> Iterator[tuple[str, str, str]]:
    """(what stands before the text, what stands before its continuation, the text)."""
    found = found() if isinstance(found, Later) else found
    if isinstance(found, Quantity):
        yield lead, follow, _headline(name, found)
        if id(found) in seen or depth == 0:
            return
        seen.add(id(found))
        children: list[tuple[str, Any]] = list(found.inputs.items())
    elif isinstance(found, Mapping):
        yield lead, follow, name
        children = [(str(k), v) for k, v in found.items()]
    elif isinstance(found, list):
        yield lead, follow, name
        children = [(str(i), v) for i, v in enumerate(found)]
    else:
        yield lead, follow, f"{name} = {_number(found)}"
        return
    below = None if depth is None else depth - 1
    for number, (key, child) in enumerate(children):
        last = number == len(children) - 1
        lead_child = follow + ("└─ " if last else "├─ ")
        yield from _node(key, child, lead_child, follow + ("   " if last else "│  "), below, seen)
