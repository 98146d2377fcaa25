"""Running a sweep: groups in chunks, in this process or in several, gathered into columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from moeplan.errors import UserError
from moeplan.sweeping.answers import Evaluator
from moeplan.sweeping.ask import Ask, Group
from moeplan.sweeping.columns import Columns, Sweep
from moeplan.sweeping.estimates import COST_PATHS, DEFAULT_PATHS, FLOOR_PATHS, Estimates
from moeplan.sweeping.layouts import DEFAULT_KEYS, Layouts
from moeplan.workers import spread

__all__ = ["run"]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with points done and points altogether."""


def run(asked: Ask, *, workers: int = 1, progress: Progress | None = None) -> Sweep:
    """Evaluate every point. `UserError` where none of them is legal, with the first's reason."""
    chosen = bool(asked.show)
    if not chosen:
        asked.show = _defaults(asked)
    if asked.mode != "estimate" and "fits" not in asked.show:
        asked.show = ("fits", *asked.show)  # no time counts where the memory does not hold it
    _check_paths(asked)
    found = Columns(asked)
    done = 0
    one = evaluator(asked)
    for answers in spread(one.answers, _tasks(asked, one.chunk), workers):
        for answer in answers:
            found.take(answer)
            done += len(answer.points) + len(answer.reasons)
        if progress is not None:
            progress(done, asked.grid.count)
    return found.finish(all_shown=chosen or asked.mode != "estimate")


def _defaults(asked: Ask) -> tuple[str, ...]:
    """What is shown where nobody says."""
    if asked.mode != "estimate":
        return tuple(key for key in DEFAULT_KEYS[asked.mode] if key not in asked.inputs)
    own = any(known.room == "gpu" for known in asked.inputs.values())
    paid = own or not asked.inputs.keys().isdisjoint(("gpu", "price"))
    return DEFAULT_PATHS + FLOOR_PATHS * own + COST_PATHS * paid


def evaluator(asked: Ask) -> Evaluator:
    """What evaluates the points of a sweep."""
    return Estimates(asked) if asked.mode == "estimate" else Layouts(asked)


def _tasks(asked: Ask, chunk: int) -> list[Group]:
    """Groups cut into chunks."""
    return [
        Group(group.shared, group.points[start : start + chunk])
        for group in asked.groups()
        for start in range(0, len(group.points), chunk)
    ]


def _check_paths(asked: Ask) -> None:
    """Refuse a path that no group has, before the work; a group may lack what another has."""
    one, missing = evaluator(asked), dict.fromkeys(asked.show, "")
    for group in asked.groups():
        answer = one.first(group)
        if answer is None or not len(answer.points):
            continue
        missing = {path: answer.columns[path].missing for path in missing}
        missing = {path: text for path, text in missing.items() if text}
        if not missing:
            return
    for text in filter(None, missing.values()):
        raise UserError(text)
