"""Relations that times must obey, whatever the constants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.calibration.derived import carried, for_gpu, in_format
from moeplan.calibration.optime import device_of, smooth_max
from moeplan.calibration.points import points_of
from moeplan.calibration.predict import predict
from moeplan.calibration.store import MODELS, calibration
from moeplan.calibration.tiles import vllm_tiles
from moeplan.calibration.traits import traits_of
from moeplan.cluster.hardware import gpu

MOE = calibration("h200-vllm-triton")
GEMM = calibration("h200-cublas")
TOKENS = [2**i for i in range(15)]
NOISE = 1.12  # a backend that changes its tile may be a little faster with more tokens

models = st.sampled_from(
    [(2048, 768, 8, 128), (4096, 14336, 2, 8), (7168, 2048, 8, 256), (2880, 2880, 4, 128)]
)


def moe(tokens, sizes, tp=1, ep=1, distribution="balanced", **more):
    hidden, inter, top_k, experts = sizes
    return points_of(
        "moe", num_tokens=tokens, hidden_size=hidden, inter_size=inter, topk=top_k,
        num_experts=experts, moe_tp_size=tp, moe_ep_size=ep, distribution=distribution,
        gated=more.get("gated", True), weight_on_input=more.get("weight_on_input", False),
    )  # fmt: skip


def seconds(points, found=MOE):
    return predict(points, found).expected


@pytest.mark.parametrize("distribution", ["balanced", "uniform", "power_law_1.2", "zipf:1.0"])
@pytest.mark.parametrize("ep", [1, 8])
def test_more_tokens_are_never_faster_beyond_noise(distribution, ep):
    for sizes in ((2048, 768, 8, 128), (4096, 14336, 2, 8), (7168, 2048, 8, 256)):
        times = seconds(moe(TOKENS, sizes, ep=ep, distribution=distribution))
        assert (times[1:] * NOISE >= times[:-1]).all(), sizes
        assert times[-1] > 5 * times[0]


def test_more_rows_of_a_gemm_are_never_faster_beyond_noise():
    for n, k in ((1024, 2048), (8192, 8192), (512, 16384)):
        times = seconds(points_of("gemm", m=np.arange(1, 4097, 5), n=n, k=k), GEMM)
        assert (times[1:] * NOISE >= times[:-1]).all()


@given(models, st.sampled_from([1, 64, 1024, 16384]))
def test_dividing_the_work_helps_and_never_more_than_it_divides(sizes, tokens):
    alone = seconds(moe(tokens, sizes))[0]
    for degree in (2, 4):
        by_tensor = seconds(moe(tokens, sizes, tp=degree))[0]
        by_expert = seconds(moe(tokens, sizes, ep=degree))[0]
        for shared in (by_tensor, by_expert):
            # the floor of a shared op is fixed cost and bandwidth that few tiles reach
            assert alone / degree * 0.7 < shared < alone * 1.4 + 2e-5


@given(models, st.integers(4096, 20000))
def test_skew_slows_a_sharded_op_with_many_tokens(sizes, tokens):
    even = seconds(moe(tokens, sizes, ep=8))[0]
    assert seconds(moe(tokens, sizes, ep=8, distribution="zipf:1.2"))[0] > even


def test_skew_reads_fewer_weights_where_tokens_are_few():
    sizes = (7168, 2048, 8, 256)
    even = seconds(moe(16, sizes))[0]
    assert seconds(moe(16, sizes, distribution="zipf:1.5"))[0] < even


@given(st.lists(st.tuples(st.integers(1, 30000), models), min_size=2, max_size=5))
def test_arrays_equal_numbers(several):
    tokens = [t for t, _ in several]
    sizes = tuple(np.array(c) for c in zip(*[s for _, s in several], strict=True))
    together = predict(moe(tokens, sizes, distribution="uniform"), MOE)
    for i, (t, one) in enumerate(several):
        alone = predict(moe(t, one, distribution="uniform"), MOE)
        for name in ("lower", "expected", "upper", "floor"):
            assert getattr(together, name)[i] == getattr(alone, name)[0], name


def test_predictions_are_above_the_roofline_and_inside_their_band():
    points = moe(TOKENS, (4096, 1536, 8, 128))
    found = predict(points, MOE)
    assert (found.floor < found.expected).all()
    assert (found.lower < found.expected).all()
    assert (found.expected < found.upper).all()
    assert (found.band > 0.05).all()


def test_a_shape_out_of_range_says_so_and_has_a_wider_band():
    near = predict(moe(512, (4096, 1536, 8, 128)), MOE)
    far = predict(moe([512, 200_000], (16384, 1536, 8, 1024)), MOE)
    assert near.outside[0] == ""
    assert set(far.outside[1].split()) == {"num_tokens", "hidden_size", "num_experts"}
    assert far.upper[0] / far.expected[0] > near.upper[0] / near.expected[0]


def test_an_ungated_expert_is_two_thirds_of_the_bytes():
    sizes = (4096, 14336, 2, 8)
    gated, plain = (seconds(moe(16, sizes, gated=g))[0] for g in (True, False))
    assert plain / gated == pytest.approx(2 / 3, rel=0.08)


def test_weights_that_multiply_the_input_cost_passes_over_it():
    sizes = (5120, 8192, 1, 16)
    usual, passed = (seconds(moe(16384, sizes, weight_on_input=w))[0] for w in (False, True))
    assert 1e-4 < passed - usual < 1e-3


def test_traits_come_from_the_presets():
    assert traits_of((2688, 1856, 6, 128))[:2] == (False, False)
    assert traits_of((5120, 8192, 1, 16))[:2] == (True, True)
    assert traits_of((4096, 14336, 2, 8)) == (True, False, "mixtral-8x7b")
    assert traits_of((11, 13, 3, 17)) == (True, False, "")


def test_tiles_are_those_of_the_backends_rules():
    tile = vllm_tiles(
        *(np.array(c) for c in ([32, 33, 513, 1024], [128, 128, 64, 128], [100, 100, 100, 768]))
    )
    assert tile.m.tolist() == [16, 32, 128, 128]
    assert tile.n.tolist() == [64, 64, 128, 256]  # the last width has a tuned file


@given(st.floats(1e-9, 1e3), st.floats(1e-9, 1e3))
def test_the_smooth_maximum_lies_little_above_the_larger(a, b):
    out = float(smooth_max(np.array(a), np.array(b)))
    assert max(a, b) <= out <= max(a, b) * 2**0.25 * (1 + 1e-12)


def test_another_gpu_is_scaled_by_its_datasheet_and_labelled_assumed():
    b200 = carried(MOE, device_of(gpu("b200")))
    fit, own = b200.fits["moe"], MOE.fits["moe"]
    assert fit.origin == "assumed"
    assert fit.constants["read_bandwidth"] / own.constants["read_bandwidth"] == pytest.approx(
        8 / 4.8, rel=0.05
    )
    assert fit.constants["launch"] == own.constants["launch"]
    points = moe([64, 16384], (4096, 14336, 2, 8))
    here, there = predict(points, MOE), predict(points, b200)
    assert (there.expected < here.expected).all()
    assert (there.band > 1.5 * here.band).all()


def test_every_gpu_has_a_calibration_for_every_kind():
    for name in ("h200", "h100-sxm", "a100-80", "b200", "mi300x", "rtx-4090"):
        found = for_gpu(name)
        assert set(found) >= {"moe", "gemm", "bytes", "attention"}
        measured = name == "h200"
        assert (found["moe"].fits["moe"].origin == "measured") is measured
        assert (found["gemm"].fits["gemm"].origin == "measured") is measured


def test_smaller_operands_are_faster_by_no_more_than_their_bits():
    narrow = in_format(GEMM, 1979e12, 8)
    points = points_of("gemm", m=[1, 8192], n=8192, k=8192)
    wide_s, narrow_s = seconds(points, GEMM), seconds(points, narrow)
    assert (narrow_s < wide_s).all()
    assert (narrow_s > wide_s / 2.3).all()
    assert for_gpu("h200", "fp8")["gemm"].fits["gemm"].origin == "assumed"


def test_constants_have_units_and_meanings_within_their_bounds():
    for model in MODELS.values():
        for name, constant in model.constants.items():
            assert constant.low < constant.start < constant.high, name
            assert len(constant.meaning) > 10
