"""Plots: the data behind them, what is written on them, room for every text, equal files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from moeplan._version import __version__
from moeplan.api import compare, estimate
from moeplan.errors import UserError
from moeplan.estimation.estimate import Estimate
from moeplan.load import load_model
from moeplan.model.ops import COMPONENTS
from moeplan.report.beside import beside_dense
from moeplan.report.compare import per_token
from moeplan.report.plots import PLOTS, draw, plot, skipped
from moeplan.report.plots.curves import CONTEXTS, exchange_curve
from moeplan.report.plots.roofline import roof_points
from moeplan.report.plots.sheet import renderer, short_names
from moeplan.report.style import COMPONENT_STYLES, PART_STYLES, model_style

EIGHT = (
    "mixtral-8x7b",
    "deepseek-v3",
    "deepseek-r1",  # as large as deepseek-v3: both points stand at one place
    "llama-3.1-405b",
    "gpt-oss-20b",
    "qwen3-next-80b-a3b",
    "switch-c-2048",
    "granite-3.1-1b-a400m",
)


@pytest.fixture(scope="module")
def models() -> list[Estimate]:
    return compare("mixtral-8x7b", "deepseek-v3", "mistral-7b", "qwen3-next-80b-a3b")


@pytest.fixture(scope="module")
def figures(models: list[Estimate]) -> dict[str, Figure]:
    return {name: plot(name, models) for name in PLOTS}


def lines(figure: Figure, gid: str) -> list[Any]:
    """Lines with this mark, in the order of the axes."""
    return [line for ax in figure.axes for line in ax.lines if line.get_gid() == gid]


def texts(figure: Figure) -> dict[str, str]:
    return {text.get_gid(): " ".join(text.get_text().split()) for text in figure.texts}


# ----------------------------------------------------------------------------- what is drawn
def test_parameters_stand_where_the_published_counts_are(figures: dict[str, Figure]) -> None:
    figure = figures["parameters"]
    (mixtral,), (deepseek,) = lines(figure, "model 0"), lines(figure, "model 1")
    assert [float(v[0]) for v in mixtral.get_data()] == [12_879_925_248, 46_702_792_704]
    assert [float(v[0]) for v in deepseek.get_data()] == [37_552_282_624, 671_026_404_352]
    (dense,), (half,) = lines(figure, "sparsity 1"), lines(figure, "sparsity 2")
    assert list(dense.get_xdata()) == list(dense.get_ydata())
    assert list(half.get_ydata()) == [2 * x for x in half.get_xdata()]


def bars(ax: Any, key: str) -> list[float]:
    found = [c for c in ax.containers if c[0].get_gid() == key]
    return [patch.get_width() for c in found for patch in c]


def test_flops_bars_are_the_components(models: list[Estimate], figures: dict[str, Figure]) -> None:
    left, right = figures["flops"].axes
    parts = [e["flops.by_component"] for e in models]
    for key in ("attention", "routed_experts", "dense_ffn", "head"):
        own = [p[key].value if key in p else 0 for p in parts]
        assert bars(left, key) == pytest.approx([v / 1e9 for v in own]), key
        whole = [e["flops.forward_per_token"].value for e in models]
        shares = [100 * v / w for v, w in zip(own, whole, strict=True)]
        assert bars(right, key) == pytest.approx(shares), key
    assert left.get_xlabel() == "forward FLOPs per token (GFLOP)"
    ends = [text.get_text() for text in left.texts]
    assert ends[1] == "83.48 GFLOP"  # a third of the published 250 of a training step


def test_memory_bars_reach_weights_and_cache(
    models: list[Estimate], figures: dict[str, Figure]
) -> None:
    left, right = figures["memory"].axes
    ends = [sum(c[i].get_width() for c in left.containers) for i in range(len(models))]
    held = [e["memory.serving.total"].value for e in models]
    assert ends == pytest.approx([b / 1e9 for b in held])
    state = [sum(c[i].get_width() for c in right.containers) for i in range(len(models))]
    counts = (46_702_792_704, 671_026_404_352)
    assert state[:2] == pytest.approx([18 * n / 1e12 for n in counts])  # 18 bytes a parameter


def test_memory_has_lines_at_whole_gpus(figures: dict[str, Figure]) -> None:
    left, _ = figures["memory"].axes
    at = [line.get_xdata()[0] for line in left.lines]
    assert at == pytest.approx([141 * n for n in (1, 2, 4)])
    named = [text.get_text() for text in left.texts]
    assert "1 h200-sxm" in named
    assert "4 h200-sxm" in named


def test_a_small_model_is_told_that_the_capacity_is_far() -> None:
    left, _ = plot("memory", [estimate("llama-3.2-1b")]).axes
    assert not left.lines
    assert any(text.get_text() == "one h200-sxm holds 141 GB: off the axis" for text in left.texts)


def test_cache_curves_meet_the_estimates_and_the_published_bytes(
    models: list[Estimate], figures: dict[str, Figure]
) -> None:
    for index, e in enumerate(models):
        (line,) = lines(figures["kv_cache"], f"model {index}")
        at = dict(zip(*line.get_data(), strict=True))
        assert at[4096] == e["kv_cache.bytes"].value
    (mixtral,), (deepseek,) = (lines(figures["kv_cache"], f"model {i}") for i in (0, 1))
    assert dict(zip(*mixtral.get_data(), strict=True))[32768] == 131_072 * 32768
    assert dict(zip(*deepseek.get_data(), strict=True))[131072] == 70_272 * 131072


def test_cache_of_a_window_flattens_and_a_state_has_an_offset(figures: dict[str, Figure]) -> None:
    figure = figures["kv_cache"]
    whole = [
        dict(zip(*lines(figure, f"model {i}")[0].get_data(), strict=True))
        | dict(zip(*lines(figure, f"beyond {i}")[0].get_data(), strict=True))
        for i in range(4)
    ]
    for curve in whole:
        assert (min(curve), max(curve)) == CONTEXTS
        assert np.all(np.diff([curve[x] for x in sorted(curve)]) >= 0)
    _, _, window, state = whole
    assert window[2048] == 2 * window[1024]
    assert window[4096] == window[8192] == window[CONTEXTS[1]] == 4096 * 131_072
    assert state[2048] < 2 * state[1024]
    assert state[4096] - state[2048] == 2048 * 24_576  # published bytes a token


def test_a_curve_is_thin_beyond_the_models_own_context(figures: dict[str, Figure]) -> None:
    (own,) = lines(figures["kv_cache"], "model 0")
    (beyond,) = lines(figures["kv_cache"], "beyond 0")
    assert own.get_xdata()[-1] == beyond.get_xdata()[0] == 32768
    assert beyond.get_linewidth() < own.get_linewidth()


def test_all_to_all_meets_the_estimates_and_one_gpu_sends_nothing(
    models: list[Estimate], figures: dict[str, Figure]
) -> None:
    for index in (0, 1, 3):
        e = models[index]
        (near,) = lines(figures["all_to_all"], f"same {index}")
        (far,) = lines(figures["all_to_all"], f"other {index}")
        section = e["all_to_all"]
        inside, outside = per_token(section)
        degrees = list(near.get_xdata())
        assert all(e["model.experts"].value % n == 0 for n in degrees)
        place = degrees.index(section["ep"].value)
        assert near.get_ydata()[place] * 1e6 == pytest.approx(inside)
        assert far.get_ydata()[place] * 1e6 == pytest.approx(outside)
        assert degrees[0] == 1
        assert near.get_ydata()[0] == far.get_ydata()[0] == 0
        assert all(y == 0 for n, y in zip(degrees, far.get_ydata(), strict=True) if n <= 8)
        assert np.all(np.diff(near.get_ydata()) > 0)
        assert np.all(np.diff([y for y in far.get_ydata() if y]) > 0)
        assert (near.get_linestyle(), far.get_linestyle()) == ("-", "--")


def test_all_to_all_leaves_out_degrees_that_fit_no_node() -> None:
    curve = exchange_curve(estimate("kimi-k2"))
    assert curve is not None
    degrees = set(curve.x)
    assert {1, 2, 4, 8, 16, 24, 48, 384} <= degrees  # divide 384 and 8, or are whole nodes
    assert not {3, 6, 12} & degrees  # divide 384, but no node of 8 is shared so


def test_operations_lie_on_the_roof(models: list[Estimate]) -> None:
    bandwidth = 4.8e12
    for phase in ("prefill", "decode"):
        points = roof_points(models[0], phase)
        for p in points:
            assert p.attainable == pytest.approx(min(p.peak, p.intensity * bandwidth)), p.op
            assert p.peak == pytest.approx(989e12)
            assert p.memory_bound == (p.intensity < 989e12 / bandwidth)
        assert 0 < sum(p.share for p in points) <= 1
    decode = {p.op: p for p in roof_points(models[0], "decode")}
    # one row: 2 FLOPs for each two-byte weight
    assert decode["experts_gate_up"].intensity == pytest.approx(1, rel=1e-3)
    assert decode["o_proj"].intensity == pytest.approx(1, rel=1e-3)


def test_roofline_marks_each_operation_by_its_component(
    models: list[Estimate], figures: dict[str, Figure]
) -> None:
    figure = figures["roofline"]
    for phase in ("prefill", "decode"):
        wanted = {p.op: p for p in roof_points(models[0], phase)}
        for op, p in wanted.items():
            mark = lines(figure, f"{phase} {op}")[0]
            assert mark.get_xdata()[0] == p.intensity
            style = COMPONENT_STYLES[p.component]
            assert mark.get_marker() == style.marker
            colour = (
                mark.get_markerfacecolor() if phase == "prefill" else mark.get_markeredgecolor()
            )
            assert to_hex(colour).upper() == style.colour


def test_dense_panels_show_the_comparison(
    models: list[Estimate], figures: dict[str, Figure]
) -> None:
    panels = figures["dense"].axes
    found = beside_dense(models[1])
    for beside in found:
        marks = lines(figures["dense"], f"{beside.kind} 1")
        values = [beside.parameters, beside.flops, beside.weights, *beside.decode]
        assert [mark.get_xdata()[0] for mark in marks] == pytest.approx(values)
        assert len(panels) == len(values)
    assert [t.get_text() for t in panels[0].get_yticklabels()] == [
        "mixtral-8x7b",
        "deepseek-v3",
        "qwen3-next-80b-a3b",
    ]
    assert "Dense, not shown: mistral-7b" in texts(figures["dense"])["footer"]


# ---------------------------------------------------------------------------- what is written
UNITS = {
    "parameters": ("active parameters per token", "total parameters"),
    "flops": ("(GFLOP)", "(%)"),
    "memory": ("(GB)", "(TB)"),
    "kv_cache": ("(tokens of a sequence)", "(bytes)"),
    "context": ("(tokens of a sequence)", "forward FLOPs of a decoded token"),
    "all_to_all": ("(GPUs that share the experts)", "(MB)"),
    "roofline": ("FLOPs per byte moved", "attainable FLOP/s"),
    "dense": ("(bytes)", "batch 64 (s)"),
}


@pytest.mark.parametrize("name", PLOTS)
def test_titles_units_legend_and_footer(
    name: str, models: list[Estimate], figures: dict[str, Figure]
) -> None:
    figure = figures[name]
    written = texts(figure)
    assert len(written["title"]) > 10
    assert len(written["finding"]) > 20
    axes = " ".join(f"{a.get_xlabel()} {a.get_ylabel()} {a.get_title('left')}" for a in figure.axes)
    assert all(unit in axes for unit in UNITS[name]), axes
    for e in models:
        assert e.spec.name in written["footer"]
    counts = " + ".join(str(len(e.assumptions)) for e in models)
    assert f"moeplan {__version__}" in written["footer"]
    assert f"assumed inputs: {counts}" in written["footer"]
    assert "NVIDIA H200 SXM (h200-sxm)" in written["footer"]
    if name == "parameters":  # the points carry their names themselves
        named = {t.get_text() for t in figure.axes[0].texts}
        assert {e.spec.name for e in models} <= named
    else:
        assert len(figure.legends) == 1
        assert len(figure.legends[0].get_texts()) >= 3


def test_legends_name_the_models_that_are_drawn(figures: dict[str, Figure]) -> None:
    named = [t.get_text() for t in figures["all_to_all"].legends[0].get_texts()]
    assert named == ["mixtral-8x7b", "deepseek-v3", "qwen3-next-80b-a3b"]
    named = [t.get_text() for t in figures["kv_cache"].legends[0].get_texts()]
    assert named[:4] == ["mixtral-8x7b", "deepseek-v3", "mistral-7b", "qwen3-next-80b-a3b"]


def test_parts_have_one_colour_throughout(figures: dict[str, Figure]) -> None:
    for name in ("flops", "memory"):
        for ax in figures[name].axes:
            for container in ax.containers:
                style = PART_STYLES[container[0].get_gid()]
                assert to_hex(container[0].get_facecolor()).upper() == style.colour


# --------------------------------------------------------------------------- room for all text
def boxes(figure: Figure) -> Iterator[tuple[str, list[Any]]]:
    """Groups of boxes of which no two may overlap."""
    measure = renderer(figure)
    around = [("text", text.get_window_extent(measure)) for text in figure.texts]
    around += [("legend", legend.get_window_extent(measure)) for legend in figure.legends]
    around += [("axes", ax.get_tightbbox(measure)) for ax in figure.axes]
    yield "sheet", around
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            shown = [t for t in axis.get_ticklabels() if t.get_visible() and t.get_text()]
            low, high = sorted(axis.get_view_interval())
            place = 0 if axis is ax.xaxis else 1
            shown = [t for t in shown if low <= t.get_position()[place] <= high]
            yield "ticks", [(t.get_text(), t.get_window_extent(measure)) for t in shown]
        yield "labels", [(t.get_text(), extent(t, measure)) for t in ax.texts if t.get_text()]


def extent(text: Any, measure: Any) -> Any:
    """A label's own box, without the line that leads to its point."""
    if isinstance(text, Annotation):
        return super(Annotation, text).get_window_extent(measure)
    return text.get_window_extent(measure)


