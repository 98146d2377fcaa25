"""The command `layout`: published accounts through it, its outputs, and how it says no."""

from __future__ import annotations

import csv
import io
import json
import re
from functools import cache

import pytest
from typer.testing import CliRunner

from moeplan.cli import app
from moeplan.cluster.layout import Layout
from moeplan.parallel import ServingJob
from moeplan.plan.chosen import Chosen
from tests.commands import Ran, Run, runner

SECOND_ACCOUNT = (
    "layout", "deepseek-v3", "pp=4,vpp=4,ep=64,gbs=4096,split=full", "--schedule", "interleaved",
    "--cluster", "h100x256", "--train", "--account", "arxiv-2603.07685", "--framework", "0 B",
    "--fragmentation", "0",
)  # fmt: skip
FIRST_ACCOUNT = (
    "layout", "deepseek-v3", "tp=2,pp=16,ep=8,dp=32,gbs=1024,split=full", "--cluster", "h800x1024",
    "--train", "--account", "arxiv-2502.07846", "--optimizer", "adamw-bf16-moments", "--no-mtp",
    "--framework", "0 B", "--fragmentation", "0",
)  # fmt: skip
BILLED = (*SECOND_ACCOUNT, "--tokens-total", "14.8T", "--price", "$2/h", "--power", "1.5 kW")
SERVED = ("layout", "deepseek-v3", "ep=32", "--cluster", "h800x32", "--serve", "--isl", "4000",
          "--osl", "1000")  # fmt: skip
GIB = 2**30


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, at a width."""
    return runner(monkeypatch, capsys)


@cache
def tree(*arguments):
    """The JSON of a command; nobody changes it."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def said(done: Ran) -> str:
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("moeplan: ")
    assert done.err.count("\n") == 1
    return done.err


# ------------------------------------------------------------------------------------ published
def test_the_second_accounts_figures_stand_in_the_table(run):
    """arXiv 2603.07685, table 3: 36.4, 32.1 and 131.0 GiB, on the third pipeline rank."""
    lines = run(*SECOND_ACCOUNT).out.partition("Memory by pipeline rank")[2].splitlines()
    row = next(line.split() for line in lines if line.split()[:1] == ["2"])
    assert row[1:3] == ["16", "60"]  # layers held, and layers times microbatches in flight
    assert row[5:7] == ["32.1", "131.0"]
    assert float(row[3]) + float(row[4]) == pytest.approx(36.4, abs=0.1)


def test_the_first_accounts_figures_are_in_the_json():
    """arXiv 2502.07846: 6,250,364,928 parameters and 81.54 GiB, the sum of rounded parts."""
    arguments = [x.replace("split=full", "split=full,zero=0") for x in FIRST_ACCOUNT]
    found = tree(*arguments)["by_rank"][1]
    assert found["layers"] == 4
    assert found["dense"] + found["experts"] == 6_250_364_928
    parts = [found[f"memory_{p}"] / GIB for p in ("weights", "gradients", "optimizer")]
    rounded = [round(parts[0], 2), *(round(x, 1) for x in parts[1:])]
    assert rounded == [11.64, 23.3, 46.6]
    assert sum(rounded) == pytest.approx(81.54)


# ------------------------------------------------------------------------------------- relations
def test_parts_add_up_and_the_bill_follows():
    a = tree(*BILLED)
    parts = [x for name, x in a.items() if name.startswith("time_")]
    assert sum(parts) == pytest.approx(a["step"])
    assert a["step_lower"] <= a["step"] <= a["step_upper"]
    assert a["mfu"] < a["mfu_full"] < 1
    assert a["tokens_per_second"] == pytest.approx(4096 * 4096 / a["step"])
    assert a["seconds"] * a["tokens_per_second"] == pytest.approx(14.8e12)
    assert a["gpu_hours"] == pytest.approx(256 * a["seconds"] / 3600)
    assert a["dollars"] == pytest.approx(2 * a["gpu_hours"])
    assert a["energy"] == pytest.approx(1500 * 3600 * a["gpu_hours"])
    sent = [sum(row[tier] for row in a["traffic"]) for tier in ("up", "out")]
    assert sent == pytest.approx([a["sent_scale_up"], a["sent_scale_out"]])


