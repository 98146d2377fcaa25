"""The model types that are read, the kinds of block they are made of, and a preset of each."""

from __future__ import annotations

import re
from typing import Any

from moeplan.errors import UserError
from moeplan.estimation.parameters import active, count
from moeplan.families import FAMILIES
from moeplan.load import load_preset
from moeplan.model.ffn import DenseFFN, MoE
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Workload
from moeplan.presets import presets
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_count

__all__ = ["family_rows", "family_table", "kinds"]

_ONE = Workload("decode")


def _kind(block: Block) -> str:
    """The words for a mixer or feed-forward block; "" for norms, residuals and the like.

    A mixer without a label is called by its class.
    """
    mixes = any(op.kind in ("attention", "scan") for op in block.rows(_ONE))
    if block.label or not mixes:
        return block.label
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(block).__name__).lower()


def kinds(spec: ModelSpec) -> tuple[list[str], list[str]]:
    """(mixers, feed-forward kinds) of a model's layers, each once, in order of appearance."""
    mixers: dict[str, None] = {}
    feed: dict[str, None] = {}
    for group in spec.groups:
        if group.is_layer and group.role != "mtp":
            for block in group.blocks:
                if words := _kind(block):
                    target = feed if isinstance(block, (MoE, DenseFFN)) else mixers
                    target.setdefault(words)
    return list(mixers), list(feed)


def family_rows() -> list[dict[str, Any]]:
    """One row for each model type: kinds of block and size of its largest preset, if it has one."""
    largest: dict[str, ModelSpec] = {}
    for entry in presets():
        model_type = str(entry.config["model_type"])
        spec = load_preset(entry.name)
        if model_type not in largest or count(spec) > count(largest[model_type]):
            largest[model_type] = spec
    unknown = sorted(set(largest) - set(FAMILIES))
    if unknown:
        raise UserError(f"presets name model types that are not read: {', '.join(unknown)}")
    return [_row(model_type, largest.get(model_type)) for model_type in sorted(FAMILIES)]


def _row(model_type: str, spec: ModelSpec | None) -> dict[str, Any]:
    if spec is None:
        return {"model_type": model_type, "mixers": [], "feed_forward": [], "preset": ""}
    mixers, feed = kinds(spec)
    return {
        "model_type": model_type,
        "mixers": mixers,
        "feed_forward": feed,
        "preset": spec.name,
        "total": count(spec),
        "active": active(spec)["all"].value,
    }


def family_table(rows: list[dict[str, Any]]) -> Table:
    """The model types as a table."""
    columns = [
        Column("model_type", "left"),
        Column("mixers", "left"),
        Column("feed-forward", "left"),
        Column("preset", "left"),
        Column("total"),
        Column("active"),
    ]
    table = Table(f"Model types ({len(rows)})", columns)
    for row in (row for row in rows if row["preset"]):
        sizes = [fmt_count(row[key]) if key in row else "" for key in ("total", "active")]
        kinds = ["; ".join(row[key]) for key in ("mixers", "feed_forward")]
        table.rows.append((row["model_type"], *kinds, row["preset"], *sizes))
    table.notes.append("the largest preset of each; a config.json of the same type reads alike")
    others = [row["model_type"] for row in rows if not row["preset"]]
    table.notes.append(f"read too, without a preset: {', '.join(others)}")
    return table
