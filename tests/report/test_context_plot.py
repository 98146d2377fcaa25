"""The plot of a decoded token's FLOPs against context, and the page that shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from generated import CONTEXTS as SHOWN
from generated import LONG_CONTEXT, long_context
from moeplan.api import compare, estimate
from moeplan.estimation.estimate import Estimate
from moeplan.report.plots import draw, plot
from moeplan.report.plots.curves import CONTEXTS, decode_curve


@pytest.fixture(scope="module")
def models() -> list[Estimate]:
    return compare(*LONG_CONTEXT)


def lines(figure: Any, gid: str) -> list[Any]:
    return [line for line in figure.axes[0].lines if line.get_gid() == gid]


# --------------------------------------------------------------------------------- the curves
def test_a_curve_is_single_estimates(models: list[Estimate]) -> None:
    for e in models:
        curve = decode_curve(e)
        assert (curve.x[0], curve.x[-1]) == CONTEXTS
        for place in (0, len(curve.x) // 3, -1):
            one = estimate(e.spec, context=int(curve.x[place]))
            assert curve.y[place] == pytest.approx(one["flops.decode_per_token"].value), e.spec.name


def slope(e: Estimate) -> float:
    """FLOPs that one more token of context adds to a decoded token, at half a million tokens."""
    curve = decode_curve(e)
    far = curve.x >= 2**19
    return float(np.polyfit(curve.x[far], curve.y[far], 1)[0])


@pytest.mark.parametrize(
    ("name", "per_key"),
    [
        # layers that see every token, times 4 FLOPs a query head and head dimension
        ("qwen3-235b-a22b", 94 * 4 * 64 * 128),
        ("gpt-oss-120b", 18 * 4 * 64 * 64),  # the other 18 layers stop at 128 tokens
        ("qwen3-next-80b-a3b", 12 * 4 * 16 * 256),  # 36 layers hold a state
        ("minimax-01", 10 * 4 * 64 * 128),  # 70 layers hold a state
        ("nemotron-3-nano", 6 * 4 * 32 * 128),
        # absorbed: a latent of 512 and 64 rotated, and a latent of 512 out of it, for 128 heads
        ("deepseek-v3", 61 * 2 * 128 * (512 + 64 + 512)),
        # only the indexer grows: 64 heads of 128, and their weighted sum
        ("deepseek-v3.2", 61 * 2 * 64 * (128 + 1)),
    ],
)
def test_what_grows_is_what_sees_every_token(name: str, per_key: int) -> None:
    assert slope(estimate(name)) == pytest.approx(per_key, rel=1e-9)


def test_no_model_gets_cheaper(models: list[Estimate]) -> None:
    for e in models:
        assert np.all(np.diff(decode_curve(e).y) >= 0), e.spec.name


# --------------------------------------------------------------------------------- what is drawn
def test_lines_are_the_curves_whole_up_to_the_models_maximum(models: list[Estimate]) -> None:
    figure = plot("context", models)
    for index, e in enumerate(models):
        (line,) = lines(figure, f"model {index}")
        curve = decode_curve(e)
        assert list(line.get_ydata()) == list(curve.y[: len(line.get_ydata())])
        assert line.get_xdata()[-1] == min(e.spec.max_context.value, CONTEXTS[1])
    ax = figure.axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert {"1K", "64K", "1M"} <= {t.get_text() for t in ax.get_xticklabels()}


def test_the_finding_names_least_and_most(models: list[Estimate]) -> None:
    said = {t.get_gid(): " ".join(t.get_text().split()) for t in plot("context", models).texts}
    growth = {e.spec.name: decode_curve(e).y[-1] / decode_curve(e).y[0] for e in models}
    least, most = min(growth, key=growth.__getitem__), max(growth, key=growth.__getitem__)
    assert f"least {least} {growth[least]:.3g} times" in said["finding"]
    assert f"most {most} {growth[most]:.3g} times" in said["finding"]


def test_a_model_that_hardly_grows_stays_flat_on_the_paper() -> None:
    low, high = plot("context", [estimate("minimax-01")]).axes[0].get_ylim()
    assert high / low == pytest.approx(100)


# ------------------------------------------------------------------------------------ the page
def test_the_table_holds_six_kinds_and_the_three_contexts() -> None:
    text = long_context()
    assert len(LONG_CONTEXT) >= 6
    assert len(set(LONG_CONTEXT.values())) == len(LONG_CONTEXT)
    assert list(SHOWN.values()) == [2**12, 2**17, 2**20]
    assert sum(line.startswith("| ---") for line in text.splitlines()) == 3
    # 94 layers of 4 heads with keys and values of 128 in bf16, a million tokens
    assert f"{94 * 2 * 4 * 128 * 2 * 2**20 / 1e9:.4g} GB" in text
    # 61 latents of 576 in bf16
    assert f"{61 * 576 * 2 * 2**17 / 1e9:.4g} GB" in text


def test_the_picture_is_current(root: Path, tmp_path: Path) -> None:
    found = re.search(r"^matplotlib==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    if mpl.__version__ != found[1]:
        pytest.skip(f"matplotlib {mpl.__version__} is not the pinned {found[1]}")
    text = " ".join((root / "docs" / "long-context.md").read_text(encoding="utf-8").split())
    command = re.search(r"`moeplan compare ([^`]+?) --plot DIR`", text)
    assert command
    assert command[1].split() == list(LONG_CONTEXT)
    draw(compare(*LONG_CONTEXT), tmp_path, formats=("png",))
    shown = root / "docs" / "img" / "long-context" / "context.png"
    assert (tmp_path / "context.png").read_bytes() == shown.read_bytes()
