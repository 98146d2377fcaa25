"""What may help where nothing serves: other options and GPUs, each with its search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moeplan.arrays import np
from moeplan.cluster.hardware import Gpu, cluster, describable, gpu, gpus
from moeplan.errors import UserError
from moeplan.model.formats import FORMATS, format_named
from moeplan.parallel import ServingJob
from moeplan.plan.grid import domain_of
from moeplan.plan.options import machine
from moeplan.plan.serving import MODES, ServingFound
from moeplan.plan.serving_words import Spot, option_of
from moeplan.quantity import plain

if TYPE_CHECKING:
    from moeplan.plan.ask_serving import ServingQuestion

__all__ = [
    "Outcome",
    "Tried",
    "drafts",
    "fastest",
    "formats",
    "larger",
    "least",
    "modes",
    "other_gpus",
    "outcomes",
    "within",
]

MOST = 1024  # GPUs of an instance that is tried
_WEIGHTS = ("fp8", "nvfp4", "int4-g128")  # to try, from many bits to few


@dataclass(frozen=True, eq=False)
class Outcome:
    """An option that was tried, and its search."""

    option: str
    found: ServingFound

    @property
    def fits(self) -> bool:
        """Whether any instance fits."""
        return any(bool(a["fits"].any()) for a in self.found.answers.values() if "fits" in a)

    def said(self) -> str:
        """What it would do, where it carries the requests within their limits."""
        return f"{self.option} would do, such as {option_of(self.found, self.found.options[0])}"


Tried = tuple[str, Callable[[], ServingFound]]


def outcomes(tried: Iterable[Tried]) -> Iterator[Outcome]:
    """Search one after another; what cannot be searched at all (an unknown pair) is left out."""
    for option, search in tried:
        try:
            yield Outcome(option, search())
        except UserError:
            continue


def formats(
    question: ServingQuestion, found: ServingFound, rows: Any = None
) -> Iterator[Iterable[Tried]]:
    """Weights in fewer bits that the GPU computes in, and caches in 8 bits, as two kinds."""
    peaks, jobs = found.cluster.gpu.peaks, question.jobs
    stored = question.spec.checkpoint.quantised or question.spec.checkpoint.base
    least = min(FORMATS[j.weights].bits if j.weights else stored.bits for j in jobs)
    yield [
        (f"--weights {name}", _with(question, found, rows, weights=name))
        for name in _WEIGHTS
        if FORMATS[name].bits < least and FORMATS[name].peak in peaks
    ]
    kept = str(question.spec.checkpoint.cache or "bf16")
    if min(format_named(j.cache or kept).bits for j in jobs) > FORMATS["fp8"].bits:
        yield [("--cache fp8", _with(question, found, rows, cache="fp8"))]


def drafts(question: ServingQuestion, found: ServingFound, rows: Any = None) -> Iterator[Tried]:
    """A token that MTP modules guess, where none was asked for."""
    if not any(plain(job.draft) for job in question.jobs):
        yield "--draft 1", _with(question, found, rows, draft=1)


def modes(question: ServingQuestion, found: ServingFound) -> Iterator[Tried]:
    """The way of serving that was not searched."""
    for mode in MODES:
        if mode not in question.modes:
            own = replace(question, modes=(mode,))
            yield f"--mode {mode}", _with(own, found, None)


def _with(
    question: ServingQuestion, found: ServingFound, rows: Any, **fields: Any
) -> Callable[[], ServingFound]:
    """A search of the same instances (or some rows) with jobs that differ in some fields."""

    def search() -> ServingFound:
        jobs: list[ServingJob] = [replace(job, **fields) for job in question.jobs]
        return question.under(found.cluster, jobs, (), 1, _columns(found, rows))

    return search


def _columns(found: ServingFound, rows: Any) -> dict[str, Any]:
    return {name: a if rows is None else a[rows] for name, a in found.columns.items()}


def larger(question: ServingQuestion, found: ServingFound) -> Iterator[Tried]:
    """Instances of twice the GPUs, and so on, as far as NICs join them."""
    device = gpu(question.machine)
    domain = domain_of(device)
    most = question.instances().most
    while most < MOST:
        most = min(2 * most, domain) if most < domain else -(-2 * most // domain) * domain
        if most > domain and device.nic_bandwidth is None:
            return
        option = f"--instance {most}" if question.sizes else f"--largest {most}"
        yield option, _sized(question, most)
        if most == domain and device.nic_bandwidth is None:
            return


def _sized(question: ServingQuestion, gpus: int) -> Callable[[], ServingFound]:
    whole = -(-gpus // domain_of(gpu(question.machine))) * domain_of(gpu(question.machine))
    return lambda: question.under(machine(question.machine, whole), question.jobs, (gpus,), 1)


def other_gpus(
    question: ServingQuestion,
    found: ServingFound,
    figure: Callable[[Gpu], float],
    least: float,
    rows: Any = None,
) -> Iterator[Tried]:
    """GPUs on file with some figure (memory, bandwidth) of at least `least`.

    Those of the same vendor come first, and of them those with the most.
    """
    own = found.cluster.gpu
    ranked = sorted(gpus(), key=lambda g: (g.vendor != own.vendor, -figure(g)))
    for device in ranked:
        if figure(device) < least or device.id == own.id or not describable(device):
            continue
        at = _possible(device, found.columns["gpus"], rows)
        if at.size:
            yield f"--gpu {device.id}", _on(question, found, device, at)


def _possible(device: Gpu, sizes: Any, rows: Any) -> Any:
    """Rows of instances that a machine of this GPU has."""
    domain = domain_of(device)
    good = sizes <= domain
    if device.nic_bandwidth is not None:
        good |= sizes % domain == 0
    at = np.flatnonzero(good)
    return at if rows is None else np.intersect1d(at, rows)


def _on(
    question: ServingQuestion, found: ServingFound, device: Gpu, rows: Any
) -> Callable[[], ServingFound]:
    def search() -> ServingFound:
        domain, most = domain_of(device), int(found.columns["gpus"][rows].max())
        own = replace(question, machine=device.id)
        place = cluster(f"{device.id}x{-(-most // domain) * domain}")
        return own.under(place, own.jobs, (), 1, _columns(found, rows))

    return search


def fastest(found: ServingFound, name: str, most: int) -> Any:
    """Rows with the least of a figure in any way of serving, the `most` best of each."""
    out = [np.empty(0, dtype=np.int64)]
    for a in found.answers.values():
        if name in a:
            figures = np.where(a["fits"], a[name], np.inf)
            order = np.argsort(figures, kind="stable")[:most]
            out.append(order[np.isfinite(figures[order])])
    return np.unique(np.concatenate(out))


def least(
    found: ServingFound, name: str, allowed: Mapping[tuple[str, int], Any] | None = None
) -> Spot | None:
    """The instance with the least TTFT or TPOT (s), of those that fit (and that are `allowed`)."""
    best: Spot | None = None
    for key, a in found.answers.items():
        if name not in a:
            continue
        figures = _seconds(found, key, name)
        if allowed is not None:
            figures = np.where(allowed[key], figures, np.inf)
        row = int(np.argmin(figures))
        if np.isfinite(figures[row]) and (best is None or figures[row] < best.figure):
            best = Spot(float(figures[row]), *key, row)
    return best


def within(found: ServingFound, name: str, limit: float) -> dict[tuple[str, int], Any]:
    """Which rows meet a limit (s), for each mode and job."""
    return {
        key: _seconds(found, key, name) <= limit * (1 + 1e-9)
        for key, a in found.answers.items()
        if name in a
    }


def _seconds(found: ServingFound, key: tuple[str, int], name: str) -> Any:
    """TTFT or TPOT of each row as requests see it, infinite where it does not fit."""
    (mode, job), a = key, found.answers[key]
    sent = found.transfers[job] if name == "ttft" and mode == "disaggregated" else 0.0
    return np.where(a["fits"] & np.isfinite(a[name]), a[name] + sent, np.inf)
