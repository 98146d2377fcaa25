"""A sweep's rows are the scalar answers; what has none says why; files agree."""

import csv
import json
import random
import re
import shlex

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from moeplan import api
from moeplan.cli import app
from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import Layout
from moeplan.errors import UserError
from moeplan.load import load_model
from moeplan.model.ffn import MoE
from moeplan.parallel import BINDS, ServingJob, TrainingJob, evaluate_serving, evaluate_training
from moeplan.presets import preset
from moeplan.sweep import Sweep, run
from moeplan.sweep.axes import Axis, Formula
from moeplan.sweep.write import rows
from tests.commands import runner

GRANULAR = ["experts=8*g", "width=14336/g", "top_k=2*g"]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command in this process."""
    return runner(monkeypatch, capsys)


def entries(sweep, workers=1):
    """All rows as mappings."""
    return [
        dict(zip(sweep.columns, row, strict=True))
        for table in sweep.tables(workers)
        for row in rows(table)
    ]


# ------------------------------------------------------------------------- beside scalar answers
def test_rows_are_the_estimates_of_configs_written_by_hand():
    """Each point's config.json is changed key by key and read as any other."""
    metrics = ["params.total", "params.active.all", "memory.training.total", "time.decode.lower",
               "all_to_all.forward_step.dispatch.busiest", "flops.forward_per_token"]  # fmt: skip
    sweep = Sweep.of(
        "deepseek-v3",
        vary=["experts=64,256,320", "top_k=1,6,8", "width=512:2048:+512", "ep=1:64:x2",
              "tokens=1,100", "gpu=h100,b200", "layers=8,61"],
        metrics=metrics,
    )  # fmt: skip
    found = [row for row in entries(sweep) if row["reason"] is None]
    assert 500 < len(found) <= sweep.size
    for row in random.Random(4).sample(found, 25):
        config = dict(preset("deepseek-v3").config)
        config |= {"n_routed_experts": row["experts"], "num_experts_per_tok": row["top_k"],
                   "num_hidden_layers": row["layers"]}  # fmt: skip
        spec = load_model(config).vary(MoE, F=row["width"])  # shared experts keep their width
        want = api.estimate(spec, ep=row["ep"], tokens=row["tokens"], gpu=row["gpu"])
        for name in metrics:
            assert row[name] == pytest.approx(want[name].value, rel=1e-12), (name, row)


def test_rows_are_the_answers_of_layouts():
    sweep = Sweep.of(
        "qwen3-30b",
        vary=["tp=1,2,3,4", "pp=1,2,5", "ep=1,4,8,7", "microbatch=1,2", "recompute=none,full",
              "top_k=4,8", "imbalance=1,2"],
        metrics=["memory", "step", "mfu", "time_ep", "binds", "fits"],
        layout="batch=64", cluster="h100x16", training=True,
    )  # fmt: skip
    found = entries(sweep)
    assert len(found) == sweep.size == 4 * 3 * 4 * 2 * 2 * 2 * 2
    legal = [row for row in found if row["reason"] is None]
    assert 20 < len(legal) < len(found)
    spec, machine = load_model("qwen3-30b"), cluster("h100x16")
    for row in random.Random(5).sample(found, 40):
        degrees = {n: row[n] for n in ("tp", "pp", "ep", "microbatch")}
        dp = 16 // (row["tp"] * row["pp"])
        layout = Layout(**degrees, dp=max(1, dp), batch=64, recompute=row["recompute"])
        job = TrainingJob(imbalance=row["imbalance"])
        varied = spec.vary(MoE, k=row["top_k"])
        if row["reason"] is not None:
            with pytest.raises(UserError) as caught:
                evaluate_training(varied, layout, machine, job)
            for part in row["reason"].split("; "):
                if not part.startswith(("dp=", "ep*etp", "microbatch*dp", "batch=")):
                    assert part in str(caught.value)
            assert row["step"] is None
            continue
        want = evaluate_training(varied, layout, machine, job)
        for name in ("memory", "step", "mfu", "time_ep"):
            assert row[name] == pytest.approx(want[name], rel=1e-12)
        assert (row["binds"], row["fits"]) == (BINDS[want["binds"]], want["fits"])


