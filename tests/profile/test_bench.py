"""Timing a case on a CPU: buffers in turn, phases told apart, wrong backends found, time limits."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moeplan.model.ffn import MoE
from moeplan.profile import backends, bench
from moeplan.profile.assignment import Assignment, rotated, rows_per_expert
from moeplan.profile.backends import Experts, PhaseScope, TorchBackend
from moeplan.profile.bench import OutOfTime, Passes, make_layers, measure, turns_needed
from moeplan.profile.checks import check_backend, check_layer, reduced
from moeplan.profile.kineto import PASS, Event, Unavailable, attribute, kernel_seconds
from moeplan.profile.layer import Layer
from moeplan.profile.memory import peak_memory
from moeplan.profile.record import Clocks, Direction, Measurement, Stage, Timing
from moeplan.profile.routing import Rows
from tests.profile.records import CLOCKS

CPU = torch.device("cpu")
SMALL = MoE(D=64, E=8, k=2, F=32)


def passes(
    block: MoE = SMALL,
    tokens: int = 16,
    direction: Direction = "forward",
    backend: str = "torch",
    cache: int = 1 << 16,
    touched: int = 1 << 17,
) -> Passes:
    layers = make_layers(block, backend, "fp32", CPU, seed=0, cache_bytes=cache)
    ids = Assignment("zipf", 1.0).ids(tokens, int(block.values["E"]), int(block.values["k"]), 3)
    return Passes(layers, ids, direction, cache_bytes=cache, touched=touched, seed=5)


# --------------------------------------------------------------------------- buffers in turn
@given(st.integers(1, 10**11), st.integers(1, 10**11), st.integers(1, 10**9))
def test_turns_leave_three_caches_behind(weights: int, touched: int, cache: int) -> None:
    turns = turns_needed(weights, touched, cache)
    assert turns.layers * weights >= 3 * cache
    assert (turns.layers - 1) * weights < 3 * cache
    assert turns.passes * touched >= 3 * cache or turns.passes == bench._MOST_TURNS


def test_each_turn_has_the_same_loads_on_other_experts() -> None:
    p = passes(touched=1 << 15)
    counts = [rows_per_expert(turn.ids_TK.numpy(), 8) for turn in p.turns]
    assert len(counts) == 6
    assert all(sorted(c) == sorted(counts[0]) for c in counts)
    assert len({tuple(c) for c in counts}) > 3
    assert len({turn.x_TD.data_ptr() for turn in p.turns}) == 6


def test_small_layers_take_turns_too() -> None:
    size = sum(w.nbytes for w in Layer(SMALL, dtype=torch.float32).parameters())
    p = passes(cache=size)
    assert len({id(turn.layer) for turn in p.turns}) == 3
    firsts = [turn.layer.router_ED[0, :3].tolist() for turn in p.turns]
    assert firsts[0] != firsts[1] != firsts[2]


def test_a_layer_that_runs_other_rows_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Layer.run

    def wrong(self: Layer, x_TD: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        y_TD, rows_E = right(self, x_TD, **how)
        return y_TD, rows_E.roll(1)

    monkeypatch.setattr(Layer, "run", wrong)
    with pytest.raises(ValueError, match="the layer ran rows"):
        passes()


# -------------------------------------------------------------------------------- timing
class _Slow(TorchBackend):
    """Sleeps in one phase of the forward pass, so that its time is known."""

    name = "slow"

    def rows(self, x_RD: Tensor, rows: Rows, experts: Experts, phase: PhaseScope) -> Tensor:
        y_RD = super().rows(x_RD, rows, experts, phase)
        with phase("experts_down"):
            time.sleep(0.02)
        return y_RD


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_time_is_booked_on_the_phase_that_takes_it(
    direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backends._BACKENDS, "slow", _Slow())
    ticks: list[int] = []
    found = measure(passes(direction=direction, backend="slow"), 4, tick=lambda: ticks.append(1))
    medians = {(phase.name, phase.stage): phase.median for phase in found.phases}
    stages = ("forward", "backward") if direction == "forward+backward" else ("forward",)
    names = Layer(SMALL, dtype=torch.float32).phase_names
    assert list(medians) == [(name, stage) for stage in stages for name in names]
    assert 0.02 <= medians.pop(("experts_down", "forward")) < 0.2
    assert max(medians.values()) < 0.02
    assert 0.02 <= found.layer.median < 0.3
    assert (found.clock, found.phase_clock) == ("eager", "wall")
    assert all(len(p.samples) == 4 for p in found.phases)
    assert len(ticks) == found.warmup + 2 * 4 + 1
    assert found.kernels.absent
    assert found.graph.absent


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_peak_memory_is_the_predicted_one(direction: Direction) -> None:
    block = replace(SMALL, D=128, F=96)
    found = measure(passes(block, tokens=256, direction=direction), 1)
    predicted = peak_memory(block, 256, backward=direction != "forward", element=4).peak
    assert found.peak_bytes == pytest.approx(predicted, rel=0.02)
    assert found.peak_source == "tracked tensors"


def test_a_deadline_ends_a_case_before_it_is_missed() -> None:
    p = passes()
    started = time.monotonic()
    with pytest.raises(OutOfTime, match="would take"):
        measure(p, 10_000_000, deadline=started + 5)
    assert time.monotonic() - started < 4


def _measurement(samples: Sequence[float], **changes: Any) -> Measurement:
    data = {
        "phase_clock": "wall", "phases": [], "kernels": {"absent": "x"}, "graph": {"absent": "x"},
        "eager": {"samples": list(samples)}, "peak_bytes": None, "peak_source": "x",
        "rotations": 1, "warmup": 1, "before": CLOCKS, "after": CLOCKS, **changes,
    }  # fmt: skip
    return Measurement.model_validate(data)


def test_noise_and_throttling_are_flagged() -> None:
    assert bench.noise_flags(_measurement([1.0, 1.01, 0.99] * 5)) == []
    (noisy,) = bench.noise_flags(_measurement([1.0, 2.0, 1.0, 2.0, 1.0]))
    assert noisy == "noisy: 100% of the median from p10 to p90"
    hot = Clocks(source="NVML", clock_mhz=1200, throttle=["thermal, by hardware"])
    cool = Clocks(source="NVML", clock_mhz=1980)
    flags = bench.noise_flags(_measurement([1.0] * 5, before=cool, after=hot))
    assert flags == ["throttled: thermal, by hardware", "clock fell from 1980 to 1200 MHz"]


def test_the_layer_is_judged_by_graph_then_kernels_then_wall() -> None:
    by = {name: {"samples": [seconds]} for name, seconds in (("graph", 1.0), ("kernels", 2.0))}
    assert _measurement([3.0], **by).layer.median == 1.0
    assert _measurement([3.0], kernels=by["kernels"]).layer.median == 2.0
    assert _measurement([3.0]).layer.median == 3.0


# ---------------------------------------------------------------------------- kernel times
NAMES: tuple[tuple[str, Stage], ...] = (("router", "forward"), ("router", "backward"))


def _scope(name: str, start: int, end: int) -> Event:
    return Event(name, False, start, end, 0, scope=True)


def _trace(offset: int, link: int) -> list[Event]:
    """One pass: two kernels of the forward, one of the backward, one between; they run late."""
    spans = [(PASS, 0, 100), ("moeplan::router", 10, 30), ("moeplan.backward::router", 50, 60)]
    events = [_scope(name, offset + a, offset + b) for name, a, b in spans]
    for place, (at, begin, seconds) in enumerate(
        ((12, 40, 7), (29, 47, 5), (40, 52, 100), (55, 152, 30))
    ):
        events.append(Event("cudaLaunchKernel", False, offset + at, offset + at + 1, link + place))
        events.append(Event("k", True, offset + begin, offset + begin + seconds, link + place))
    return events


def test_kernels_belong_to_the_phase_that_launched_them() -> None:
    events = [*_trace(1000, 10), *_trace(5000, 20)]
    phases, totals = attribute(events, NAMES, 2)
    assert phases == {NAMES[0]: [12e-9, 12e-9], NAMES[1]: [30e-9, 30e-9]}
    assert totals == [142e-9, 142e-9]


def test_kernels_outside_the_timed_passes_do_not_count() -> None:
    before = [Event("cudaLaunchKernel", False, 5, 6, 99), Event("k", True, 7, 900, 99)]
    assert attribute([*before, *_trace(1000, 10)], NAMES, 1)[1] == [142e-9]


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        (lambda e: e.name == PASS, "holds 0 passes of 1"),
        (lambda e: e.kernel, "saw no kernel"),
        (lambda e: e.name == "cudaLaunchKernel", "does not say who launched"),
    ],
)
def test_a_trace_with_gaps_gives_no_times(drop: Any, said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        attribute([e for e in _trace(0, 10) if not drop(e)], NAMES, 1)


def test_a_phase_without_a_scope_is_an_error() -> None:
    with pytest.raises(ValueError, match="select"):
        attribute(_trace(0, 10), (*NAMES, ("select", "forward")), 1)


def test_a_real_trace_holds_every_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    p = passes(direction="forward+backward")
    seen: Counter[str] = Counter()

    def count(events: Any, names: Any, number: int) -> Any:
        seen.update(event.name for event in events if event.scope)
        raise Unavailable("counted")

    monkeypatch.setattr("moeplan.profile.kineto.attribute", count)
    with pytest.raises(Unavailable, match="counted"):
        kernel_seconds(p.run, 2, p.names, p.sync)
    prefix = {"forward": "moeplan::", "backward": "moeplan.backward::"}
    assert seen.pop(PASS) == 2
    assert set(seen) == {f"{prefix[stage]}{name}" for name, stage in p.names}
    assert min(seen.values()) >= 2


def test_a_cpu_has_no_kernels() -> None:
    p = passes()
    with pytest.raises(Unavailable, match="saw no kernel"):
        kernel_seconds(p.run, 1, p.names, p.sync)


def test_a_capture_that_fails_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says why, gives the stream back, and leaves the backend's other cases alone."""
    tried: list[int] = []
    streams: list[Any] = []

    def captured(_: Passes) -> list[Any]:
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(bench, "_captured", captured)
    monkeypatch.setattr(bench, "_UNCAPTURED", {})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "the stream before")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    p = passes()
    said = "capture failed: operation not permitted when stream is capturing"
    assert [bench._graph(p, 3).absent for _ in range(3)] == [said] * 3
    assert len(tried) == 1
    assert streams == ["the stream before"]
    monkeypatch.setattr(bench, "_UNCAPTURED", {})

    def out_of_memory(_: Passes) -> list[Any]:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(bench, "_captured", out_of_memory)
    assert bench._graph(p, 3).absent == "no memory left for the capture"
    assert bench._UNCAPTURED == {}  # a smaller case may have it


