"""A training search's answer as one tree of plain numbers: what --json prints and tables show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from moeplan.arrays import np
from moeplan.cluster.hardware import Cluster
from moeplan.cluster.layout import Layout
from moeplan.parallel import BINDS, TrainingPlan
from moeplan.plan.sensitivity import Outcome, other_memory
from moeplan.plan.sizing import Sized
from moeplan.plan.training import Found, Row
from moeplan.quantity import plain
from moeplan.report.layout_answer import assumed, bare_tree, power_of, price_of

__all__ = ["plan_answer", "size_rows"]

_DEGREES = ("tp", "cp", "pp", "vpp", "dp", "ep", "etp", "zero", "microbatch")
_KINDS = ("schedule", "recompute", "overlap", "sp", "order", "split")
_NUMBERS = (
    "memory", "memory_free", "step", "step_lower", "step_upper", "mfu", "mfu_full",
    "tokens_per_second", "tokens_per_second_per_gpu", "seconds", "gpu_hours", "dollars", "energy",
    "fits",
)  # fmt: skip
PARTS = ("compute", "recompute", "tp", "ep", "cp", "pp", "dp", "bubble", "optimizer")


def plan_answer(
    found: Found,
    ranked: Sequence[Row],
    shown: Sequence[tuple[dict[str, Any], list[float]]],
    outcomes: Sequence[Outcome],
    *,
    by: str,
    command: Callable[[Cluster], str],
    sizes: Sequence[int],
) -> dict[str, Any]:
    """All of a search. ranked: the best layouts with the search that found each, in order, and
    shown their `training_rows`. outcomes: of `sensitivity`.

    command: the command that shows one layout of a cluster, with {} for the layout. sizes: numbers
    of GPUs that were searched.
    """
    plan = found.grid.plan
    rows = [
        {**row(r, answer, command(r.found.grid.plan.cluster)), "band": band}
        for r, (answer, band) in zip(ranked, shown, strict=True)
    ]
    measure = {"time": _per_token, "cost": _gpu_per_token, "gpus": _per_token}[by]
    for entry in rows:
        entry["behind"] = measure(entry) / measure(rows[0]) - 1
    out: dict[str, Any] = {
        "kind": "training plan",
        "by": by,
        "model": plan.spec.title or plan.spec.name,
        "cluster": _cluster(plan, found.grid.gpus),
        "sizes": list(sizes),
        "job": {n: getattr(plan.job, n) for n in ("sequence", "tokens", "precision", "optimizer")},
        "stack": plan.times.stack.name,
        "batch": found.grid.batch,
        "space": _space(found),
        "best": rows,
    }
    if rows:
        layouts = [r.layout for r in ranked]
        out["next"] = _next(layouts, rows)
        out["by_kind"] = _by_kind(found)
        out["sensitivity"] = [
            _outcome(o, rows[0], layouts[0]) for o in (*other_memory(found), *outcomes)
        ]
        out["assumptions"] = _assumptions(plan, layouts[0], found.grid.gpus)
    else:
        out["nothing"] = _nothing(found)
    out["front"] = _front(found)
    return bare_tree(out)


def _per_token(entry: Mapping[str, Any]) -> float:
    return 1 / float(entry["tokens_per_second"])


def _gpu_per_token(entry: Mapping[str, Any]) -> float:
    return 1 / float(entry["tokens_per_second_per_gpu"])


def _assumptions(plan: TrainingPlan, layout: Layout, gpus: int) -> list[dict[str, Any]]:
    explained = plan.explain(layout, gpus)
    numbers = {n: x for n, x in explained.items() if n not in ("pieces", "ranks")}
    if plan.job.tokens is None:
        numbers = {n: x for n, x in numbers.items() if n not in ("dollars", "energy")}
    more = [price_of(plan.job, plan.cluster), power_of(plan.job, plan.cluster)]
    return assumed(numbers, plan.times, more)


def row(ranked: Row, answer: Mapping[str, Any], reproduce: str) -> dict[str, Any]:
    """One layout with its numbers, parts of its step, and the command that shows it all.

    alike: layouts of equal step and memory.
    """
    layout = ranked.layout
    parts = {name: answer[f"time_{name}"] for name in PARTS}
    return {
        "gpus": ranked.found.grid.gpus,
        **describe(layout),
        **{name: answer[name] for name in _NUMBERS},
        "binds": BINDS[answer["binds"]],
        "parts": parts,
        "dp_seconds": answer["dp_seconds"],
        "command": reproduce.format(str(layout)),
        "alike": [describe(other) for other in ranked.alike],
    }


def describe(layout: Layout) -> dict[str, Any]:
    """A layout's text, degrees and kinds."""
    kinds = {name: getattr(layout, name) for name in _KINDS}
    if layout.recompute == "selective":
        kinds["recompute"] = f"selective:{'+'.join(layout.selective)}"
    degrees = {name: int(plain(getattr(layout, name))) for name in _DEGREES}
    return {"layout": str(layout), **degrees, **kinds}


