"""Times of a pass's rows: their parts add up, their sum stands beside the roofline."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from moeplan.calibration.derived import for_gpu
from moeplan.calibration.points import points_of
from moeplan.calibration.predict import predict
from moeplan.calibration.rows import MOE_PARTS, Degrees, row_times
from moeplan.cluster.hardware import gpu
from moeplan.estimation.fold import lines
from moeplan.estimation.timing import floor
from moeplan.load import load_preset
from moeplan.model.workload import Workload
from moeplan.quantity import plain

H200 = partial(for_gpu, "h200")


def total(spec, work, degrees=None, which="expected"):
    rows = lines(spec, work)
    times = row_times(rows, H200, degrees)
    return sum(
        plain(r.count) * getattr(t, which)
        for r, t in zip(rows, times, strict=True)
        if t is not None
    )


def test_the_parts_of_an_moe_add_up_to_the_op():
    spec = load_preset("mixtral-8x7b")
    rows = lines(spec, Workload("prefill", B=2, S=512, C=512))
    times = row_times(rows, H200)
    parts = {t.name: t for t in times if t is not None and t.name in MOE_PARTS}
    assert set(parts) == set(MOE_PARTS)
    op = points_of(
        "moe", num_tokens=1024, hidden_size=4096, inter_size=14336, topk=2, num_experts=8,
        moe_tp_size=1, moe_ep_size=1, distribution="uniform", gated=True, weight_on_input=False,
    )  # fmt: skip
    whole = predict(op, H200("bf16")["moe"])
    for which in ("lower", "expected", "upper"):
        summed = sum(getattr(t, which) for t in parts.values())
        assert summed == pytest.approx(getattr(whole, which)[0])


def test_exchanges_have_no_time_of_their_own():
    rows = lines(load_preset("mixtral-8x7b"), Workload("decode", B=8, S=1, C=512))
    for row, time in zip(rows, row_times(rows, H200), strict=True):
        assert (time is None) == (row.op.kind == "exchange")


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b", "llama-3.1-8b", "llama4-scout"])
@pytest.mark.parametrize(
    "work", [Workload("prefill", B=2, S=2048, C=2048), Workload("decode", B=32, S=1, C=4096)]
)
def test_a_pass_takes_longer_than_the_roofline_and_not_absurdly(name, work):
    spec = load_preset(name)
    bound = floor(spec, work, gpu("h200"))["sequential"].value
    expected = total(spec, work)
    assert bound < expected < 3 * bound
    assert total(spec, work, which="lower") < expected < total(spec, work, which="upper")


def test_training_is_about_three_forwards():
    spec, work = load_preset("mixtral-8x7b"), Workload("prefill", B=1, S=4096, C=4096)
    ratio = total(spec, work, Degrees(training=True)) / total(spec, work)
    assert 3.0 <= ratio < 3.2


def test_tensor_and_expert_parallelism_divide_the_rows():
    spec, work = load_preset("mixtral-8x7b"), Workload("prefill", B=4, S=4096, C=4096)
    alone = total(spec, work)
    assert alone / 4.4 < total(spec, work, Degrees(tp=4)) < alone / 2.5
    # expert parallelism gives a rank fewer experts and as many rows, in tiles that are not tuned
    assert alone < total(spec, work, Degrees(ep=8)) < 1.25 * alone
    few = Workload("decode", B=8, S=1, C=512)
    assert total(spec, few, Degrees(ep=8)) < 0.4 * total(spec, few)


def test_arrays_equal_numbers():
    spec = load_preset("qwen3-30b-a3b")
    batches = [1.0, 64.0, 500.0]
    together = total(spec, Workload("decode", B=np.array(batches), S=1, C=2048))
    alone = [total(spec, Workload("decode", B=b, S=1, C=2048)) for b in batches]
    assert together.tolist() == pytest.approx(alone)


def test_where_each_time_comes_from_is_said():
    rows = lines(load_preset("mixtral-8x7b"), Workload("decode", B=8, S=1, C=512))
    for time in row_times(rows, partial(for_gpu, "b200")):
        if time is not None:
            assert time.origin == "assumed"
            assert "b200" in time.calibration


def test_launching_kernels_one_by_one_bounds_small_passes():
    spec, work = load_preset("qwen3-30b-a3b"), Workload("decode", B=1, S=1, C=128)
    graph, eager = total(spec, work), total(spec, work, Degrees(eager=True))
    assert eager > 1.2 * graph
    large = Workload("prefill", B=4, S=4096, C=4096)
    assert total(spec, large, Degrees(eager=True)) == pytest.approx(total(spec, large), rel=0.01)
