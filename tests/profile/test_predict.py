"""Predictions from roofs: work against torch's counter, floors against published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import UserError
from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.model.ops import Op
from moeplan.profile.counting import count_flops
from moeplan.profile.layer import Layer, phase_names
from moeplan.profile.predict import Shape, block_of, predict, subject_of
from moeplan.profile.record import Direction, OpPrediction, Prediction, Subject
from moeplan.quantity import Number
from tests.profile.cases import kinds
from tests.profile.records import roofs

SMALL = MoE(D=8, E=4, k=2, F=3)


def moe(name: str) -> MoE:
    block = load_preset(name).moe
    assert block is not None
    return block


def even(block: MoE, tokens: int) -> list[int]:
    """Rows spread over all experts as evenly as they go."""
    E, rows = int(block.values["E"]), tokens * int(block.values["k"])
    return [rows // E + (e < rows % E) for e in range(E)]


def predicted(
    block: MoE,
    tokens: int,
    rows: Sequence[int] | None = None,
    direction: Direction = "forward",
    dtype: str = "bf16",
    **rates: float,
) -> Prediction:
    rows = even(block, tokens) if rows is None else rows
    return predict(Shape(block, tokens, rows, dtype, direction), roofs(**rates), 0)


def by_name(found: Prediction) -> dict[tuple[str, str], OpPrediction]:
    return {(op.name, op.stage): op for op in found.ops}


def test_bytes_and_flops_of_a_small_layer_counted_by_hand() -> None:
    # T = 5 tokens, R = 10 rows, D = 8, F = 3, E = 4 of which 3 get rows; bf16
    found = by_name(predicted(SMALL, 5, rows=[4, 0, 5, 1]))
    counted = {name: (op.flops, op.bytes) for (name, _), op in found.items()}
    assert counted == {
        # 2·T·D·E; read T·D and E·D in bf16, write T·E in fp32
        "router": (320, 2 * 40 + 2 * 32 + 4 * 20),
        # read T·E in fp32; write 8 bytes for each row
        "select": (0, 4 * 20 + 8 * 10),
        "permute": (0, 2 * (80 + 80)),
        # 2·R·D·2F; weights of 3 experts, read R·D, write R·2F
        "experts_gate_up": (960, 2 * (3 * 48 + 80 + 60)),
        "experts_activation": (0, 2 * (60 + 30)),
        "experts_down": (480, 2 * (3 * 24 + 30 + 80)),
        "combine": (0, 2 * (80 + 40)),
    }


def test_backward_reads_used_experts_again_and_writes_every_gradient() -> None:
    found = by_name(predicted(SMALL, 5, rows=[4, 0, 5, 1], direction="forward+backward"))
    down = found["experts_down", "backward"]
    assert down.flops == 2 * 480
    # activations twice, weights of the 3 used experts, gradients of all 4
    assert down.bytes == 2 * (2 * (30 + 80) + 3 * 24 + 4 * 24)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-30b", "deepseek-v3", "gpt-oss-120b"])
def test_flops_of_full_size_layers_are_those_that_torch_counts(name: str) -> None:
    block, tokens = moe(name), 96
    layer = Layer(block, device="meta", dtype=torch.bfloat16)
    counted = count_flops(layer, layer.input(tokens), backward=True)
    for op in predicted(block, tokens, direction="forward+backward").ops:
        assert op.flops == counted[op.stage].get(op.name, 0), (op.name, op.stage)


# Floors of forward passes on an H200 at 790 TFLOP/s and 4.3 TB/s: experts, with the shared ones
PUBLISHED_FLOORS = [
    ("mixtral", 64, 658e-6),
    ("mixtral", 16384, 14.7e-3),
    ("deepseek-v3", 16384, 17.0e-3),
    ("qwen3-30b", 1, 18e-6),
    ("qwen3-30b", 16384, 1.73e-3),
    ("gpt-oss-120b", 16384, 4.27e-3),
    ("olmoe", 16384, 2.25e-3),
]


@pytest.mark.parametrize(("name", "tokens", "floor"), PUBLISHED_FLOORS)
def test_floors_are_the_published_ones(name: str, tokens: int, floor: float) -> None:
    found = predicted(moe(name), tokens, gemm=790e12, bandwidth=4.3e12, launch=0.0)
    experts = sum(op.floor for op in found.ops if op.name.startswith(("experts", "shared")))
    assert experts == pytest.approx(floor, rel=0.045)


def test_experts_without_rows_are_not_read() -> None:
    spread, heaped = (
        by_name(predicted(SMALL, 16, rows)) for rows in ([8, 8, 8, 8], [16, 16, 0, 0])
    )
    key = ("experts_gate_up", "forward")
    assert spread[key].bytes - heaped[key].bytes == 2 * 2 * 48
    assert spread[key].flops == heaped[key].flops
    assert spread["permute", "forward"] == heaped["permute", "forward"]


@given(st.sampled_from(sorted(kinds())), st.integers(1, 500))
def test_twice_the_tokens_is_twice_the_work_of_activations(name: str, tokens: int) -> None:
    block = kinds()[name]
    once, twice = (by_name(predicted(block, n, even(block, 10_000))) for n in (tokens, 2 * tokens))
    for key, op in once.items():
        assert twice[key].flops == 2 * op.flops
        if not op.flops and not any(w in op.name for w in ("router", "gate")):
            assert twice[key].bytes == 2 * op.bytes


@given(st.sampled_from(sorted(kinds())), st.integers(1, 300), st.booleans())
def test_rows_are_the_layers_phases_and_times_are_in_order(
    name: str, tokens: int, backward: bool
) -> None:
    block = kinds()[name]
    direction: Direction = "forward+backward" if backward else "forward"
    found = predicted(block, tokens, direction=direction)
    stages = ("forward", "backward") if backward else ("forward",)
    assert [(op.name, op.stage) for op in found.ops] == [
        (phase, stage) for stage in stages for phase in phase_names(block)
    ]
    for op in found.ops:
        assert op.floor <= op.expected <= op.compute + op.memory + op.launch + 1e-15
    assert found.expected == pytest.approx(sum(op.expected for op in found.ops))
    assert found.floor <= found.expected


def test_a_wider_format_moves_more_except_what_is_fp32_anyway() -> None:
    two, four = (by_name(predicted(SMALL, 5, dtype=dtype)) for dtype in ("bf16", "fp32"))
    assert four["permute", "forward"].bytes == 2 * two["permute", "forward"].bytes
    assert four["select", "forward"].bytes == two["select", "forward"].bytes
    assert four["router", "forward"].bytes == 4 * 40 + 4 * 32 + 4 * 20


def test_the_bound_is_what_takes_longest() -> None:
    def bound(**rates: float) -> str:
        return by_name(predicted(SMALL, 64, **rates))["experts_gate_up", "forward"].bound

    assert bound(gemm=1.0, bandwidth=1e12) == "compute"
    assert bound(gemm=1e15, bandwidth=1.0) == "memory"
    assert bound(gemm=1e15, bandwidth=1e15, launch=1.0) == "launch"


def test_a_calibration_gives_the_expected_time_and_is_named() -> None:
    class Doubles:
        name = "doubles"

        def seconds(
            self, op: Op, work: OpPrediction, rows: Sequence[int], env: Mapping[str, Number]
        ) -> float | None:
            assert env["A"] == 3
            return None if op.kind == "select" else 2 * work.floor

    shape = Shape(SMALL, 5, [4, 0, 5, 1], "bf16", "forward")
    plain, found = (predict(shape, roofs(), 7, c) for c in (None, Doubles()))
    assert (plain.method, found.method) == ("roofs of this run", "calibration doubles")
    assert "No calibration" in plain.note
    assert not found.note
    for before, after in zip(plain.ops, found.ops, strict=True):
        wanted = before.expected if before.name == "select" else 2 * before.floor
        assert after.expected == wanted
    assert found.peak_bytes == 7


def test_a_missing_roof_is_named() -> None:
    with pytest.raises(UserError, match="no roof copy, launch"):
        predict(Shape(SMALL, 1, [1, 1, 0, 0], "bf16", "forward"), roofs()[::2], 0)


@pytest.mark.parametrize("name", sorted(kinds()))
def test_a_record_keeps_all_that_makes_the_block(name: str) -> None:
    block = kinds()[name]
    kept = Subject.model_validate_json(subject_of(block, "somewhere").model_dump_json())
    again = block_of(kept)
    assert again.values == block.values
    assert again.routing == block.routing
    assert predicted(again, 33, direction="forward+backward").ops == (
        predicted(block, 33, direction="forward+backward").ops
    )
    layer = Layer(again, device="meta")
    assert kept.parameters == sum(p.numel() for p in layer.parameters())


def test_a_block_of_another_version_is_refused() -> None:
    kept = subject_of(SMALL, "somewhere")
    kept.kinds["sparkle"] = True
    with pytest.raises(UserError, match=r"somewhere: .*not understood.*sparkle"):
        block_of(kept)
