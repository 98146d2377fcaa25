"""Which layers a pipeline rank holds, and how many microbatches' activations it keeps.

A model is a list of pieces: the embedding, the kinds of layers, what follows the last layer (norm
and head), the MTP modules, and a second copy of the embedding where the last stage needs one (a
tied head, MTP). A rank is a vector of how often it holds each piece, and one of how many times each
piece's activations of a microbatch are alive at once. Vectors depend on pp, vpp, the split and the
schedule only, so they are made once and looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import mul
from typing import NamedTuple

from moeplan.cluster.layout import Schedule, Split
from moeplan.errors import UserError
from moeplan.model.spec import Group, ModelSpec

__all__ = ["Piece", "Pieces", "Rank", "divide_layers", "leading", "places", "ranks"]


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of the model that is never cut between stages.

    role: "first" (embedding), "layer", "last" (final norm, head), "mtp", "copy".
    """

    name: str
    role: str
    groups: tuple[Group, ...]

    @property
    def is_layer(self) -> bool:
        """Whether recomputation and splits see it as a layer."""
        return self.role in ("layer", "mtp")


class Pieces:
    """The pieces of a model, and the order of its layers."""

    def __init__(self, spec: ModelSpec, *, mtp: bool = True) -> None:
        layers = [g for g in spec.groups if g.is_layer and g.role != "mtp"]
        first = [g for g in spec.groups if not g.is_layer]
        places = {id(g): i for i, g in enumerate(spec.groups)}
        at = places[id(layers[0])]
        before = tuple(g for g in first if places[id(g)] < at)
        after = tuple(g for g in first if places[id(g)] > at)
        modules = tuple(g for g in spec.groups if g.role == "mtp") if mtp else ()
        pieces = [Piece("embedding", "first", before)]
        pieces += [Piece(g.name, "layer", (g,)) for g in layers]
        pieces.append(Piece("head", "last", after))
        if modules:
            pieces.append(Piece("MTP", "mtp", modules))
        if modules or spec.tied:
            pieces.append(Piece("embedding copy", "copy", before))
        self.all: tuple[Piece, ...] = tuple(pieces)
        self.order: tuple[int, ...] = _order(layers)
        self.modules = int(sum(g.number for g in modules))

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Role of each piece."""
        return tuple(p.role for p in self.all)

    @property
    def layers(self) -> int:
        """Layers of the stack."""
        return len(self.order)


def _order(layers: list[Group]) -> tuple[int, ...]:
    """Index of the piece of each layer in turn (pieces of layers start at 1)."""
    if any(not isinstance(g.number, (int, float)) for g in layers):
        raise UserError("a layout needs a model with whole numbers of layers, not a sweep of them")
    if all(len(g.indices) == g.number for g in layers):
        found = {(g.role != "encoder", i): at for at, g in enumerate(layers, 1) for i in g.indices}
        if len(found) == sum(len(g.indices) for g in layers):
            return tuple(found[key] for key in sorted(found))
    return tuple(at for at, g in enumerate(layers, 1) for _ in range(int(g.number)))


def divide_layers(layers: int, stages: int, split: Split) -> tuple[int, ...]:
    """Layers of each (virtual) stage in order; see `Split`."""
    if isinstance(split, tuple):
        return split
    if split == "full":
        most = -(-layers // stages)
        return (most,) * (stages - 1) + (layers - most * (stages - 1),)
    extra = 0
    if split == "balanced" and layers + 2 >= 2 * stages:
        extra = 1  # embedding and head are counted, and taken away again below
    base, more = divmod(layers + 2 * extra, stages)
    # who gets one more: stages in the middle, then the first, the last at the very end
    order = [*range(1, stages - 1), 0, *([stages - 1] if stages > 1 else [])]
    out = [base] * stages
    for at in order[:more]:
        out[at] += 1
    out[0] -= extra
    out[-1] -= extra
    return tuple(out)


class Rank(NamedTuple):
    """One pipeline rank: pieces it holds, and pieces times microbatches alive at its peak.

    depth: microbatches in flight, where a small number of microbatches would cut `alive` to
    min(m, depth)/depth of it.
    """

    number: int
    held: tuple[float, ...]
    alive: tuple[float, ...]
    depth: int


@lru_cache(maxsize=4096)
def _chunks(
    order: tuple[int, ...], roles: tuple[str, ...], modules: int, stages: int, split: Split
) -> list[tuple[int, ...]]:
    """Pieces of each (virtual) stage as counts."""
    out, at = [], 0
    for stage, n in enumerate(divide_layers(len(order), stages, split)):
        counts = [0] * len(roles)
        for piece in order[at : at + n]:
            counts[piece] += 1
        at += n
        for i, role in enumerate(roles):
            last = stage == stages - 1
            if (role == "first" and stage == 0) or (role == "last" and last):
                counts[i] = 1
            elif role == "mtp" and last:
                counts[i] = modules
            elif role == "copy" and last and stages > 1:
                counts[i] = 1
        out.append(tuple(counts))
    return out


def _scaled(vectors: Sequence[Sequence[float]], times: Sequence[float]) -> tuple[float, ...]:
    return tuple(sum(map(mul, column, times)) for column in zip(*vectors, strict=True))


@lru_cache(maxsize=4096)
def ranks(
    order: tuple[int, ...],
    roles: tuple[str, ...],
    modules: int,
    pp: int,
    vpp: int,
    split: Split,
    schedule: Schedule,
    m: int,
) -> tuple[Rank, ...]:
    """Every pipeline rank; with interleaving, once for each different peak that it passes.

    m: microbatches, which only "interleaved" looks at (it runs all forwards first where m = pp).
    """
    chunks = _chunks(order, roles, modules, pp * vpp, split)
    if pp * vpp == 1:
        return (Rank(0, chunks[0], chunks[0], 1),)
    if schedule == "interleaved":
        return tuple(_interleaved(chunks, pp, vpp, m))
    if schedule == "dualpipe":
        out = []
        for r in range(pp):
            pair = [chunks[r], chunks[pp - 1 - r]]
            held = list(_scaled(pair, (1, 1)))
            for i, role in enumerate(roles):
                if role == "copy" and held[roles.index("first")]:
                    held[i] = 0  # the embedding itself is here
            out.append(Rank(r, tuple(held), _scaled(pair, (pp - r, r + 1)), 1))
        return tuple(out)
    # ZB-H1 puts weight gradients off on the later ranks, which keep their inputs until then
    depths = [pp if schedule == "zero-bubble" else pp - r for r in range(pp)]
    return tuple(
        Rank(r, chunks[r], tuple(depth * n for n in chunks[r]), depth)
        for r, depth in enumerate(depths)
    )


def _interleaved(chunks: list[tuple[int, ...]], pp: int, vpp: int, m: int) -> list[Rank]:
    out = []
    for r in range(pp):
        own = [chunks[r + pp * j] for j in range(vpp)]
        held = _scaled(own, [1] * vpp)
        peaks = {_scaled(own, counts) for counts in in_flight(pp, vpp, r, m)}
        best: list[tuple[float, ...]] = []
        for p in sorted(peaks, key=sum, reverse=True):  # what is less in sum covers nothing
            if not any(all(b >= a for a, b in zip(p, q, strict=True)) for q in best):
                best.append(p)
        out += [Rank(r, held, alive, 1) for alive in sorted(best, reverse=True)]
    return out


def in_flight(pp: int, vpp: int, rank: int, m: int) -> set[tuple[int, ...]]:
    """Microbatches alive of each chunk after every forward pass, interleaved 1F1B.

    Forwards run pp microbatches through a chunk before the next chunk's turn, backwards take the
    chunks from the last (arXiv 2104.04473, 2.2). The warm-up runs 2·(pp − rank − 1) + (v − 1)·pp
    forwards, all of them where m = pp, as Megatron-LM does.
    """
    steps = min(m, 3 * pp) * vpp
    warm = steps if m == pp else min(steps, 2 * (pp - rank - 1) + (vpp - 1) * pp)
    alive = [0] * vpp
    seen: set[tuple[int, ...]] = set()
    for step in range(steps):
        alive[(step // pp) % vpp] += 1
        seen.add(tuple(alive))
        done = step - warm
        if done >= 0:
            alive[vpp - 1 - (done // pp) % vpp] -= 1
    return seen


def places(found: tuple[Rank, ...]) -> tuple[Rank, ...]:
    """The ranks that can decide: of those that hold the same, the one that keeps the most."""
    best: dict[tuple[tuple[float, ...], int], Rank] = {}
    seen: dict[tuple[float, ...], list[Rank]] = {}
    for rank in found:
        others = seen.setdefault(rank.held, [])
        if not any(
            o.depth >= rank.depth and all(b >= a for a, b in zip(rank.alive, o.alive, strict=True))
            for o in others
        ):
            others.append(rank)
            best[rank.held, len(others)] = rank
    return tuple(best.values())


def leading(found: tuple[Rank, ...]) -> tuple[Rank, ...]:
    """The ranks that can decide memory or time: no other holds and keeps at least as much.

    Of n microbatches' activations min(m, depth)/depth are alive, so that rank A keeps at least what
    rank B does at each m if it does at depth and for each of the first microbatches.
    """

    def covers(a: Rank, b: Rank) -> bool:
        pairs = (
            (a.held, b.held),
            (a.alive, b.alive),
            ([n / a.depth for n in a.alive], [n / b.depth for n in b.alive]),
        )
        return all(x >= y for more, less in pairs for x, y in zip(more, less, strict=True))

    out: list[Rank] = []
    for rank in found:
        if not any(covers(other, rank) for other in out):
            out = [other for other in out if not covers(rank, other)] + [rank]
    return tuple(out)
