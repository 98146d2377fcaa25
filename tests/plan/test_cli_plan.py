"""The commands `plan train` and `plan serve`: outputs, commands that reproduce, how they say no."""

from __future__ import annotations

import csv
import io
import json
import shlex
from functools import cache

import pytest
from typer.testing import CliRunner

from moeplan.cli import app
from moeplan.plan.chosen import Chosen
from tests.commands import Ran, Run, runner

TRAIN = ("plan", "train", "mixtral", "--cluster", "h100", "--gpus", "16", "--tokens", "1T",
         "--gbs", "64")  # fmt: skip
SERVE = ("plan", "serve", "mixtral", "--gpu", "h100", "--rps", "5", "--isl", "2000", "--osl",
         "500", "--ttft", "1s", "--tpot", "50ms", "--instance", "2,4,8")  # fmt: skip
QUICK = (*SERVE[:-1], "2,4", "--no-sensitivity")
DENSE = ("plan", "train", "llama-3.1-8b", "--cluster", "h100", "--gpus", "8", "--gbs", "8",
         "--no-sensitivity")  # fmt: skip


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


# ------------------------------------------------------------------------------------ the answer
def test_the_command_of_a_row_gives_its_numbers():
    for row in tree(*TRAIN)["best"][:2]:
        words = shlex.split(row["command"])
        assert words[:2] == ["moeplan", "layout"]
        full = tree(*words[1:])
        for name in ("memory", "step", "mfu", "seconds", "dollars", "step_lower", "step_upper"):
            assert full[name] == pytest.approx(row[name]), name
        assert full["fits"]


def test_the_commands_of_pools_give_their_numbers():
    for row in (tree(*SERVE)["best"][0], *tree(*SERVE)["by_mode"].values()):
        for pool in row["pools"]:
            full = tree(*shlex.split(pool["command"])[1:])
            for name in ("batch", "tpot", "ttft", "memory_weights", "max_batch"):
                assert full[name] == pytest.approx(pool[name]), name


def test_ranks_counts_and_parts_are_consistent():
    a = tree(*TRAIN)
    steps = [row["step"] for row in a["best"]]
    assert steps == sorted(steps)
    assert len(steps) == 10
    assert a["best"][1]["behind"] == pytest.approx(steps[1] / steps[0] - 1)
    assert a["space"]["fit"] <= a["space"]["legal"] <= a["space"]["combinations"]
    assert sum(a["best"][0]["parts"].values()) == pytest.approx(steps[0])
    assert a["by_kind"][0]["step"] == steps[0]
    assert len(a["by_kind"]) <= 12
    memory, times = ([p[n] for p in a["front"]] for n in ("memory", "step"))
    assert memory == sorted(memory)
    assert times == sorted(times, reverse=True)
    assert min(p["step"] for p in a["front"] if p["fits"]) == steps[0]


def test_every_change_says_whether_the_winner_stays():
    a = tree(*TRAIN)
    names = [row["change"] for row in a["sensitivity"]]
    for word in ("GPU memory", "memory bandwidth", "scale-up", "scale-out", "imbalance"):
        assert any(name.startswith(word) for name in names)
    for row in a["sensitivity"]:
        if row["same_winner"]:
            assert row["old_winner_step"] == pytest.approx(row["step"])
        elif row["old_winner_step"] is not None and row["step"] is not None:
            assert row["step"] <= row["old_winner_step"]


def test_sizes_are_ranked_together():
    many = [*TRAIN]
    many[6] = "8,16,32"
    a = tree(*many, "--by", "cost", "--no-sensitivity")
    dollars = [row["dollars"] for row in a["best"]]
    assert dollars == sorted(dollars)
    fast = tree(*many, "--by", "time", "--no-sensitivity")["best"][0]
    assert fast["gpus"] == 32
    assert fast["seconds"] <= a["best"][0]["seconds"]


def test_a_deadline_and_a_budget_size_the_cluster():
    base = ("plan", "train", "mixtral", "--cluster", "h100", "--tokens", "100B", "--gbs", "480",
            "--schedule", "1f1b", "--recompute", "none", "--no-sensitivity")  # fmt: skip
    a = tree(*base, "--deadline", "5d")
    assert a["best"][0]["seconds"] <= 5 * 86400
    assert [s["meets"] for s in a["sizing"]["sizes"]].count(True) == 1
    b = tree(*base, "--budget", "$20k")
    assert b["best"][0]["dollars"] <= 20_000
    assert b["best"][0]["gpus"] <= a["best"][0]["gpus"]


