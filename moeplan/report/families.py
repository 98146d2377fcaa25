"""The model types that are read, the kinds of block they are made of, and a preset of each."""

from __future__ import annotations

from typing import Any

from moeplan.errors import UserError
from moeplan.estimation.parameters import active, count
from moeplan.families import FAMILIES
from moeplan.load import load_preset
from moeplan.model.attention import Attention
from moeplan.model.ffn import DenseFFN, MoE
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.presets import presets
from moeplan.quantity import plain
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_count

__all__ = ["family_rows", "family_table"]

_MIXERS = {
    "BlockSparseAttention": "grouped-query, block-sparse by indexer",
    "CompressedConvolutionalAttention": "compressed convolutional attention",
    "CompressedAttention": "compressed attention",
    "GatedDeltaNet": "gated delta rule",
    "LatentAttention": "multi-latent",
    "LightningAttention": "lightning attention",
    "Mamba1": "Mamba-1",
    "Mamba2": "Mamba-2",
    "ShortConvolution": "short convolution",
    "SparseLatentAttention": "multi-latent, sparse by indexer",
}


def _attention(block: Attention) -> str:
    if words := _MIXERS.get(type(block).__name__):
        return words
    heads, kv_heads = plain(block.H), plain(block.G)
    kind = "multi-head" if heads == kv_heads else "grouped-query"
    words = {"full": "", "window": ", window", "chunk": ", chunks"}[block.scope]
    if block.cross:
        return "cross-attention"
    return kind + words + (", shared keys and values" if block.shares_kv else "")


def _kind(block: Block) -> str | None:
    """The words for a mixer or feed-forward block; None for norms, residuals and the like."""
    if isinstance(block, Attention):
        return _attention(block)
    if isinstance(block, MoE):
        return "MoE with shared experts" if block.Fs is not None else "MoE"
    if isinstance(block, DenseFFN):
        return "dense" if block.gated else "dense, ungated"
    return _MIXERS.get(type(block).__name__)


def _kinds(spec: ModelSpec) -> tuple[list[str], list[str]]:
    """(mixers, feed-forward kinds) of a model's layers, each once, in order of appearance."""
    mixers: dict[str, None] = {}
    feed: dict[str, None] = {}
    for group in spec.groups:
        if group.is_layer and group.role != "mtp":
            for block in group.blocks:
                words = _kind(block)
                if words is not None:
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
    mixers, feed = _kinds(spec)
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
    for row in rows:
        sizes = [fmt_count(row[key]) if key in row else "" for key in ("total", "active")]
        kinds = ["; ".join(row[key]) for key in ("mixers", "feed_forward")]
        table.rows.append((row["model_type"], *kinds, row["preset"], *sizes))
    table.notes.append("the largest preset of each; a config.json of the same type reads alike")
    return table
