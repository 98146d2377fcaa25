from __future__ import annotations

import dataclasses
import re
from datetime import date

import pytest

from moeplan.cluster import datafile
from moeplan.cluster.hardware import NUMBER_FORMATS, cluster, gpu, gpus, prices
from moeplan.cluster.layout import Layout
from moeplan.errors import UserError
from moeplan.load import load_preset
from moeplan.parallel import TrainingJob, TrainingPlan
from moeplan.quantity import Quantity

T, G = 10**12, 10**9
BY_ID = {g.id: g for g in gpus()}


def figures(g):
    """Every Quantity of a GPU by its key in the file; peaks by their number format."""
    values = {f.name: getattr(g, f.name) for f in dataclasses.fields(g)} | dict(g.peaks)
    return {key: value for key, value in values.items() if isinstance(value, Quantity)}


def peak(name, number_format="bf16"):
    return gpu(name).peak(number_format).value


# --- every row ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_ID)
def test_every_row_is_complete_sourced_and_dated(name):
    g = BY_ID[name]
    assert g.name.startswith(g.vendor) or g.vendor == "Google"
    assert g.source
    assert date(2025, 1, 1) < g.checked <= date.today()
    assert {"memory_bytes", "memory_bandwidth", "scale_up_bandwidth"} <= figures(g).keys()
    assert {"bf16", "fp16"} & g.peaks.keys()
    for key, figure in figures(g).items():
        assert figure.value > 0
        assert figure.symbol.isidentifier()
        kind, where = figure.source
        assert kind in ("datasheet", "assumed", "measured")
        assert where
        if kind == "datasheet":
            assert re.search(r", checked \d{4}-\d\d-\d\d$", where)
        assert (kind == "assumed") == (key in g.unverified)
    assert (
        set(g.unverified) <= figures(g).keys()
    )  # a reason for a figure that is not there is a typo


@pytest.mark.parametrize("name", BY_ID)
def test_figures_have_the_size_of_an_accelerator(name):
    """A wrong prefix, bits for bytes or a sparse peak would fall outside."""
    f = {key: figure.value for key, figure in figures(BY_ID[name]).items()}
    assert 8 * G <= f["memory_bytes"] <= 400 * G
    assert 0.2 * T <= f["memory_bandwidth"] <= 10 * T
    assert 30 * T <= f.get("bf16", f.get("fp16")) <= 3000 * T
    assert 16 * G <= f["scale_up_bandwidth"] <= 2000 * G
    assert 5 * G <= f.get("nic_bandwidth", 5 * G) <= 100 * G
    assert 50 <= f.get("watts", 50) <= 1500
    # Bytes per FLOP: every machine of the last decade lies between these.
    assert 1 / 700 <= f["memory_bandwidth"] / f.get("bf16", f.get("fp16")) <= 1 / 30


@pytest.mark.parametrize("name", BY_ID)
def test_a_narrower_format_is_never_slower_than_a_wider_one(name):
    p = {key: figure.value for key, figure in BY_ID[name].peaks.items()}
    for wide, narrow in [("tf32", "bf16"), ("bf16", "fp8"), ("fp8", "fp4"), ("bf16", "int8")]:
        if wide in p and narrow in p:
            assert p[wide] <= p[narrow]
    if {"bf16", "fp16"} <= p.keys():
        assert p["bf16"] == p["fp16"]


def test_the_table_has_the_machines_that_people_plan_for():
    wanted = "a100-40 a100-80 h100-sxm h100-pcie h200-sxm h800-sxm h20 b200 b300 gb200 gb300 l40s "
    wanted += "rtx-pro-6000 rtx-4090 rtx-5090 mi300x mi325x mi355x tpu-v5e tpu-v5p tpu-v6e tpu-v7x "
    wanted += "trainium2 trainium3"
    assert set(wanted.split()) <= BY_ID.keys()


# --- figures against other figures ---------------------------------------------------------------

# Multiprocessors x boost clock (GHz) x dense bf16 FLOPs per multiprocessor and clock, from the
# vendors' white papers: a path to the peak that shares nothing with the printed TFLOP/s.
CLOCKED = {
    "a100-80": (108, 1.410, 2048),
    "h100-sxm": (132, 1.830, 4096),
    "h100-pcie": (114, 1.620, 4096),
    "rtx-3090": (82, 1.695, 512),
    "rtx-4090": (128, 2.520, 512),
    "rtx-5090": (170, 2.407, 512),
    "rtx-pro-6000": (188, 2.617, 1024),
    "l40s": (142, 2.490, 1024),
    "mi300x": (304, 2.100, 2048),
    "mi325x": (304, 2.100, 2048),
    "mi350x": (256, 2.200, 4096),
    "mi355x": (256, 2.400, 4096),
}