def test_serving_says_what_carries_the_requests():
    a = tree(*SERVE)
    gpus = [row["gpus"] for row in a["best"]]
    assert gpus == sorted(gpus)
    for row in a["best"]:
        assert row["ttft"] <= 1
        assert row["tpot"] <= 0.05 * (1 + 1e-9)
        assert row["load"] <= 1 + 1e-9
        assert row["gpus"] == sum(p["instances"] * p["instance_gpus"] for p in row["pools"])
    assert set(a["by_mode"]) == {"aggregated", "disaggregated"}
    loose = tree(*SERVE[:-2], "--instance", "2,4,8", "--utilization", "0.5", "--no-sensitivity")
    assert loose["best"][0]["gpus"] >= gpus[0]


@pytest.mark.parametrize(
    "arguments", [(*TRAIN, "--pick", "3"), (*SERVE, "--mode", "disaggregated")]
)
def test_a_saved_row_is_read_back(run, tmp_path, arguments):
    file = tmp_path / "plan.toml"
    done = run(*arguments, "--no-sensitivity", "--save", str(file))
    assert done.code == 0
    assert done.err.strip() == str(file)
    chosen = Chosen.load(file)
    if chosen.training:
        assert str(chosen.layout) == tree(*TRAIN)["best"][2]["layout"]
    else:
        best = tree(*SERVE)["by_mode"]["disaggregated"]
        assert chosen.gpus == best["gpus"]
        assert chosen.answer()["pool"]["requests_per_second"] >= 5 * (1 - 1e-9)


def test_bands_are_those_of_layout():
    for row in tree(*TRAIN)["best"][::4]:
        full = tree(*shlex.split(row["command"])[1:])
        assert full["band"]["step"] == pytest.approx(row["band"])
        assert row["band"][0] < row["step"] < row["band"][1]
    for row in tree(*SERVE)["by_mode"].values():
        last = row["pools"][-1]
        full = tree(*shlex.split(last["command"])[1:])
        assert full["band"]["tpot"] == pytest.approx(row["band"]["tpot"])
        assert row["band"]["ttft"][0] < row["ttft"] < row["band"]["ttft"][1]


def test_a_share_may_be_a_percentage():
    for option, percent, share in (("--cache-hits", "50%", "0.5"), ("--utilization", "80%", "0.8")):
        assert tree(*QUICK, option, percent)["best"] == tree(*QUICK, option, share)["best"]
    assert tree(*QUICK, "--cache-hits", "50%")["demand"]["cached"] == 0.5


def test_limits_within_the_band_are_named(run):
    best = tree(*QUICK)["best"][0]
    near = f"{(best['tpot'] + best['band']['tpot'][1]) * 500:.1f}"
    close = [*QUICK]
    close[QUICK.index("50ms")] = f"{near}ms"
    low, high = tree(*close)["best"][0]["band"]["tpot"]
    assert low < float(near) / 1e3 < high
    words = " ".join(run(*close).out.split())
    assert f"the TPOT limit of {float(near):.2f} ms lies within the band" in words
    assert "TTFT limit" not in words
    assert "times are of the ops alone" in words
    bare = " ".join(run(*TRAIN, "--no-sensitivity", "--stack", "megatron-bridge").out.split())
    assert "times are of the ops alone" not in bare


def test_rows_differ_in_more_than_chunks():
    answer = tree(*TRAIN, "--schedule", "interleaved", "--no-sensitivity")
    rows = answer["best"]
    for i, row in enumerate(rows):
        for above in rows[:i]:
            same = all(row[n] == above[n] for n in ("tp", "cp", "pp", "dp", "ep", "etp", "zero",
                       "microbatch", "schedule", "recompute"))  # fmt: skip
            assert not same or row["step"] >= 1.01 * above["step"]
    assert answer["left_out"] > 0


@pytest.mark.parametrize("columns", [60, 120])
def test_the_command_is_one_that_a_shell_joins(run, columns):
    quick = (*TRAIN, "--schedule", "interleaved", "--no-sensitivity")
    _, _, rest = run(*quick, columns=columns).out.partition("the first in full:\n")
    shown = rest.partition("\n\n")[0]
    assert all(line.endswith(" \\") for line in shown.splitlines()[:-1])
    command = shown.replace("\\\n", "")
    assert shlex.split(command) == shlex.split(tree(*quick)["best"][0]["command"])


# --------------------------------------------------------------------------------------- outputs
@pytest.mark.parametrize("arguments", [TRAIN, QUICK, (*DENSE, "--explain", "--pick", "2")])
@pytest.mark.parametrize("output", [(), ("--csv",), ("--markdown",)])
def test_outputs(run, arguments, output):
    done = run(*arguments, *output)
    assert (done.code, done.err) == (0, "")
    assert "nan" not in done.out
    if not output:
        widths = [len(line) for line in done.out.splitlines() if "batch=" not in line]
        assert max(widths) <= 80
    if output == ("--csv",):
        assert all(len(row) >= 3 for row in csv.reader(io.StringIO(done.out)))