def test_rows_are_the_answers_of_serving():
    sweep = Sweep.of("mixtral", vary=["ep=1,2,8", "tp=1,8", "input=1000,4000"],
                     metrics=["tpot", "ttft", "fits"], layout="tp=1", cluster="h100x8",
                     job={"output": 500}, training=False)  # fmt: skip
    for row in entries(sweep):
        layout = Layout(tp=row["tp"], dp=8 // row["tp"], ep=row["ep"])
        job = ServingJob(input=row["input"], output=500)
        want = evaluate_serving(load_model("mixtral"), layout, cluster("h100x8"), job)
        assert row["fits"] == want["fits"]
        assert row["tpot"] == (pytest.approx(want["tpot"]) if want["fits"] else None)


def test_finer_experts_at_the_same_size_send_more():
    sweep = Sweep.of("mixtral", vary=["g=1,2,4", "ep=8"], sets=GRANULAR,
                     metrics=["params.by_component.routed_experts",
                              "all_to_all.per_layer.dispatch.sent"])  # fmt: skip
    size, sent = (
        [row[name] for row in entries(sweep)] for name in sweep.metrics
    )  # fmt: skip
    assert len(set(size)) == 1
    assert sent[0] < sent[1] < sent[2]


def test_hardware_is_an_input():
    metrics = ["time.decode.memory", "time.prefill.compute", "memory.serving.gpus_at_least"]
    sweep = Sweep.of("mixtral", vary=["memory_bandwidth=2 TB/s,4 TB/s", "peak=1e15,2e15",
                                      "memory=40 GB,80 GB"], metrics=metrics)  # fmt: skip
    found = {(r["memory_bandwidth"], r["peak"], r["memory"]): r for r in entries(sweep)}
    low, high = found[2e12, 1e15, 40e9], found[4e12, 2e15, 80e9]
    assert low[metrics[0]] == pytest.approx(2 * high[metrics[0]])
    assert low[metrics[1]] == pytest.approx(2 * high[metrics[1]])
    assert (low[metrics[2]], high[metrics[2]]) == (3, 2)
    links = Sweep.of("mixtral", vary=["scale_up_bandwidth=100 GB/s,1 TB/s"], layout="ep=8",
                     cluster="h100x8", metrics=["time_ep"])  # fmt: skip
    slow, fast = entries(links)
    assert slow["time_ep"] > 2 * fast["time_ep"]


# ------------------------------------------------------------------------------ points without
def test_what_has_no_answer_says_why():
    sweep = Sweep.of("mixtral", vary=["experts=8,12", "top_k=2,9.5,16", "ep=1,5,8", "node=8,3"],
                     metrics=["params.total"])  # fmt: skip
    said = {
        (r["experts"], r["top_k"], r["ep"], r["node"]): r["reason"] or "" for r in entries(sweep)
    }
    assert said[8, 2, 8, 8] == ""
    assert said[8, 2, 5, 3] == "ep=5 does not divide the 8 experts; ep=5 and node=3 do not fit"
    assert said[12, 16, 1, 8] == "top_k=16 is above the 12 experts"
    assert "top_k=9.5 must be a whole number" in said[12, 9.5, 1, 8]
    odd = Sweep.of("mixtral", vary=["config.num_attention_heads=32,33"], metrics=["params.total"])
    good, bad = entries(odd)
    assert good["reason"] is None
    assert "num_attention_heads" in bad["reason"]


WRONG = [
    (["exprts=8"], [], [], "did you mean 'experts'?"),
    (["config.hidden_sise=8"], [], [], ""),
    (["experts"], [], [], "must be NAME=VALUES"),
    (["ep=1:64:y2"], [], [], "FIRST:LAST:xFACTOR"),
    (["ep=64:1:x2"], [], [], "never reaches 1"),
    (["ep=1,1"], [], [], "1 is given twice"),
    (["ep=1", "ep=2"], [], [], "ep is given twice"),
    (["ep=1,eight"], [], [], "numbers and words are mixed"),
    (["ep=eight"], [], [], "'eight' is not a number"),
    (["g=1,2"], ["experts=8*h"], [], "'h' is neither varied nor set before"),
    (["g=1,2"], ["experts=8*open('x')"], [], "no function 'open'"),
    (["g=1,2"], ["experts=g.real"], [], "may hold numbers, names"),
    (["g=1,2"], ["experts=8*"], [], "is not a formula"),
    (["ep=1"], [], ["params.totl"], "did you mean 'total'?"),
    (["ep=1"], [], ["params"], "is no single number"),
    (["ep=1:2000000:+1"], [], [], "more than 1,000,000 values"),
    ([], [], [], "nothing varies"),
]


@pytest.mark.parametrize(("vary", "sets", "metrics", "said"), WRONG)
def test_a_wrong_name_or_value_says_what_to_type(vary, sets, metrics, said):
    if not said:  # a key of the config is looked up where it is changed
        [row] = entries(Sweep.of("mixtral", vary=vary, metrics=["params.total"]))
        assert "no such key (did you mean 'hidden_size'?)" in row["reason"]
        return
    with pytest.raises(UserError) as caught:
        Sweep.of("mixtral", vary=vary, sets=sets, metrics=metrics)
    assert said in str(caught.value)


def test_a_metric_of_layouts_that_is_not_known_has_a_near_miss():
    with pytest.raises(UserError, match=r"did you mean 'mfu'\?"):
        Sweep.of("mixtral", vary=["ep=1"], layout="tp=1", cluster="h100x8", metrics=["mfuu"])


# ------------------------------------------------------------------------------ axes, formulas
@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("ep=1:64:x2", (1, 2, 4, 8, 16, 32, 64)),
        ("ep=1,4:6", (1, 4, 5, 6)),
        ("tokens=1k:9k:+4k", (1000, 5000, 9000)),
        ("context=4Ki,128k", (4096, 128_000)),
        ("imbalance=1:2:+0.25", (1.0, 1.25, 1.5, 1.75, 2.0)),
        ("gpu=h100,h200", ("h100", "h200")),
        ("ep=3:50:x3", (3, 9, 27)),
    ],
)
def test_values_of_an_axis(text, values):
    assert Axis.parse(text).values == values


