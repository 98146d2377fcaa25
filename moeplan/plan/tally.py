"""What a search keeps of the layouts that stream past: counts, the best, the front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeplan.arrays import np
from moeplan.plan.front import Front

__all__ = ["NUMBERS", "ROOM", "SLACK", "Tally"]

SLACK = 1.5
"""Layouts within this factor of the best step are kept: those that another input could favour."""

ROOM = 1.5
"""Layouts of up to this many times the GPU's memory have their time evaluated too."""

NUMBERS = ("kind", "vpp", "row", "zero")
"""What names a layout: its kinds, chunks, row of the grid and ZeRO stage."""

_KEPT = 1 << 17  # columns before the rest is dropped


class Tally:
    """Counts and the best of some layouts. capacity: bytes of a GPU. top: the least that is kept.

    legal, fit: how many there were. near: layouts that fit within SLACK of the best step: columns
    of NUMBERS, memory and step, in the end sorted by step, then memory. front: memory and step of
    layouts that none beats, up to ROOM times the capacity. least: the layout that needs the least
    memory. by_kind: best step of each kind, with its memory and
    numbers.
    """

    def __init__(self, capacity: float, top: int) -> None:
        self.capacity, self.top = capacity, top
        self.front = Front(ROOM * capacity, len(NUMBERS))
        self.legal = self.fit = 0
        self.least: tuple[float, Any] = (float("inf"), None)
        self.near = np.empty((len(NUMBERS) + 2, 0))
        self.best = self._enough = float("inf")
        self.by_kind: dict[int, tuple[float, float, Any]] = {}

    @property
    def most(self) -> float:
        """Bytes up to which time is evaluated."""
        return ROOM * self.capacity

    def add(
        self, kind: int, memory: Any, at: Any, step: Any, numbers: Callable[[Any], Any]
    ) -> None:
        """Take in layouts of a kind: memory of all (any shape), step of those at flat places `at`.

        numbers: NUMBERS of layouts at flat places.
        """
        self.legal += memory.size
        lowest = int(memory.argmin())
        if memory.flat[lowest] < self.least[0]:
            self.least = (float(memory.flat[lowest]), numbers(np.array([lowest]))[:, 0])
        if not at.size:
            return
        held = memory.ravel().take(at)
        self.front.add(held, step, lambda chosen: numbers(at[chosen]))
        fits = held <= self.capacity
        count = int(np.count_nonzero(fits))
        self.fit += count
        if not count:
            return
        best = float(np.where(fits, step, np.inf).min())
        self._best_of_kind(kind, best, held, at, fits & (step == best), numbers)
        self.best = min(self.best, best)
        chosen = np.flatnonzero(fits & (step <= self._limit()))
        if chosen.size:
            more = np.concatenate([numbers(at[chosen]), [held[chosen], step[chosen]]])
            self.near = np.concatenate([self.near, more], axis=1)
            if self.near.shape[1] > _KEPT:
                self.trim()

    def _best_of_kind(
        self, kind: int, step: float, held: Any, at: Any, equal: Any, numbers: Any
    ) -> None:
        """Keep the best of a kind; of equal ones, that of least memory."""
        places = np.flatnonzero(equal)
        first = places[int(held[places].argmin())]
        found = (step, float(held[first]), numbers(at[[first]])[:, 0])
        self._better(kind, found)

    def _better(self, kind: int, found: tuple[float, float, Any]) -> None:
        if kind not in self.by_kind or found[:2] < self.by_kind[kind][:2]:
            self.by_kind[kind] = found

    def _limit(self) -> float:
        """The longest step that is worth keeping."""
        return max(self.best * SLACK, self._enough)

    def trim(self) -> None:
        """Drop what is beyond the limit, now that the best is known better."""
        step = self.near[-1]
        if step.size >= self.top:
            self._enough = float(np.partition(step, self.top - 1)[self.top - 1])
        self.near = self.near[:, step <= self._limit()]

    def join(self, other: Tally) -> None:
        """Take in what another part of the same search found."""
        self.legal += other.legal
        self.fit += other.fit
        if other.least[0] < self.least[0]:
            self.least = other.least
        self.best = min(self.best, other.best)
        self.near = np.concatenate([self.near, other.near], axis=1)
        for kind, found in other.by_kind.items():
            self._better(kind, found)
        self.front.join(other.front)

    def finish(self) -> None:
        """Sort what was kept: by step, then by memory, then as the grid lists them."""
        self.trim()
        kind, vpp, row, zero, memory, step = self.near
        self.near = self.near[:, np.lexsort((row, vpp, zero, kind, memory, step))]
