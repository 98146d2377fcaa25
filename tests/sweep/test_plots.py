"""Plots of a sweep: what they hold, what they say, and that no point hides another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from moeplan.errors import UserError
from moeplan.report.plots.sweep import plot_columns, plot_sweep
from moeplan.report.plots.sweep_words import in_words
from moeplan.report.style import model_style
from moeplan.sweeping import ask, run
from tests.commands import Run, runner


@pytest.fixture(name="command")
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, at a width."""
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def swept():
    vary = {"tokens": "256:4096:x2", "ep": "1,2,4,8", "gpu": ["h100", "h200"]}
    show = ("all_to_all.forward_step.dispatch.sent", "time.decode.sequential")
    return run(ask("mixtral", vary, {}, show, None, "estimate", 1000))


def points(figure):
    return [line for line in figure.axes[0].lines if line.get_gid() == "points"]


def test_a_plot_holds_the_columns(swept):
    sent = "all_to_all.forward_step.dispatch.sent"
    figure = plot_sweep(swept, "tokens", sent, "ep")
    found = points(figure)
    assert [to_hex(line.get_color()) for line in found] == [
        to_hex(model_style(i).colour) for i in range(4)
    ]
    for line, ep in zip(found, (1, 2, 4, 8), strict=True):
        own = swept.columns["ep"] == ep
        assert sorted(line.get_ydata()) == sorted(swept.columns[sent][own])
        assert line.get_label() == f"ep {ep}"
        assert line.get_linestyle() == "None"  # two GPUs at each: points, no line
    assert "gpu varies between points" in figure.texts[2].get_text()
    assert "Least 0 B at ep 1; most " in figure.texts[1].get_text()


def test_words_and_scales(swept):
    figure = plot_sweep(swept, "gpu", "time.decode.sequential")
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["h100", "h200"]
    scale = plot_sweep(swept, "tokens", "time.decode.sequential",
                       "all_to_all.forward_step.dispatch.sent")  # fmt: skip
    assert len(scale.axes) == 2  # a bar of colours beside the points
    many = replace(
        swept, columns={**swept.columns, "gpu": np.array([f"gpu{i}" for i in range(40)])}
    )
    with pytest.raises(UserError, match="gpu has 40 words, more than an axis can show"):
        plot_sweep(many, "gpu", "time.decode.sequential")


def test_a_plot_has_hollow_markers_where_points_do_not_fit():
    vary, link = {"pp": "8,16", "ep": "8,64"}, {"recompute": "full"}
    found = run(ask("deepseek-v3", vary, link, ("step",), "h800x2048", "train", 100))
    figure = plot_sweep(found, "ep", "step", "pp")
    [hollow] = [line for line in figure.axes[0].lines if line.get_gid() == "too-large"]
    too_large = ~found.columns["fits"].astype(bool)
    assert too_large.sum() == 1
    assert list(hollow.get_ydata()) == list(found.columns["step"][too_large])
    least = found.columns["step"][~too_large].min()
    assert f"Of those that fit: least {least:.4g} s" in figure.texts[1].get_text()
    assert figure.texts[0].get_text() == (
        "Step time against expert parallelism, by pipeline stages"
    )
    assert figure.axes[0].get_xlabel() == "expert parallelism (ep)"


def test_files_of_plots_are_equal_each_time(command, tmp_path):
    arguments = ("sweep", "mixtral", "--vary", "g=1,2,4", "--set", "experts=8*g", "--plot",
                 "g,params.total")  # fmt: skip
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        done = command(*arguments, "--plots", str(folder))
        assert done.code == 0
        files.append({Path(name).name: Path(name).read_bytes() for name in done.err.split()})
    assert set(files[0]) == {"g-params-total.png", "g-params-total.svg"}
    assert files[0] == files[1]


def said(figure):
    """Title, finding and footer."""
    texts = {text.get_gid(): text.get_text().replace("\n", " ") for text in figure.texts}
    return texts["title"], texts["finding"], texts["footer"]


def swept_by(vary, show, linked=None, model="mixtral"):
    return run(ask(model, vary, linked or {}, show, None, "estimate", 1000))