NUMBERS = st.integers(1, 99).map(str) | st.sampled_from(["g", "h"])
FORMULAS = st.recursive(
    NUMBERS,
    lambda below: (
        st.tuples(below, st.sampled_from("+-*/%"), below).map(lambda x: f"({x[0]} {x[1]} {x[2]})")
        | st.tuples(st.sampled_from(["min", "max"]), below, below).map(
            lambda x: f"{x[0]}({x[1]}, {x[2]})"
        )
    ),
    max_leaves=6,
)


@given(FORMULAS, st.integers(1, 9), st.integers(1, 9))
def test_a_formula_is_what_python_says(text, g, h):
    found = Formula.parse(f"x={text}")
    assert set(found.names) <= {"g", "h"}
    try:
        want = eval(text, {"min": min, "max": max, "g": g, "h": h})
    except ZeroDivisionError:
        return
    arrays = {"g": np.full(2, float(g)), "h": np.full(2, float(h))}
    assert np.broadcast_to(found(arrays), (2,)).tolist() == pytest.approx([want, want])


# ------------------------------------------------------------------------------ chunks, files
VARIED = ["gpu=h100,h200", "g=1,2,3", "ep=1:16:x2", "tokens=1:300:+7"]
SENT = "all_to_all.per_layer.combine.sent"


def test_chunks_and_processes_change_nothing(monkeypatch):
    sweep = Sweep.of("mixtral", vary=VARIED, sets=GRANULAR, metrics=[SENT, "time.gpu"])
    whole = entries(sweep)
    assert len(whole) == sweep.size
    assert [list(row)[:1] for row in whole[:1]] == [["gpu"]]  # kinds vary slowest
    monkeypatch.setattr(run, "CHUNK", 50)
    assert entries(sweep) == whole
    assert entries(Sweep.of("mixtral", vary=VARIED, sets=GRANULAR, metrics=[SENT, "time.gpu"]),
                   workers=2) == whole  # fmt: skip


