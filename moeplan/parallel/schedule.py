"""Time of a pipeline schedule: work of the slowest rank, and the bubble around it.

With forward F, backward B (input gradients and weight gradients W together) of one microbatch on a
stage, and stages of different length: the slowest rank works through m microbatches without a
pause, and waits for the others' first forward and last backward pass. So the bubble is the sum of
F + B over the other stages, which is (p - 1)(F + B) where stages are equal:

  1f1b         (p - 1)(F + B)             arXiv 2104.04473, 2.2
  interleaved  (p - 1)(F + B)/v           v chunks a rank, each 1/v of the work
  zero-bubble  (p - 1)(F + B - 2W)        ZB-H1, arXiv 2401.10241: weight gradients fill the drain
  dualpipe     (p/2 - 1)(F&B + B - 3W)    arXiv 2412.19437, table 2; F&B: both side by side
"""

from __future__ import annotations

from typing import Any

from moeplan.calc import calc
from moeplan.cluster.layout import Schedule
from moeplan.quantity import compile_formula

__all__ = ["BUBBLES", "bubble"]

BUBBLES: dict[Schedule, str] = {
    "1f1b": "all_stages - slowest",
    "interleaved": "(all_stages - slowest)/vpp",
    "zero-bubble": "max(0, all_stages - slowest - 2*(all_weights - weights))",
    "dualpipe": "max(0, (pp/2 - 1)*(slowest + backward - 3*weights))",
}
"""all_stages: F + B summed over the ranks; slowest: of the slowest rank; all_weights, weights: W of
all ranks and of the slowest; backward: B of the slowest."""


def bubble(schedule: Schedule, **given: Any) -> Any:
    """Seconds a step in which the slowest rank waits for the pipeline to fill and drain."""
    formula = BUBBLES[schedule]
    return calc(formula, "s", **{name: given[name] for name in compile_formula(formula)[1]})