def test_series_with_the_same_points_are_one_in_the_legend():
    found = swept_by(
        {"model": ["mixtral", "qwen3-30b"], "gpu": ["h100", "b200", "h200"]},
        ("params.total", "time.decode.sequential"), model=None,
    )  # fmt: skip
    figure = plot_sweep(found, "model", "params.total", "gpu")
    assert [line.get_label() for line in points(figure)] == ["gpu h100, b200, h200"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gpu h100, b200, h200"]
    apart = plot_sweep(found, "model", "time.decode.sequential", "gpu")
    assert len(points(apart)) == 3


def test_points_behind_others_are_larger():
    """ep 1 sends nothing, whatever the policy; elsewhere the policies differ."""
    vary = {"ep": [1, 16, 32], "policy": ["copies", "per-node"]}
    sent = "all_to_all.forward_step.dispatch.sent"
    found = swept_by(vary, (sent,), model="deepseek-v3")
    figure = plot_sweep(found, "ep", sent, "policy")
    [behind] = [line for line in figure.axes[0].lines if line.get_gid() == "behind"]
    first, second = points(figure)
    assert list(behind.get_xdata()) == [1]
    assert list(behind.get_ydata()) == [0]
    assert behind.get_color() == first.get_color()
    assert behind.get_markersize() > second.get_markersize()
    assert "larger markers lie behind smaller ones" in said(figure)[2]


def test_points_on_a_scale_that_share_a_place_are_nested():
    vary = {"experts": [8, 16], "top_k": [1, 2, 4, 8], "gpu": ["h100", "b200"]}
    figure = plot_sweep(
        swept_by(vary, ("time.decode.sequential",)), "experts", "top_k", "time.decode.sequential"
    )
    [drawn] = figure.axes[0].collections
    sizes = drawn.get_sizes()
    assert len(sizes) == 16
    assert len(set(sizes)) == 2
    assert list(sizes) == sorted(sizes, reverse=True)  # smaller ones in front


def test_the_finding_is_of_what_was_worked_out():
    vary = {"experts": [8, 16, 32], "top_k": [1, 2, 4]}
    found = swept_by(vary, ("time.decode.sequential",))
    column = found.columns["time.decode.sequential"]
    title, finding, _ = said(plot_sweep(found, "experts", "top_k", "time.decode.sequential"))
    assert title == "Experts of a token against experts, by floor of the decode step time"
    assert finding.startswith("Floor of the decode step time: least ")
    assert f"{column.max() / column.min():.3g} times" in finding
    at = int(np.argmax(column))
    assert f"at experts {found.columns['experts'][at]}, top_k 4" in finding
    *_, finding, _ = said(plot_sweep(found, "top_k", "experts"))
    assert finding == "Least 8 at 3 points; most 32 at 3 points; 4 times."


def test_formulas_are_explained():
    linked = {"experts": "experts*g", "width": "width/g", "top_k": "top_k*g", "batch": "8*g"}
    found = swept_by({"g": [1, 2, 4]}, ("params.total",), linked)
    figure = plot_sweep(found, "g", "params.total")
    assert figure.axes[0].get_xlabel() == "g, which sets experts, width, top_k and batch"
    footer = said(figure)[2]
    assert "experts = experts*g, width = width/g, top_k = top_k*g, batch = 8*g" in footer
    assert "(experts, width and top_k on the right: as they were)" in footer


def test_one_point_and_equal_points():
    one = plot_sweep(swept_by({"batch": [8]}, ("params.total",)), "batch", "params.total")
    assert said(one)[1:] == ("46.7 B at batch 8.", "1 point mixtral-8x7b · moeplan 0.1.0")
    same = plot_sweep(swept_by({"batch": [8, 9]}, ("params.total",)), "batch", "params.total")
    assert said(same)[1] == "46.7 B at all 2 points."


def test_points_without_numbers_are_counted_apart():
    found = swept_by({"top_k": [1, 2, 9], "batch": [1, 2]}, ("params.active.all",))
    footer = said(plot_sweep(found, "top_k", "params.active.all"))[2]
    assert footer.startswith("4 of 6 points; 2 are not legal; batch varies between points")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("time.decode.sequential", "floor of the decode step time"),
        ("time.prefill.calibrated.expected", "expected prefill time"),
        ("cost.decode_dollars_per_million_tokens.expected",
         "dollars per million tokens of decode (expected)"),
        ("params.by_component.shared_experts", "params: by component shared experts"),
        ("step", "step time"),
        ("g", "g"),
    ],
)  # fmt: skip
def test_names_in_words(name, words):
    assert in_words(name) == words


def test_a_column_is_named_once():
    with pytest.raises(UserError, match="a column is named twice"):
        plot_columns("batch,batch", ["batch", "ep"])
