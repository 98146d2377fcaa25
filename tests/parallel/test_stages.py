"""Stages and schedules, against timelines that are played through event by event."""

from __future__ import annotations

import itertools

import pytest

from moeplan.load import load_preset
from moeplan.parallel.schedule import bubble
from moeplan.parallel.stages import Pieces, divide_layers, in_flight, places, ranks


class TestDivision:
    @pytest.mark.parametrize("split", ["even", "full", "balanced"])
    @pytest.mark.parametrize(("layers", "stages"), [(61, 16), (61, 4), (48, 8), (94, 32), (7, 7)])
    def test_every_layer_is_on_one_stage(self, layers, stages, split):
        found = divide_layers(layers, stages, split)
        if split == "full" and (stages - 1) * -(-layers // stages) > layers:
            return
        assert sum(found) == layers
        assert len(found) == stages
        assert min(found) >= 0

    def test_even_stages_differ_by_one_and_the_ends_get_fewer(self):
        assert divide_layers(61, 16, "even") == (3, *[4] * 13, 3, 3)

    def test_as_many_as_the_largest_needs(self):
        assert divide_layers(61, 16, "full") == (4,) * 15 + (1,)

    def test_embedding_and_head_count_as_layers(self):
        assert divide_layers(62, 8, "balanced") == (7, *[8] * 6, 7)


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-next-80b-a3b", "jamba-v0.1", "gpt-oss-20b"])
@pytest.mark.parametrize(("pp", "vpp", "schedule"), [(4, 1, "1f1b"), (2, 3, "interleaved"),
                                                     (4, 1, "dualpipe")])  # fmt: skip
def test_ranks_hold_the_whole_model(name, pp, vpp, schedule):
    """Summed over ranks each piece is there as often as in the model (twice with DualPipe)."""
    spec = load_preset(name)
    pieces = Pieces(spec)
    found = ranks(pieces.order, pieces.roles, pieces.modules, pp, vpp, "even", schedule, 96)
    held = {r.number: r.held for r in found}
    assert sorted(held) == list(range(pp))
    sums = [sum(column) for column in zip(*held.values(), strict=True)]
    times = 2 if schedule == "dualpipe" else 1
    for piece, n in zip(pieces.all, sums, strict=True):
        want = sum(g.number for g in piece.groups) if piece.is_layer else 1
        if piece.role != "copy":
            assert n == times * want


def test_layers_of_hybrids_are_in_their_order():
    spec = load_preset("qwen3-next-80b-a3b")
    names = [Pieces(spec).all[i].name for i in Pieces(spec).order]
    assert [i for i, n in enumerate(names) if n.startswith("full")] == list(range(3, 48, 4))


# ------------------------------------------------------------------------------------- timelines
def play(orders, forward, backward, stages):
    """Time of a schedule: each rank runs its list of (kind, chunk, microbatch) in order; a forward
    waits for the stage before it, a backward for the one after it (and its own forward).

    stages: stage number of (rank, chunk). forward, backward: seconds by stage.
    Returns the makespan and, for each rank, the most chunks in flight.
    """
    where = {stage: rc for rc, stage in stages.items()}
    last = max(where)
    done: dict[tuple[str, int, int], float] = {}
    clock, at = [0.0] * len(orders), [0] * len(orders)
    alive, most = [0] * len(orders), [0] * len(orders)
    left = sum(map(len, orders))
    while left:
        moved = False
        for rank, order in enumerate(orders):
            while at[rank] < len(order):
                kind, chunk, micro = order[at[rank]]
                stage = stages[rank, chunk]
                if kind == "F":
                    needs = [("F", stage - 1, micro)] if stage else []
                else:
                    needs = [("B", stage + 1, micro)] if stage < last else [("F", stage, micro)]
                if any(n not in done for n in needs):
                    break
                start = max([clock[rank], *(done[n] for n in needs)])
                spent = forward[stage] if kind == "F" else backward[stage]
                clock[rank] = done[kind, stage, micro] = start + spent
                alive[rank] += 1 if kind == "F" else -1
                most[rank] = max(most[rank], alive[rank])
                at[rank] += 1
                left -= 1
                moved = True
        assert moved, "the schedule waits for itself"
    return max(clock), most


def one_forward_one_backward(pp, m):
    out = []
    for rank in range(pp):
        warm = min(m, pp - rank - 1)
        forwards, backwards = iter(range(m)), iter(range(m))
        order = [("F", 0, next(forwards)) for _ in range(warm)]
        for _ in range(m - warm):
            order += [("F", 0, next(forwards)), ("B", 0, next(backwards))]
        out.append(order + [("B", 0, i) for i in backwards])
    return out


def interleaved(pp, v, m):
    """The order of Megatron-LM's interleaved schedule, listed by its definition."""
    out = []
    for rank in range(pp):
        passes = [
            (chunk, start + i) for start in range(0, m, pp) for chunk in range(v) for i in range(pp)
        ]
        back = [
            (v - 1 - chunk, start + i)
            for start in range(0, m, pp)
            for chunk in range(v)
            for i in range(pp)
        ]
        warm = len(passes) if m == pp else min(len(passes), 2 * (pp - rank - 1) + (v - 1) * pp)
        order = [("F", *p) for p in passes[:warm]]
        for f, b in zip(passes[warm:], back, strict=False):
            order += [("F", *f), ("B", *b)]
        out.append(order + [("B", *b) for b in back[len(passes) - warm :]])
    return out


@pytest.mark.parametrize(("pp", "m"), [(1, 3), (2, 4), (4, 4), (4, 16), (8, 24), (4, 2)])
def test_1f1b_takes_as_long_as_its_timeline(pp, m):
    F, B = 1.0, 2.0
    took, most = play(
        one_forward_one_backward(pp, m), [F] * pp, [B] * pp, {(r, 0): r for r in range(pp)}
    )
    waits = bubble("1f1b", all_stages=pp * (F + B), slowest=F + B)
    assert took == pytest.approx(m * (F + B) + waits)
    pieces = ranks((1,) * pp, ("first", "layer", "last"), 0, pp, 1, "even", "1f1b", 0)
    if m >= pp:
        assert most == [r.depth for r in pieces]
    else:
        assert most == [min(m, r.depth) for r in pieces]


@pytest.mark.parametrize("slow", range(4))
def test_1f1b_with_one_slow_stage_waits_for_the_others_once(slow):
    pp, m = 4, 32
    forward = [1.0] * pp
    forward[slow] = 1.7
    backward = [2 * f for f in forward]
    took, _ = play(
        one_forward_one_backward(pp, m), forward, backward, {(r, 0): r for r in range(pp)}
    )
    stages = [f + b for f, b in zip(forward, backward, strict=True)]
    closed = m * max(stages) + bubble("1f1b", all_stages=sum(stages), slowest=max(stages))
    assert m * max(stages) <= took <= closed + 1e-9  # a slow first stage hides some of the filling
    assert took == pytest.approx(closed, rel=0.04)


@pytest.mark.parametrize(("pp", "v", "m"), [(2, 2, 4), (4, 2, 8), (4, 4, 16), (4, 3, 24)])
def test_interleaving_takes_as_long_as_its_timeline(pp, v, m):
    F, B = 1.0 / v, 2.0 / v
    stages = {(r, c): c * pp + r for r in range(pp) for c in range(v)}
    took, most = play(interleaved(pp, v, m), [F] * pp * v, [B] * pp * v, stages)
    waits = bubble("interleaved", all_stages=pp * 3.0, slowest=3.0, vpp=v)
    assert took == pytest.approx(m * 3.0 + waits)
    for rank in range(pp):
        assert max(map(sum, in_flight(pp, v, rank, m))) == most[rank]


@pytest.mark.parametrize(("pp", "v"), [(4, 4), (2, 3), (8, 2)])
def test_interleaving_keeps_what_its_timeline_keeps(pp, v):
    """By chunk, after each forward, over a long step: the same set of states."""
    m = 6 * pp
    for rank, order in enumerate(interleaved(pp, v, m)):
        alive, seen = [0] * v, set()
        for kind, chunk, _ in order:
            alive[chunk] += 1 if kind == "F" else -1
            if kind == "F":
                seen.add(tuple(alive))
        short = in_flight(pp, v, rank, m)
        for chunk in range(v):
            assert max(s[chunk] for s in seen) == max(s[chunk] for s in short)
        assert max(map(sum, seen)) == max(map(sum, short))


def test_with_as_many_microbatches_as_stages_all_forwards_come_first():
    assert max(map(sum, in_flight(4, 2, 3, 4))) == 8


GIVEN = {
    "all_stages": 24.0,
    "slowest": 3.0,
    "all_weights": 8.0,
    "weights": 1.0,
    "backward": 2.0,
    "pp": 8,
    "vpp": 4,
}


class TestBubbles:
    """Figures of the papers' tables, for equal stages with F = 1, B = 2 (of it W = 1)."""

    @pytest.mark.parametrize(
        ("schedule", "want"),
        [
            ("1f1b", 7 * 3),
            ("interleaved", 7 * 3 / 4),
            ("zero-bubble", 7 * (1 + 2 - 2 * 1)),
            ("dualpipe", 3 * (3 + 2 - 3 * 1)),
        ],
    )
    def test_closed_forms(self, schedule, want):
        assert bubble(schedule, **GIVEN) == pytest.approx(want)

    def test_a_bubble_is_never_negative(self):
        given = {**GIVEN, "weights": 3.0, "all_weights": 24.0}
        assert bubble("zero-bubble", **given) == 0
        assert bubble("dualpipe", **given) == 0


def test_dualpipe_keeps_pp_plus_one_stages_and_two_stages_weights():
    """DeepSeek-V3, table 2: twice the parameters, PP + 1 activations."""
    pp = 8
    found = ranks((1,) * 64, ("first", "layer", "last"), 0, pp, 1, "even", "dualpipe", 0)
    for rank in found:
        assert rank.held[1] == 16
        assert rank.alive[1] == (pp + 1) * 8


def test_deciding_ranks_cover_all_others():
    """No rank keeps or holds more than one of those that are looked at."""
    pieces = Pieces(load_preset("deepseek-v3"))
    for pp, vpp, schedule in itertools.product((2, 4, 16), (1, 2), ("1f1b", "interleaved")):
        if (vpp > 1) != (schedule == "interleaved"):
            continue
        every = ranks(pieces.order, pieces.roles, pieces.modules, pp, vpp, "even", schedule, 96)
        chosen = places(every)
        for rank in every:
            assert any(
                c.held == rank.held
                and c.depth >= rank.depth
                and all(a >= b for a, b in zip(c.alive, rank.alive, strict=True))
                for c in chosen
            )
