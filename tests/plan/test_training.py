"""The search for training against a loop over single evaluations, and relations that must hold."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import Layout
from moeplan.errors import UserError
from moeplan.load import load_config, load_preset
from moeplan.parallel import Overheads, TrainingJob, TrainingPlan, axes
from moeplan.plan import training
from moeplan.plan.front import Front, undominated
from moeplan.plan.grid import Grid
from moeplan.plan.sensitivity import changes, other_memory, scaled, sensitivity
from moeplan.plan.sizing import smallest
from moeplan.plan.space import Space
from moeplan.plan.training import default_batch, search_training
from tests.commands import MIXTRAL, checkpoint

SMALL = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_local_experts": 4}
TIGHT = Overheads(framework=84e9, fragmentation=0.05)  # of an H100's 85.5e9 bytes


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small model of experts."""
    folder = checkpoint(tmp_path_factory.mktemp("small"), MIXTRAL | SMALL)
    return load_config(folder)


def plan_of(spec, gpus=4, **job):
    job = {"sequence": 4096, "tokens": 1e9, **job}
    return TrainingPlan(spec, cluster(f"h100x{gpus}"), TrainingJob(**job))


def loop(plan, gpus, batch, space):
    """Every layout of whole numbers, each evaluated by itself."""
    whole = range(1, gpus + 1)
    found = []
    for kinds in space.kinds():
        for tp, cp, pp, dp in itertools.product(whole, repeat=4):
            if tp * cp * pp * dp != gpus:
                continue
            for ep, etp, mb, vpp, zero in itertools.product(
                whole, whole, range(1, batch + 1), range(1, 5), range(4)
            ):
                layout = kinds.at(
                    {"tp": tp, "cp": cp, "pp": pp, "dp": dp, "ep": ep, "etp": etp,
                     "microbatch": mb, "vpp": vpp, "zero": zero, "batch": batch}
                )  # fmt: skip
                if plan.legal(layout, gpus):
                    found.append((layout, plan.evaluate(layout, gpus)))
    return found


@pytest.mark.parametrize("overheads", [Overheads(), TIGHT])
def test_the_search_is_a_loop_over_single_evaluations(small, overheads):
    plan = plan_of(small, 2, overheads=overheads)
    space = Space(recompute=("none", "full"))
    one = loop(plan, 2, 8, space)
    found = search_training(plan, space, 2, 8, top=10**6)
    tally = found.tally
    assert tally.legal == len(one)
    fits = [(a["step"], a["memory"], layout) for layout, a in one if a["fits"]]
    assert tally.fit == len(fits) > 0
    fits.sort(key=lambda row: row[:2])
    assert tally.near.shape[1] == len(fits)
    assert tally.near[5] == pytest.approx([row[0] for row in fits])
    best = found.layout(tally.near[:, 0])
    assert plan.evaluate(best, 2)["step"] == pytest.approx(fits[0][0])
    assert tally.least[0] == pytest.approx(min(a["memory"] for _, a in one))
    # the front, by comparing all with all
    most = tally.most
    points = [(a["memory"], a["step"]) for _, a in one if a["memory"] <= most]
    lower = {p for p in points if not any(
        q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)}  # fmt: skip
    front = sorted(zip(tally.front.first, tally.front.second, strict=True))
    assert len(front) <= len(lower)
    assert {round(m, -3) for m, _ in front} <= {round(m, -3) for m, _ in lower}
    by_kind = {}
    for layout, a in one:
        if a["fits"]:
            key = (layout.schedule, layout.recompute)
            by_kind[key] = min(a["step"], by_kind.get(key, np.inf))
    got = {(found.kinds[k].schedule, found.kinds[k].recompute): step
           for k, (step, *_) in tally.by_kind.items()}  # fmt: skip
    assert got == pytest.approx(by_kind)


