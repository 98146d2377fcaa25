"""Expected times in an estimate: above the floor, with a band, alike for numbers and arrays."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from moeplan.api import estimate

PASSES = ("prefill", "decode", "training")


@pytest.mark.parametrize("model", ["mixtral", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-120b"])
@pytest.mark.parametrize("gpu", ["h200", "b200", "mi300x"])
def test_expected_times_lie_above_the_floor_and_within_their_band(model, gpu):
    e = estimate(model, gpu=gpu)
    for name in PASSES:
        found = e[f"time.{name}.calibrated"]
        lower, expected, upper = (found[b].value for b in ("lower", "expected", "upper"))
        assert lower < expected < upper
        assert e[f"time.{name}.sequential"].value < expected < 8 * e[f"time.{name}.upper"].value
        assert found["band"].value == pytest.approx((upper - lower) / 2 / expected)
        tokens = e[f"time.{name}.tokens"].value
        assert found["tokens_per_second"].value == pytest.approx(tokens / expected)


def test_what_was_measured_on_the_gpu_is_a_share_and_others_are_assumed():
    own, other = (estimate("mixtral", gpu=name)["time.prefill.calibrated"] for name in
                  ("h200", "h100-sxm"))  # fmt: skip
    assert 0.8 < own["measured"].value < 1
    assert other["measured"].value == 0
    assert other["origin"] == "assumed"
    assert other["band"].value > 1.5 * own["band"].value


def test_bits_that_the_gpu_has_no_units_for_are_assumed_and_still_save_bytes():
    wide, narrow = (estimate("gpt-oss-120b", weights=w, batch=64)["time.decode.calibrated"] for w in
                    ("bf16", "mxfp4"))  # fmt: skip
    assert narrow["expected"].value < 0.7 * wide["expected"].value
    assert narrow["measured"].value < wide["measured"].value


def test_without_a_calibration_there_is_the_floor_alone():
    e = estimate("mixtral", gpu="tpu-v5p")
    assert e["time.prefill.calibrated"] is None
    assert e.to_dict()["time"]["decode"]["calibrated"] is None


def test_arrays_say_what_numbers_say():
    batches = np.array([1.0, 8.0, 64.0])
    many = estimate("mixtral", batch=batches)
    for name in ("prefill", "decode"):
        found = many[f"time.{name}.calibrated.expected"].value
        for place, batch in enumerate((1, 8, 64)):
            one = estimate("mixtral", batch=batch)[f"time.{name}.calibrated.expected"].value
            assert found[place] == pytest.approx(one, rel=1e-9)


def test_the_command_needs_no_numpy():
    """It takes longer to load than the whole command otherwise does."""
    code = (
        "import sys, moeplan.cli\n"
        "sys.argv = ['moeplan', 'estimate', '--preset', 'mixtral']\n"
        "try: moeplan.cli.main()\n"
        "except SystemExit: pass\n"
        "sys.exit('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Expected time on one NVIDIA H200" in done.stdout


def test_the_exchange_takes_its_time_and_more_across_nodes():
    near, far = (estimate("deepseek-v3", ep=ep) for ep in (8, 64))
    for e in (near, far):
        time = e["all_to_all.time"]
        for part in ("dispatch", "combine", "forward_step"):
            bounds = [time[part][bound].value for bound in ("lower", "expected", "upper")]
            assert bounds == sorted(bounds)
    assert near["all_to_all.time.origin"] == "measured"
    assert far["all_to_all.time.origin"] == "assumed"
    assert (
        far["all_to_all.time.dispatch.expected"].value
        > 2 * near["all_to_all.time.dispatch.expected"].value
    )
    alone = estimate("deepseek-v3", ep=1)["all_to_all.time.dispatch"]
    assert alone["expected"].value == 0


def test_deepep_is_met_where_it_was_measured():
    """4,096 tokens to 8 H200 in fp8, uniform: what the table holds for that message."""
    from moeplan.calibration.collectives import network
    from moeplan.model.routing import expected_distinct

    e = estimate("kimi-k2", ep=8, tokens=4096)
    sent = 4096 * float(expected_distinct(384, 8, 8)) * 7168
    table = network("h200-deepep").seconds("dispatch", 8, sent, "nvlink")
    # rows carry a scale for each 128 values, and their ids
    assert e["all_to_all.time.dispatch.expected"].value == pytest.approx(table, rel=0.05)
