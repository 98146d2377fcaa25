"""Why no instance serves what was asked, and what would: remedies are searched before named.

Three things stand in the way in turn: no layout is legal, none fits, or those that fit are too slow
or too many for the GPUs there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from moeplan.arrays import np
from moeplan.cluster.hardware import Gpu
from moeplan.parallel import ServingPlan
from moeplan.plan.options import gpus_of, memory_of, requests_of
from moeplan.plan.serving import ServingFound
from moeplan.plan.serving_carried import MOST, carried
from moeplan.plan.serving_remedies import (
    Tried,
    drafts,
    fastest,
    formats,
    larger,
    least,
    modes,
    other_gpus,
    outcomes,
    within,
)
from moeplan.plan.serving_words import Spot, option_of
from moeplan.plan.why_serving_illegal import why_no_instance
from moeplan.quantity import plain
from moeplan.units import fmt_gib, fmt_time

if TYPE_CHECKING:
    from moeplan.plan.ask_serving import ServingQuestion

__all__ = ["why_nothing"]

_WORDS = {"ttft": "TTFT", "tpot": "TPOT"}
_ROWS = 64  # the fastest, on which formats and GPUs are tried where all are too slow
_GPUS = 4  # other GPUs that are tried
_MOST = 65536  # GPUs of a remedy that is worth naming


def why_nothing(question: ServingQuestion, found: ServingFound) -> list[str]:
    """Sentences for a search without an option: what stands in the way, and what would do."""
    answers = [a for a in found.answers.values() if a]
    if not any(bool(a["legal"].any()) for a in answers):
        return why_no_instance(question, found)
    if not any(bool(a["fits"].any()) for a in answers):
        return _too_much(question, found)
    for name in _WORDS:
        limit, best = getattr(found.demand, name), least(found, name)
        if limit is not None and best is not None and best.figure > limit * (1 + 1e-9):
            return _too_slow(question, found, name, best)
    if together := _not_together(found):
        rows = fastest(found, "tpot", _ROWS)
        return [*together, *_of_each(_kinds(question, found, rows, _bandwidth, doublings=1))]
    return _too_few(question, found)


# ------------------------------------------------------------------------------------- memory
def _too_much(question: ServingQuestion, found: ServingFound) -> list[str]:
    """What does not fit by how much, and with what it would."""
    at = _needs(found)
    a, job = found.answers[at.mode, at.job], found.jobs[at.job]
    fixed = float(a["memory_weights"][at.row] + a["memory_overhead"][at.row])
    tokens = plain(job.input) + plain(job.output)
    has = memory_of(found.cluster.gpu)
    what = f"a sequence of {tokens:,} tokens is" if fixed <= has else "the weights are"
    said = [
        f"NOTHING FITS: {what} {fmt_gib(at.figure - has)} GiB too much for the {fmt_gib(has)} GiB "
        f"of a GPU on the instance that needs least, {at.said(found)}",
        f"a GPU of it holds {fmt_gib(a['memory_weights'][at.row])} GiB of weights, "
        f"{fmt_gib(a['memory_overhead'][at.row])} GiB of overheads and "
        f"{fmt_gib(at.figure - fixed)} GiB of cache of one sequence of {tokens:,} tokens",
    ]
    longest = plain(question.spec.max_context)
    if fixed <= has:
        said.append(_longest(question, found, at))
    if longest is not None and tokens > longest:
        rest = int(longest) - int(plain(job.output))
        within_it = f": --isl {rest} stays within it" if rest > 0 else ""
        return [*said, f"the model's own longest sequence is {longest:,} tokens{within_it}"]
    return [*said, *_of_each(_kinds(question, found, None, memory_of, at.figure), fitting=True)]


def _needs(found: ServingFound) -> Spot:
    """The instance that needs the least memory (bytes of a GPU) for one sequence."""
    spots = []
    for (mode, job), a in found.answers.items():
        if "memory_weights" in a:
            share = float(plain(found.jobs[job].overheads.fragmentation))
            need = a["memory_weights"] + a["memory_overhead"]
            need = need + (1 + share) * a["memory_cache_per_sequence"]
            row = int(np.argmin(np.where(a["legal"], need, np.inf)))
            spots.append(Spot(float(need[row]), mode, job, row))
    return min(spots)


def _longest(question: ServingQuestion, found: ServingFound, at: Spot) -> str:
    """The most input tokens of which a sequence fits on an instance, found by halving."""
    layout, gpus = found.layout(at.row), int(found.columns["gpus"][at.row])

    def fits(tokens: int) -> bool:
        own = replace(found.jobs[at.job], input=tokens)
        return bool(ServingPlan(question.spec, found.cluster, own).evaluate(layout, gpus)["fits"])

    low, high = 0, int(plain(found.jobs[at.job].input))
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if not low:
        return f"beside {plain(found.jobs[at.job].output):,} output tokens (--osl) no input fits"
    return f"on that instance --isl {low} would fit"


# --------------------------------------------------------------------------------------- time
def _too_slow(question: ServingQuestion, found: ServingFound, name: str, best: Spot) -> list[str]:
    """The least of a latency and where it is, and what brings it below the limit, or how near."""
    word, limit = _WORDS[name], getattr(found.demand, name)
    said = [
        f"NOTHING MEETS {word} {fmt_time(limit)}: the least of any layout that fits is "
        f"{fmt_time(best.figure)}, {best.mode} on {best.said(found)}"
    ]
    rows = fastest(found, name, _ROWS)
    near = []
    for kind in _kinds(question, found, rows, _bandwidth, doublings=1):
        for tried in outcomes(kind):
            if tried.found.options:
                said.append(tried.said())
                break
            if (other := least(tried.found, name)) is not None and other.figure < best.figure:
                near.append((other.figure, tried.option))
    if len(said) == 1 and near:
        listed = ", ".join(f"{option} {fmt_time(s)}" for s, option in sorted(near)[:3])
        said.append(f"nothing that was tried would do; it is less with {listed}")
    return said if len(said) > 1 else [*said, "no other format or GPU that was tried is faster"]


def _not_together(found: ServingFound) -> list[str]:
    """Where each limit is met, and by no instance both: the least TPOT within the TTFT."""
    ttft, tpot = found.demand.ttft, found.demand.tpot
    if ttft is None or tpot is None or any(mode != "aggregated" for mode, _ in found.answers):
        return []
    best = least(found, "tpot", within(found, "ttft", ttft))
    if best is None or best.figure <= tpot * (1 + 1e-9):
        return []
    return [
        f"NOTHING MEETS both TTFT {fmt_time(ttft)} and TPOT {fmt_time(tpot)} on one instance: of "
        f"those within the TTFT the least TPOT is {fmt_time(best.figure)}, {best.said(found)}"
    ]


# --------------------------------------------------------------------------------------- GPUs
def _too_few(question: ServingQuestion, found: ServingFound) -> list[str]:
    """How many GPUs carry the requests, and what those there are carry."""
    most = found.demand.gpus
    if most is None:  # each limit is met, by pools that do not belong together
        return ["NOTHING MEETS both TTFT and TPOT with the same formats of weights and cache"]
    said = [f"NOTHING CARRIES THE REQUESTS on {gpus_of(most)}"]
    free = replace(question, demand=replace(question.demand, gpus=None), by="gpus")
    wide = free.under(found.cluster, question.jobs, (), 1, found.columns)
    if wide.options:
        said[0] += f"; {option_of(wide, wide.options[0])} would do"
    if most <= MOST:
        rate = carried(found, most)
        said.append(
            f"{gpus_of(most)} carry at most {requests_of(_down(rate))}" if rate else
            f"no instance within the limits has {gpus_of(most)} or fewer"
        )  # fmt: skip
    rows = np.flatnonzero(found.columns["gpus"] <= most)
    return [*said, *_of_each(_kinds(question, found, rows, _bandwidth, doublings=0))]


# ------------------------------------------------------------------------------------ remedies
def _kinds(
    question: ServingQuestion,
    found: ServingFound,
    rows: Any,
    figure: Callable[[Gpu], float],
    least_figure: float | None = None,
    *,
    doublings: int | None = None,
) -> Iterator[Iterable[Tried]]:
    """What may be tried, in kinds of which one is enough.

    rows: instances on which formats and GPUs are tried (None: all). figure: of other GPUs, which
    have at least `least_figure` (None: more than this one). doublings: of the largest instance.
    """
    yield islice(larger(question, found), doublings)
    yield from formats(question, found, rows)
    yield drafts(question, found, rows)
    yield modes(question, found)
    least_figure = 1.01 * figure(found.cluster.gpu) if least_figure is None else least_figure
    others = other_gpus(question, found, figure, least_figure, rows)
    yield islice(others, _GPUS)


def _of_each(kinds: Iterable[Iterable[Tried]], *, fitting: bool = False) -> list[str]:
    """Of each kind that which takes the fewest GPUs; fitting: or the first with which it fits."""
    said, names = [], []
    for kind in kinds:
        good, fits = [], ""
        for tried in outcomes(kind):
            names.append(tried.option)
            if tried.found.options and tried.found.options[0].gpus <= _MOST:
                good.append(tried)
                if not tried.option.startswith("--gpu"):
                    break
            fits = fits or (tried.option if tried.fits else "")
        if good:
            said.append(min(good, key=lambda tried: tried.found.options[0].gpus).said())
        elif fits and fitting:
            said.append(f"with {fits} it fits, and does not carry the requests as asked")
    return said or [f"none of these would do by itself: {', '.join(names) or 'nothing is left'}"]


def _down(rate: float) -> float:
    """Three digits of a rate, rounded down: what is said is carried."""
    unit = 10.0 ** (np.floor(np.log10(rate)) - 2)
    return float(f"{np.floor(rate / unit * (1 + 1e-12)) * unit:.3g}")


def _bandwidth(device: Gpu) -> float:
    return float(plain(device.memory_bandwidth))