@pytest.mark.parametrize("name", CLOCKED)
def test_peak_is_multiprocessors_times_clock_times_width(name):
    units, ghz, width = CLOCKED[name]
    assert gpu(name).sm_count.value == units
    assert peak(name) == pytest.approx(units * ghz * 1e9 * width, rel=0.003)


def test_v100_peak_is_its_tensor_cores_times_its_clock():
    assert peak("v100", "fp16") == pytest.approx(640 * 64 * 2 * 1.530e9, rel=0.003)


# Bus width in bits x data rate in Gb/s per pin.
BUSES = {
    "v100-sxm": (4096, 1.755),
    "a100-40": (5120, 2.430),
    "a100-80": (5120, 3.186),
    "h100-sxm": (5120, 5.235),
    "h800-sxm": (5120, 5.235),
    "h20": (6144, 5.235),
    "h200-sxm": (6144, 6.25),
    "l4": (192, 12.5),
    "rtx-pro-6000-server": (512, 25),
    "rtx-3090": (384, 19.5),
    "rtx-4090": (384, 21),
    "rtx-5090": (512, 28),
    "rtx-pro-6000": (512, 28),
    "rtx-6000-ada": (384, 20),
    "l40s": (384, 18),
    "h100-nvl": (6016, 5.238),
    "mi300x": (8192, 5.2),
    "mi325x": (8192, 6.0),
    "mi355x": (8192, 8.0),
}


@pytest.mark.parametrize("name", BUSES)
def test_memory_bandwidth_is_bus_width_times_data_rate(name):
    bits, rate = BUSES[name]
    assert gpu(name).memory_bandwidth.value == pytest.approx(bits * rate * 1e9 / 8, rel=0.025)


# Links x GB/s of a link, one way.
LINKS = {
    "v100-sxm": (6, 25),
    "a100-80": (12, 25),
    "h800-sxm": (8, 25),
    "h100-sxm": (18, 25),
    "h200-sxm": (18, 25),
    "h20": (18, 25),
    "h100-nvl": (12, 25),
    "b200": (18, 50),
    "gb300": (18, 50),
    "mi300x": (7, 64),
    "mi355x": (7, 76.8),
}


@pytest.mark.parametrize("name", LINKS)
def test_scale_up_bandwidth_is_the_sum_of_the_links_one_way(name):
    links, each = LINKS[name]
    assert gpu(name).scale_up_bandwidth.value == pytest.approx(links * each * 1e9)


def test_the_h800_is_an_h100_but_for_its_links():
    h100, h800 = figures(gpu("h100")), figures(gpu("h800"))
    different = {key for key in h100 if h100[key].value != h800[key].value}
    assert different == {"scale_up_bandwidth"}
    assert h100.keys() == h800.keys()


def test_the_h200_computes_like_an_h100_and_has_more_memory():
    h100, h200 = gpu("h100"), gpu("h200")
    for number_format in h100.peaks:
        assert h100.peak(number_format).value == h200.peak(number_format).value
    assert h200.memory_bytes.value / h100.memory_bytes.value == pytest.approx(1.7625)


@pytest.mark.parametrize(
    ("narrow", "wide", "ratio", "names"),
    [
        (
            "fp8",
            "bf16",
            2,
            "h100-sxm h100-pcie h100-nvl h200 h800 h20 b200 b300 gb200 gb300 l4 l40",
        ),
        ("fp8", "bf16", 2, "rtx-4090 rtx-5090 rtx-6000-ada rtx-pro-6000 rtx-pro-6000-server"),
        ("fp8", "bf16", 2, "mi300x mi325x mi350x mi355x tpu-v7x"),
        ("fp8", "bf16", 1, "tpu-v5p tpu-v6e"),  # no faster unit, only less memory traffic
        ("bf16", "tf32", 2, "a100-40 a100-80 h100-sxm h100-pcie h100-nvl h200 h800 h20 b200 b300"),
        ("bf16", "tf32", 2, "l4 l40 rtx-3090 rtx-4090 rtx-5090 rtx-pro-6000 mi300x mi325x"),
        ("bf16", "tf32", 1, "trainium2 trainium3"),
        (
            "int8",
            "bf16",
            2,
            "a100-40 a100-80 h100-sxm h200 h800 h20 b200 l40 mi300x mi355x tpu-v6e",
        ),
        ("fp4", "fp8", 2, "b200 gb200 mi350x mi355x rtx-pro-6000 rtx-pro-6000-server"),
        ("fp4", "fp8", 3, "b300 gb300"),  # Blackwell Ultra's gain is in FP4 only
    ],
)
def test_peaks_stand_in_the_ratio_that_the_vendor_states(narrow, wide, ratio, names):
    for name in names.split():
        assert peak(name, narrow) / peak(name, wide) == pytest.approx(ratio, rel=0.009), name


