"""What a CPU's matmuls by rows, new pages and small calls make of a prediction."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from moeplan.model.ffn import MoE
from moeplan.profile.host import Host
from moeplan.profile.predict import UNCALIBRATED_CPU, Shape, predict
from moeplan.profile.record import Direction, OpPrediction, Prediction, Roof
from tests.profile.records import host_roofs, roofs

BLOCK = MoE(D=1024, E=8, k=2, F=512)
BACKWARD: Direction = "forward+backward"


def _predicted(
    rows: Sequence[int], more: Sequence[Roof], direction: Direction = "forward"
) -> Prediction:
    tokens = sum(rows) // 2
    fast = roofs(gemm=1e18, bandwidth=1e18, launch=0.0)
    return predict(Shape(BLOCK, tokens, rows, "fp32", direction), [*fast, *more], 0)


def _op(found: Prediction, name: str, stage: str = "forward") -> OpPrediction:
    return next(op for op in found.ops if (op.name, op.stage) == (name, stage))


def test_a_loop_over_experts_by_hand() -> None:
    """4 experts of 1 row, one of 8, between points of 1 and 64 rows: 2·m·1024·1024 each."""
    found = _predicted([1, 1, 1, 1, 8, 0, 0, 0], host_roofs(r1=1e9, r64=64e9, fresh=1e18))
    one, eight = 2 * 1024 * 1024 / 1e9, 2 * 8 * 1024 * 1024 / 8e9  # the rate rises as the rows
    assert _op(found, "experts_gate_up").expected == pytest.approx(4 * one + eight)
    assert found.note == UNCALIBRATED_CPU
    assert found.method == "roofs of this run, with small matmuls"


def test_rates_do_not_go_on_beyond_what_was_measured() -> None:
    rates = host_roofs(r4=1e9, r64=10e9, fresh=1e18)
    for rows, rate in ((1, 1e9), (1000, 10e9)):
        found = _predicted([rows] * 8, rates)
        wanted = 8 * rows * 2 * 1024 * 1024 / rate
        assert _op(found, "experts_gate_up").expected == pytest.approx(wanted)


def test_skew_is_faster_where_rows_are_what_counts() -> None:
    rates = host_roofs(r1=1e9, r64=64e9, fresh=1e18)
    even, skewed = (_predicted(rows, rates).expected for rows in ([8] * 8, [57, *[1] * 7]))
    heaped = _predicted([64, *[0] * 7], rates).expected
    assert heaped < skewed
    assert heaped < even


def test_gradients_of_weights_are_new_pages() -> None:
    """8 experts x 1024 x 1024 fp32 are 32 MiB, not above it; 9 experts' are."""
    rates = host_roofs(r1=1e18, fresh=1e9)
    at = _op(_predicted([2] * 8, rates, BACKWARD), "experts_gate_up", "backward")
    assert at.expected < 1e-6
    block = MoE(D=1024, E=9, k=2, F=512)
    fast = [*roofs(gemm=1e18, bandwidth=1e18, launch=0.0), *rates]
    above = _op(predict(Shape(block, 9, [2] * 9, "fp32", BACKWARD), fast, 0), "experts_gate_up",
                "backward")  # fmt: skip
    assert above.expected == pytest.approx(9 * 1024 * 1024 * 4 / 1e9, rel=1e-3)


def test_small_calls_count_by_choice() -> None:
    rates = host_roofs(r1=1e18, fresh=1e18, small=1e-6)
    found = _predicted([2] * 8, rates)
    assert _op(found, "permute").expected == pytest.approx((2 + 2 * 2) * 1e-6, rel=1e-3)
    assert _op(found, "combine").expected == pytest.approx((3 + 4 * 2) * 1e-6, rel=1e-3)


def test_the_floor_is_that_of_the_roofs() -> None:
    slow = _predicted([2] * 8, host_roofs(r1=1.0))
    plain = _predicted([2] * 8, [])
    assert slow.floor == plain.floor
    assert slow.expected > 1000 * plain.expected


def test_without_a_processors_roofs_there_is_no_host() -> None:
    assert Host.of(roofs()) is None
    assert Host.of([*roofs(), *host_roofs()]) is None  # no matmul by its rows
    assert Host.of(host_roofs(r1=1.0)) is not None
