"""What a ModelSpec says, without where it says it from: to see whether two readings agree."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity, plain

__all__ = ["fingerprint"]

Fingerprint = tuple[Any, ...]


def fingerprint(spec: ModelSpec) -> Fingerprint:
    """Groups with their blocks' numbers and kinds, formats of the checkpoint, longest context."""
    groups = tuple(
        (
            group.name,
            plain(group.count),
            group.indices,
            group.prefix,
            group.role,
            tuple((type(block).__name__, _values(block)) for block in group.blocks),
        )
        for group in spec.groups
    )
    return (
        groups,
        _values(spec.checkpoint, "source", "assumed"),
        None if spec.max_context is None else plain(spec.max_context),
    )


def _values(thing: Any, *without: str) -> tuple[tuple[str, Any], ...]:
    named = ((f.name, getattr(thing, f.name)) for f in fields(thing) if f.name not in without)
    return tuple((name, v.value if isinstance(v, Quantity) else v) for name, v in named)