def test_rack_totals_match_what_nvidia_prints_for_nvl72():
    for name, memory in (("gb200", 13.4e12), ("gb300", 20e12)):
        g = gpu(name)
        assert 72 * g.memory_bytes.value == pytest.approx(memory, rel=0.01)
        assert 72 * g.memory_bandwidth.value == pytest.approx(576e12)
        assert 2 * 72 * g.scale_up_bandwidth.value == pytest.approx(130e12, rel=0.01)
        assert 2 * 72 * peak(name, "fp8") == pytest.approx(720e15, rel=0.025)


def test_node_totals_match_what_vendors_print():
    assert 8 * gpu("b200").memory_bytes.value == 1.44e12
    assert 8 * gpu("h200").memory_bytes.value == 1.128e12
    assert 8 * gpu("b300").peak("fp4").value == 108e15
    assert 8 * gpu("mi300x").memory_bytes.value == 1.536e12


def test_the_driver_shows_what_the_memory_chips_hold():
    """HBM parts called N GB hold about N GiB; GDDR parts give one sixteenth of N GiB to ECC."""
    shown = {g.id: g for g in gpus() if g.memory_reported is not None}
    assert {"h100-sxm", "h200-sxm", "b200", "b300", "gb200", "mi300x", "l40s"} <= shown.keys()
    for g in shown.values():
        gib_named = g.memory_bytes.value / 10**9 * 2**30
        assert 0.92 <= g.memory_reported.value / gib_named <= 1.0, g.id
        assert g.memory_reported.source.kind == "measured"
    assert gpu("h200").memory_reported.value == 143_771 * 2**20


# Range of the published table: "7.7–8" admits both ends; (U) marks what was to be checked.
PUBLISHED = {
    "H100 SXM": "h100-sxm",
    "H100 PCIe": "h100-pcie",
    "H200 SXM": "h200-sxm",
    "H800 SXM": "h800-sxm",
    "H20": "h20",
    "B200 HGX": "b200",
    "B300 HGX": "b300",
    "GB200 NVL72": "gb200",
    "GB300 NVL72": "gb300",
    "L40S": "l40s",
    "MI355X": "mi355x",
}


def test_agrees_with_the_published_table(shared):
    text = (shared / "published.md").read_text(encoding="utf-8")
    rows = {}
    for line in text[text.index("## Hardware") :].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in PUBLISHED:
            rows[cells[0]] = cells
    assert rows.keys() == PUBLISHED.keys()
    compared = 0
    for title, cells in rows.items():
        g = gpu(PUBLISHED[title])
        ours = {
            2: (g.peaks["bf16"], T),
            3: (g.peaks.get("fp8"), T),
            4: (g.peaks.get("fp4"), T),
            5: (g.memory_bytes, G),
            6: (g.memory_bandwidth, T),
            10: (g.watts, 1),
        }
        for column, (figure, unit) in ours.items():
            cell = cells[column].replace(",", "")
            if figure is None or "(U)" in cell or not re.fullmatch(r"[\d.]+(–[\d.]+)?", cell):
                continue
            low, _, high = cell.partition("–")
            value = figure.value / unit
            if (title, column) == ("B300 HGX", 6):
                assert (cell, value) == ("8", 7.7)  # advertised 8; NVIDIA's own systems show 7.7
                continue
            assert float(low) * 0.999 <= value <= float(high or low) * 1.001, (title, column)
            compared += 1
    assert compared >= 45


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100", "h100-sxm"),
        ("H100 SXM", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA B300 SXM6 AC", "b300"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000-server"),
        ("Tesla V100-SXM2-32GB", "v100-sxm"),
        ("AMD Instinct MI300X", "mi300x"),
        ("rtx_5090", "rtx-5090"),
        ("gb200-nvl72", "gb200"),
    ],
)
def test_ids_aliases_and_driver_names_are_understood(name, found):
    assert gpu(name).id == found


def test_every_alias_leads_to_a_gpu_and_hides_none():
    aliases = datafile.table("gpus", "aliases")
    assert set(aliases.values()) <= BY_ID.keys()
    assert not aliases.keys() & BY_ID.keys()
    for alias in aliases:
        assert gpu(alias).id == aliases[alias]  # also: an alias is written as names are compared


@pytest.mark.parametrize("name", ["h10", "h100-smx", "RTX 4091", "mi300", "b20O"])
def test_an_unknown_gpu_names_a_near_miss(name):
    with pytest.raises(UserError, match=r"no GPU .*'moeplan hardware'.*did you mean '"):
        gpu(name)


