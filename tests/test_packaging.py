"""What is installed, what it needs, and what it must not drag in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from moeplan._version import __version__

HEAVY = {"matplotlib", "pyarrow", "torch", "transformers"}


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel_files(root: Path) -> set[str]:
    """The paths that the build backend would put into a wheel."""
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling comes with [dev]")
    builder = wheel.WheelBuilder(str(root))
    return {Path(file.distribution_path).as_posix() for file in builder.recurse_included_files()}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(root, wheel_files):
    package = root / "moeplan"
    files = {
        path.relative_to(root).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wheel_files == files


@pytest.mark.parametrize(
    "pattern",
    [r"moeplan/py\.typed", r"moeplan/data/models/.+\.toml", r"moeplan/data/[^/]+\.toml"],
)
def test_the_wheel_holds_data_and_type_information(wheel_files, pattern):
    assert any(re.fullmatch(pattern, file) for file in wheel_files)


def test_the_core_needs_nothing_heavy_but_what_draws(project):
    core = {Requirement(line).name for line in project["dependencies"]}
    assert core & HEAVY == {"matplotlib"}


def test_constraints_pin_every_requirement_to_a_version_that_it_allows(project, root):
    pins = {}
    for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"{line!r} pins no version"
            pins[canonicalize_name(name)] = version
    extras = project["optional-dependencies"].values()
    lines = project["dependencies"] + [line for extra in extras for line in extra]
    for requirement in map(Requirement, lines):
        if requirement.name != project["name"]:
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_version_heads_the_changelog(root):
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[?(\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    assert versions[0] == __version__


def test_the_package_tells_its_version():
    import moeplan

    assert moeplan.__version__ == __version__


def python(code: str) -> str:
    """Return what a fresh interpreter prints when it runs `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def command_line(words: list[str]) -> str:
    """Return code that runs the console script with `words` and goes on when it ends well."""
    return f"""
import sys
from moeplan.cli import main
sys.argv = ["moeplan", *{words!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def heavy_after(code: str) -> set[str]:
    """Return the heavy libraries that a fresh interpreter has loaded after running `code`."""
    report = f"import json, sys; print(json.dumps(sorted({HEAVY!r} & sys.modules.keys())))"
    return set(json.loads(python(f"{code}\n{report}").splitlines()[-1]))


def test_a_heavy_import_would_be_seen():
    assert heavy_after("import matplotlib") == {"matplotlib"}


@pytest.mark.parametrize("module", ["moeplan", "moeplan.cli"])
def test_importing_loads_nothing_heavy(module):
    assert not heavy_after(f"import {module}")


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["estimate", "--preset", "mixtral", "--json"]]
)
def test_a_command_that_neither_draws_nor_measures_loads_nothing_heavy(words):
    assert not heavy_after(command_line(words))


def test_the_command_line_tells_the_version():
    assert __version__ in python(command_line(["--version"]))
