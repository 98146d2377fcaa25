from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from moeplan.cluster import datafile
from moeplan.cluster.hardware import (
    PRICE_KINDS,
    all_in_power,
    cluster,
    clusters,
    gpus,
    price,
    prices,
)
from moeplan.errors import UserError

DATA = Path(datafile.__file__).parents[1] / "data"
G = 10**9


# --- prices --------------------------------------------------------------------------------------


def test_every_price_is_positive_sourced_and_of_a_known_gpu():
    priced = [name for name in datafile.names("prices") if not name.startswith("sources.")]
    assert set(priced) <= {g.id for g in gpus()}
    for name in priced:
        assert prices(name)
        assert set(datafile.table("prices", name)) <= {*PRICE_KINDS, "all_in_power"}
        for found in prices(name):
            assert 0.1 <= found.per_hour.value <= 20
            assert found.per_hour.source.where
            assert found.gpu == name


def test_owning_at_scale_costs_less_than_owning_small():
    for g in gpus():
        by_kind = {found.kind: found.per_hour.value for found in prices(g.id)}
        if "neocloud" in by_kind:
            assert by_kind["hyperscaler"] < by_kind["neocloud"]
        if {"rental", "list"} <= by_kind.keys():
            assert by_kind["rental"] < by_kind["list"]


def test_placeholder_prices_are_assumed():
    """The source sets B300 and GB300 to 1.2 times B200 and GB200 until it knows better."""
    for ultra, plain in (("b300", "b200"), ("gb300", "gb200")):
        for kind in ("hyperscaler", "neocloud", "rental"):
            ours = price(ultra, kind).per_hour
            assert ours.source.kind == "assumed"
            assert ours.value == pytest.approx(1.2 * price(plain, kind).per_hour.value, rel=0.002)


def test_the_default_is_what_a_customer_pays():
    assert price("h100-sxm").kind == "rental"
    assert price("l40s").kind == "list"
    assert price("h800-sxm").kind == "paper"


def test_deepseek_v3_price_gives_the_papers_total():
    assert price("h800-sxm", "paper").per_hour.value * 2_788_000 == 5_576_000


def test_an_unknown_kind_or_an_unpriced_gpu_is_refused():
    with pytest.raises(UserError, match=r"no price kind 'rentl'.*did you mean 'rental'"):
        price("h100-sxm", "rentl")
    with pytest.raises(UserError, match="no list price for 'h800-sxm': only paper"):
        price("h800-sxm", "list")
    with pytest.raises(UserError, match=r"no price for 'l4': give one, such as '\$2/h'"):
        price("l4")


def test_all_in_power_exceeds_the_chips_own():
    for g in gpus():
        power = all_in_power(g.id)
        if power is not None:
            assert 1.2 <= power.value / g.watts.value <= 3
            assert power.source.kind == "assumed"  # the source has revised it since
    assert all_in_power("h100-sxm").value == 1730
    assert all_in_power("l4") is None


# --- machines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", clusters(), ids=lambda machine: machine.id)
def test_every_named_machine_is_one_full_domain(machine):
    shared = machine.gpu.scale_up_domain  # None: a PCIe server
    assert (
        machine.gpus.value
        == machine.domain_size.value
        == (shared.value if shared is not None else 8)
    )
    assert machine.gpus.value % machine.host_size.value == 0
    assert machine.scale_up.latency.value > 1e-6
    assert 1e-6 < machine.scale_out.latency.value < machine.scale_out.latency_far.value < 1e-5
    assert machine.scale_up_bandwidth.value >= 32 * G
    for quantity in (machine.gpus, machine.host_size, machine.scale_up.latency):
        assert quantity.source.kind in ("datasheet", "assumed")
    for effective, sheet in (
        (machine.scale_up_effective, machine.scale_up_bandwidth),
        (machine.scale_out_effective, machine.scale_out_bandwidth),
    ):
        if effective is not None:
            assert effective.source.kind == "measured"
            assert effective.value < sheet.value


def test_latencies_are_the_published_ones():
    h800 = cluster("h800x8")
    assert h800.scale_up.latency.value == 3.33e-6
    assert (h800.scale_out.latency.value, h800.scale_out.latency_far.value) == (2.8e-6, 3.7e-6)
    roce = cluster("b300x8").scale_out
    assert (roce.id, roce.latency.value, roce.latency_far.value) == ("roce", 3.6e-6, 5.6e-6)
    assert h800.scale_up_effective.value == 160 * G


def test_a_machine_can_be_any_number_of_domains_or_part_of_one():
    v3 = cluster("h800x2048")
    assert (v3.gpu.id, v3.gpus.value, v3.domain_size.value) == ("h800-sxm", 2048, 8)
    assert v3.gpus.source.kind == "user"
    assert v3.scale_up_effective.value == 160 * G
    assert cluster("gb200x144").domain_size.value == 72
    assert cluster("gb200x144").host_size.value == 4
    assert cluster("h100x4").domain_size.value == 4
    assert cluster("mi300xx8") is cluster("mi300xx8")
    assert cluster("rtx-4090x1").gpus.value == 1
    assert cluster("rtx-4090x16").domain_size.source.kind == "assumed"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("h100", r"did you mean 'h100x8'"),
        ("gb200-nvl27", r"did you mean 'gb200-nvl72'"),
        ("h100x12", "12 GPUs do not fill domains of 8"),
        ("h100x0", "a count is 1 or more"),
        ("h10x8", r"no GPU 'h10'.*did you mean"),
        ("tpu-v5px8", "every GPU of .moeplan hardware. can be planned for but tpu-v5e"),
        ("rtx4090", "write <gpu>x<count>"),
        ("", "write <gpu>x<count>"),
    ],
)
def test_a_bad_machine_is_refused(name, says):
    with pytest.raises(UserError, match=says):
        cluster(name)


# --- the files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["gpus", "clusters", "prices"])
def test_tables_read_one_by_one_are_those_of_the_whole_file(stem):
    whole = tomllib.loads((DATA / f"{stem}.toml").read_text(encoding="utf-8"))
    for name in datafile.names(stem):
        expected = whole
        for part in name.split("."):
            expected = expected[part]
        assert datafile.table(stem, name) == expected
    nested = {"clusters": ("fabric", "machine"), "prices": ("sources",)}.get(stem, ())
    flat = {name for name in whole if name not in nested}
    assert set(datafile.names(stem)) == flat | {f"{up}.{low}" for up in nested for low in whole[up]}
