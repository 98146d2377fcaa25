"""A question of the command line answered: one search or several, as a tree of plain numbers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from moeplan.cluster.hardware import Cluster, gpu
from moeplan.errors import UserError
from moeplan.model.spec import ModelSpec
from moeplan.parallel import TrainingJob, TrainingPlan
from moeplan.plan.bands import training_rows
from moeplan.plan.chosen import Chosen
from moeplan.plan.grid import domain_of
from moeplan.plan.options import gpus_of, machine
from moeplan.plan.sensitivity import sensitivity
from moeplan.plan.sizing import Sized, payable, smallest
from moeplan.plan.space import Space
from moeplan.plan.training import WORTH, Found, Row, default_batch, search_training
from moeplan.plan.why import what_would, why_illegal
from moeplan.quantity import plain
from moeplan.units import fmt_money, fmt_time
from moeplan.workers import processors, together

__all__ = ["Answer", "Limits", "Question", "ask"]

_ALIKE = 8  # layouts that are kept at least for each row, which stands for equal ones


@dataclass(frozen=True)
class Limits:
    """A run's deadline (s) and budget ($), and how far apart the sizes are that are tried."""

    deadline: float | None = None
    budget: float | None = None
    gpu_step: int | None = None

    def __bool__(self) -> bool:
        return self.deadline is not None or self.budget is not None


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked: a model on a machine (its name, and numbers of GPUs), a job, a space.

    batch: sequences of a step (None: `default_batch`). by: time, cost or gpus. named, options: the
    model and the job as options of `moeplan layout`, for commands that show one layout.
    """

    spec: ModelSpec
    machine: str
    counts: tuple[int, ...]
    job: TrainingJob
    space: Space
    batch: int | None = None
    by: str = "time"
    limits: Limits = field(default_factory=Limits)
    top: int = 10
    workers: int | None = None
    sensitivity: bool = True
    named: str = "MODEL"
    options: str = ""

    def plan(self, gpus: int) -> TrainingPlan:
        """The plan on a number of GPUs."""
        return TrainingPlan(self.spec, machine(self.machine, gpus), self.job)

    def sequences(self, gpus: int) -> int:
        """Sequences of a step on a number of GPUs."""
        return self.batch or default_batch(gpus, int(plain(self.job.sequence)))

    @property
    def processes(self) -> int:
        """Processes to search with."""
        return self.workers or processors()

    def search(self, gpus: int) -> Found:
        """The search on a number of GPUs."""
        return search_training(
            self.plan(gpus), self.space, gpus, self.sequences(gpus), top=_ALIKE * self.top,
            workers=self.processes,
        )  # fmt: skip

    def command(self, cluster: Cluster) -> str:
        """The command that shows one layout, with {} for it."""
        name = shlex.quote(cluster.id)
        words = ["moeplan", "layout", shlex.quote(self.named), "{}", "--cluster", name, "--train",
                 self.options]  # fmt: skip
        return " ".join(filter(None, words))


@dataclass(frozen=True, eq=False)
class Answer:
    """The tree of plain numbers; of a row of it, `moeplan layout`'s answers and a plan file."""

    tree: Mapping[str, Any]
    full: Callable[[int], Sequence[Mapping[str, Any]]]
    chosen: Callable[[int], Chosen]


def ask(question: Question) -> Answer:
    """Search what was asked. `UserError` where sizes are missing or contradict."""
    if question.limits.gpu_step is not None and question.counts:
        raise UserError("--gpu-step is the distance of sizes to try, and their number is given")
    if question.limits or (question.by == "gpus" and not question.counts):
        return _size(question)
    if not question.counts:
        raise UserError(
            "--gpus is needed: how many GPUs, or --deadline or --budget for the fewest that do"
        )
    searches = [question.search(gpus) for gpus in question.counts]
    return _answer(question, searches)


def _size(question: Question) -> Answer:
    """The fewest GPUs that meet the limits, or that the model fits on."""
    limits, counts = question.limits, question.counts
    device = machine(question.machine, counts[0] if counts else None) if counts else None
    first = device or _any_size(question.machine)
    if counts:
        if limits.budget is not None:
            payable(question.plan(counts[0]), limits.budget)
        searches = [question.search(gpus) for gpus in sorted(counts)]
        sized = [_meets(question, found) for found in searches]
        good = [f for f, s in zip(searches, sized, strict=True) if s.meets]
        chosen = good[0] if good else None
    else:
        sized, chosen = smallest(
            question.plan, first, question.job, question.space,
            batch=question.batch, deadline=limits.deadline, budget=limits.budget,
            step=limits.gpu_step, workers=question.processes, told=_progress,
        )  # fmt: skip
        searches = []
    if chosen is None:
        raise UserError(_none_meets(limits, sized))
    answer = _answer(question, [chosen])
    sizing = {
        "said": _fewest(limits, sized, chosen),
        "sizes": [_size_row(s) for s in sized],
        "deadline": limits.deadline,
        "budget": limits.budget,
    }
    return replace(answer, tree={**answer.tree, "sizing": sizing})


