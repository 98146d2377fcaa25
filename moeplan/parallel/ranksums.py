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

_SLOWEST = ("wgrad", "backward", "compute", "recompute", "tp", "ep", "cp", "up", "out", "lower")


@dataclass(frozen=True)
class Looked:
    """Tables looked up for some layouts.

    column(name, piece): a number of COLUMNS. held, alive: by deciding rank, then piece (None where
    no layout has any). depth, rank: by deciding rank. count: of each piece in the whole model.
    """

    column: Callable[[str, int], Any]
    held: Sequence[Sequence[Any]]
    alive: Sequence[Sequence[Any]]
    depth: Sequence[Any]
    rank: Sequence[Any]
    count: Sequence[Any]
    names: Sequence[str]

    def over(self, vector: Sequence[Any], name: str, unit: str) -> Any:
        """Sum over pieces of a vector's number times a column."""
        parts: dict[str, Any] = {}
        for k, times in enumerate(vector):
            if times is not None:
                each = self.column(name, k)
                parts[self.names[k]] = calc("times*each", unit, times=times, each=each)
        return add(parts, unit)

    def largest(self, vector: Sequence[Any], name: str, unit: str) -> Any:
        """The largest of a column among the pieces that a rank holds."""
        parts = [
            calc("min(1, times)*each", unit, times=times, each=self.column(name, k))
            for k, times in enumerate(vector)
            if times is not None
        ]
        return largest(parts, unit)


class RankSums:
    """Numbers by name, those of the deciding ranks by (name, rank).

    time, lower, upper: seconds of a microbatch on the slowest rank; wgrad ... out: further columns
    of that rank; all_*: summed over all ranks; most_dense, most_experts: parameters of the ranks
    that hold most. Of each deciding rank: dense, experts, kept (activations, as if m were large),
    work, buffer, layer, depth, rank.
    """

    def __init__(self, numbers: dict[Any, Any], count: int) -> None:
        self.numbers = numbers
        self.count = count

    def __getitem__(self, key: Any) -> Any:
        return self.numbers[key]

    def take(self, at: Any) -> RankSums:
        """The sums of some rows."""
        return RankSums({name: a.take(at) for name, a in self.numbers.items()}, self.count)


def rank_sums(looked: Looked, *, halves: bool, gathers: bool, recomputes: bool) -> RankSums:
    """Add up tables. halves: a rank runs half of the microbatches through each of its two stages
    (DualPipe). gathers, recomputes: whether some layout gathers weights, or computes rows again.
    """
    out: dict[Any, Any] = {}
    ranks = range(len(looked.held))
    for c in ranks:
        held = looked.held[c]
        out["dense", c] = looked.over(held, "dense", "parameters")
        out["experts", c] = looked.over(held, "experts", "parameters")
        out["kept", c] = looked.over(looked.alive[c], "kept", "B")
        out["work", c] = looked.largest(held, "workspace", "B") if recomputes else 0
        out["buffer", c] = looked.largest(held, "buffer", "B")
        out["layer", c] = 0
        if gathers:
            most = {n: looked.largest(held, n, "parameters") for n in ("dense", "experts")}
            out["layer", c] = calc("dense + experts", "parameters", **most)
        out["depth", c], out["rank", c] = looked.depth[c], looked.rank[c]
    for name in ("dense", "experts"):
        out[f"most_{name}"] = largest([out[name, c] for c in ranks], "parameters")
    _slowest(looked, out, halves=halves)
    return RankSums(out, len(looked.held))


def _slowest(looked: Looked, out: dict[Any, Any], *, halves: bool) -> None:
    shares = [
        [n if n is None or not halves else calc("n/2", "", n=n) for n in vector]
        for vector in looked.held
    ]
    for name in ("time", "upper"):
        stages = [looked.over(vector, name, "s") for vector in shares]
        out[name] = largest(stages, "s")
        if name == "time":
            at = argmax(stages)
    picked = [
        take([0 if vector[k] is None else vector[k] for vector in shares], at)
        for k in range(len(looked.count))
    ]
    used = [None if not is_array(n) and value(n) == 0 else n for n in picked]
    for name in _SLOWEST:
        out[name] = looked.over(used, name, "B" if name in ("up", "out") else "s")
    for name in ("time", "lower", "upper", "wgrad"):
        out[f"all_{name}"] = looked.over(looked.count, name, "s")


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
