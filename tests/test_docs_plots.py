"""The plots in the documentation are those that the program draws now."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import matplotlib
import pytest
from typer.testing import CliRunner

from console import blocks, commands
from moeplan.api import compare
from moeplan.cli import app
from moeplan.report.plots import draw

COMMAND = re.compile(r"`moeplan compare ([^`]+?) --plot docs/img`")


def pinned(root: Path) -> str:
    """The version of matplotlib that drew them: another one may draw other pixels."""
    found = re.search(r"^matplotlib==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def test_plots_of_the_readme_are_current(root: Path, tmp_path: Path) -> None:
    if matplotlib.__version__ != pinned(root):
        pytest.skip(f"matplotlib {matplotlib.__version__} is not the pinned {pinned(root)}")
    text = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    found = COMMAND.search(text)
    assert found
    draw(compare(*found[1].split()), tmp_path, formats=("png",))
    shown = sorted((root / "docs" / "img").glob("*.png"))
    assert shown
    for image in shown:
        assert (tmp_path / image.name).read_bytes() == image.read_bytes(), image.name


def test_plots_of_sweeps_are_current(root: Path, tmp_path: Path) -> None:
    if matplotlib.__version__ != pinned(root):
        pytest.skip(f"matplotlib {matplotlib.__version__} is not the pinned {pinned(root)}")
    text = (root / "docs" / "sweep.md").read_text(encoding="utf-8")
    shown = {
        Path(name).name: root / "docs" / name for name in re.findall(r"\((img/.+?\.png)\)", text)
    }
    added = re.search(r"`(--plot [^`]+?)--plots docs/img/sweep`", text)
    assert added
    assert len(shown) == added[1].count("--plot ") > 0
    lines = text.splitlines()
    [command] = [
        command
        for block in blocks(lines)
        if block.language == "console"
        for command in commands(block.body)
        if "--vary g=" in command.line
    ]
    words = [*shlex.split(command.line)[1:], *added[1].split(), "--plots", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    for name, file in shown.items():
        assert (tmp_path / name).read_bytes() == file.read_bytes(), name
