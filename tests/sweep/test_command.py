"""The command `sweep`: its tables, its files that agree, its plots, and how it says no."""

from __future__ import annotations

import csv
import io
import json
import re
import sys

import numpy as np
import pytest

import moeplan
from moeplan import cli_sweep
from moeplan.sweeping import cells
from tests.commands import Run, runner

GRANULARITY = (
    "sweep", "mixtral", "--vary", "g=1,2,4,3", "--set", "experts=experts*g", "--set",
    "width=width/g", "--set", "top_k=top_k*g", "--show",
    "params.total,all_to_all.forward_step.dispatch.sent", "--show", "memory.weights_format",
)  # fmt: skip


@pytest.fixture(name="command")
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, at a width."""
    return runner(monkeypatch, capsys)


def said(done) -> str:
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("moeplan: ")
    assert done.err.count("\n") == 1
    return done.err


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_and_says_what_is_not_legal(command, columns):
    done = command(*GRANULARITY, columns=columns)
    assert done.code == 0
    assert done.err == ""
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[0] == "mixtral-8x7b: 4 points"
    rows = [line.split() for line in lines if line[:1].isdigit()]
    assert rows[0] == ["1", "8", "14,336", "2", "46.70", "B", "968.9", "MB", "bf16"]
    assert rows[-1] == ["3", "24", "4,778.67", "6", "–", "–", "–"]
    assert "not legal: 1 of 4 points" in done.out
    assert "a whole number is needed" in " ".join(done.out.split())


def test_wide_sweeps_are_cut_into_tables_that_repeat_the_axes(command):
    shown = (
        "all_to_all.forward_step.dispatch.sent,all_to_all.forward_step.combine.sent,params.total"
    )
    done = command(
        "sweep", "mixtral", "--vary", "tokens=1:100", "--set", "ep=8", "--set", "batch=2*tokens",
        "--show", shown, "--show", "kv_cache.bytes,time.decode.upper,time.decode.lower", columns=80,
    )  # fmt: skip
    assert done.code == 0
    assert "100 points, part 2 of 2" in done.out
    heads = [line.split()[:3] for line in done.out.splitlines() if line.startswith("tokens")]
    assert heads[0][:2] == ["tokens", "batch"]
    assert heads[1][:1] == ["tokens"]
    assert heads[1][1] != "batch"
    assert max(map(len, done.out.splitlines())) <= 80
    assert "40 of 100 points: --csv, --json and --parquet have all" in done.out
    assert "the same at every point: ep 8" in done.out


def test_expected_times_stand_with_their_band(command):
    done = command("sweep", "mixtral", "--vary", "gpu=h100,h200", columns=120)
    assert done.code == 0
    for gpu in ("h100", "h200"):
        found = moeplan.estimate("mixtral", gpu=gpu)["time.decode.calibrated"]
        [row] = [line for line in done.out.splitlines() if line.split()[:1] == [gpu]]
        assert f"{found['expected'].value * 1e3:.4g} ms ±{found['band'].value:.0%}" in row
    assert "band" not in done.out.splitlines()[3]


def number(text):
    try:
        return float(text)
    except ValueError:
        return text or None


def test_files_agree_with_each_other_and_with_the_library(command, tmp_path):
    files = [tmp_path / f"out.{kind}" for kind in ("csv", "json", "parquet")]
    options = [word for file in files for word in (f"--{file.suffix[1:]}", str(file))]
    done = command(*GRANULARITY, *options)
    assert done.err.split() == [str(file) for file in files]
    with files[0].open() as file:
        head, *lines = csv.reader(file)
    document = json.loads(files[1].read_text(), parse_constant=pytest.fail)
    assert [column["name"] for column in document["columns"]] == head
    units = {column["name"]: column["unit"] for column in document["columns"]}
    assert units["all_to_all.forward_step.dispatch.sent"] == "B"
    parquet = pytest.importorskip("pyarrow.parquet").read_table(files[2])
    assert parquet.column_names == head
    assert parquet.schema.field("all_to_all.forward_step.dispatch.sent").metadata == {b"unit": b"B"}
    columns = moeplan.sweep(
        "mixtral", vary={"g": "1,2,4,3"},
        set={"experts": "experts*g", "width": "width/g", "top_k": "top_k*g"},
        show=["params.total", "all_to_all.forward_step.dispatch.sent", "memory.weights_format"],
    )  # fmt: skip
    assert list(columns) == head
    rows = [dict(zip(head, map(number, line), strict=True)) for line in lines]
    assert len(rows) == 4
    for i, (row, one, other) in enumerate(
        zip(rows, document["rows"], parquet.to_pylist(), strict=True)
    ):
        assert one == other
        assert row == {name: value or None if isinstance(value, str) else value
                       for name, value in one.items()}  # fmt: skip
        assert {n: v for n, v in one.items() if v is not None} == {
            n: c[i] for n, c in columns.items() if not (isinstance(c[i], float) and np.isnan(c[i]))
            and c[i] is not None
        }  # fmt: skip
    assert document["rows"][0]["params.total"] == 46702792704
    assert document["rows"][3]["params.total"] is None
    assert "whole number" in document["rows"][3]["reason"]


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_dash_is_standard_output(command, kind):
    done = command("sweep", "mixtral", "--vary", "batch=1,2", f"--{kind}", "-")
    assert done.code == 0
    if kind == "json":
        assert [row["batch"] for row in json.loads(done.out)["rows"]] == [1, 2]
    else:
        assert [row["batch"] for row in csv.DictReader(io.StringIO(done.out))] == ["1", "2"]


def test_parquet_says_what_to_install(command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = command(
        "sweep", "mixtral", "--vary", "batch=1", "--parquet", str(tmp_path / "x.parquet")
    )
    assert "pip install 'moeplan[parquet]'" in said(done)


def test_layouts_and_a_config_of_ones_own(command, tmp_path):
    done = command(
        "sweep", "deepseek-v3", "--cluster", "h800x2048", "--train", "--vary", "tp=1,3", "--vary",
        "pp=8,16", "--set", "batch=16384", "--set", "ep=64", columns=100,
    )  # fmt: skip
    assert done.code == 0
    assert "deepseek-v3, training on h800x2048: 4 points" in done.out
    assert "tp*cp*pp*dp = 3*1*8*85 = 2040 must be the 2048 GPUs; and more" in done.out
    assert "the same at every point: batch 16,384, ep 64" in done.out


def test_names_are_listed_with_the_models_own_values(command):
    done = command("sweep", "mixtral", "--names")
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert ["experts", "8", "routed", "experts", "of", "a", "layer"] in lines
    assert any("(num_local_experts)" in line for line in lines)
    assert not any(line[:1] == ["shared"] for line in lines)
    served = command("sweep", "mixtral", "--names", "--cluster", "h100x8", "--serve", "--markdown")
    assert "| isl |" in served.out
    assert "| schedule |" not in served.out


WRONG = [
    (("sweep", "--vary", "batch=1"), "a model is needed"),
    (("sweep", "mixtral"), "nothing to vary"),
    (("sweep", "mixtral", "--vary", "batch"), "--vary batch: write NAME=..."),
    (("sweep", "mixtral", "--vary", "batch=1", "--vary", "batch=2"), "--vary batch is given twice"),
    (("sweep", "mixtral", "--vary", "exprts=1"), "(did you mean 'experts'?)"),
    (("sweep", "mixtral", "--vary", "batch=1", "--show", "params.ttal"), "did you mean 'total'?"),
    (("sweep", "mixtral", "--vary", "top_k=99"), "the point is not legal: preset mixtral-8x7b"),
    (("sweep", "mixtral", "--vary", "context=1:1G"), "unknown unit 'G'"),
    (("sweep", "mixtral", "--vary", "context=1:2M"), "--max-points"),
    (("sweep", "mixtral", "--vary", "tp=1", "--cluster", "h100x8"), "needs --train or --serve"),
    (("sweep", "mixtral", "--vary", "tp=1", "--train"), "a layout needs --cluster"),
    (("sweep", "mixtral", "--vary", "batch=1", "--plot", "batch"), "two or three columns"),
    (("sweep", "mixtral", "--vary", "batch=1", "--plot", "batch,kv"), "no column 'kv'"),
    (("sweep", "mixtral", "--preset", "mixtral", "--vary", "batch=1"), "several were given"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG)
def test_mistakes_end_with_one_sentence(command, arguments, sentence):
    assert sentence in said(command(*arguments))


def test_progress_is_drawn_on_a_terminal_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for file, drawn in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.setenv("TERM", "xterm")
        with cli_sweep._progress(4) as progress:
            assert (progress is not None) is drawn
            if progress is not None:
                progress(4, 4)
        assert ("4/4" in file.getvalue()) is drawn


ON_A_CLUSTER = (
    "sweep", "deepseek-v3", "--cluster", "h800x2048", "--train", "--vary", "pp=8,16", "--vary",
    "ep=8,3,64", "--set", "recompute=full", "--show", "step,mfu,memory",
)  # fmt: skip


def test_points_that_do_not_fit_are_marked_everywhere(command, tmp_path):
    done = command(*ON_A_CLUSTER, "--csv", str(tmp_path / "x.csv"), columns=80)
    assert done.code == 0
    assert "1 of 4 points does not fit the GPU's memory" in done.out
    words = [line.split() for line in done.out.splitlines() if line[:2].strip().isdigit()]
    shown = {(row[0], row[1]): row[2] for row in words}
    found = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    for row in found:
        layout = f"pp={row['pp']},ep={row['ep']},recompute=full"
        if row["reason"]:
            assert row["fits"] == ""
            continue
        choice = ("--cluster", "h800x2048", "--train", layout)
        answer = json.loads(command("layout", "deepseek-v3", *choice, "--json").out)
        fits = answer["fits"]
        assert row["fits"] == str(fits)
        assert shown[row["pp"], row["ep"]] == ("yes" if fits else "no")
    whole = command(*ON_A_CLUSTER, "--json", "-")
    assert [row["fits"] for row in json.loads(whole.out)["rows"]].count(False) == 1


def test_tables_of_layouts_are_written_as_layout_writes_them(command):
    done = command(*ON_A_CLUSTER, columns=80)
    assert "102.9 GiB" in done.out  # 110.5e9 bytes
    assert "15.4%" in done.out
    work = command("sweep", "mixtral", "--vary", "context=4k,8k", "--show",
                   "flops.forward_per_token")  # fmt: skip
    assert "26.55 GFLOP" in work.out
    paid = command("sweep", "deepseek-v3", "--cluster", "h200x16", "--serve", "--vary", "ep=8,16",
                   "--show", "dollars_per_million_output")  # fmt: skip
    prices = re.findall(r"\$0\.\d+", paid.out)
    assert len(set(prices)) == len(prices) > 1


def test_cells_are_whole_where_they_can_be():
    found = cells(np.array([1.0, np.nan, 3.0, 2.5, np.inf, 2.0**60]))
    assert found == [1, None, 3, 2.5, None, 2.0**60]
    assert [type(x) for x in found if x is not None] == [int, int, float, float]
    assert cells(np.array([2**60, None], dtype=object)) == [2**60, None]
