"""What suites measure, and in which order."""

from __future__ import annotations

from moeplan.profile.suite import FIVE, GRID, GRID_SIZES, suite


def test_the_suite_for_a_gpu_brings_the_most_valuable_first() -> None:
    sizes = (1, 16, 64, 512, 4096, 16384)
    parts = suite("gpu", sizes, ["torch"], "bf16", ["forward", "forward+backward"])
    names = [p.name for p in parts]
    assert names[:6] == [*FIVE, "calibration-grid"]
    forward = [job for p in parts[:5] for job in p.jobs]
    assert {job.direction for job in forward} == {"forward"}
    assert len(forward) == 5 * 6
    backward = [j for p in parts for j in p.jobs if j.direction == "forward+backward"]
    assert {(job.subject, job.tokens) for job in backward} == {(n, s) for n in FIVE for s in sizes}
    assert {j.routing.text for p in parts for j in p.jobs} == {"uniform", "zipf:1.2", "balanced"}
    keys = [job.key for p in parts for job in p.jobs]
    assert len(keys) == len(set(keys))
    assert parts[5].seconds == 120


def test_the_grid_keeps_off_the_presets_that_judge_it() -> None:
    grid = next(p for p in suite("gpu", (1,), ["torch"], "bf16", ["forward"]) if "grid" in p.name)
    assert 55 <= len(grid.jobs) <= 70
    shapes = {tuple(int(j.block.values[s]) for s in "DFEk") for j in grid.jobs}
    assert shapes == set(GRID)
    assert {job.tokens for job in grid.jobs} == set(GRID_SIZES)
    judged = suite("gpu", (1,), ["torch"], "bf16", ["forward"])[:5]
    assert not shapes & {tuple(int(p.jobs[0].block.values[s]) for s in "DFEk") for p in judged}


def test_the_suite_of_all_has_every_preset_once() -> None:
    parts = suite("all", (1,), ["torch"], "fp32", ["forward"])
    names = [p.name for p in parts]
    assert names[:5] == list(FIVE)
    assert len(names) == len(set(names)) > 30