def test_dp_is_what_the_other_degrees_leave():
    assert tree(*SECOND_ACCOUNT)["layout"]["dp"] == 64


def test_serving_meets_a_limit_with_a_smaller_batch():
    free, held = tree(*SERVED), tree(*SERVED, "--tpot", "50 ms")
    assert free["batch"] == free["max_batch"] > held["batch"] >= 1
    assert free["tpot"] > 0.05 >= held["tpot"]
    assert held["dollars_per_million_output"] > free["dollars_per_million_output"]
    assert tree(*SERVED, "--batch", "64")["batch"] == 64


def words(text):
    return " ".join(text.split())


def test_the_bounds_say_all_that_they_assume(run):
    """Without messages only the ops' bands and the optimizer lie between the bounds."""
    alone = ("layout", "olmoe", "batch=1", "--cluster", "h200x1", "--train")
    a, out = tree(*alone), words(run(*alone).out)
    assert a["traffic"] == []
    fast, slow = a["band"]["step"]
    assert a["step_lower"] == pytest.approx(fast - a["time_optimizer"])
    assert a["step_upper"] == pytest.approx(slow)
    assert "fast end of their bands, the optimizer not counted) to" in out
    assert "message" not in out.partition("bounds:")[2].partition("Speed")[0]
    with_messages = words(run(*SECOND_ACCOUNT).out)
    assert "ops at the slow end, no message under compute)" in with_messages
    unbanded = words(run(*SECOND_ACCOUNT, "--stack", "datasheet").out)
    assert "end of their bands" not in unbanded


@pytest.mark.parametrize(
    ("ends", "said_so"),
    [((99, 130), "-1% / +30%"), ((90, 112), "±11%"), ((100, 100), "no measured band")],
)
def test_a_band_with_unequal_sides_shows_both(ends, said_so):
    from moeplan.report.layout_tables import _ends

    assert said_so in _ends(100, *ends)


@pytest.mark.parametrize("overlap", ["none", "usual", "all-to-all", "dualpipe"])
def test_what_the_overlap_hides_is_what_it_takes_without(overlap):
    """Exposed and hidden seconds of a kind are together those of the messages."""
    small = ("layout", "deepseek-v3", "tp=2,cp=2,pp=8,ep=16,zero=1,batch=512", "--cluster",
             "h800x512", "--train", "--overlap")  # fmt: skip
    a, bare = tree(*small, overlap), tree(*small, "none")
    hidden = a["hidden_seconds"]
    for kind in ("ep", "cp", "dp", "pp"):
        both = a[f"time_{kind}"] + hidden.get(kind, 0)
        assert both == pytest.approx(bare[f"time_{kind}"])
    assert set(hidden) == ({"cp", "pp", "dp"} | {"ep"} & set(a["hidden"]) if a["hidden"] else set())


def test_messages_assumed_hidden_are_told(run):
    zero3 = ("layout", "mixtral", "ep=8,zero=3,batch=64", "--cluster", "h200x8", "--train")
    a, out = tree(*zero3), words(run(*zero3).out)
    assert a["time_dp"] == 0
    share = a["hidden_seconds"]["dp"] / a["hidden_dp_cover"]
    assert f"({share:.0%} of the time that can hide them)" in out
    assert a["hidden_dp_cover"] == pytest.approx(a["time_compute"] + a["time_ep"])
    assert "20 of 132 multiprocessors" in words(run(*zero3, "--overlap", "all-to-all").out)


def test_what_software_adds_is_told_beside_the_times(run):
    assert "--stack megatron-bridge has it fitted" in words(run(*SECOND_ACCOUNT).out)
    assert "--stack sglang has it fitted" in words(run(*SERVED).out)
    assert "ops alone" not in words(run(*SERVED, "--stack", "sglang").out)
    assert "--stack sglang" not in words(run(*SERVED, "--stack", "kernels").out)


