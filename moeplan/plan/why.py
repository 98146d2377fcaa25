"""Why nothing fits or is legal, and what would change that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from moeplan.arrays import np
from moeplan.cluster.hardware import gpus as all_gpus
from moeplan.cluster.layout import Layout
from moeplan.cluster.rules import broken_count, broken_rules
from moeplan.errors import UserError
from moeplan.plan.grid import Grid, domain_of
from moeplan.plan.options import gpus_of, memory_of
from moeplan.plan.training import Found, default_batch
from moeplan.quantity import evaluate, plain

if TYPE_CHECKING:
    from moeplan.plan.ask import Question

__all__ = ["what_would", "why_illegal"]

_DOUBLINGS = 10


# Rules that one degree can break alone, with all other degrees at 1.
_ALONE = ("ep", "etp", "accumulation", "stages", "sequence")


def why_illegal(found: Found) -> list[str]:
    """Which rules leave no layout: those that nothing tried keeps, or what no batch allows."""
    grid = found.grid
    gpus, batch = grid.gpus, grid.batch
    if alone := _broken_alone(found):
        return alone
    if not grid.size:
        other = default_batch(gpus, int(plain(grid.plan.job.sequence)))
        out = [f"no tp*cp*pp*dp fills {gpus_of(gpus)} with dp dividing a batch of {batch:,}"]
        if grid.space.pins:
            return [f"{out[0]} under {_options(grid.space.pins)}", *_freed(found)]
        return [*out, f"--gbs {other} is divided by all of them"]
    return [_nearest(found)]


def _nearest(found: Found) -> str:
    """The layout that breaks the fewest rules, and how it breaks them."""
    grid, plan = found.grid, found.grid.plan
    facts = plan.facts(grid.gpus)
    fewest, nearest = np.inf, found.kinds[0]
    for kinds in found.kinds:
        usual = (2,) if kinds.schedule == "interleaved" else (1,)
        for vpp in grid.space.pins.get("vpp", usual):
            given = {"vpp": vpp, "batch": grid.batch, "zero": int(grid.zero.flat[0])}
            many = kinds.at({**grid.columns, **given})
            broken = np.broadcast_to(broken_count(many, plan.rules(kinds), **facts), grid.size)
            at = int(broken.argmin())
            if broken[at] < fewest:
                row = {name: int(column[at]) for name, column in grid.columns.items()}
                fewest, nearest = broken[at], kinds.at({**row, **given})
    said = broken_rules(nearest, plan.rules(nearest), **facts)
    return f"the nearest to a legal one, {nearest}: {'; '.join(said)}"


def _options(pins: Mapping[str, Sequence[int]]) -> str:
    """Pinned degrees as options."""
    return " ".join(f"--{name} {','.join(map(str, values))}" for name, values in pins.items())


def _broken_alone(found: Found) -> list[str]:
    """What is wrong with pinned degrees of which no value is legal, whatever the others are."""
    plan, gpus, batch = found.grid.plan, found.grid.gpus, found.grid.batch
    allowed = {*_ALONE, *plan.widths}
    rules = [rule for rule in plan.rules(found.kinds[0]) if rule.name in allowed]
    out = []
    for name, values in found.grid.space.pins.items():
        wrong = []
        for number in values:
            if name in ("tp", "cp", "pp", "dp") and gpus % number:
                wrong.append(f"{name}={number} does not divide the {gpus_of(gpus)}")
                continue
            layout = found.kinds[0].at({name: number, "batch": batch})
            symbols = {**layout.values, **plan.facts(gpus)}
            said = [r.message for r in rules if not evaluate(r.holds, symbols)]
            wrong += [said[0].format_map(symbols)] if said else []
        if len(wrong) == len(values):
            out.append(", ".join(wrong))
    return out


def _freed(found: Found) -> list[str]:
    """Which one option to leave out, where that is enough."""
    grid = found.grid
    for name in grid.space.pins:
        pins = {n: v for n, v in grid.space.pins.items() if n != name}
        if Grid.of(grid.plan, replace(grid.space, pins=pins), grid.gpus, grid.batch).size:
            return [f"without --{name} there are combinations"]
    return []


def what_would(found: Found, question: Question) -> list[str]:
    """What would fit: fewer restrictions, more GPUs, or another GPU."""
    out = []
    space = found.grid.space
    bare = type(space)()
    if space != bare:
        wide = type(question)(**{**question.__dict__, "space": bare}).search(found.grid.gpus)
        if wide.tally.fit:
            layout = wide.layout(wide.tally.least[1])
            out.append(
                f"without the restrictions {wide.tally.fit:,} layouts fit, such as {_text(layout)}"
            )
    needed = found.tally.least[0]
    larger = [
        g for g in all_gpus()
        if memory_of(g) >= needed
    ]  # fmt: skip
    if larger:
        names = [f"{g.id} ({memory_of(g) / 2**30:.0f} GiB)"
                 for g in sorted(larger, key=lambda g: plain(g.memory_bytes))[:3]]  # fmt: skip
        out.append(f"that layout fits on {', '.join(names)}")
    gpus = found.grid.gpus
    domain = domain_of(found.grid.plan.cluster.gpu)
    for _ in range(_DOUBLINGS):
        gpus = 2 * gpus if gpus >= domain else min(2 * gpus, domain)
        try:
            more = question.search(gpus)
        except UserError:  # a GPU without a NIC
            break
        if more.tally.fit:
            layout = more.layout(more.tally.least[1])
            out.append(f"{gpus_of(gpus)} would do: {more.tally.fit:,} layouts fit")
            break
    return out or ["no number of GPUs that was tried would do"]


def _text(layout: Layout) -> str:
    return str(layout).replace(",", ", ")