def _none_meets(limits: Limits, sized: Sequence[Sized]) -> str:
    said = f"no number of GPUs that was tried can {_limits(limits)}"
    fit = [s for s in sized if s.seconds is not None]
    if not fit:
        said += f": nothing fits on {' or '.join(gpus_of(s.gpus) for s in sized[:3])}"
    if fit:
        best = min(fit, key=lambda s: s.seconds or 0)
        takes = "takes" if best.gpus == 1 else "take"
        said += f": {gpus_of(best.gpus)} {takes} {fmt_time(best.seconds or 0)}"
    return f"{said}; {len(sized)} size{'' if len(sized) == 1 else 's'} tried"


def _fewest(limits: Limits, sized: Sequence[Sized], chosen: Found) -> str:
    """The fewest GPUs, and which sizes below were not tried."""
    gpus, domain = chosen.grid.gpus, domain_of(chosen.grid.plan.cluster.gpu)
    said = f"the fewest GPUs that {_limits(limits)}: {gpus:,}"
    below = max((s.gpus for s in sized if s.gpus < gpus), default=None)
    if below is None:
        return said
    said += f"; {below:,} do{'es' if below == 1 else ''} not"
    if gpus - below > domain:
        return f"{said}, and none between was tried (--gpu-step {domain} tries every domain)"
    if gpus - below > 1:
        said += f", and none between was tried: whole domains of {domain} GPUs only"
    return said


def _progress(sized: Sized) -> None:
    """A line at a terminal that says which size was searched."""
    if sys.stderr.isatty():
        days = "nothing fits" if sized.seconds is None else f"{sized.seconds / 86400:,.1f} days"
        end = "\n" if sized.meets else "\r"
        print(f"{gpus_of(sized.gpus)}: {days}        ", end=end, file=sys.stderr, flush=True)


def _any_size(name: str) -> Cluster:
    return machine(name, domain_of(gpu(name)))


def _meets(question: Question, found: Found) -> Sized:
    from moeplan.plan.sizing import sized_of

    return sized_of(found, question.limits.deadline, question.limits.budget)


def _limits(limits: Limits) -> str:
    words = []
    if limits.deadline is not None:
        words.append(f"train in {fmt_time(limits.deadline)}")
    if limits.budget is not None:
        words.append(f"cost at most {fmt_money(limits.budget)}")
    return " and ".join(words) or "hold the model"


def _size_row(sized: Sized) -> dict[str, Any]:
    from moeplan.report.plan_training import size_rows

    return size_rows([sized])[0]


def _answer(question: Question, searches: list[Found]) -> Answer:
    from moeplan.report.layout_answer import training_answer
    from moeplan.report.plan_training import plan_answer

    first, rows, left = _ranked(question, searches)
    tried = sensitivity(first) if question.sensitivity else []
    shares = question.processes if first.tally.legal > WORTH else 1
    calls: list[Callable[[], Any]] = [partial(training_rows, rows), *tried]
    shown, *outcomes = together(calls, shares)
    tree = plan_answer(
        first, rows, shown, outcomes, by=question.by, command=question.command,
        sizes=[found.grid.gpus for found in searches],
    )  # fmt: skip
    tree["left_out"] = left
    if "nothing" in tree:
        found = tree["nothing"]
        if found["legal"]:
            found["would"] = what_would(first, question)
        else:
            found["why"] = why_illegal(first)

    def full(number: int) -> Sequence[Mapping[str, Any]]:
        plan = rows[number].found.grid.plan
        return [training_answer(plan.spec, rows[number].layout, plan.cluster, plan.job)]

    def chosen(number: int) -> Chosen:
        plan = rows[number].found.grid.plan
        return Chosen(question.named, plan.cluster.id, rows[number].layout, plan.job)

    return Answer(tree, full, chosen)


def _ranked(question: Question, searches: list[Found]) -> tuple[Found, list[Row], int]:
    """The search of the first row, the rows of all searches in the order that was asked for, and
    how many were left out.
    """
    keyed: list[tuple[float, float, int, int, list[Any]]] = []
    left = 0
    for number, found in enumerate(searches):
        gpus = found.grid.gpus
        found_rows, more = found.rows(question.top)
        left += more
        for row in found_rows:
            each = float(row[0][-1]) / found.grid.batch
            keys = {"time": each, "cost": each * gpus, "gpus": gpus}
            keyed.append((keys[question.by], each, number, len(keyed), row))
    keyed.sort(key=lambda entry: entry[:4])
    if not keyed:
        least = min(searches, key=lambda found: found.tally.least[0])
        return least, [], 0
    rows = [
        Row(searches[number], *(searches[number].layout(column) for column in row))
        for _, _, number, _, row in keyed[: question.top]
    ]
    return rows[0].found, rows, left
