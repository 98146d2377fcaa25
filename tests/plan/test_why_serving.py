"""Where nothing serves, what is said comes true when done; without a NIC domains stay apart."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex

import pytest
from typer.testing import CliRunner

from moeplan.cli import app
from moeplan.cluster.layout import Layout
from moeplan.errors import UserError
from moeplan.parallel import ServingJob
from moeplan.plan.chosen import Chosen
from moeplan.plan.export import export
from moeplan.plan.export.able import expressed
from tests.commands import Run, runner

MIXTRAL = ("plan", "serve", "mixtral", "--gpu", "h100", "--no-sensitivity")
LLAMA = ("plan", "serve", "llama-3.1-8b", "--rps", "5", "--no-sensitivity")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, at a width."""
    return runner(monkeypatch, capsys)


def tree(*arguments):
    """The JSON of a command, whether or not it found something."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code in (0, 1), done.output
    return json.loads(done.stdout)


def said(*arguments):
    """What a search without an answer says."""
    answer = tree(*arguments)
    assert answer["best"] == []
    return answer["nothing"]["said"]


def changed(arguments, option, value):
    """The same command with an option in the place of its own."""
    words = list(arguments)
    if option in words:
        words[words.index(option) + 1] = value
        return words
    return [*words, option, value]


# ------------------------------------------------------------------------------------ remedies
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((*MIXTRAL, "--rps", "5", "--largest", "1"),
         {"--largest", "--weights", "--gpu"}),
        (("plan", "serve", "deepseek-v3", "--gpu", "h100", "--rps", "5", "--largest", "8",
          "--no-sensitivity"), {"--largest", "--weights", "--gpu"}),
        ((*MIXTRAL, "--rps", "1", "--instance", "4", "--tpot", "5.5ms"), {"--weights"}),
        ((*MIXTRAL, "--rps", "13.7", "--instance", "1,2,4", "--gpus", "4", "--tpot", "50ms"),
         {"--gpu"}),
    ],
)  # fmt: skip
def test_every_remedy_that_is_named_does(arguments, expected):
    """With the option in place, the search finds at most as many GPUs as were said."""
    named = set()
    for line in said(*arguments):
        if found := re.match(r"(--\w+) (\S+) would do, such as ([\d,]+) GPU", line):
            option, value, gpus = found.groups()
            named.add(option)
            best = tree(*changed(arguments, option, value))["best"]
            assert best, line
            assert best[0]["gpus"] <= int(gpus.replace(",", "")), line
    assert named >= expected


def test_the_gpus_that_do_and_what_those_there_are_carry():
    base = (*MIXTRAL, "--instance", "1,2,4,8", "--tpot", "50ms")
    lines = said(*base, "--rps", "50", "--gpus", "8")
    needed = int(re.search(r"on 8 GPUs; (\d+) GPUs", lines[0])[1])
    assert tree(*base, "--rps", "50")["best"][0]["gpus"] == needed
    rate = float(re.search(r"8 GPUs carry at most ([\d.]+) request", lines[1])[1])
    assert tree(*base, "--rps", f"{rate}", "--gpus", "8")["best"]
    assert not tree(*base, "--rps", f"{rate * 1.02}", "--gpus", "8")["best"]
    none = said(*MIXTRAL, "--rps", "5", "--instance", "2,4", "--gpus", "1")
    assert none[1] == "no instance within the limits has 1 GPU or fewer"
    fast = said(*base, "--rps", "50", "--gpus", "8", "--by", "time")
    assert fast[:2] == lines[:2]


def test_what_is_too_much_is_named_with_its_amount():
    lines = said(*MIXTRAL, "--rps", "5", "--largest", "1")
    weights = float(re.search(r"holds ([\d.]+) GiB of weights", lines[1])[1])
    assert weights == pytest.approx(46.7e9 * 2 / 2**30, rel=0.01)  # 46.7e9 parameters in bf16
    over = float(re.search(r"the weights are ([\d.]+) GiB too much", lines[0])[1])
    parts = [float(x) for x in re.findall(r"([\d.]+) GiB", lines[1])]
    assert sum(parts) - over == pytest.approx(81559 / 1024, abs=0.2)  # MiB that the driver shows


def test_a_sequence_that_is_too_long_names_one_that_fits():
    base = (*MIXTRAL, "--rps", "1", "--instance", "2")
    lines = said(*base, "--isl", "2M")
    assert "a sequence of 2,001,024 tokens is" in lines[0]
    assert any("the model's own longest sequence is 32,768 tokens" in line for line in lines)
    fits = int(next(re.search(r"--isl (\d+) would fit", x)[1] for x in lines if "would fit" in x))
    layout = re.search(r"with (\S+(?: \S+=\d+)*)", lines[0])[1]
    pinned = ("--fix", ",".join(layout.split()))
    assert tree(*base, *pinned, "--isl", str(fits))["space"]["counts"]["aggregated"]["fit"]
    longer = tree(*base, *pinned, "--isl", str(int(fits * 1.01)))
    assert not longer["space"]["counts"]["aggregated"]["fit"]


def test_the_least_latency_is_that_of_the_layout_that_is_named():
    base = (*MIXTRAL, "--rps", "5", "--instance", "4", "--mode", "disaggregated")
    line = said(*base, "--tpot", "1ms")[0]
    least, layout = re.search(
        r"fits is ([\d.]+) ms, disaggregated on 4 GPUs with (.*)", line
    ).groups()
    degrees = layout.replace(" ", ",")
    full = tree("layout", "mixtral", degrees, "--cluster", "h100x4", "--serve", "--batch", "1",
                "--disaggregated", "--isl", "4096", "--osl", "1024")  # fmt: skip
    assert full["tpot"] * 1e3 == pytest.approx(float(least), rel=1e-3)
    assert tree(*base, "--tpot", f"{float(least) * 1.01} ms")["best"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--tp", "3"), ["3 GPUs with tp=3: tp=3 does not divide the 32 attention heads",
                         "legal values of --tp beside the rest: 1, 2, 4, 8, 16, 32"]),
        (("--ep", "3,5"), ["ep=3 does not divide the 8 experts, ep=5 does not divide the 8",
                           "legal values of --ep beside the rest: 1, 2, 4, 8"]),
        (("--tp", "16", "--instance", "8"), ["no tp*pp*dp with --tp 16 fills an instance of 8",
                                             "legal values of --tp beside the rest: 1, 2, 4, 8"]),
        (("--tp", "3", "--ep", "3"), ["ep=3 does not divide", "without all of these options"]),
    ],
)  # fmt: skip
def test_what_is_illegal_names_the_rule(arguments, expected):
    words = " ".join(said(*MIXTRAL, "--rps", "5", *arguments))
    assert words.startswith("NOTHING IS LEGAL")
    for text in expected:
        assert text in words


def test_both_limits_on_one_instance():
    """Stages prefill sooner than copies do, and decode slower."""
    base = (*MIXTRAL, "--rps", "1", "--instance", "4", "--tp", "1", "--mode", "aggregated")
    lines = said(*base, "--ttft", "175ms", "--tpot", "6.3ms")
    assert lines[0].startswith("NOTHING MEETS both TTFT 175.0 ms and TPOT 6.300 ms")
    assert lines[0].endswith("the least TPOT is 6.563 ms, 4 GPUs with pp=2 dp=2")
    assert tree(*base, "--ttft", "175ms")["best"]
    assert tree(*base, "--tpot", "6.3ms")["best"]


# ---------------------------------------------------------------------------------- without NIC
def test_without_a_nic_instances_stay_in_a_domain(run):
    base = ("plan", "serve", "mixtral", "--gpu", "l40s", "--rps", "5", "--no-sensitivity")
    a = tree(*base, "--largest", "64")
    assert max(a["space"]["sizes"]) == 8
    assert a["notes"][0] == (
        "instances of at most 8 GPUs: no NIC of l40s is on file that would join domains of 8"
    )
    for pool in (pool for row in a["best"] for pool in row["pools"]):
        assert tree(*shlex.split(pool["command"])[1:])["fits"]
    words = " ".join(run(*base, "--instance", "4,8,16").out.split())
    assert "left out of --instance 16: no NIC of l40s is on file" in words
    done = run(*base, "--instance", "16")
    assert (done.code, done.out) == (2, "")
    assert "no NIC of l40s is on file" in done.err
    assert max(tree(*MIXTRAL, "--rps", "5")["space"]["sizes"]) == 64


def test_independent_instances_need_no_nic(run, tmp_path):
    file = str(tmp_path / "plan.toml")
    assert (
        run(*LLAMA, "--gpu", "l40s", "--tpot", "50ms", "--mode", "aggregated", "--save", file).code
        == 0
    )
    chosen = Chosen.load(file)
    assert chosen.gpus > 8
    pool = chosen.answer()
    one = f"l40sx{chosen.layout.values['world']}"
    alone = Chosen(chosen.model, one, chosen.layout,
                   chosen.job).answer()  # fmt: skip
    assert pool["tpot"] == alone["tpot"]
    assert pool["cluster"]["gpus"] == 16
    for engine in ("vllm", "sglang"):
        assert (
            export(engine, chosen).arguments
            == export(engine, Chosen(chosen.model, one, chosen.layout, chosen.job)).arguments
        )
    wide = Chosen("llama-3.1-8b", "l40sx32", Layout.parse("tp=8,dp=2"), ServingJob(), instances=2)
    with pytest.raises(UserError, match="no NIC of l40s is on file"):
        wide.answer()


def test_a_gpu_of_a_file_is_named_by_it(run, tmp_path):
    (tmp_path / "own gpu.toml").write_text(
        "[mine]\nmemory_bytes = '48 GB'\nmemory_bandwidth = '1 TB/s'\n"
        "scale_up_bandwidth = '32 GB/s'\npeak = { bf16 = '300 TFLOP/s' }\n"
    )
    file = str(tmp_path / "plan.toml")
    arguments = (*LLAMA, "--gpu", str(tmp_path / "own gpu.toml"))
    assert run(*arguments, "--save", file).code == 0
    best = tree(*arguments)["best"][0]
    assert Chosen.load(file).answer()["gpus"] == best["gpus"]
    pool = best["pools"][-1]
    assert tree(*shlex.split(pool["command"])[1:])["tpot"] == pytest.approx(pool["tpot"])


# -------------------------------------------------------------------------------------- outputs
def test_csv_has_the_unit_of_its_label(run):
    arguments = (*MIXTRAL, "--rps", "5", "--instance", "2")
    pool = tree(*arguments)["best"][0]["pools"][0]
    out = csv.reader(io.StringIO(run(*arguments, "--csv").out))
    rows = {row[1]: row[2] for row in out if row and row[0] == "An instance of the best"}
    for label, name in (("weights, GiB", "memory_weights"), ("overhead, GiB", "memory_overhead"),
                        ("cache of a sequence, GiB", "memory_cache_per_sequence")):  # fmt: skip
        assert float(rows[label]) * 2**30 == pytest.approx(pool[name])


def test_one_request_is_one(run):
    assert "\n1 request/s of" in run(*MIXTRAL, "--rps", "1", "--instance", "2").out
    assert "\n2 requests/s of" in run(*MIXTRAL, "--rps", "2", "--instance", "2").out


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_export_says_that_the_limit_is_missed(engine):
    layout = Layout.parse("tp=2")
    for tpot, missed in ((0.001, True), (0.5, False), (None, False)):
        plan = Chosen("llama-3.1-8b", "h100x2", layout, ServingJob(tpot=tpot))
        words = " ".join(export(engine, plan).notes)
        assert ("the TPOT limit of 1.000 ms IS NOT MET" in words) == missed


def test_the_answer_says_which_engines_express_it(run):
    quick = (*MIXTRAL, "--rps", "5", "--instance", "2,4")
    words = " ".join(run(*quick).out.split())
    assert "--export can express the best for vllm and sglang" in words
    assert "--export can express row 2 for" in " ".join(run(*quick, "--pick", "2").out.split())
    assert "can express" not in run(*quick, "--json").out
    three = Chosen("mixtral", "gb200x6", Layout.parse("pp=6"), ServingJob())
    none = expressed(three, "row 1")
    assert none.startswith("NO ENGINE CAN EXPRESS row 1")
    assert none.count("6 GPUs of an instance do not fill 2 hosts of 4") == 2
    for engine in ("vllm", "sglang"):
        with pytest.raises(UserError, match="do not fill 2 hosts"):
            export(engine, three)


BARE = """
[bare]
vendor = "NVIDIA"
memory_bytes = "80 GiB"
memory_bandwidth = "3.35 TB/s"
peak = { bf16 = "989 TFLOP/s" }
"""


def test_a_gpu_without_a_link_serves_alone(tmp_path):
    """Only memory and rates are given: instances of one GPU, as many as it takes, and a plan."""
    (tmp_path / "bare.toml").write_text(BARE, encoding="utf-8")
    device, plan = str(tmp_path / "bare.toml"), tmp_path / "plan.toml"
    ask = ("plan", "serve", "qwen3-4b", "--gpu", device, "--rps", "50", "--tpot", "20ms",
           "--no-sensitivity")  # fmt: skip
    found = tree(*ask, "--save", str(plan))
    assert found["space"]["sizes"] == [1]
    assert found["space"]["modes"] == ["aggregated"]
    assert found["best"][0]["gpus"] > 1
    assert Chosen.load(plan).place().gpus.value == 1
    for more, text in (
        (("--instance", "2"), "--instance 2: no bandwidth between GPUs of bare"),
        (("--mode", "disaggregated"), "--mode disaggregated: no bandwidth between GPUs"),
    ):
        refused = CliRunner().invoke(app, [*ask, *more]).exception
        assert isinstance(refused, UserError)
        assert text in str(refused)