def test_all_kinds_agree_with_single_evaluations():
    """Memory and step of random layouts of a large model with MTP, under every kind."""
    spec = load_preset("deepseek-v3")
    plan = TrainingPlan(spec, cluster("h100x256"), TrainingJob())
    space = Space(recompute=("none", "selective:norm", "full"), sp=(True, False),
                  orders=("tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"), splits=("even", "balanced"),
                  overlaps=("usual", "dualpipe"), pins={"tp": (1, 4), "cp": (1, 2), "zero": (1, 3),
                  "pp": (1, 4, 8), "vpp": (1, 3), "ep": (8, 16), "etp": (1,)})  # fmt: skip
    found = search_training(plan, space, 256, 256, top=4000)
    columns = np.concatenate([found.tally.near, _with_memory(found)], axis=1)
    picked = np.random.default_rng(0).choice(columns.shape[1], 60, replace=False)
    for column in columns[:, picked].T:
        answer = plan.evaluate(found.layout(column), 256)
        assert answer["memory"] == pytest.approx(column[4])
        assert answer["step"] == pytest.approx(column[5])


def _with_memory(found):
    front = found.tally.front
    return np.concatenate([front.rows, [front.first, front.second]])


def test_any_number_of_workers_gives_the_same(small, monkeypatch):
    monkeypatch.setattr(training, "WORTH", 0)
    plan = plan_of(small)
    one, two = (search_training(plan, Space(), 4, 8, workers=n) for n in (1, 2))
    assert np.array_equal(one.tally.near, two.tally.near)
    assert np.array_equal(one.tally.front.first, two.tally.front.first)
    assert (one.tally.legal, one.tally.fit) == (two.tally.legal, two.tally.fit)
    assert one.tally.least[0] == two.tally.least[0]


def test_axes_that_few_layouts_share_give_the_same(small, monkeypatch):
    plan = plan_of(small)
    whole = search_training(plan, Space(), 4, 8)
    shape = whole.grid.axes.degrees["tp"].shape
    monkeypatch.setattr(axes, "_FEW", 0)
    monkeypatch.setattr(axes, "_DENSE", 0)
    alone = search_training(plan, Space(), 4, 8)
    assert shape != alone.grid.axes.degrees["tp"].shape
    assert np.array_equal(whole.tally.near[:4], alone.tally.near[:4])
    assert whole.tally.near == pytest.approx(alone.tally.near, rel=1e-12)
    assert whole.tally.front.second == pytest.approx(alone.tally.front.second, rel=1e-12)
    assert (whole.tally.legal, whole.tally.fit) == (alone.tally.legal, alone.tally.fit)


@cache
def mixtral():
    plan = TrainingPlan(load_preset("mixtral"), cluster("h100x16"), TrainingJob(tokens=1e12))
    return search_training(plan, Space(), 16, 64)


def test_the_winner_pinned_is_found_again():
    found = mixtral()
    best = found.best(1)[0]
    pins = {n: (int(getattr(best, n)),) for n in ("tp", "cp", "pp", "vpp", "dp", "ep", "etp",
                                                  "zero", "microbatch")}  # fmt: skip
    space = Space(pins=pins, schedules=(best.schedule,), recompute=(best.recompute,))
    again = search_training(found.grid.plan, space, 16, 64)
    assert str(again.best(1)[0]) == str(best)
    assert again.tally.legal == 1


def test_restrictions_never_help():
    found = mixtral()
    for space in (Space(pins={"tp": (2,)}), Space(schedules=("1f1b",)), Space(recompute=("full",))):
        some = search_training(found.grid.plan, space, 16, 64)
        assert some.tally.legal < found.tally.legal
        assert not some.tally.near.size or some.tally.best >= found.tally.best


@settings(max_examples=6)
@given(
    figure=st.sampled_from(["memory_reported", "memory_bandwidth", "up", "out"]),
    factor=st.floats(1.05, 3),
)
def test_better_hardware_never_makes_the_best_worse(figure, factor):
    found = mixtral()
    plan = found.grid.plan
    machine = plan.cluster
    if figure in ("up", "out"):
        names = [f"scale_{figure}_{what}" for what in ("bandwidth", "effective")]
        machine = replace(machine, **{n: scaled(getattr(machine, n), factor) for n in names})
    else:
        device = replace(machine.gpu, **{figure: scaled(getattr(machine.gpu, figure), factor)})
        machine = replace(machine, gpu=device)
    space = Space(recompute=("none", "full"), schedules=("1f1b", "interleaved"))
    base = search_training(plan, space, 16, 64)
    better = search_training(TrainingPlan(plan.spec, machine, plan.job), space, 16, 64)
    assert better.tally.best <= base.tally.best * (1 + 1e-12)
    assert better.tally.legal == base.tally.legal
    assert better.tally.fit >= base.tally.fit


