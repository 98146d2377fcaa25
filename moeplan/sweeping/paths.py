"""Columns by their path in the answer: numbers and words, and what to say of other paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moeplan.errors import UserError, near_miss
from moeplan.estimation.estimate import Estimate
from moeplan.quantity import Later, Quantity
from moeplan.sweeping.answers import Found

__all__ = ["look"]


def look(result: Estimate, path: str, points: int) -> Found:
    """The number or word at a path, as an array where it has a value a point.

    None where a section is null for this model (no experts, no price); a path that names nothing,
    or a section, says so.
    """
    try:
        found = result[path]
    except UserError as problem:
        if _below_null(result, path):
            return Found(None)
        return Found(None, missing=f"{problem}{_elsewhere(result, path)}")
    if isinstance(found, Quantity):
        return Found(found.value, found.unit)
    if found is None or isinstance(found, (str, bool, int, float)):
        return Found(found)
    if isinstance(found, list) and len(found) == points and all(isinstance(x, str) for x in found):
        return Found(found)
    held = list(found) if isinstance(found, Mapping) else [str(i) for i in range(len(found))]
    what = f"it holds {', '.join(held)}" if held else "it is empty"
    return Found(None, missing=f"path {path!r}: a column needs one number, and {what}")


def _below_null(result: Estimate, path: str) -> bool:
    """Whether a section above is null."""
    parts = path.split(".")
    for end in range(1, len(parts)):
        try:
            if result[".".join(parts[:end])] is None:
                return True
        except UserError:
            return False
    return False


def _elsewhere(result: Estimate, path: str) -> str:
    """Where a number of that name stands, for a path without a section before it."""
    if path in result.tree or "." in path:
        return ""
    same = [known for known in _leaves(result.tree) if path in known.split(".")]
    if same:
        return f"; did you mean {min(same, key=len)!r}?"
    return near_miss(path, {known.rsplit(".", 1)[-1] for known in _leaves(result.tree)})


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, below in tree.items():
        if isinstance(below, Mapping):
            yield from _leaves(below, f"{prefix}{key}.")
        elif not isinstance(below, (list, Later)):
            yield f"{prefix}{key}"