def test_sequences_that_fit_follow_from_the_rows_shown(run):
    out = run("layout", "qwen3-235b", "ep=8", "--cluster", "h200x8", "--serve").out
    rows = dict(
        re.split(r"  +", x, maxsplit=1) for x in out.splitlines() if re.search(r"\S  +\S", x)
    )
    left = float(rows["left for the cache"].split()[0])
    each = float(rows["the same with fragmentation, 5% more"].split()[0])
    fit = int(rows["sequences that fit on the instance"].replace(",", ""))
    assert fit == 8 * int(left / each)
    assert "140.40 GiB are 150.8 GB, as the driver reports; the datasheet says 141.0 GB" in out


def test_a_batch_that_does_not_fit_is_refused(run):
    most = tree(*SERVED)["max_batch"]
    found = said(run(*SERVED, "--batch", f"{most + 1:.0f}"))
    assert f"holds at most {most:,.0f} sequences of 5,000 tokens" in found
    assert tree(*SERVED, "--batch", f"{most:.0f}")["batch"] == most


def test_a_sequence_beyond_the_models_own_is_noted(run):
    long = ("layout", "olmoe", "ep=8", "--cluster", "h200x8")
    for more, tokens in ((("--train", "--sequence", "8192"), "8,192"),
                         (("--serve", "--isl", "4000", "--osl", "500"), "4,500")):  # fmt: skip
        note = f"a sequence of {tokens} tokens is beyond the model's own 4,096"
        assert note in words(run(*long, *more).out)
        assert tree(*long, *more)["notes"] == [note]
    assert tree(*long, "--serve", "--isl", "3000", "--osl", "96")["notes"] == []


def test_the_exchange_limits_the_speed_of_decoding(run):
    """As arXiv 2505.09343 counts, of the model's own figures: bytes of all rows over the NIC."""
    a = tree(*SERVED, "--batch", "1024", "--dispatch", "fp8_unscaled")
    limit = a["speed_limit"]
    sent = 3 * (1024 / 32) * 8 * 7168
    assert limit["link"] == "scale-out"
    assert limit["layer"] == pytest.approx(sent / limit["bandwidth"])
    assert limit["step"] == pytest.approx(58 * limit["layer"])
    assert "Speed limit of the exchange" in run(*SERVED).out
    dense = ("layout", "llama-3.1-8b", "tp=8", "--cluster", "h200x8", "--serve")
    assert tree(*dense)["speed_limit"] is None


def test_what_is_not_known_is_null():
    a = tree(*SECOND_ACCOUNT)
    assert [a[name] for name in ("seconds", "dollars", "energy")] == [None] * 3


def test_an_instance_too_small_says_so_and_has_no_times(run):
    small = ("layout", "deepseek-v3", "ep=8", "--cluster", "h800x8", "--serve")
    a = tree(*small)
    assert (a["fits"], a["max_batch"], a["tpot"]) == (False, 0, None)
    out = run(*small).out
    assert "DOES NOT FIT" in out
    assert "TPOT" not in out


def test_assumptions_name_the_efficiencies(run):
    out = " ".join(run(*SERVED, "--stack", "megatron-bridge").out.split())
    assert "stack megatron-bridge: busy 1.00, host 5 ms an MoE layer" in out
    assert "dense GEMMs: h800-sxm from h200-cublas in 8 bits, assumed" in out
    whys = [entry["why"] for entry in tree(*SECOND_ACCOUNT, "--stack", "datasheet")["assumptions"]]
    assert any("every peak is reached" in why for why in whys)
    assert any("account arxiv-2603.07685" in why for why in whys)


