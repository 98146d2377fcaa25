"""Why nothing fits or is legal, and what would change that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeplan.arrays import np
from moeplan.cluster.hardware import Gpu
from moeplan.cluster.hardware import gpus as all_gpus
from moeplan.cluster.layout import Layout, quiet
from moeplan.errors import UserError
from moeplan.plan.grid import domain_of
from moeplan.plan.training import Found, default_batch
from moeplan.quantity import evaluate, plain

if TYPE_CHECKING:
    from moeplan.plan.ask import Question

__all__ = ["what_would", "why_illegal"]

_DOUBLINGS = 10


def why_illegal(found: Found) -> list[str]:
    """Which rules leave no layout: those that nothing tried keeps, or what no batch allows."""
    grid = found.grid
    gpus, batch = grid.gpus, grid.batch
    if not grid.size:
        other = default_batch(gpus, int(plain(grid.plan.job.sequence)))
        out = [f"no tp*cp*pp*dp fills {gpus:,} GPUs with dp dividing a batch of {batch:,}"]
        if grid.space.pins:
            names = ", ".join(f"{n}={list(v)}" for n, v in grid.space.pins.items())
            return [*out, f"under {names}"]
        return [*out, f"--gbs {other} is divided by all of them"]
    broken: dict[str, int] = {}
    symbols = {**grid.many.values, **grid.plan.facts(gpus)}
    for kinds in found.kinds:
        for rule in grid.plan.rules(kinds):
            with quiet(True):
                holds = np.broadcast_to(evaluate(rule.holds, symbols), grid.combination.shape)
            broken[rule.name] = max(broken.get(rule.name, 0), int(holds.sum()))
    never = [name for name, count in broken.items() if not count]
    if never:
        return [f"no combination keeps the rule of {', '.join(never)}"]
    least = sorted(broken, key=lambda name: broken[name])[:3]
    return [f"no combination keeps all rules; the fewest keep those of {', '.join(least)}"]


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
        if _memory(g) >= needed
    ]  # fmt: skip
    if larger:
        names = [f"{g.id} ({_memory(g) / 2**30:.0f} GiB)"
                 for g in sorted(larger, key=lambda g: plain(g.memory_bytes))[:3]]  # fmt: skip
        out.append(f"that layout fits on {', '.join(names)}")
    gpus = found.grid.gpus
    domain = domain_of(found.grid.plan.cluster.gpu)
    for _ in range(_DOUBLINGS):
        gpus = 2 * gpus if gpus >= domain else domain
        try:
            more = question.search(gpus)
        except UserError:  # a GPU without a NIC
            break
        if more.tally.fit:
            layout = more.layout(more.tally.least[1])
            out.append(f"{gpus:,} GPUs would do: {more.tally.fit:,} layouts fit")
            break
    return out or ["no number of GPUs that was tried would do"]


def _memory(device: Gpu) -> float:
    """Bytes that a GPU has, as the driver reports them where that is known."""
    found = device.memory_bytes if device.memory_reported is None else device.memory_reported
    return float(plain(found))


def _text(layout: Layout) -> str:
    return str(layout).replace(",", ", ")