def test_an_unknown_gpu_far_from_all_names_none():
    with pytest.raises(UserError, match="no GPU 'cray-1'") as error:
        gpu("cray-1")
    assert "did you mean" not in str(error.value)


def test_a_missing_peak_says_which_there_are():
    with pytest.raises(UserError, match=r"h200-sxm has no peak for 'fp4', it has tf32, bf16"):
        gpu("h200").peak("fp4")
    with pytest.raises(UserError, match="did you mean 'bf16'"):
        gpu("h200").peak("bf61")


def test_a_gpu_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        gpu("h100").name = "other"


# --- a user's own file ---------------------------------------------------------------------------

OWN = """
[my-gpu]
memory_bytes = "200 GiB"
memory_bandwidth = "6 TB/s"
peak = { bf16 = "1.5 PFLOP/s", fp8 = "3000 TFLOP/s" }
nic_bandwidth = "400 Gb/s"
"""


def own(tmp_path, text=OWN):
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_users_file_describes_a_gpu(tmp_path):
    path = own(tmp_path)
    g = gpu(path)
    assert (g.id, g.memory_bytes.value, g.nic_bandwidth.value) == ("my-gpu", 200 * 2**30, 50 * G)
    assert g.peak("fp8").value == 2 * g.peak("bf16").value == 3 * 10**15
    assert g.sm_count is None
    assert {figure.source.kind for figure in figures(g).values()} == {"user"}
    assert path in g.memory_bytes.source.where
    assert prices(g.id) == ()
    assert cluster(f"{path}x16").gpus.value == 16


def test_a_users_gpu_of_a_known_vendor_takes_what_was_measured_elsewhere(tmp_path):
    """By the ratio of its rates: at half of them everything but fixed costs takes twice as long."""

    def step(text):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"  # a file is read once
        folder.mkdir()
        machine = cluster(f"{own(folder, text)}x8")
        plan = TrainingPlan(load_preset("mixtral"), machine, TrainingJob())
        return plan.evaluate(Layout(dp=8, ep=8, batch=64, zero=3))["time_compute"]

    more = "[mine]\nvendor = 'NVIDIA'\nscale_up_bandwidth = '450 GB/s'"
    text = OWN.replace("[my-gpu]", more)
    half = text.replace("6 TB/s", "3 TB/s").replace("1.5 PFLOP/s", "0.75 PFLOP/s")
    assert 1.8 < step(half) / step(text) < 2


def test_a_file_with_several_gpus_needs_a_choice(tmp_path):
    path = own(tmp_path, OWN + OWN.replace("my-gpu", "other").replace("200 GiB", "100 GiB"))
    with pytest.raises(UserError, match=r"2 tables \(my-gpu, other\); choose with '.*#id'"):
        gpu(path)
    assert gpu(f"{path}#other").memory_bytes.value == 100 * 2**30
    with pytest.raises(UserError, match=r"no GPU 'othr', it has .*did you mean 'other'"):
        gpu(f"{path}#othr")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("memory_bandwidth", "memory_bandwith", "did you mean 'memory_bandwidth'"),
        ('memory_bandwidth = "6 TB/s"', "", "the key 'memory_bandwidth' is missing"),
        ('"200 GiB"', "200", "my-gpu, memory_bytes: cannot read 200 as bytes"),
        ('"200 GiB"', '"200 Gb"', "'Gb' is bits"),
        ("fp8", "fp9", "peak: unknown key 'fp9'"),
        ('"3000 TFLOP/s"', '"3000 TFLOP"', "fp8: cannot read '3000 TFLOP' as FLOP/s"),
        ('peak = { bf16 = "1.5 PFLOP/s", fp8 = "3000 TFLOP/s" }', "peak = 3", "give a table such"),
        ("[my-gpu]", "[my-gpu]\nname = 7", "name: 7 is given and a text is needed"),
        ("[my-gpu]", "[my-gpu", "not valid TOML"),
        (OWN, "", "no table such as"),
    ],
)
def test_a_bad_file_is_refused_with_file_and_key(tmp_path, old, new, says):
    assert old in OWN
    path = own(tmp_path, OWN.replace(old, new))
    with pytest.raises(UserError) as error:
        gpu(path)
    assert says in str(error.value)
    assert path in str(error.value)


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read the GPU file"):
        gpu(str(tmp_path / "absent.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UserError, match="cannot read the GPU file"):
        gpu(str(tmp_path / "folder.toml"))


def test_number_formats_are_named_once():
    used = {number_format for g in gpus() for number_format in g.peaks}
    assert used == set(NUMBER_FORMATS)
