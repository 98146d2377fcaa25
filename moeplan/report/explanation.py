"""The tree behind a number: formula, inputs, and where each input came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from moeplan.quantity import Quantity

__all__ = ["explain_lines", "pretty"]


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


def _headline(name: str, q: Quantity) -> str:
    unit = f" {q.unit}" if q.unit else ""
    text = f"{name} = {_number(q.value)}{unit}"
    if q.source is not None:
        return f"{text}   [{q.source.kind}: {q.source.where}]"
    if q.formula and q.formula not in ("0", name, _number(q.value)):
        text += f"   = {pretty(q.formula)}"
    return f"{text}   ({q.note})" if q.note else text


def explain_lines(name: str, found: Any, depth: int | None = None) -> Iterator[str]:
    """Lines of text, indented with branches; sections list what they hold.

    Inputs that appeared above in full are not opened again.
    """
    seen: set[int] = set()
    yield from _node(name, found, "", "", depth, seen)


def _node(
    name: str, found: Any, lead: str, follow: str, depth: int | None, seen: set[int]
) -> Iterator[str]:
    if isinstance(found, Quantity):
        yield lead + _headline(name, found)
        if id(found) in seen or depth == 0:
            return
        seen.add(id(found))
        children: list[tuple[str, Any]] = list(found.inputs.items())
    elif isinstance(found, Mapping):
        yield f"{lead}{name}"
        children = [(str(k), v) for k, v in found.items()]
    elif isinstance(found, list):
        yield f"{lead}{name}"
        children = [(str(i), v) for i, v in enumerate(found)]
    else:
        yield f"{lead}{name} = {_number(found)}"
        return
    below = None if depth is None else depth - 1
    for number, (key, child) in enumerate(children):
        last = number == len(children) - 1
        lead_child = follow + ("└─ " if last else "├─ ")
        yield from _node(key, child, lead_child, follow + ("   " if last else "│  "), below, seen)
