"""One layout looked at closely: memory of every pipeline rank, and the messages of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moeplan.calc import value
from moeplan.cluster.layout import Layout
from moeplan.parallel.memory import WHOLE_FROM
from moeplan.parallel.step import data_groups, data_messages, pipeline_messages, step_memory
from moeplan.parallel.traffic import Message

if TYPE_CHECKING:
    from moeplan.parallel.training import TrainingPlan

__all__ = ["message_rows", "rank_rows"]


def rank_rows(plan: TrainingPlan, layout: Layout) -> list[dict[str, Any]]:
    """Memory of every pipeline rank of one layout: parameters (dense, experts), the parts of
    memory, the pieces it holds, and those whose activations are alive at its peak.
    """
    v = dict(layout.values)
    costs = plan.costs(layout, v, explained=False)
    given = plan.inputs(layout, v)
    groups = data_groups(given)
    out: dict[int, dict[str, Any]] = {}
    for rank in plan.rank_list(layout):
        looked = plan.looked(layout, costs, (rank,), plan.rank_list(layout))
        sums = plan.sums(layout, looked, shards=v["zero"] >= WHOLE_FROM)
        found: dict[str, Any] = {"rank": rank.number}
        step_memory(given, sums, groups, found)
        found |= {"dense": sums["dense", 0], "experts": sums["experts", 0]}
        names = [p.name for p in plan.pieces.all]
        found["held"] = {n: x for n, x in zip(names, rank.held, strict=True) if x}
        share = min(v["m"], rank.depth) / rank.depth
        found["alive"] = {n: x * share for n, x in zip(names, rank.alive, strict=True) if x}
        if rank.number not in out or found["memory"] > out[rank.number]["memory"]:
            out[rank.number] = found
    return list(out.values())


def message_rows(plan: TrainingPlan, layout: Layout) -> list[dict[str, Any]]:
    """Messages of a step on the rank that takes longest: op, group (tp, etp, ep, cp, pp, dense
    and edp for data parallelism of dense tensors and of experts), n GPUs with `inside` of them
    in a domain, bytes of a buffer, times a step, bytes sent in a step over each link tier, and
    seconds (before any overlap).
    """
    v = dict(layout.values)
    costs = plan.costs(layout, v, explained=False)
    every = plan.rank_list(layout)
    share = 0.5 if layout.schedule == "dualpipe" else 1.0
    looked = plan.looked(layout, costs, every, every)
    slowest = max(looked.held, key=lambda held: looked.over(held, "time", "s"))
    again = 2 if layout.recompute == "full" else 1
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}

    def add_row(message: Message, times: float) -> None:
        if not times or value(message.n) == 1 or not value(message.size):
            return
        key = (message.group, message.op, message.size, message.out)
        row = rows.setdefault(key, dict.fromkeys(("times", "up", "out", "seconds"), 0.0))
        head = {n: getattr(message, n) for n in ("op", "group", "n", "inside")}
        row |= {**head, "bytes": message.size, "times": row["times"] + times}
        for name, each in (("up", message.up), ("out", message.out)):
            row[name] += times * each
        row["seconds"] += times * message.seconds

    for times, cost in zip(slowest, costs, strict=True):
        for message in cost.messages if times is not None else ():
            passes = again * message.forward + message.backward
            add_row(message, times * share * v["m"] * passes)
    given = plan.inputs(layout, v)
    groups = data_groups(given)
    sums = plan.sums(layout, looked, shards=False)
    for message in pipeline_messages(given, groups) + data_messages(given, groups, sums):
        add_row(message, message.forward + message.backward)
    return sorted(rows.values(), key=lambda row: -row["seconds"])