def overlaps(one: Any, other: Any, slack: float = 1.0) -> bool:
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    tall = min(one.y1, other.y1) - max(one.y0, other.y0)
    return bool(wide > slack and tall > slack)


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize(
    "count",
    [1, 2, 3, pytest.param(5, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)],
)
def test_no_text_lies_on_another(name: str, count: int) -> None:
    figure = plot(name, compare(*EIGHT[:count]))
    frame = figure.bbox
    for kind, group in boxes(figure):
        for (a, one), (b, other) in combinations(group, 2):
            assert not overlaps(one, other), f"{name}, {kind}: {a!r} lies on {b!r}"
        for what, box in group:
            assert box.x0 >= frame.x0 - 1, (name, what)
            assert box.x1 <= frame.x1 + 1, (name, what)
            assert box.y0 >= frame.y0 - 1, (name, what)
            assert box.y1 <= frame.y1 + 1, (name, what)


def test_names_in_a_crowd_lie_apart_and_off_the_points() -> None:
    crowd = ["deepseek-v3", "deepseek-r1", "deepseek-v3.1", "glm-4.5", "glm-4.7", "grok-1"] * 2
    figure = plot("parameters", compare(*crowd))
    ax = figure.axes[0]
    names = [t for t in ax.texts if "-" in t.get_text() or "#" in t.get_text()]
    assert len(names) == len(crowd)
    measure = renderer(figure)
    found = [extent(t, measure) for t in names]
    assert not any(overlaps(a, b) for a, b in combinations(found, 2))
    marks = [ax.transData.transform(t.xy) for t in names]
    for box in found:
        assert not any(box.x0 < x < box.x1 and box.y0 < y < box.y1 for x, y in marks)
        assert ax.bbox.x0 <= box.x0 <= box.x1 <= ax.bbox.x1 + 1


