"""Groups on link tiers, against ranks that are listed one by one."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import Layout
from moeplan.cluster.network import Network, largest_part, strides
from moeplan.errors import UserError


@pytest.fixture(scope="module")
def net():
    return Network.of(cluster("h100x64"))


def groups(sizes: list[tuple[str, int]], name: str) -> list[list[int]]:
    """Ranks of each group of a degree; `sizes` from the fastest varying to the slowest."""
    out: dict[tuple, list[int]] = {}
    spans = [range(n) for _, n in reversed(sizes)]
    for rank, place in enumerate(itertools.product(*spans)):
        at = dict(zip([n for n, _ in reversed(sizes)], place, strict=True))
        key = tuple(v for n, v in at.items() if n != name)
        out.setdefault(key, []).append(rank)
    return list(out.values())


@pytest.mark.parametrize("degrees", [(2, 2, 2, 8), (8, 1, 4, 2), (1, 4, 4, 4), (4, 2, 8, 1)])
def test_ranks_of_a_group_in_one_domain(net, degrees):
    """Dense groups tp, cp, dp, pp over 64 GPUs in domains of 8, listed rank by rank."""
    tp, cp, dp, pp = degrees
    layout = Layout(tp=tp, cp=cp, dp=dp, pp=pp)
    at = strides("tp-cp-ep-dp-pp", layout.values)
    sizes = [("tp", tp), ("cp", cp), ("dp", dp), ("pp", pp)]
    for name, n in (("tp", tp), ("cp", cp), ("pp", pp)):
        for ranks in groups(sizes, name):
            shared = max(Counter(r // 8 for r in ranks).values())
            assert net.inside(n, at[name]) == shared
            if n > 1:
                assert ranks[1] - ranks[0] == at[name]


@pytest.mark.parametrize(("etp", "ep", "edp", "pp"), [(1, 16, 2, 2), (2, 4, 8, 1), (1, 8, 1, 8)])
def test_expert_groups_in_one_domain(net, etp, ep, edp, pp):
    layout = Layout(tp=1, dp=etp * ep * edp, ep=ep, etp=etp, pp=pp)
    at = strides("tp-cp-ep-dp-pp", layout.values)
    sizes = [("etp", etp), ("ep", ep), ("edp", edp), ("pp", pp)]
    for name, n in (("ep", ep), ("edp", edp), ("etp", etp)):
        for ranks in groups(sizes, name):
            shared = max(Counter(r // 8 for r in ranks).values())
            assert net.inside(n, at[name]) == shared


def test_pipelines_may_vary_faster_than_data_parallelism(net):
    layout = Layout(tp=2, pp=4, dp=8, ep=2)
    at = strides("tp-cp-ep-pp-dp", layout.values)
    sizes = [("tp", 2), ("pp", 4), ("dp", 8)]
    for ranks in groups(sizes, "pp"):
        assert [r - ranks[0] for r in ranks] == [at["pp"] * i for i in range(4)]


def test_largest_part_is_a_divisor_for_numbers_and_arrays():
    for n in range(1, 40):
        for most in range(45):
            want = max([d for d in range(1, n + 1) if n % d == 0 and d <= most], default=1)
            assert largest_part(n, most) == want
    n, most = np.meshgrid(np.arange(1, 40), np.arange(0, 45))
    found = largest_part(n, most)
    assert all(found[i] == largest_part(int(n[i]), int(most[i])) for i in np.ndindex(n.shape))


class TestCollectives:
    def test_bytes_of_a_ring_counted_step_by_step(self, net):
        """A ring of n passes pieces of size/n: n - 1 steps gather, as many reduce."""
        size, n = 840, 7
        steps = sum(size // n for _ in range(n - 1))
        assert net.sent("all_gather", size, n) == pytest.approx(steps)
        assert net.sent("reduce_scatter", size, n) == pytest.approx(steps)
        assert net.sent("all_reduce", size, n) == pytest.approx(2 * steps)

    def test_one_gpu_sends_nothing(self, net):
        for op in ("all_gather", "reduce_scatter", "all_reduce"):
            assert net.seconds(op, 1e9, 1, 1) == 0

    def test_inside_a_domain_it_runs_at_nvlinks_rate(self, net):
        seconds = net.seconds("all_gather", 8e9, 8, 8)
        assert seconds == pytest.approx(7e9 / 450e9, rel=1e-3)

    def test_across_domains_a_group_has_a_nic_for_each_of_its_gpus(self, net):
        one = net.seconds("all_gather", 64e9, 16, 1)
        eight = net.seconds("all_gather", 64e9, 16, 8)
        assert one / eight == pytest.approx(8, rel=1e-3)
        assert eight == pytest.approx(15 / 16 * 64e9 / 400e9, rel=1e-3)

    def test_more_bytes_take_longer_and_nothing_is_faster_than_the_latency(self, net):
        assert net.seconds("all_reduce", 2e9, 8, 8) > net.seconds("all_reduce", 1e9, 8, 8)
        assert net.seconds("all_reduce", 1, 64, 8) >= 2.8e-6
        assert net.seconds("all_reduce", 0, 64, 8) == 0  # nothing is sent

    def test_a_measured_bandwidth_is_preferred(self):
        assert Network.of(cluster("h800x16")).up.value == 160e9
        assert Network.of(cluster("h800x16")).up.source.kind == "measured"

    def test_measured_collectives_take_the_floors_place(self):
        class Table:
            def seconds(self, op, size, n):
                return 42.0

        net = Network.of(cluster("h100x64"), Table())
        assert net.seconds("all_reduce", 1, 8, 8) == 42.0
        # across domains nobody measured: the line of the links
        assert net.seconds("all_reduce", 1e9, 16, 8) == net.line.seconds("all_reduce", 1e9, 16, 8)


def test_a_cluster_without_a_nic_is_refused():
    with pytest.raises(UserError, match="no NIC"):
        Network.of(cluster("l40sx16"))