def test_files_agree(command, tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    arguments = ["sweep", "mixtral", "--table", f"{SENT},time.gpu"]
    arguments += [x for text in VARIED for x in ("--vary", text)]
    arguments += [x for text in GRANULAR for x in ("--set", text)]
    for kind in ("csv", "json", "parquet"):
        done = command(*arguments, "--out", str(tmp_path / f"s.{kind}"))
        assert (done.code, done.out) == (0, "")
        assert "1,290 rows" in done.err
    said = json.loads((tmp_path / "s.json").read_text())
    with (tmp_path / "s.csv").open() as file:
        read = list(csv.DictReader(file))
    stored = parquet.read_table(tmp_path / "s.parquet").to_pylist()
    assert len(said) == len(read) == len(stored) == 1290
    for a, b, c in zip(said, read, stored, strict=True):
        assert list(a) == list(b) == list(c)
        assert a == c
        for name, x in a.items():
            assert b[name] == ("" if x is None else str(x))
    assert json.loads(command(*arguments, "--json").out) == said


def test_plots_are_drawn_beside_the_file(command, tmp_path):
    done = command("sweep", "mixtral", "--vary", "g=1,2,4", "--vary", "ep=1:8:x2", "--set",
                   "experts=8*g", "--table", f"{SENT},time.gpu", "--out", str(tmp_path / "a.b.csv"),
                   "--plot", f"ep,{SENT},g", "--plot", "g,ep")  # fmt: skip
    assert done.code == 0, done.err
    names = sorted(p.name for p in tmp_path.iterdir())
    stem = SENT.replace(".", "_")
    assert names == ["a.b-ep-" + stem + "-g.png", "a.b-ep-" + stem + "-g.svg", "a.b-g-ep.png",
                     "a.b-g-ep.svg", "a.b.csv"]  # fmt: skip
    for wrong, said in (("ep", "X,Y or X,Y,COLOUR"), ("ep,sents", "no column 'sents'"),
                        ("ep,time.gpu", "an axis needs numbers")):  # fmt: skip
        done = command("sweep", "mixtral", "--vary", "ep=1,2", "--table", f"{SENT},time.gpu",
                       "--plot", wrong)  # fmt: skip
        assert done.code == 2
        assert said in done.err


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_screen(command, columns):
    out = command("sweep", "mixtral", "--vary", "g=1,2", "--vary", "ep=8,16", "--set",
                  "experts=8*g", columns=columns).out  # fmt: skip
    assert max(map(len, out.splitlines())) <= columns
    assert "(1) ep=16 does not divide the 8 experts" in out
    assert ("left out" in out) == (columns == 80)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--vary", "ep=1", "--isl", "4"), "--isl needs --layout"),
        (("--vary", "ep=1", "--cluster", "h100x8"), "needs --layout"),
        (("--vary", "ep=1", "--layout", "", "--train"), "--layout needs --cluster"),
        (("--vary", "ep=1", "--layout", "", "--cluster", "h100x8"), "one of --train and --serve"),
        (("--vary", "ep=1", "--out", "x.xlsx"), "the ending says the format"),
        (("--vary", "ep=1", "--out", "/nowhere/x.csv"), "cannot be written"),
        (("--vary", "ep=1", "--out", "x.csv", "--json"), "one place is needed"),
    ],
)
def test_a_mixture_of_options_is_refused(command, arguments, said):
    done = command("sweep", "mixtral", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_the_plot_of_the_documentation_is_current(root, tmp_path):
    text = " ".join((root / "docs" / "sweep.md").read_text(encoding="utf-8").split())
    found = re.search(r"`moeplan (sweep [^`]+--out \S*granularity\.csv[^`]+)`", text)
    assert found
    words = shlex.split(found[1])
    at = words.index("--out") + 1
    words[at] = str(tmp_path / "granularity.csv")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    [image] = (root / "docs" / "img" / "sweep").glob("*.png")
    pinned = re.search(r"^matplotlib==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    if matplotlib.__version__ != pinned[1]:
        pytest.skip(f"matplotlib {matplotlib.__version__} is not the pinned {pinned[1]}")
    assert (tmp_path / image.name).read_bytes() == image.read_bytes()
