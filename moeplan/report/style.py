"""How plots look: one colour per component throughout, models told apart without colour too.

Component colours are Okabe and Ito's palette (grey for its black), model colours Paul Tol's
"muted": both keep apart for all kinds of colour vision. Bars carry hatches, lines markers and
dashes, for print in grey.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from moeplan.report.estimate_tables import LABELS

__all__ = ["COMPONENT_STYLES", "INK", "PART_STYLES", "RC", "ModelStyle", "PartStyle", "model_style"]

INK = "#333333"  # lines and text that are not data


class PartStyle(NamedTuple):
    """A component or a part of memory: its name in legends, colour, hatch, and marker."""

    label: str
    colour: str
    hatch: str
    marker: str


COMPONENT_STYLES: Mapping[str, PartStyle] = {
    "embedding": PartStyle(LABELS["embedding"], "#56B4E9", "....", "h"),
    "attention": PartStyle(LABELS["attention"], "#0072B2", "//", "o"),
    "router": PartStyle(LABELS["router"], "#CC79A7", "xxxx", "X"),
    "routed_experts": PartStyle(LABELS["routed_experts"], "#E69F00", "", "s"),
    "shared_experts": PartStyle(LABELS["shared_experts"], "#D55E00", "\\\\", "D"),
    "dense_ffn": PartStyle(LABELS["dense_ffn"], "#7F7F7F", "--", "^"),
    "norms": PartStyle(LABELS["norms"], "#F0E442", "||||", "v"),
    "head": PartStyle(LABELS["head"], "#009E73", "oo", "P"),
}

PART_STYLES: Mapping[str, PartStyle] = {
    **COMPONENT_STYLES,
    "kv_cache": PartStyle("KV cache and state", "#000000", "", "o"),
    "weights": PartStyle("weights", "#EAE3F3", "", "o"),
    "gradients": PartStyle("gradients", "#C3AFDD", "///", "o"),
    "main_parameters": PartStyle("main parameters", "#9473C6", "...", "o"),
    "moments": PartStyle("optimizer moments", "#5E3C99", "", "o"),
}


class ModelStyle(NamedTuple):
    """A model in plots of lines and points."""

    colour: str
    marker: str
    dashes: Any


_COLOURS = ("#332288", "#CC6677", "#117733", "#AA4499", "#44AA99", "#882255", "#999933")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "h", ">")
_DASHES = ("-", (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1.5)))


def model_style(index: int) -> ModelStyle:
    """The look of the index-th model: all three differ for neighbours, no two of 385 are alike."""
    return ModelStyle(
        _COLOURS[index % len(_COLOURS)],
        _MARKERS[index % len(_MARKERS)],
        _DASHES[index % len(_DASHES)],
    )


RC: Mapping[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that files are equal everywhere
    "font.size": 9,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "moeplan",
    "text.parse_math": False,  # a model's name may hold a dollar sign
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}
