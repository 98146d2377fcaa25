"""Schedules that split the backward pass, played through event by event.

F: forward; I: gradients of inputs; W: gradients of weights; B: both together (I + W).
"""

from __future__ import annotations

import itertools

import pytest

from moeplan.parallel.schedule import bubble
from moeplan.parallel.stages import ranks


def play(orders, seconds, needs):
    """Makespan, busy seconds and most forwards that wait for a weight gradient, by rank.

    orders: by rank, steps in order; a step is a tuple of passes (kind, direction, microbatch) that
    run side by side. seconds: of a tuple of kinds. needs(rank, pass): the pass that must be done.
    """
    done, at = {}, [0] * len(orders)
    clock, busy = [0.0] * len(orders), [0.0] * len(orders)
    alive, most = [0] * len(orders), [0] * len(orders)
    while any(a < len(o) for a, o in zip(at, orders, strict=True)):
        moved = False
        for rank, order in enumerate(orders):
            while at[rank] < len(order):
                step = order[at[rank]]
                wanted = [n for p in step if (n := needs(rank, p)) is not None]
                if any(n not in done for n in wanted):
                    break
                took = seconds[tuple(kind for kind, *_ in step)]
                clock[rank] = max([clock[rank], *(done[n] for n in wanted)]) + took
                busy[rank] += took
                for kind, *rest in step:
                    done[rank, kind, *rest] = clock[rank]
                    if kind == "B":
                        done[rank, "I", *rest] = clock[rank]
                    alive[rank] += {"F": 1, "I": 0}.get(kind, -1)
                    most[rank] = max(most[rank], alive[rank])
                at[rank] += 1
                moved = True
        assert moved, "the schedule waits for itself"
    return max(clock), busy, most


# ----------------------------------------------------------------------------------------- ZB-H1
def zb_h1(p, rank, m):
    """1F1B on input gradients; the weight gradients of rank r come r microbatches later."""
    forwards, weights = iter(range(m)), iter(range(m))
    out = [(("F", 0, next(forwards)),) for _ in range(p - rank)]
    for micro in range(m):
        out.append((("I", 0, micro),))
        if micro >= rank:
            out.append((("W", 0, next(weights)),))
        out += [(("F", 0, f),) for f in itertools.islice(forwards, 1)]
    return out + [(("W", 0, w),) for w in weights]


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (8, 8), (8, 40)])
@pytest.mark.parametrize(("f", "i", "w"), [(1.0, 1.0, 1.0), (1.0, 1.2, 0.8), (1.0, 1.5, 0.5)])
def test_zb_h1_takes_as_long_as_its_timeline(p, m, f, i, w):
    def needs(rank, job):
        kind, _, micro = job
        if kind == "F":
            return (rank - 1, "F", 0, micro) if rank else None
        if kind == "I" and rank < p - 1:
            return (rank + 1, "I", 0, micro)
        return (rank, "F" if kind == "I" else "I", 0, micro)

    seconds = {("F",): f, ("I",): i, ("W",): w}
    took, busy, most = play([zb_h1(p, r, m) for r in range(p)], seconds, needs)
    one = f + i + w
    closed = bubble(
        "zero-bubble", all_stages=p * one, slowest=one, all_weights=p * w, weights=w, vpp=1
    )
    assert took - busy[0] == pytest.approx(closed)
    kept = ranks((0,) * 16, ("layer",), 0, p, 1, "even", "zero-bubble", m)
    assert [r.depth for r in kept] == most


# -------------------------------------------------------------------------------------- DualPipe
def dualpipe(p, rank, m):
    """DeepSeek-V3's schedule: from both ends, m/2 microbatches each way.

    Direction 0 is the one whose first stage is in the rank's own half of the pipeline.
    """
    half, inner, each = p // 2, min(rank, p - 1 - rank), m // 2
    count = {"F": [0, 0], "B": [0, 0]}
    late = []
    out = []

    def forward(way):
        count["F"][way] += 1
        return ("F", way, count["F"][way] - 1)

    def backward(way, split=False):
        count["B"][way] += 1
        micro = count["B"][way] - 1
        if split:
            late.append((way, micro))
        return ("I" if split else "B", way, micro)

    def weights():
        return ("W", *late.pop(0))

    outer = half - inner - 1
    out += [(forward(0),) for _ in range(2 * outer)]
    for _ in range(inner + 1):
        out += [(forward(0),), (forward(1),)]
    for _ in range(outer):
        out += [(backward(1, split=True),), (weights(),), (forward(1),)]
    for i in range(each - p + inner + 1):
        if i == 0 and outer == 0:
            out += [(forward(0),), (backward(1),)]
        else:
            out += [(forward(0), backward(1))]
        out += [(forward(1), backward(0))]
    for _ in range(outer):
        out += [(backward(1),), (forward(1), backward(0))]
    for i in range(2 * (inner + 1)):
        out += [(backward(1 - i % 2, split=i > inner),)]
    for _ in range(outer):
        out += [(weights(),), (backward(0, split=True),)]
    out += [(weights(),) for _ in range(len(late))]
    assert count == {"F": [each, each], "B": [each, each]}
    return out


def timeline(p, m, f, i, w, both):
    """`play` for DualPipe on p ranks."""

    def needs(rank, job):
        kind, way, micro = job
        down = (way == 0) == (rank < p // 2)  # towards the last rank
        before, after = (rank - 1, rank + 1) if down else (rank + 1, rank - 1)

        def at(other, kind):
            return (other, kind, way if (other < p // 2) == (rank < p // 2) else 1 - way, micro)

        if kind == "F":
            return at(before, "F") if 0 <= before < p else None
        if kind == "W":
            return at(rank, "I")
        return at(after, "I") if 0 <= after < p else at(rank, "F")

    seconds = {("F",): f, ("I",): i, ("W",): w, ("B",): i + w, ("F", "B"): both}
    return play([dualpipe(p, r, m) for r in range(p)], seconds, needs)


def closed(p, f, i, w, both):
    return bubble("dualpipe", pp=p, slowest=both, backward=i + w, weights=w)


@pytest.mark.parametrize(("p", "m"), [(4, 8), (8, 16), (8, 48), (16, 40)])
def test_dualpipe_takes_as_long_as_its_timeline(p, m):
    took, busy, most = timeline(p, m, 1.0, 1.0, 1.0, 3.0)
    assert took - max(busy) == pytest.approx(closed(p, 1.0, 1.0, 1.0, 3.0))
    kept = ranks((0,) * 16, ("layer",), 0, p, 1, "even", "dualpipe", m)
    assert [r.alive[0] / (16 / p) for r in kept] == most


@pytest.mark.parametrize("times", [(1.0, 1.2, 1.0, 3.2), (1.0, 1.2, 0.8, 3.0), (1.0, 1, 1, 2.5)])
def test_dualpipe_is_near_its_timeline_where_passes_differ(times):
    for p, m in ((4, 8), (8, 16), (16, 40)):
        took, busy, _ = timeline(p, m, *times)
        assert 0.9 * closed(p, *times) <= took - min(busy) <= closed(p, *times) + 1e-9
