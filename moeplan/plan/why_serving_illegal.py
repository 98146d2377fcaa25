"""Why no instance of a search is legal: rules that are broken, and what may be left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moeplan.arrays import np
from moeplan.cluster.layout import Layout
from moeplan.cluster.rules import broken_count, broken_rules, legal
from moeplan.parallel import ServingPlan
from moeplan.plan.options import gpus_of
from moeplan.plan.serving import DEGREES, ServingFound, grid
from moeplan.plan.serving_words import degrees_of
from moeplan.quantity import evaluate

if TYPE_CHECKING:
    from moeplan.plan.ask_serving import ServingQuestion

__all__ = ["why_no_instance"]

_ALONE = ("ep", "etp", "stages")  # rules that one degree can break with all others at 1
_SHOWN = 12


def why_no_instance(question: ServingQuestion, found: ServingFound) -> list[str]:
    """Which rule is broken by the nearest to a legal instance, and by which option."""
    plan = next(iter(found.plans.values()))
    pins = question.pins or {}
    if found.columns["gpus"].size:
        why = _nearest(found, plan)
    else:
        why = "; ".join(_alone(plan, pins)) or _no_product(question, pins)
    return [f"NOTHING IS LEGAL: {why}", *_freed(question, plan, pins)]


def _nearest(found: ServingFound, plan: ServingPlan) -> str:
    """The instance that breaks the fewest rules, the smallest of them, and what it breaks."""
    many = Layout(**{name: found.columns[name] for name in DEGREES}, sp=False)
    rules = plan.rules(many)
    row = int(broken_count(many, rules, **plan.facts(found.columns["gpus"])).argmin())
    gpus, layout = int(found.columns["gpus"][row]), found.layout(row)
    said = broken_rules(layout, rules, **plan.facts(gpus))
    return f"the nearest to legal, {gpus_of(gpus)} with {degrees_of(layout)}: {'; '.join(said)}"


def _alone(plan: ServingPlan, pins: Mapping[str, Sequence[int]]) -> list[str]:
    """Rules that every value of an option breaks, whatever the other degrees are."""
    rules = [r for r in plan.rules(Layout(sp=False)) if r.name in {*_ALONE, *plan.widths}]
    out = []
    for name, values in pins.items():
        wrong = []
        for number in values:
            symbols = {**Layout(sp=False).at({name: number}).values, **plan.facts(number)}
            said = [r.said(symbols) for r in rules if not evaluate(r.holds, symbols)]
            wrong += said[:1]
        if len(wrong) == len(values):
            out.append(", ".join(wrong))
    return out


def _no_product(question: ServingQuestion, pins: Mapping[str, Sequence[int]]) -> str:
    sizes = question.instances().searched
    some = ", ".join(map(str, sizes[:_SHOWN])) + (", ..." if len(sizes) > _SHOWN else "")
    given = " ".join(f"--{name} {','.join(map(str, v))}" for name, v in pins.items())
    return (
        f"no tp*pp*dp with {given} fills an instance of {some} GPUs with ep*etp dividing tp*dp"
        if given else f"no layout fills an instance of {some} GPUs"
    )  # fmt: skip


def _freed(
    question: ServingQuestion, plan: ServingPlan, pins: Mapping[str, Sequence[int]]
) -> list[str]:
    """Options without which there are legal instances, with the values that are."""
    out = []
    for name in pins:
        rest = {n: v for n, v in pins.items() if n != name}
        values = _legal_values(question, plan, rest, name)
        if values:
            shown = ", ".join(map(str, values[:_SHOWN]))
            more = ", ..." if len(values) > _SHOWN else ""
            out.append(f"legal values of --{name} beside the rest: {shown}{more}")
    if not out and len(pins) > 1 and _legal_values(question, plan, {}, "tp"):
        out.append("without all of these options there are legal instances")
    if question.sizes and not pins:
        wide = replace(question, sizes=None)
        if _legal_values(wide, plan, {}, "tp"):
            out.append("other sizes than those of --instance have legal layouts")
    return out


def _legal_values(
    question: ServingQuestion, plan: ServingPlan, pins: Mapping[str, Any], name: str
) -> list[int]:
    """Values of a degree that legal instances have."""
    columns = grid(plan, question.instances().searched, pins)
    if not columns["gpus"].size:
        return []
    many = Layout(**{degree: columns[degree] for degree in DEGREES}, sp=False)
    good = legal(many, plan.rules(many), **plan.facts(columns["gpus"]))
    found = np.broadcast_to(good, columns["gpus"].shape)
    return [int(x) for x in np.unique(columns[name][found])]