def _cluster(plan: TrainingPlan, gpus: int) -> dict[str, Any]:
    machine = plan.cluster
    return {"id": machine.id, "name": machine.name, "gpu": machine.gpu.name, "gpus": gpus,
            "domain": machine.domain_size, "memory": plan.capacity}  # fmt: skip


def _space(found: Found) -> dict[str, Any]:
    """How many layouts there were, and what was varied."""
    grid, space = found.grid, found.grid.space
    layers = grid.plan.pieces.layers
    ranges: dict[str, list[int]] = {}
    for name in _DEGREES:
        if name == "vpp":
            most = max((layers // int(p) for p in np.unique(grid.columns["pp"])), default=1)
            ranges[name] = list(space.pins.get("vpp", range(1, most + 1)))
        elif name == "zero":
            ranges[name] = [int(z) for z in grid.zero.ravel()]
        else:
            ranges[name] = [int(x) for x in np.unique(grid.columns[name])]
    kinds: dict[str, list[Any]] = {}
    for name in _KINDS:
        kinds[name] = list(dict.fromkeys(describe(k)[name] for k in found.kinds))
    return {
        "combinations": found.combinations,
        "legal": found.tally.legal,
        "fit": found.tally.fit,
        "degrees": ranges,
        "kinds": kinds,
        "pinned": sorted(space.pins),
    }


def _next(layouts: Sequence[Layout], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How far the second is, and in what it differs from the first."""
    if len(rows) < 2:
        return None
    first, second = describe(layouts[0]), describe(layouts[1])
    differs = [n for n in (*_DEGREES, *_KINDS) if first[n] != second[n]]
    return {"behind": rows[1]["behind"], "differs": {n: [first[n], second[n]] for n in differs}}


def _by_kind(found: Found) -> list[dict[str, Any]]:
    out = []
    for step, _, numbers in found.tally.by_kind.values():
        layout = found.layout(numbers)
        out.append({"step": step, "behind": step / found.tally.best - 1, **describe(layout)})
    return sorted(out, key=lambda entry: entry["step"])


def _outcome(o: Outcome, best: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    same = o.layout is not None and str(o.layout) == str(layout)
    return {
        "change": o.name,
        "step": o.step,
        "faster": None if o.step is None else best["step"] / o.step - 1,
        "same_winner": same,
        "layout": None if o.layout is None else str(o.layout),
        "old_winner_step": o.old,
        "evaluated": o.evaluated,
    }


def _front(found: Found) -> list[dict[str, Any]]:
    front = found.tally.front
    return [
        {
            "memory": memory,
            "step": step,
            "fits": bool(memory <= found.tally.capacity),
            **describe(found.layout(numbers)),
        }
        for memory, step, numbers in zip(front.first, front.second, front.rows.T, strict=True)
    ]


def _nothing(found: Found) -> dict[str, Any]:
    """Why there is no answer: nothing legal, or the least memory that a layout needs."""
    tally = found.tally
    if not tally.legal:
        return {"legal": False}
    layout = found.layout(tally.least[1])
    return {
        "legal": True,
        "least_memory": tally.least[0],
        "missing": tally.least[0] - tally.capacity,
        **describe(layout),
    }


def size_rows(sizes: Sequence[Sized]) -> list[dict[str, Any]]:
    """Sizes of clusters that were searched, with the best of each."""
    out = []
    for sized in sizes:
        entry = asdict(sized)
        entry["layout"] = None if sized.layout is None else str(sized.layout)
        out.append(entry)
    return out