def test_long_and_odd_names_are_cut_apart_and_written_in_full_below() -> None:
    spec = load_model("mixtral-8x7b")
    stem = "an-experimental-model-with-a-very-long-name-final-000"
    names = [f"{stem}1", f"{stem}2", "_hidden", "cost$5 or $6"]
    odd = [estimate(replace(spec, name=name)) for name in names]
    short = short_names(odd)
    assert len(set(short)) == len(names)
    assert max(map(len, short)) <= 30
    figure = plot("kv_cache", odd)
    assert stem[:40] in texts(figure)["footer"].replace(" ", "")
    assert [t.get_text() for t in figure.legends[0].get_texts()][:4] == short


# --------------------------------------------------------------------------------------- style
def test_every_component_has_its_own_look() -> None:
    assert set(COMPONENT_STYLES) == set(COMPONENTS)
    styles = list(PART_STYLES.values())
    assert len({s.colour for s in styles}) == len(styles)
    assert len({s.hatch for s in COMPONENT_STYLES.values()}) == len(COMPONENTS)
    assert len({s.marker for s in COMPONENT_STYLES.values()}) == len(COMPONENTS)


def test_models_differ_without_colour_too() -> None:
    looks = [model_style(i) for i in range(8)]
    for one, other in combinations(looks[:5], 2):
        assert one.colour != other.colour
        assert one.marker != other.marker
        assert one.dashes != other.dashes
    assert len({s.marker for s in looks}) == 8
    assert len({model_style(i) for i in range(385)}) == 385


