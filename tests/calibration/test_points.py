"""Reading points: what is wrong with a file is said with its line and column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moeplan.calibration.points import points_of
from moeplan.calibration.reader import read_points
from moeplan.errors import UserError

MOE = "num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_moe_file_is_read(tmp_path):
    file = write(
        tmp_path / "p.csv", f"framework,{MOE},latency_ms,gated",
        "x,64,2048,768,8,128,2,4,balanced,0.25,1", "x,1,2048,768,8,128,1,1,power_law_1.2,0.04,0",
    )  # fmt: skip
    points = read_points(file)
    assert points.kind == "moe"
    assert points["num_tokens"].tolist() == [64, 1]
    assert points.seconds.tolist() == pytest.approx([0.25e-3, 0.04e-3])
    assert points["gated"].tolist() == [True, False]
    assert len(points.take(np.array([True, False]))) == 1


def test_a_gemm_file_is_read_without_times(tmp_path):
    points = read_points(write(tmp_path / "g.csv", "m,n,k", "1,512,768"))
    assert (points.kind, points.seconds, len(points)) == ("gemm", None, 1)


GOOD = "64,2048,768,8,128,1,1,balanced"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([MOE, GOOD, GOOD.replace("64", "sixty", 1)], ["line 3", "num_tokens", "'sixty'"]),
        ([MOE, GOOD.replace("64", "0", 1)], ["line 2", "num_tokens", "at least 1"]),
        ([MOE, GOOD.replace("64", "1.5", 1)], ["line 2", "num_tokens", "whole number"]),
        ([MOE, GOOD.replace("64", "nan", 1)], ["line 2", "num_tokens"]),
        ([MOE, GOOD.replace("balanced", "even")], ["line 2", "distribution", "'even'"]),
        ([MOE, GOOD.replace("balanced", "balancd")], ["line 2", "did you mean 'balanced'"]),
        ([MOE, "64,2048,768,8,128,5,1,balanced"], ["line 2", "moe_tp_size", "does not divide"]),
        ([MOE, "64,2048,768,8,128,1,3,balanced"], ["line 2", "moe_ep_size", "128"]),
        ([MOE, "64,2048,768,200,128,1,1,balanced"], ["line 2", "topk", "200"]),
        ([MOE, GOOD + ",7"], ["line 2", "9 values", "8 columns"]),
        ([MOE.replace("topk", "top_k"), GOOD], ["line 1", "'topk' is missing", "'top_k'"]),
        ([MOE + ",latncy_ms", GOOD + ",1"], ["line 1", "latncy_ms", "latency_ms"]),
        ([MOE + ",latency_ms", GOOD + ",-1"], ["line 2", "latency_ms", "above 0"]),
        ([MOE + ",latency_ms", GOOD + ",inf"], ["line 2", "latency_ms"]),
        ([MOE + ",gated", GOOD + ",yes"], ["line 2", "gated", "0 or 1"]),
        (["m,n,k,m", "1,2,3,4"], ["line 1", "'m'", "twice"]),
        (["a,b", "1,2"], ["line 1", "is missing"]),
        ([MOE], ["at least one line"]),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path, lines, said):
    file = write(tmp_path / "bad.csv", *lines)
    with pytest.raises(UserError) as problem:
        read_points(file)
    for text in [str(file), *said]:
        assert text in str(problem.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_points(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00m,n,k\n")
    with pytest.raises(UserError, match="CSV"):
        read_points(tmp_path / "binary.csv")


def test_points_of_arrays_broadcast_and_miss_nothing():
    points = points_of("gemm", m=[1, 2, 3], n=512, k=768, seconds=1e-6)
    assert points["n"].tolist() == [512] * 3
    assert points.seconds.tolist() == [1e-6] * 3
    with pytest.raises(UserError, match="need k"):
        points_of("gemm", m=1, n=2)
