"""Plots: each a function from estimates to a matplotlib figure; `draw` saves them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeplan.errors import UserError, near_miss
from moeplan.estimation.estimate import Estimate
from moeplan.report.compare import single
from moeplan.report.plots.sheet import look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "PLOTS", "draw", "plot", "save", "skipped"]

FORMATS = ("png", "svg")

# file name -> "module.function"; a module is imported when its plot is drawn
PLOTS: Mapping[str, str] = {
    "parameters": "sizes.plot_parameters",
    "flops": "bars.plot_flops",
    "memory": "bars.plot_memory",
    "kv_cache": "curves.plot_kv_cache",
    "context": "curves.plot_context",
    "all_to_all": "curves.plot_all_to_all",
    "roofline": "roofline.plot_roofline",
    "dense": "dense.plot_dense",
}

_NEED_MOE = ("all_to_all", "dense")
_DOTS_PER_INCH = 200


def skipped(estimates: Sequence[Estimate]) -> dict[str, str]:
    """Plots that these models do not have, each with the reason."""
    if any(e.spec.moe is not None for e in estimates):
        return {}
    reasons = {
        "all_to_all": "no model has experts, so nothing is exchanged",
        "dense": "no model has experts, so there is nothing to set beside a dense model",
    }
    return {name: reasons[name] for name in _NEED_MOE}


def plot(name: str, estimates: Sequence[Estimate]) -> Figure:
    """One plot as a figure. Raises UserError for an unknown name and for one that is skipped."""
    if name not in PLOTS:
        hint = near_miss(name, PLOTS)
        raise UserError(f"plot {name!r} is unknown: there are {', '.join(PLOTS)}{hint}")
    reason = skipped(single(estimates)).get(name)
    if reason is not None:
        raise UserError(f"plot {name!r} cannot be drawn: {reason}")
    module, function = PLOTS[name].rsplit(".", 1)
    make: Callable[[Sequence[Estimate]], Figure] = getattr(
        import_module(f"moeplan.report.plots.{module}"), function
    )
    return make(estimates)


def draw(
    estimates: Sequence[Estimate], folder: str | Path, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Save every plot that the models have, in each format, and return the files.

    `folder` is made where it is missing; PNG has 200 dots per inch. The same estimates give the
    same bytes with the same matplotlib. `skipped` says which plots are left out and why. Raises
    UserError for unknown formats, for sweeps over arrays, and where the folder cannot be written.
    """
    for wanted in formats:
        if wanted not in FORMATS:
            hint = near_miss(wanted, FORMATS)
            allowed = " and ".join(FORMATS)
            raise UserError(f"plot format {wanted!r} is unknown: allowed are {allowed}{hint}")
    left_out, into = skipped(single(estimates)), Path(folder)
    files = []
    try:
        into.mkdir(parents=True, exist_ok=True)
        for name in PLOTS:
            if name not in left_out:
                files += save(plot(name, estimates), into / name, formats)
    except OSError as problem:
        raise UserError(f"{folder}: plots cannot be written there ({problem})") from None
    return files


def save(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure without the date and the library's version, which would change the bytes."""
    bare: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
    }
    files = []
    with look():
        for kind in formats:
            file = stem.with_suffix(f".{kind}")
            figure.savefig(file, format=kind, dpi=_DOTS_PER_INCH, metadata=bare[kind])
            files.append(file)
    return files
