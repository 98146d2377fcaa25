"""Which engines can express a chosen layout, in a sentence for the answer of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeplan.errors import UserError
from moeplan.plan.export import ENGINES, export

if TYPE_CHECKING:
    from moeplan.plan.chosen import Chosen

__all__ = ["expressed"]

_TITLES = ("vLLM", "SGLang", "Megatron-LM", "torchtitan")


def expressed(chosen: Chosen, row: str) -> str:
    """Which exports can express a choice, with the reasons of those that cannot. row: its name."""
    kind = "training" if chosen.training else "serving"
    able, reasons = [], []
    for name in (n for n, does in ENGINES.items() if does == kind):
        try:
            export(name, chosen)
        except UserError as problem:
            reasons.append(f"{name}: {_short(str(problem))}")
        else:
            able.append(name)
    if not able:
        return f"NO ENGINE CAN EXPRESS {row}, of those that --export knows: {'; '.join(reasons)}"
    said = f"--export can express {row} for {' and '.join(able)}"
    return f"{said}, not for {'; '.join(reasons)}" if reasons else said


def _short(problem: str) -> str:
    """The first reason of an export's refusal, without who refuses."""
    for title in _TITLES:
        problem = problem.removeprefix(f"{title} cannot express this: ")
    first, *more = problem.split("; ")
    return first + (" (and more)" if more else "")