# --------------------------------------------------------------------------------------- outputs
@pytest.mark.parametrize(
    "arguments",
    [
        BILLED,
        SERVED,
        (*SERVED, "--disaggregated", "--draft", "1"),
        ("layout", "mixtral", "", "--cluster", "h200x1", "--train"),
        ("layout", "llama-3.1-8b", "tp=2,cp=2", "--cluster", "h100x8", "--train"),
        ("layout", "deepseek-v3", "pp=16,ep=64,gbs=15360,recompute=selective,schedule=dualpipe",
         "--cluster", "h800x2048", "--train", "--tokens-total", "14.8T"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("output", [(), ("--csv",), ("--markdown",)])
def test_outputs(run, arguments, output):
    done = run(*arguments, *output)
    assert (done.code, done.err) == (0, "")
    assert "nan" not in done.out
    if not output:
        assert max(map(len, done.out.splitlines())) <= 80
    if output == ("--csv",):
        rows = list(csv.reader(io.StringIO(done.out)))
        assert all(len(row) >= 3 for row in rows)


def test_tables_hold_the_figures_of_the_json(run):
    a, out = tree(*BILLED), run(*BILLED).out
    shares = [f"{a[name]:.1%}" for name in ("mfu", "mfu_full")]
    numbers = [f"{a['memory'] / GIB:,.2f}", f"{a['seconds'] / 86400:,.1f}"]
    for text in (*shares, *numbers, f"{a['tokens_per_second_per_gpu']:,.0f}"):
        assert text in out


# ---------------------------------------------------------------------------------------- errors
def test_an_illegal_layout_lists_every_violated_rule(run):
    text = "tp=3,pp=16,ep=7,dp=5,vpp=2"
    found = said(run("layout", "deepseek-v3", text, "--cluster", "h800x2048", "--train"))
    for rule in (
        "= 240 must be the 2048 GPUs",
        "ep=7 does not divide the 256 experts",
        "does not divide tp*cp*dp",
        "vpp=2 needs schedule=interleaved",
        "tp=3 does not divide the 128 attention heads",
        "does not divide the 4096 tokens",
    ):
        assert rule in found


def test_a_dp_that_is_left_open_hides_no_rule(run):
    found = said(run("layout", "deepseek-v3", "tp=3,ep=7", "--cluster", "h800x8", "--train"))
    assert "must be the 8 GPUs" in found
    assert "ep=7 does not divide the 256 experts" in found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "one of --train and --serve"),
        (("--train", "--serve"), "both were"),
        (("--train", "--isl", "5", "--tpot", "1 s"), "--isl, --tpot are for --serve"),
        (("--serve", "--sequence", "5"), "--sequence is for --train"),
        (("--train", "--stack", "kernel"), "did you mean 'kernels'"),
        (("--train", "--account", "megatron"), "did you mean 'megatron-core'"),
        (("--train", "--precision", "fp9"), "one of bf16, fp8"),
        (("--train", "--schedule", "1f1"), "did you mean '1f1b'"),
        (("--train", "--optimizer", "adam"), "optimizer 'adam'"),
        (("--train", "--sequence", "0"), "--sequence is 0"),
        (("--train", "--sequence", "9" * 30), "--sequence is too large"),
        (("--train", "--framework", "5"), "the unit is missing"),
        (("--train", "--fragmentation", "nan"), "--fragmentation is 'nan'"),
        (("--train", "--imbalance", "0.5"), "--imbalance is 0.5"),
        (("--serve", "--acceptance", "1"), "below 1"),
        (("--serve", "--tpot", "0 s"), "must be more than 0"),
        (("--serve", "--hidden-exchange", "2"), "from 0 to 1"),
        (("--serve", "--weights", "fp9"), "did you mean 'fp8'"),
        (("--serve", "--json", "--csv"), "exclude each other"),
    ],
)
def test_a_mistake_is_one_sentence(run, arguments, expected):
    assert expected in said(run("layout", "deepseek-v3", "ep=8", "--cluster", "h800x8", *arguments))


def test_a_batch_that_no_cluster_has_is_refused(run):
    huge = f"gbs=1{'0' * 400}"
    assert "too large" in said(run("layout", "mixtral", huge, "--cluster", "h800x8", "--train"))


def test_a_kind_given_twice_is_refused(run):
    twice = ("pp=2,schedule=1f1b", "--cluster", "h800x8", "--train", "--schedule", "1f1b")
    assert "given twice" in said(run("layout", "deepseek-v3", *twice))


# ------------------------------------------------------------------------- other ways to the same
def test_estimate_and_plan_files_give_the_same_answer(tmp_path):
    file = str(tmp_path / "plan.toml")
    name, model, degrees, *options = BILLED
    wanted = tree(*BILLED)
    assert tree("estimate", model, "--layout", degrees, *options, "--save", file) == wanted
    assert tree("estimate", "--plan", file) == tree("layout", "--plan", file)
    assert tree("estimate", "--plan", file) == wanted
    assert name == "layout"