# --------------------------------------------------------------------------------------- files
@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw([estimate("mixtral-8x7b")], tmp_path_factory.mktemp("plots") / "new" / "folder")


def test_every_plot_is_written_in_both_formats(drawn: list[Path]) -> None:
    assert [path.name for path in drawn] == [f"{n}.{f}" for n in PLOTS for f in ("png", "svg")]
    for path in drawn:
        start = path.read_bytes()[:8]
        assert (
            start == b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else start.startswith(b"<?xml")
        )


def test_files_hold_no_dates_and_no_versions(drawn: list[Path]) -> None:
    for path in drawn:
        content = path.read_bytes()
        for word in (b"dc:date", b"Matplotlib v", b"Software", b"tIME"):
            assert word not in content, (path.name, word)


@pytest.mark.slow
def test_another_process_and_another_taste_write_the_same_bytes(
    drawn: list[Path], tmp_path: Path, root: Path
) -> None:
    code = (
        "import sys, moeplan, matplotlib as mpl; from moeplan.report.plots import draw;"
        "mpl.rcParams.update({'font.size': 21, 'axes.grid': False, 'hatch.linewidth': 4});"
        "draw([moeplan.estimate('mixtral-8x7b')], sys.argv[1])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(root), "TZ": "UTC+5"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    for path in drawn:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_same_figure_twice_is_the_same_file(tmp_path: Path) -> None:
    """And drawing leaves the caller's matplotlib settings alone."""
    from moeplan.report.plots import save

    before = dict(mpl.rcParams)
    estimates = [estimate("mixtral-8x7b")]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        save(plot("all_to_all", estimates), tmp_path / folder / "all_to_all", ("png", "svg"))
    assert dict(mpl.rcParams) == before
    for kind in ("png", "svg"):
        one, two = (tmp_path / folder / f"all_to_all.{kind}" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


# ------------------------------------------------------------------------ dense and bad input
def test_dense_models_leave_out_two_plots_and_say_why(tmp_path: Path) -> None:
    dense = compare("llama-3.2-1b", "mistral-7b")
    reasons = skipped(dense)
    assert set(reasons) == {"all_to_all", "dense"}
    assert all("no model has experts" in reason for reason in reasons.values())
    with pytest.raises(UserError, match="'all_to_all' cannot be drawn: no model has experts"):
        plot("all_to_all", dense)
    files = draw(dense, tmp_path, formats=("svg",))
    assert [path.name for path in files] == [f"{n}.svg" for n in PLOTS if n not in reasons]
    assert set(tmp_path.iterdir()) == set(files)
    assert skipped(compare("llama-3.2-1b", "mixtral-8x7b")) == {}


def test_bad_input_is_refused(tmp_path: Path) -> None:
    one = [estimate("mixtral-8x7b")]
    with pytest.raises(UserError, match=r"'pgn' is unknown.*did you mean 'png'"):
        draw(one, tmp_path, formats=("pgn",))
    with pytest.raises(UserError, match=r"'rofline' is unknown.*did you mean 'roofline'"):
        plot("rofline", one)
    with pytest.raises(UserError, match="at least one model"):
        draw([], tmp_path)
    with pytest.raises(UserError, match="--batch holds several values"):
        draw([estimate("mixtral-8x7b", batch=[1, 2])], tmp_path)
    file = tmp_path / "a-file"
    file.write_text("")
    with pytest.raises(UserError, match="cannot be written there"):
        draw(one, file)
