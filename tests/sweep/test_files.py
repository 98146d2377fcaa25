"""Files of a sweep: refused before the work, written as points come, kept when it is stopped."""

from __future__ import annotations

import csv
import json
import os
import signal
import tracemalloc
from importlib import import_module
from pathlib import Path

import pytest

import moeplan
from moeplan.report import sweep_files, sweep_parquet
from moeplan.sweeping import ask, estimates, ready, stretches
from tests.commands import Run, runner

ASK = import_module("moeplan.sweeping.ask")  # the package has a function of that name
MAIN = os.getpid()
SWEEP = ("sweep", "mixtral", "--vary", "gpu=h100,b200", "--vary", "batch=1:10", "--vary",
         "ep=1,3,8", "--show", "kv_cache.bytes,all_to_all.forward_step.dispatch.sent",
         "--show", "all_to_all.policy", "--show", "time.decode.sequential")  # fmt: skip


@pytest.fixture(name="command")
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, at a width."""
    return runner(monkeypatch, capsys)


@pytest.fixture(name="small")
def small_pieces(monkeypatch):
    """Stretches and passes of a few points, so that a small sweep has many of both."""
    monkeypatch.setattr(ASK, "_WINDOW", 7)
    monkeypatch.setattr(ASK, "_EACH", 1)
    monkeypatch.setattr(estimates.Estimates, "chunk", 3)
    monkeypatch.setattr(sweep_parquet, "_ROWS", 5)


def lines(path):
    with Path(path).open(newline="") as file:
        return list(csv.reader(file))


# ------------------------------------------------------------------------------------- refused
REFUSED = [
    (("--csv", "no/such/x.csv"), "--csv no/such/x.csv: there is no folder no/such"),
    (("--csv", "dat/x.csv"), "(did you mean 'data'?)"),
    (("--json", "data"), "--json data is a folder, and must be a file such as sweep.json"),
    (("--csv", "afile/x"), "afile is a file, and must be a folder"),
    (("--csv", "x", "--parquet", "data/../x"), "--csv and --parquet are the same file"),
    (("--parquet", "-"), "--parquet -: Parquet does not go to standard output"),
    (("--csv", "-", "--json", "-"), "exclude each other"),
    (("--plots", "data"), "say which by --plot X,Y"),
    (("--plots", "-", "--plot", "batch,ep"), "--plots -: plots do not go to standard output"),
    (("--plots", "afile", "--plot", "batch,ep"), "--plots afile is a file, and must be a folder"),
    (("--plots", "afile/x", "--plot", "batch,ep"), "no folder can be made in it"),
    (("--plot", "batch,kv_cache.bites"), "(did you mean 'kv_cache.bytes'?)"),
    (("--plot", "batch"), "two or three columns"),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED)
def test_what_cannot_be_written_is_refused_before_the_work(
    command, monkeypatch, tmp_path, options, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "afile").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(
        estimates.Estimates, "answers", lambda *_: pytest.fail("points were evaluated")
    )
    done = command(*SWEEP, *options)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("moeplan: ")
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_what_may_not_be_written_is_refused(command, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *_: False)
    done = command(*SWEEP, "--csv", str(tmp_path / "x.csv"))
    assert f"a file in {tmp_path} may not be written" in done.err
    (tmp_path / "x.csv").write_text("mine")
    done = command(*SWEEP, "--csv", str(tmp_path / "x.csv"))
    assert "the file may not be written" in done.err


def test_a_models_own_file_is_not_written_over(command, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**moeplan.presets.preset("mixtral").config}))
    before = file.read_text()
    done = command("sweep", str(file), "--vary", "batch=1", "--json", str(file))
    assert (done.code, file.read_text()) == (2, before)
    assert "is the model's own file" in done.err


# -------------------------------------------------------------------------------- by stretches
@pytest.mark.parametrize("workers", ["1", "2"])
def test_stretches_change_nothing(command, monkeypatch, tmp_path, request, workers):
    whole = [tmp_path / f"whole.{kind}" for kind in ("csv", "parquet")]
    command(*SWEEP, "--csv", str(whole[0]), "--parquet", str(whole[1]))
    table = command(*SWEEP).out
    request.getfixturevalue("small")
    some = [tmp_path / f"some.{kind}" for kind in ("csv", "parquet")]
    done = command(*SWEEP, "--csv", str(some[0]), "--parquet", str(some[1]), "--workers", workers)
    assert done.out == table
    assert some[0].read_bytes() == whole[0].read_bytes()
    read = pytest.importorskip("pyarrow.parquet").read_table
    assert read(some[1]).equals(read(whole[1]), check_metadata=True)
    assert read(some[1]).num_rows == 60
    assert not list(tmp_path.glob("*.part*"))


def test_types_of_a_growing_file_are_those_of_all_points(command, small, tmp_path):
    """Words beside numbers, fractions after whole numbers, and nothing before something."""
    file = tmp_path / "x.parquet"
    done = command(
        "sweep", "--vary", "model=llama-3.1-8b,mixtral", "--vary", "price=$2/h,$2.5/h,hyperscaler",
        "--vary", "batch=1:5", "--show", "all_to_all.ep,params.total,model.name",
        "--parquet", str(file),
    )  # fmt: skip
    assert done.code == 0
    found = pytest.importorskip("pyarrow.parquet").read_table(file)
    types = {field.name: str(field.type) for field in found.schema}
    assert types["price"] == types["model.name"] == "string"
    assert types["params.total"] == types["all_to_all.ep"] == types["batch"] == "int64"
    assert types["reason"] == "string"
    assert found["price"].to_pylist()[:11:5] == ["2", "2.5", "hyperscaler"]
    assert found["all_to_all.ep"].to_pylist()[0] is None
    assert found["all_to_all.ep"].to_pylist()[-1] == 8
    part = tmp_path / "y.parquet"
    command("sweep", "mixtral", "--vary", "imbalance=1:3:0.25", "--parquet", str(part),
            "--vary", "batch=1:2", "--show", "kv_cache.bytes")  # fmt: skip
    column = pytest.importorskip("pyarrow.parquet").read_table(part)["imbalance"]
    assert str(column.type) == "double"
    assert column.to_pylist()[:4] == [1, 1, 1.25, 1.25]


def test_memory_is_that_of_a_stretch(monkeypatch):
    monkeypatch.setattr(ASK, "_WINDOW", 10_000)

    def peak(contexts):
        asked = ask("mixtral", {"context": f"1:{contexts}", "batch": "1:10"}, {},
                    ["kv_cache.bytes"], None, "estimate", 10**7)  # fmt: skip
        tracemalloc.start()
        glance = ready(asked)
        sizes = [found.points for found in stretches(asked, glance, whole=False)]
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert max(sizes) == 10_000
        assert sum(sizes) == glance.points == 10 * contexts
        return most

    peak(1000)
    assert peak(20_000) < 1.1 * peak(2000)


# ------------------------------------------------------------------------------------- stopped
def stopping(monkeypatch, after):
    """Let a signal come while the points after so many are evaluated."""
    evaluate = estimates.Estimates.evaluate

    def evaluated(self, prepared, points, numbers):
        if points[0] >= after:
            os.kill(MAIN, signal.SIGINT)
            monkeypatch.setattr(estimates.Estimates, "evaluate", evaluate)
        return evaluate(self, prepared, points, numbers)

    monkeypatch.setattr(estimates.Estimates, "evaluate", evaluated)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stopped_sweep_keeps_its_rows(command, monkeypatch, small, tmp_path, workers):
    whole, some, parquet = (tmp_path / name for name in ("whole.csv", "some.csv", "x.parquet"))
    command(*SWEEP, "--csv", str(whole))
    some.write_text("older")
    stopping(monkeypatch, 30)
    done = command(*SWEEP, "--csv", str(some), "--parquet", str(parquet), "--workers", workers)
    assert done.code == 130
    kept = len(lines(some)) - 1
    assert 0 < kept < 60
    assert lines(some) == lines(whole)[: kept + 1]
    assert done.err == f"moeplan: stopped: {some} and {parquet} have {kept} of 60 points\n"
    assert pytest.importorskip("pyarrow.parquet").read_table(parquet).num_rows == kept
    assert f"mixtral-8x7b: {kept} points" in done.out
    assert not list(tmp_path.glob("*.part*"))


def test_a_stopped_sweep_of_all_points_keeps_those_it_has(command, monkeypatch, small, tmp_path):
    file, folder = tmp_path / "x.json", tmp_path / "plots"
    stopping(monkeypatch, 30)
    done = command(
        *SWEEP, "--json", str(file), "--plot", "batch,kv_cache.bytes", "--plots", str(folder)
    )
    kept = len(json.loads(file.read_text())["rows"])
    assert done.code == 130
    assert done.err.endswith(f"x.json has {kept} of 60 points, and no plot is drawn\n")
    assert 0 < kept < 60
    assert not list(folder.iterdir())


def test_a_stopped_table_says_so(command, monkeypatch, small):
    stopping(monkeypatch, 30)
    done = command(*SWEEP)
    assert done.code == 130
    assert "moeplan: stopped: the table is of " in done.err
    assert "Traceback" not in done.err


# -------------------------------------------------------------------------------------- broken
def test_an_older_file_stays_where_no_point_is_legal(command, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("mine")
    done = command("sweep", "mixtral", "--vary", "top_k=9,10", "--csv", str(file))
    assert done.code == 2
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_rows_stay_where_a_disk_is_full(command, monkeypatch, small, tmp_path):
    write, calls = sweep_files.CsvFile._write, []

    def full(self, found):
        calls.append(found.points)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        write(self, found)

    monkeypatch.setattr(sweep_files.CsvFile, "_write", full)
    file = tmp_path / "x.csv"
    done = command(*SWEEP, "--csv", str(file))
    kept = calls[0] + calls[1]
    assert done.code == 2
    assert done.err == (
        f"moeplan: --csv {file}: cannot be written (No space left on device); {kept} points are in "
        f"{file}.part\n"
    )
    assert len(lines(f"{file}.part")) == kept + 1
    assert not file.exists()


def test_pipes_and_links_are_written_in_their_place(command, tmp_path):
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    link.symlink_to(target)
    assert command(*SWEEP, "--csv", str(link)).code == 0
    assert link.is_symlink()
    assert len(lines(target)) == 61
    assert command(*SWEEP, "--csv", "/dev/null").code == 0
