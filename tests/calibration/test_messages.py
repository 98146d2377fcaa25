"""Messages of CSV files: what they hold, what is predicted, and for links of other GPUs."""

from __future__ import annotations

import numpy as np
import pytest

from moeplan.calibration.fabric import fabric_of
from moeplan.calibration.messages import is_of_messages, predict_messages, read_messages
from moeplan.calibration.reader import read_points
from moeplan.cli import app
from moeplan.cluster.hardware import gpu
from moeplan.errors import UserError

H200 = gpu("h200")


@pytest.fixture
def nccl(tmp_path):
    """Two collectives, the columns in another order, one column more."""
    path = tmp_path / "c.csv"
    path.write_text(
        "note,latency_ms,message_elements_half,num_gpus,collective\n"
        "a,0.1,4194304,8,all_gather\nb,1.0,134217728,4,alltoall\n"
    )
    return path


@pytest.fixture
def deepep(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("num_token,num_topk,num_experts,hidden_size,node_num\n4096,8,256,7168,1\n")
    return path


def test_columns_may_stand_in_any_order_and_others_are_kept(nccl):
    found = read_messages(nccl)
    assert found.operation.tolist() == ["all_gather", "all_to_all"]
    assert found.bytes.tolist() == [2 * 4194304, 2 * 134217728]
    assert found.columns["note"].tolist() == ["a", "b"]
    columns, errors = predict_messages(found, H200)
    assert (columns["lower_ms"] < columns["expected_ms"]).all()
    assert (columns["expected_ms"] < columns["upper_ms"]).all()
    assert errors[-1].points == 2


def test_an_exchange_is_two_messages_without_measured_times_too(deepep):
    found = read_messages(deepep)
    assert found.operation.tolist() == ["dispatch", "combine"]
    assert found.bytes[1] == 2 * found.bytes[0]  # fp8 there, bf16 back
    # 8 distinct GPUs of 8 at most, and never fewer than one row a token
    assert 4096 * 7168 < found.bytes[0] < 8 * 4096 * 7168
    columns, errors = predict_messages(found, H200)
    assert errors == []
    assert 0.1 < columns["expected_ms"][0] < columns["expected_ms"][1] < 2


def test_faster_links_are_faster_and_assumed(nccl):
    found = read_messages(nccl)
    own, other = (predict_messages(found, gpu(name))[0] for name in ("h200", "b200"))
    ratio = own["expected_ms"] / other["expected_ms"]
    assert ratio[0] > 1.0
    assert ratio[1] > 1.8
    assert (ratio <= 2.0 + 1e-9).all()  # twice the bandwidth; fixed costs stay
    assert (other["band"] > own["band"]).all()
    assert set(other["outside"]) == {"gpu"}


def test_the_command_tells_messages_from_ops(nccl, tmp_path):
    from typer.testing import CliRunner

    assert is_of_messages(nccl)
    out = tmp_path / "o.csv"
    done = CliRunner().invoke(app, ["predict", str(nccl), "--out", str(out)])
    assert done.exit_code == 0
    header, first, *_ = out.read_text().splitlines()
    assert header.split(",")[:2] == ["note", "message_elements_half"]
    assert {"lower_ms", "expected_ms", "upper_ms", "band", "measured_ms"} <= set(header.split(","))
    assert first.startswith("a,")


@pytest.mark.parametrize("gpu_name", ["h200", "h100", "mi300x", "tpu-v5p"])
def test_the_command_says_where_times_come_from(gpu_name, tmp_path):
    from typer.testing import CliRunner

    points = tmp_path / "m.csv"
    points.write_text("m,n,k\n64,4096,4096\n")
    done = CliRunner().invoke(app, ["predict", str(points), "--gpu", gpu_name])
    if gpu_name == "tpu-v5p":
        assert isinstance(done.exception, UserError)
        assert "tpu-v5p" in str(done.exception)
        return
    own = gpu_name == "h200"
    header, row = done.stdout.splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["origin"] == (
        "measured" if own else "assumed"
    )
    assert ("carried over" in done.stderr) is not own


def test_a_file_of_no_kind_is_told_all_kinds(tmp_path):
    points = tmp_path / "x.csv"
    points.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"message_elements_half.*num_token,"):
        read_points(points)


def test_an_exchange_grows_with_its_bytes_and_has_a_fixed_cost():
    fabric = fabric_of(H200)
    assert fabric is not None
    sent = np.geomspace(1e3, 1e9, 40)
    for name in ("dispatch", "combine"):
        times = fabric.exchange(name, sent, 8)
        assert (np.diff(times) > -1e-6).all()
        assert times[0] == pytest.approx(fabric.fixed(name), rel=0.1)
        assert fabric.exchange(name, 0.0, 8) == 0
    assert fabric_of(gpu("mi300x")) is None
