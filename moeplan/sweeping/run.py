"""Running a sweep: groups in chunks, in this process or in several, gathered into columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from moeplan.arrays import np
from moeplan.errors import UserError
from moeplan.sweeping.answers import Answer, Evaluator
from moeplan.sweeping.ask import Ask, Group
from moeplan.sweeping.columns import Columns, Sweep
from moeplan.sweeping.estimates import COST_PATHS, DEFAULT_PATHS, FLOOR_PATHS, Estimates
from moeplan.sweeping.glance import Glance
from moeplan.sweeping.layouts import DEFAULT_KEYS, Layouts
from moeplan.workers import spread

__all__ = ["ready", "run", "stretches"]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with points done and points altogether."""


class _Task(NamedTuple):
    """Some points of a group, and the points of the window that they belong to."""

    window: tuple[int, int]
    group: Group


def run(asked: Ask, *, workers: int = 1, progress: Progress | None = None) -> Sweep:
    """Evaluate every point. `UserError` where none of them is legal, with the first's reason."""
    glance = ready(asked)
    [found] = stretches(asked, glance, whole=True, workers=workers, progress=progress)
    kept = {*glance.inputs, *glance.shown, "reason"}
    columns = {name: column for name, column in found.columns.items() if name in kept}
    return replace(found, shown=glance.shown, columns=columns, same=glance.same)


def ready(asked: Ask) -> Glance:
    """Choose the columns where nobody did, and refuse those that no point has.

    Returns what the points are to be added to; only the first point of some groups is evaluated.
    """
    chosen = bool(asked.show)
    if not chosen:
        asked.show = _defaults(asked)
    if asked.mode != "estimate" and "fits" not in asked.show:
        asked.show = ("fits", *asked.show)  # no time counts where the memory does not hold it
    _check_paths(asked)
    return Glance(asked, all_shown=chosen or asked.mode != "estimate")


def stretches(
    asked: Ask,
    glance: Glance,
    *,
    whole: bool,
    workers: int = 1,
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Sweep]:
    """The points in order, a stretch at a time, or all at once if `whole`; `glance` sees them too.

    Every point is evaluated once, as part of the same call whatever the stretches. Where `stopped`
    turns true, the last stretch holds the points that were evaluated by then. Before the last is
    handed out, `UserError` is raised where no point was legal.
    """
    columns, one, count = Columns(asked), evaluator(asked), asked.grid.count
    first, end, done = 0, 0, len(asked.grid.reasons)

    def gathered(points: Any) -> Sweep:
        found = columns.sweep(points)
        glance.add(found, columns.missing)
        return found

    for task, answers in _answered(one, _tasks(asked, one.chunk), workers, stopped):
        if task.window[0] >= end:  # the window before is complete
            if not whole and task.window[0] > first:
                yield gathered(np.arange(first, task.window[0]))
                first = task.window[0]
            end = task.window[1]
        for answer in answers:
            columns.take(answer)
            done += len(answer.points) + len(answer.reasons)
        if progress is not None:
            progress(done, count)
    if done < count:  # stopped
        points = columns.answered()
        if points.size:
            yield gathered(points[points >= first])
        return
    last = gathered(np.arange(first, count))
    glance.check()
    yield last


def _answered(
    one: Evaluator, tasks: Iterable[_Task], workers: int, stopped: Callable[[], bool]
) -> Iterator[tuple[_Task, list[Answer]]]:
    """Tasks with their answers, in order, as far as nobody stops the work."""

    def call(task: _Task) -> tuple[_Task, list[Answer]]:
        return task, one.answers(task.group)

    try:
        with closing(spread(call, tasks, workers)) as results:
            for done in results:
                yield done
                if stopped():
                    return
    except UserError:  # a signal may have ended the workers too
        if not stopped():
            raise


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


def _tasks(asked: Ask, chunk: int) -> Iterator[_Task]:
    """Groups cut into chunks, window by window."""
    for window in asked.windows():
        ends = int(window[0]), int(window[-1]) + 1
        for group in asked.groups(window):
            for start in range(0, len(group.points), chunk):
                yield _Task(ends, Group(group.shared, group.points[start : start + chunk]))


def _check_paths(asked: Ask) -> None:
    """Refuse a path that no group has, before the work; a group may lack what another has."""
    one, missing = evaluator(asked), dict.fromkeys(asked.show, "")
    tried: set[str] = set()
    for group in (group for window in asked.windows() for group in asked.groups(window)):
        if (shared := repr(group.shared)) in tried:  # in an earlier window
            continue
        tried.add(shared)
        answer = one.first(group)
        if answer is None or not len(answer.points):
            continue
        missing = {path: answer.columns[path].missing for path in missing}
        missing = {path: text for path, text in missing.items() if text}
        if not missing:
            return
    for text in filter(None, missing.values()):
        raise UserError(text)
