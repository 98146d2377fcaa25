"""Tables of collectives: exact at their points, monotone between, honest beyond."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.calibration.collectives import (
    Network,
    Table,
    exchange,
    left_out,
    line,
    network,
    networks,
    slowest_rank,
    thinned,
)
from moeplan.calibration.messages import message_tables, read_messages
from moeplan.errors import UserError

TABLE = Table(
    "all_to_all", "nvlink", 8, (1e3, 1e4, 1e5, 1e6, 1e7, 1e8),
    (9e-6, 9e-6, 1e-5, 2e-5, 6e-5, 4e-4), "measured", "made up",
)  # fmt: skip


def test_a_table_goes_through_its_points():
    assert TABLE.at(np.array(TABLE.bytes)) == pytest.approx(np.array(TABLE.seconds), rel=1e-9)
    assert TABLE.at(1) == pytest.approx(TABLE.seconds[0])
    assert isinstance(TABLE.at(5e4), float)


@given(st.floats(1, 1e11), st.floats(1, 1e11))
def test_more_bytes_never_take_less_time(a, b):
    low, high = TABLE.at(min(a, b)), TABLE.at(max(a, b))
    assert low <= high * (1 + 1e-9)


@given(st.lists(st.floats(1, 1e10), min_size=1, max_size=9))
def test_arrays_equal_numbers(sizes):
    assert TABLE.at(np.array(sizes)).tolist() == [TABLE.at(size) for size in sizes]


def test_beyond_the_last_point_the_bandwidth_of_the_last_stretch_counts():
    rate = (1e8 - 1e7) / (4e-4 - 6e-5)
    assert TABLE.bandwidth == pytest.approx(rate)
    assert TABLE.at(1e10) == pytest.approx(4e-4 + (1e10 - 1e8) / rate)


def test_latency_and_bandwidth_make_a_line():
    table = line("combine", "infiniband", 16, 40e-6, 50e9, "published")
    for size in (4**5, 123_456, 7e8, 5e10):
        assert table.at(size) == pytest.approx(40e-6 + size / 50e9, rel=0.02)
    assert table.origin == "assumed"


def test_the_published_all_to_all_of_eight_h200():
    """311 GB/s bus bandwidth at 512 MiB: 7/8 of the buffer leaves the GPU."""
    took = network("h200-nccl").took("all_to_all", 8, 512 * 2**20)
    assert 512 * 2**20 * 7 / 8 / took.expected == pytest.approx(311e9, rel=0.02)
    assert took.origin == "measured"
    assert took.lower < took.expected < took.upper


def test_a_group_size_between_tables_lies_between_them_and_says_so():
    nccl = network("h200-nccl")
    four, six, eight = (nccl.took("all_gather", n, 1e8) for n in (4, 6, 8))
    assert four.expected < six.expected < eight.expected
    assert "6 GPUs" in six.outside
    assert six.upper / six.expected > eight.upper / eight.expected
    assert nccl.took("all_reduce", 64, 1e9).expected >= nccl.took("all_reduce", 8, 1e9).expected
    assert nccl.took("all_reduce", 1, 1e9).expected == 0


def test_rdma_tables_are_marked_as_assumed_and_have_a_wider_band():
    deepep = network("h200-deepep")
    near, far = (deepep.took("dispatch", n, 1e8) for n in (8, 32))
    assert (near.origin, far.origin) == ("measured", "assumed")
    assert far.expected > near.expected
    assert far.upper / far.expected > near.upper / near.expected
    # 4096 tokens to 3.9 hosts in FP8 at 58 GB/s (DeepEP's own figure for EP32)
    assert deepep.took("dispatch", 32, 1e9).expected == pytest.approx(1e9 / 58e9, rel=0.02)


def test_hierarchical_exchanges_are_the_longer_part_or_the_sum():
    assert exchange(2.0, 3.0) == 3.0
    assert exchange(2.0, 3.0, "sequence") == 5.0
    assert exchange(np.array([1.0, 4.0]), 2.0).tolist() == [2.0, 4.0]
    with pytest.raises(UserError, match="'parallel'"):
        exchange(1.0, 1.0, "paralel")


def test_the_fullest_rank_decides():
    assert slowest_rank(1e6, 1.5) == 1.5e6
    nccl = network("h200-nccl")
    assert (
        nccl.took("alltoall", 8, slowest_rank(1e8, 2)).expected
        > nccl.took("alltoall", 8, 1e8).expected
    )


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="all_to_all"):
        network("h200-nccl").took("all_to_al", 8, 1)
    with pytest.raises(UserError, match="h200-nccl"):
        network("h200-ncl")
    assert set(networks()) >= {"h200-nccl", "h200-deepep"}


def test_files_are_read_with_their_place_of_error(tmp_path):
    file = tmp_path / "c.csv"
    file.write_text(
        "collective,num_gpus,message_bytes,latency_ms\nalltoall,2,1024,0.01\nalltoall,2,x,1\n"
    )
    with pytest.raises(UserError, match="line 3, column message_bytes"):
        message_tables(read_messages(file), "nvlink", "")
    file.write_text("collective,num_gpus,latency_ms\nalltoall,2,1\n")
    with pytest.raises(UserError, match="message_elements_half"):
        message_tables(read_messages(file), "nvlink", "")
    file.write_text("collective,num_gpus,message_elements_half,latency_ms\nalltoall,2,512,1\n")
    with pytest.raises(UserError, match="two are needed"):
        message_tables(read_messages(file), "nvlink", "")


def test_sizes_left_out_are_those_that_the_thinned_table_lacks():
    assert thinned(TABLE).bytes == (1e3, 1e5, 1e7, 1e8)
    interpolated, measured, sizes = left_out([TABLE])
    assert sorted(sizes) == [1e3, 1e4, 1e5, 1e6, 1e7]
    assert len(interpolated) == len(measured) == 5


def test_a_network_without_the_tier_is_refused():
    empty = Network("none", (TABLE,), "", "")
    with pytest.raises(UserError, match="no table"):
        empty.took("all_to_all", 8, 1, tier="infiniband")