# ---------------------------------------------------------------------------- correctness
class _Forgets(TorchBackend):
    """Leaves the last expert's rows out."""

    name = "forgets"

    def rows(self, x_RD: Tensor, rows: Rows, experts: Experts, phase: PhaseScope) -> Tensor:
        y_RD = super().rows(x_RD, rows, experts, phase)
        return y_RD * (rows.expert_R != experts.up_EHL.shape[0] - 1)[:, None]


class _Uninitialised(TorchBackend):
    """Returns memory that nobody wrote."""

    name = "uninitialised"

    def rows(self, x_RD: Tensor, rows: Rows, experts: Experts, phase: PhaseScope) -> Tensor:
        y_RD = super().rows(x_RD, rows, experts, phase)
        return y_RD * torch.full_like(y_RD, math.nan)


@pytest.mark.parametrize("broken", [_Forgets(), _Uninitialised()])
def test_a_wrong_backend_does_not_pass(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._BACKENDS, broken.name, broken)
    assert all(c.passed for c in check_backend(SMALL, "small", "torch", "fp32", CPU, 0))
    found = check_backend(SMALL, "small", broken.name, "fp32", CPU, 0)
    assert not found[0].passed
    layer = Layer(SMALL, backend=broken.name, dtype=torch.float32)
    assert not check_layer(layer, "small", "fp32", 32, 0).passed


def test_checks_run_the_blocks_own_routing_at_reduced_widths() -> None:
    block = replace(SMALL, D=512, F=256, E=16, routing=SMALL.routing._replace(score="sigmoid"))
    small = reduced(block)
    assert small.routing == block.routing
    assert (small.values["E"], small.values["k"]) == (16, 2)
    assert small.values["D"] < 512
    found = check_backend(block, "b", "torch", "bf16", CPU, 0)
    assert [c.tokens for c in found] == [48, 1, 48]
    assert all(c.passed for c in found), found
    assert all(0 < c.output_error < c.tolerance for c in found)


def test_rotation_moves_loads_and_keeps_tokens_apart() -> None:
    ids = Assignment("uniform").ids(64, 10, 3, 1)
    turned = rotated(ids, 2, 4, 10)
    assert Counter(rows_per_expert(turned, 10)) == Counter(rows_per_expert(ids, 10))
    assert (turned != ids).all()
    assert all(len(set(row)) == 3 for row in turned.tolist())


def test_timings_are_kept_to_the_nanosecond() -> None:
    assert Timing(samples=bench._rounded([1.23456789012])).samples == [1.234567890]
