"""What the deciding pipeline ranks hold and take: sums over pieces of a model.

They depend on the degrees that tables know and on the pipeline's shape, and not on ZeRO, the batch
or dp: layouts that differ in those share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moeplan.arrays import is_array, np
from moeplan.calc import add, calc, value

__all__ = ["Looked", "RankSums", "argmax", "largest", "rank_sums", "take"]

_OF_SLOWEST = (
    "wgrad", "backward", "compute", "recompute", "tp", "ep", "cp", "up", "out", "lower",
)  # fmt: skip
_OF_ALL = (
    "time", "upper", "most_dense", "most_experts", "all_time", "all_lower", "all_upper",
    "all_wgrad",
)  # fmt: skip
_OF_RANK = ("dense", "experts", "kept", "work", "buffer", "layer", "depth", "rank")


@dataclass(frozen=True)
class Looked:
    """Tables looked up for some layouts.

    column(name, piece): a number of COLUMNS. held, alive: by deciding rank, then piece (None where
    no layout has any). depth, rank: by deciding rank. count: of each piece in the whole model.
    wide: what puts sums of columns together, where they vary along axes.
    """

    column: Callable[[str, int], Any]
    held: Sequence[Sequence[Any]]
    alive: Sequence[Sequence[Any]]
    depth: Sequence[Any]
    rank: Sequence[Any]
    count: Sequence[Any]
    names: Sequence[str]
    wide: Callable[[Any], Any] = lambda number: number

    def over(self, vector: Sequence[Any], name: str, unit: str) -> Any:
        """Sum over pieces of a vector's number times a column."""
        parts: dict[str, Any] = {}
        for k, times in enumerate(vector):
            if times is not None:
                each = self.column(name, k)
                if is_array(times):  # differs from layout to layout
                    each = self.wide(each)
                parts[self.names[k]] = calc("times*each", unit, times=times, each=each)
        return self.wide(add(parts, unit))

    def largest(self, vector: Sequence[Any], name: str, unit: str) -> Any:
        """The largest of a column among the pieces that a rank holds."""
        parts = []
        for k, times in enumerate(vector):
            if times is None:
                continue
            each = self.wide(self.column(name, k))
            if is_array(times):  # layouts do not all hold it
                each = calc("min(1, times)*each", unit, times=times, each=each)
            parts.append(each)
        return largest(parts, unit)


class RankSums:
    """Numbers by name, those of the deciding ranks by (name, rank), added up when asked for.

    time, lower, upper: seconds of a microbatch on the slowest rank; wgrad ... out: further columns
    of that rank; all_*: summed over all ranks; most_dense, most_experts: parameters of the ranks
    that hold most. Of each deciding rank: dense, experts, kept (activations, as if m were large),
    work, buffer, layer, depth, rank.
    """

    def __init__(self, numbers: dict[Any, Any], count: int) -> None:
        self.numbers = numbers
        self.count = count

    def __getitem__(self, key: Any) -> Any:
        if key not in self.numbers:
            self.numbers[key] = self.make(key)
        return self.numbers[key]

    def make(self, key: Any) -> Any:
        """A number that is not there yet."""
        raise KeyError(key)

    def all(self) -> RankSums:
        """With every number added up."""
        for name in (*_OF_ALL, *_OF_SLOWEST):
            _ = self[name]
        for c in range(self.count):
            for name in _OF_RANK:
                _ = self[name, c]
        return self

    def take(self, at: Any) -> RankSums:
        """The sums of some rows."""
        return RankSums({name: a.take(at) for name, a in self.numbers.items()}, self.count)


def rank_sums(looked: Looked, *, halves: bool, shards: bool, recomputes: bool) -> RankSums:
    """Add up tables. halves: a rank runs half of the microbatches through each of its two stages
    (DualPipe). shards, recomputes: whether some layout shards weights, or computes rows again.
    """
    return _Sums(looked, halves, shards, recomputes)


class _Sums(RankSums):
    """Numbers made from tables that were looked up."""

    def __init__(self, looked: Looked, halves: bool, shards: bool, recomputes: bool) -> None:
        super().__init__({}, len(looked.held))
        self.looked, self.shards, self.recomputes = looked, shards, recomputes
        self.shares = [
            [n if n is None or not halves else calc("n/2", "", n=n) for n in vector]
            for vector in looked.held
        ]
        self._used: list[Any] | None = None
        self._largest: dict[Any, Any] = {}

    def _most(self, held: Sequence[Any], name: str, unit: str) -> Any:
        """The largest of a column on a rank; the same for ranks of the same pieces."""
        if any(is_array(n) for n in held):
            return self.looked.largest(held, name, unit)
        key = (name, *(n is None for n in held))
        if key not in self._largest:
            self._largest[key] = self.looked.largest(held, name, unit)
        return self._largest[key]

    def make(self, key: Any) -> Any:
        """One number by its key."""
        if isinstance(key, tuple):
            return self._of_rank(*key)
        looked = self.looked
        if key in ("time", "upper"):
            return largest([looked.over(v, key, "s") for v in self.shares], "s")
        if key in _OF_SLOWEST:
            return looked.over(self.used, key, "B" if key in ("up", "out") else "s")
        if key.startswith("most_"):
            name = key.removeprefix("most_")
            return largest([self[name, c] for c in range(self.count)], "parameters")
        return looked.over(looked.count, key.removeprefix("all_"), "s")

    def _of_rank(self, name: str, c: int) -> Any:
        looked = self.looked
        held = looked.held[c]
        if name in ("dense", "experts"):
            return looked.over(held, name, "parameters")
        if name == "kept":
            return looked.over(looked.alive[c], "kept", "B")
        if name == "work":
            return self._most(held, "workspace", "B") if self.recomputes else 0
        if name == "buffer":
            return self._most(held, "buffer", "B")
        if name == "layer":
            if not self.shards:
                return 0
            most = {n: self._most(held, n, "parameters") for n in ("dense", "experts")}
            return calc("dense + experts", "parameters", **most)
        return {"depth": looked.depth, "rank": looked.rank}[name][c]

    @property
    def used(self) -> list[Any]:
        """How often the slowest rank runs each piece for a microbatch."""
        if self._used is None:
            at = argmax([self.looked.over(v, "time", "s") for v in self.shares])
            picked = [
                take([0 if v[k] is None else v[k] for v in self.shares], at)
                for k in range(len(self.looked.count))
            ]
            self._used = [None if not is_array(n) and value(n) == 0 else n for n in picked]
        assert self._used is not None
        return self._used


def largest(parts: list[Any], unit: str) -> Any:
    """The largest of some numbers, elementwise; 0 of none."""
    if len(parts) < 2:
        return parts[0] if parts else 0
    names = [f"x{i}" for i in range(1, len(parts) + 1)]
    return calc(f"max({', '.join(names)})", unit, **dict(zip(names, parts, strict=True)))


def argmax(parts: list[Any]) -> Any:
    """Which of the parts is the largest (the first of equal ones)."""
    bare = [value(p) for p in parts]
    if any(is_array(p) for p in bare):
        best, at = bare[0], np.zeros(np.broadcast(*bare).shape, dtype=np.int64)
        for i, part in enumerate(bare[1:], 1):
            more = part > best
            at = np.where(more, i, at)
            best = np.where(more, part, best)
        return at
    return bare.index(max(bare))


def take(parts: Sequence[Any], at: Any) -> Any:
    """The part at an index, elementwise."""
    if not is_array(at):
        return parts[at]
    out = parts[0]
    for i, part in enumerate(parts[1:], 1):
        out = np.where(at == i, part, out)
    return out
