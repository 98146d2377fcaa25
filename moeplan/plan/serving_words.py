"""Options and layouts of a serving search in words, for what is said about them."""

from __future__ import annotations

from typing import NamedTuple

from moeplan.cluster.layout import Layout
from moeplan.plan.options import gpus_of
from moeplan.plan.serving import DEGREES, Option, ServingFound
from moeplan.quantity import plain

__all__ = ["Spot", "degrees_of", "option_of", "ways_of"]


class Spot(NamedTuple):
    """An instance of a search, and a figure of it: seconds or bytes."""

    figure: float
    mode: str
    job: int
    row: int

    def said(self, found: ServingFound) -> str:
        """Where it is: GPUs and degrees."""
        gpus = int(found.columns["gpus"][self.row])
        layout = degrees_of(found.layout(self.row))
        return gpus_of(gpus) if gpus == 1 else f"{gpus_of(gpus)} with {layout}"


def degrees_of(layout: Layout) -> str:
    """Degrees that are not 1."""
    found = [(name, int(plain(getattr(layout, name)))) for name in DEGREES]
    return " ".join(f"{name}={n}" for name, n in found if n != 1) or "one GPU"


def ways_of(found: ServingFound, option: Option) -> str:
    """The pools of an option: instances and their layouts."""
    roles = ("",) if len(option.pools) == 1 else ("prefill ", "decode ")
    return ", ".join(
        f"{role}{pool.count} x ({degrees_of(found.layout(pool.instance.row))})"
        for role, pool in zip(roles, option.pools, strict=True)
    )


def option_of(found: ServingFound, option: Option) -> str:
    """An option in short: GPUs, pools."""
    return f"{gpus_of(option.gpus)}, {ways_of(found, option)}"