def test_sensitivity_is_the_search_run_again():
    found = mixtral()
    plan = found.grid.plan
    outcomes = {o.name: o for o in (call() for call in sensitivity(found))}
    tried = list(changes(plan.cluster, plan.job))
    assert set(outcomes) == {c.name for c in tried}
    for change in tried:
        other = TrainingPlan(plan.spec, change.cluster, change.job)
        again = search_training(other, Space(), 16, 64, top=1)
        assert outcomes[change.name].step == pytest.approx(again.tally.best), change.name


def test_other_memory_is_the_search_run_again():
    found = mixtral()
    plan = found.grid.plan
    for outcome, factor in zip(other_memory(found), (0.5, 0.75, 1.25, 1.5), strict=True):
        capacity = scaled(plan.capacity, factor)
        device = replace(plan.cluster.gpu, memory_bytes=capacity, memory_reported=None)
        other = TrainingPlan(plan.spec, replace(plan.cluster, gpu=device), plan.job)
        again = search_training(other, Space(), 16, 64, top=1)
        best = again.tally.best
        assert (outcome.step is None) == (not np.isfinite(best))
        assert outcome.step is None or outcome.step == pytest.approx(best)


def test_the_smallest_cluster_meets_the_deadline_and_no_smaller_one():
    spec, job = load_preset("mixtral"), TrainingJob(tokens=1e11)
    space = Space(schedules=("1f1b",), recompute=("none",))

    def make(gpus):
        return TrainingPlan(spec, cluster(f"h100x{gpus}"), job)

    sizes, found = smallest(make, cluster("h100x8"), job, space, batch=960,
                            deadline=5 * 86400, budget=None)  # fmt: skip
    assert found is not None
    assert [s.meets for s in sizes] == [False] * (len(sizes) - 1) + [True]
    assert sizes[-1].seconds <= 5 * 86400
    for gpus in range(8, sizes[-1].gpus, 8):
        again = search_training(make(gpus), space, gpus, 960)
        if again.tally.near.size:
            assert make(gpus).evaluate(again.best(1)[0], gpus)["seconds"] > 5 * 86400


def test_a_dense_model_has_no_experts_to_divide():
    plan = TrainingPlan(load_preset("llama-3.1-8b"), cluster("h100x8"), TrainingJob())
    found = search_training(plan, Space(), 8, 32)
    assert {int(x) for x in found.grid.columns["ep"] * found.grid.columns["etp"]} == {1}
    assert found.tally.fit
    assert not any(o.name.startswith("imbalance") for o in (call() for call in sensitivity(found)))


@pytest.mark.parametrize("gpus", [1, 2, 6, 7, 8, 24, 1000])
def test_the_usual_batch_is_a_multiple_of_the_gpus(gpus):
    batch = default_batch(gpus, 4096)
    assert batch % gpus == 0
    assert abs(batch * 4096 - 2**24) <= gpus * 4096 / 2


def test_a_grid_of_nothing_is_empty(small):
    found = search_training(plan_of(small), Space(pins={"tp": (3,)}), 4, 8)
    assert (found.tally.legal, found.grid.size) == (0, 0)


def test_what_cannot_be_pinned_is_refused():
    with pytest.raises(UserError, match="did you mean 'microbatch'"):
        Space(pins={"microbatches": (1,)})


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40))
def test_a_front_holds_what_nothing_beats(points):
    first, second = (np.array(x, float) for x in zip(*points, strict=True))
    kept = {(first[i], second[i]) for i in undominated(first, second)}
    assert kept == {
        p for p in set(points)
        if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
    }  # fmt: skip
    streamed = Front(10.0, 1)
    for p in points:
        streamed.add(
            np.array([p[0]], float), np.array([p[1]], float), lambda at: np.zeros((1, len(at)))
        )
    assert set(zip(streamed.first, streamed.second, strict=True)) == kept


def test_a_grid_names_each_combination_once():
    plan = TrainingPlan(load_preset("mixtral"), cluster("h100x16"), TrainingJob())
    grid = Grid.of(plan, Space(), 16, 64)
    for name in axes.DEGREES:
        found = grid.axes.located.take(grid.axes.degrees[name])
        assert np.array_equal(found, grid.columns[name]), name
    rows = np.stack(list(grid.columns.values()))
    assert np.unique(rows, axis=1).shape == rows.shape
    assert Layout(**grid.columns, batch=64.0).is_many