def test_the_front_is_drawn(run, tmp_path):
    for arguments, stem in ((TRAIN, "plan_train"), (QUICK, "plan_serve")):
        done = run(*arguments, "--no-sensitivity", "--plot", str(tmp_path))
        assert done.code == 0
        assert sorted(line[-3:] for line in done.err.split()) == ["csv", "png", "svg"]
        text = (tmp_path / f"{stem}.csv").read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text)))
        assert len(rows) == len(tree(*arguments)["front"])
        assert (tmp_path / f"{stem}.png").stat().st_size > 20_000


def test_what_was_searched_stands_in_the_output(run):
    out = run(*TRAIN, "--no-sensitivity").out
    for text in ("1f1b, interleaved, zero-bubble, dualpipe", "vpp          1 to 32",
                 "overlap dualpipe with schedule dualpipe"):  # fmt: skip
        assert text in out
    pinned = run(*TRAIN, "--no-sensitivity", "--tp", "1,2", "--fix", "zero=1").out
    assert "tp           1, 2 (pinned)" in pinned
    assert "zero         1 (pinned)" in pinned


# ------------------------------------------------------------------------------- nothing, errors
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train", "mixtral", "--cluster", "h100", "--gpus", "1"),
         ("NOTHING FITS", "GiB too much", "16 GPUs would do")),
        (("train", "mixtral", "--cluster", "h100", "--gpus", "64", "--tp", "3"),
         ("NOTHING IS LEGAL: tp=3 does not divide the 64 GPUs",)),
        (("train", "mixtral", "--cluster", "h100", "--gpus", "64", "--ep", "3,16"),
         ("ep=3 does not divide the 8 experts, ep=16 does not divide the 8 experts",)),
        (("train", "mixtral", "--cluster", "h100x64", "--fix", "tp=4,pp=8,ep=8,etp=16"),
         ("under --tp 4 --pp 8 --ep 8 --etp 16; without --etp there",)),
        (("train", "mixtral", "--cluster", "h100", "--gpus", "64", "--vpp", "4", "--schedule",
          "1f1b"), ("nearest to a legal one", "vpp=4 needs schedule=interleaved")),
        (("train", "mixtral", "--cluster", "h100", "--gpus", "64", "--schedule", "interleaved",
          "--fix", "pp=32,vpp=2"), ("pp*vpp = 32*2 stages are more than the 32 layers",)),
        (("train", "mixtral", "--cluster", "h100", "--gpus", "64", "--order", "tp-cp-ep-pp-dp",
          "--fix", "pp=2,ep=8,tp=1,cp=1"), ("needs etp*ep = 1*8 = 8 to be tp*cp = 1*1",)),
        (("train", "llama-3.1-8b", "--cluster", "h100", "--gpus", "1"), ("2 GPUs would do",)),
        (("train", "mixtral", "--cluster", "h100", "--gpus", "16", "--gbs", "7", "--dp", "7"),
         ("NOTHING IS LEGAL",)),
        (("train", "mixtral", "--cluster", "h100", "--gpus", "16", "--gbs", "64", "--fix",
          "dp=16,ep=1,zero=0"), ("NOTHING FITS", "without the restrictions")),
        (("serve", "mixtral", "--gpu", "h100", "--rps", "5", "--ttft", "1ms"),
         ("NOTHING MEETS TTFT", "the least")),
        (("serve", "mixtral", "--gpu", "h100", "--rps", "5", "--tpot", "1us"),
         ("NOTHING MEETS TPOT", "the least")),
        (("serve", "deepseek-v3", "--gpu", "rtx-4090", "--rps", "5"), ("NOTHING FITS", "22.4 GiB")),
        (("serve", "mixtral", "--gpu", "h100", "--rps", "5", "--tp", "3"), ("NOTHING IS LEGAL",)),
        (("serve", "mixtral", "--gpu", "h100", "--rps", "500", "--gpus", "4"),
         ("NOTHING CARRIES",)),
    ],
)  # fmt: skip
def test_nothing_says_what_would(run, arguments, expected):
    done = run("plan", *arguments)
    assert (done.code, done.err) == (1, "")
    out = " ".join(done.out.split())
    for text in expected:
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train", "mixtral", "--gpus", "8"), "--cluster is needed"),
        (("train", "mixtral", "--cluster", "h100"), "--gpus is needed"),
        (("train", "mixtral", "--cluster", "h10", "--gpus", "8"), "did you mean 'h100'"),
        (("train", "mixtral", "--cluster", "h100x8", "--gpus", "16"), "has 8 GPUs"),
        (("train", "mixtral", "--cluster", "h100", "--gpus", "12"), "multiple"),
        (("train", "mixtral", "--cluster", "h100", "--gpus", "0"), "--gpus is 0"),
        (("train", "mixtral", "--cluster", "h100", "--deadline", "5d"), "need --tokens"),
        (("train", "mixtral", "--cluster", "h100", "--gpus", "8", "--by", "tim"), "'time'"),
        (
            (
                "train",
                "mixtral",
                "--cluster",
                "h20",
                "--gpus",
                "64",
                "--budget",
                "$1M",
                "--tokens",
                "1T",
            ),
            "no price of h20 is on file",
        ),
        (
            (
                "train",
                "mixtral",
                "--cluster",
                "h100",
                "--gpus",
                "8",
                "--deadline",
                "300d",
                "--tokens",
                "1T",
            ),
            "nothing fits on 8 GPUs",
        ),
        ((*TRAIN[1:], "--gpu-step", "16", "--deadline", "5d"), "--gpu-step is the distance"),
        (("serve", "mixtral", "--gpu", "h100", "--rps", "5", "--by", "time"), "needs --gpus"),
        ((*TRAIN[1:], "--schedule", "1f1"), "did you mean '1f1b'"),
        ((*TRAIN[1:], "--recompute", "ful"), "did you mean 'full'"),
        ((*TRAIN[1:], "--recompute", "selective:norms"), "did you mean 'norm'"),
        ((*TRAIN[1:], "--fix", "tpp=1"), "unknown name 'tpp'"),
        ((*TRAIN[1:], "--fix", "tp"), "name=value"),
        ((*TRAIN[1:], "--tp", "1", "--fix", "tp=2"), "given twice"),
        ((*TRAIN[1:], "--save", "absent/t.toml"), "there is no folder absent"),
        ((*TRAIN[1:], "--zero", "4"), "must be 0, 1, 2 or 3"),
        ((*TRAIN[1:], "--stack", "kernel"), "did you mean 'kernels'"),
        ((*TRAIN[1:], "--json", "--csv"), "exclude each other"),
        (("serve", "mixtral", "--gpu", "h100"), "--rps is needed"),
        (("serve", "mixtral", "--rps", "5"), "--gpu is needed"),
        (("serve", "mixtral", "--gpu", "h100", "--rps", "0"), "above 0"),
        (("serve", "mixtral", "--gpu", "h100", "--rps", "many"), "must be a number"),
        (("serve", "mixtral", "--gpu", "h100", "--rps", "5", "--draft", "1"), "no MTP module"),
        ((*SERVE[1:], "--weights", "fp9"), "fp9"),
        (
            (*SERVE[1:], "--cache-hits", "1"),
            "--cache-hits is 1.0, and must be at least 0 and below",
        ),
        ((*SERVE[1:], "--cache-hits", "156%"), "--cache-hits is 1.56, and must"),
        ((*SERVE[1:], "--cache-hits", "half"), "--cache-hits is 'half', and must be a share"),
        ((*SERVE[1:], "--acceptance", "0.9"), "no token is drafted: give --draft"),
        (("train", "mixtral", "--cluster", "h100x16", "--tokens", "0"), "--tokens is 0"),
        (("serve", "mixtral", "--gpu", "tpu-v5p", "--rps", "5"), "can be planned for but tpu-v5e"),
        (("serve", "mixtral", "--gpu", "trainium2", "--rps", "5"), "on file with its figures only"),
        ((*SERVE[1:], "--utilization", "0"), "--utilization is 0"),
        ((*SERVE[1:], "--tpot", "0s"), "--tpot"),
        (("serve", "mixtral", "--gpu", "h100", "--rps", "5", "--instance", "12"), "multiple"),
        (("serve", "mixtral", "--gpu", "h100", "--rps", "5", "--mode", "both"), "aggregated"),
    ],
)
def test_a_mistake_is_one_sentence(run, arguments, expected):
    assert expected in said(run("plan", *arguments))


def test_a_rows_explanation_is_of_the_row():
    """The batch at the load and its TPOT, of each pool."""
    found = tree(*QUICK, "--explain")
    pools, picked = found["best"][0]["pools"], found["picked"]
    assert len(pools) == len(picked)
    for pool, answer in zip(pools, picked, strict=True):
        assert answer["batch"] == pool["batch"]
        assert answer["tpot"] == pytest.approx(pool["tpot"])