def test_two_pools_of_a_plan_file(run, tmp_path):
    job = ServingJob(input=4000, output=1000, disaggregated=True)
    layouts = Layout.parse("tp=2,dp=4,ep=8"), Layout.parse("tp=4,ep=4")
    Chosen("mixtral", "h100x24", layouts[0], job, layouts[1], 2, 1).save(tmp_path / "plan.toml")
    out = run("layout", "--plan", str(tmp_path / "plan.toml")).out
    assert "prefill, serving on" in out
    assert "TTFT" not in out.partition("prefill, serving on")[0]
    lines = {x[:34].strip(): x[34:].split() for x in out.partition("All instances")[2].splitlines()}
    assert lines["GPUs"] == ["20"]
    both = [float(lines[f"requests/s that {x} serves"][0]) for x in ("prefill", "decoding")]
    assert float(lines["requests/s together"][0]) == min(both)


def test_a_plan_of_two_pools_has_the_searchs_ttft(tmp_path):
    file = str(tmp_path / "plan.toml")
    asked = ("plan", "serve", "mixtral", "--gpu", "h100", "--rps", "5", "--isl", "2000", "--osl",
             "500", "--tpot", "30ms", "--instance", "4", "--mode", "disaggregated")  # fmt: skip
    best = tree(*asked, "--save", file)["best"][0]
    a = tree("estimate", "--plan", file)
    assert a["ttft"] == a["pool"]["ttft"] == pytest.approx(best["ttft"])
    assert a["gpus"] == a["pool"]["gpus"] == best["gpus"]
    assert a["ttft"] - a["prefill"]["ttft"] == pytest.approx(a["pool"]["transfer"])
    assert a["pool"]["transfer"] > 0


def test_a_plan_that_breaks_a_rule_names_its_file(run, tmp_path):
    file = tmp_path / "plan.toml"
    Chosen("mixtral", "h100x8", Layout.parse("dp=8,ep=8"), ServingJob()).save(file)
    file.write_text(file.read_text().replace("ep = 8 ", "ep = 7 "))
    for command in ("layout", "estimate"):
        found = said(run(command, "--plan", str(file)))
        assert found.startswith(f"moeplan: {file}: layout ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--isl", "5"), "--isl needs --layout"),
        (("--train", "--cluster", "h100x8"), "--cluster, --train need --layout"),
        (("--save", "plan.toml"), "--save needs --layout"),
        (("--layout", "tp=1", "--train"), "--cluster is needed (or --plan FILE"),
        (("--layout", "tp=1", "--cluster", "h100x8", "--train", "--ep", "8"), "ep in the layout"),
        (("--layout", "tp=1", "--cluster", "h100x8", "--train", "--detail"), "--detail describes"),
        (("--plan", "plan.toml"), "and a model was given too"),
        (("--preset", "mixtral", "--layout", "tp=1"), "one model is needed and several"),
    ],
)
def test_estimate_refuses_a_mixture(run, arguments, says):
    assert says in said(run("estimate", "mixtral", *arguments))


def test_a_model_is_named_as_other_commands_name_it(run):
    tail = ("ep=8", "--cluster", "h200x8", "--serve", "--json")
    want = run("layout", "mixtral", *tail).out
    assert run("layout", "--preset", "mixtral", *tail).out == want
    assert run("layout", *tail, "--preset", "mixtral").out == want
    config = "docs/examples/tiny-mixtral/config.json"
    small = ("ep=2", "--cluster", "h200x2", "--serve", "--json")
    assert run("layout", "--config", config, *small).out == run("layout", config, *small).out
    assert "several were given: llama-3.1-8b, mixtral" in said(
        run("layout", "llama-3.1-8b", *tail, "--preset", "mixtral")
    )


def test_a_model_that_generates_nothing_is_not_served(run):
    done = run("layout", "privacy-filter", "ep=8", "--cluster", "h200x8", "--serve")
    assert "it reads texts and generates none" in said(done)
