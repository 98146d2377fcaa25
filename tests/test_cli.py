"""The command line: what it prints, at which width, and how it says no."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moeplan._version import __version__
from moeplan.cluster.hardware import gpus
from moeplan.load import load_preset
from moeplan.presets import Preset, presets
from tests.commands import Ran, Run, checkpoint, runner
from tests.reading import ONE_OF_EACH_FAMILY

SNAPSHOTS = Path(__file__).parent / "snapshots"
UPDATE = os.environ.get("MOEPLAN_UPDATE_SNAPSHOTS") == "1"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, at a width."""
    return runner(monkeypatch, capsys)


# ------------------------------------------------------------------------------------ snapshots
def same(name: str, text: str) -> None:
    """Compare with a kept text; MOEPLAN_UPDATE_SNAPSHOTS=1 keeps the new one instead."""
    path = SNAPSHOTS / f"{name}.txt"
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    if UPDATE:
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"no {path.name}: run with MOEPLAN_UPDATE_SNAPSHOTS=1 and read it"
    assert text == path.read_text(encoding="utf-8")


SHOWN = {
    "estimate-mixtral-80": ("estimate", "mixtral"),
    "estimate-deepseek-v3-80": ("estimate", "--preset", "deepseek-v3", "--context", "32Ki"),
    "estimate-deepseek-v3-120": ("estimate", "deepseek-v3", "--context", "32Ki"),
    "estimate-gpt-oss-120b-80": ("estimate", "gpt-oss-120b", "--batch", "64", "--imbalance", "1.3"),
    "estimate-llama-3.1-8b-80": ("estimate", "llama-3.1-8b", "--gpu", "l40s"),
    "explain-80": ("explain", "deepseek-v3", "params.active.by_component.routed_experts"),
    "explain-120": ("explain", "deepseek-v3", "params.active.by_component.routed_experts"),
    "presets-80": ("presets", "--search", "mixtral"),
    "presets-120": ("presets", "--search", "qwen3-next"),
    "hardware-80": ("hardware", "--gpu", "h200"),
    "hardware-120": ("hardware", "--gpu", "h200"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_snapshot(run: Run, name: str) -> None:
    done = run(*SHOWN[name], columns=int(name.rpartition("-")[2]))
    assert done.code == 0
    assert done.err == ""
    same(name, done.out)


@pytest.mark.parametrize("columns", [80, 120])
def test_no_figure_and_no_word_is_broken_over_lines(run: Run, columns: int) -> None:
    lines = run("hardware", columns=columns).out.splitlines()
    rows = [line for line in lines if line[:1].islower() and line.split()[0] in ids()]
    assert len(rows) == len(ids())
    assert not any(line.startswith(" ") and line.strip() for line in lines)  # no second lines
    assert "14,700" in " ".join(rows)
    shown = run("presets", columns=columns).out
    parts = {part for entry in presets() for part in re.split(r"[^a-z0-9]+", _words(entry))}
    for line in shown.splitlines():
        if line.startswith(" ") and line.strip():
            assert set(re.split(r"[^a-z0-9]+", line.strip())) <= parts, line


def ids() -> set[str]:
    return {device.id for device in gpus()}


def _words(entry: Preset) -> str:
    return " ".join((entry.name, *entry.aliases, load_preset(entry.name).family))


def test_no_snapshot_is_left_over() -> None:
    kept = {path.stem for path in SNAPSHOTS.glob("*.txt")}
    assert kept == set(SHOWN) | {"schema"}


# ---------------------------------------------------------------------------------------- width
WIDE = ["deepseek-v4-flash", "longcat-flash", "mixtral-8x7b", "switch-c-2048"]


@pytest.mark.parametrize(
    ("name", "columns"), [(name, 80) for name in ONE_OF_EACH_FAMILY] + [(n, 120) for n in WIDE]
)
def test_no_line_is_wider_than_the_terminal(run: Run, name: str, columns: int) -> None:
    done = run("estimate", name, "--detail", columns=columns)
    assert done.code == 0
    assert _widest(done.out) <= columns


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize(
    "command",
    [
        ("presets",),
        ("hardware",),
        ("hardware", "--gpu", "gb300"),
        ("explain", "deepseek-v3", "memory"),
        ("explain", "gpt-oss-20b", "time.decode"),
        ("explain", "llama4-scout", "model"),
    ],
)
def test_lists_and_explanations_fit_too(run: Run, command: tuple[str, ...], columns: int) -> None:
    done = run(*command, columns=columns)
    assert done.code == 0
    assert len(done.out.splitlines()) > 3
    assert _widest(done.out) <= columns
    assert "object at 0x" not in done.out


def _widest(text: str) -> int:
    """Columns of the widest line; an address is never broken, so that it can be followed."""
    from rich.cells import cell_len

    lines = (line for line in text.splitlines() if not re.fullmatch(r"[ (]*https?://\S+", line))
    return max(cell_len(line) for line in lines)


def test_numbers_are_not_cut_at_80_columns(run: Run) -> None:
    """Every count of the widest model stands on one line, whole."""
    done = run("estimate", "switch-c-2048")
    total = next(line for line in done.out.splitlines() if line.startswith("total"))
    assert re.search(r"1,571,\d{3},\d{3},\d{3}\b", total)


# ------------------------------------------------------------------------------------ documents
@pytest.mark.parametrize(
    "command",
    [
        ("estimate", "mixtral", "--json"),
        ("estimate", "llama-3.1-8b", "--json", "--context", "100k", "--batch", "7"),
        ("estimate", "deepseek-v3", "--json", "--gpu", "b200", "--price", "$3.5/h"),
        ("presets", "--json"),
        ("hardware", "--json"),
        ("schema",),
    ],
)
def test_json_is_one_document_and_nothing_else(run: Run, command: tuple[str, ...]) -> None:
    done = run(*command)
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out, parse_constant=_refuse)
    assert document
    assert done.out.endswith("\n")


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def test_json_holds_what_the_issue_asks_for(run: Run) -> None:
    document = json.loads(run("estimate", "deepseek-v3", "--json").out)
    for path in (
        "model",
        "params.total",
        "params.active.all",
        "params.active.without_input_embedding",
        "params.active.without_embeddings",
        "params.mtp",
        "params.by_component",
        "flops.forward_per_token",
        "flops.training_per_token",
        "flops.context",
        "kv_cache.bytes_per_token",
        "kv_cache.fixed_bytes",
        "memory.weights",
        "memory.training",
        "all_to_all",
        "time",
        "cost",
        "assumptions",
    ):
        here: Any = document
        for part in path.split("."):
            here = here[part]
    assert document["params"]["total"] == 671_026_404_352


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3", "llama-3.1-8b"])
def test_csv_parses_and_holds_bare_numbers(run: Run, name: str) -> None:
    done = run("estimate", name, "--csv", "--detail")
    tables = _csv_tables(done.out)
    assert {"Parameters", "Parameters of one layer"} <= set(tables)
    document = json.loads(run("estimate", name, "--json").out)
    rows = {row[0]: row[1:] for row in tables["Parameters"]}
    assert int(rows["total"][0]) == document["params"]["total"]
    parts = sum(int(row[0]) for label, row in rows.items() if row[0] and label != "total")
    assert parts == document["params"]["total"]


def _csv_tables(text: str) -> dict[str, list[list[str]]]:
    """Rows by table; each row has as many cells as its table's heading."""
    tables: dict[str, list[list[str]]] = {}
    width = 0
    for row in csv.reader(io.StringIO(text)):
        if row[0] == "table":
            width = len(row)
            continue
        assert len(row) == width, row
        tables.setdefault(row[0], []).append(row[1:])
    return tables


@pytest.mark.parametrize(
    "command",
    [
        ("estimate", "deepseek-v3", "--detail"),
        ("estimate", "llama-3.1-8b"),
        ("presets",),
        ("hardware",),
        ("hardware", "--gpu", "mi300x"),
    ],
)
def test_markdown_tables_are_whole(run: Run, command: tuple[str, ...]) -> None:
    text = run(*command, "--markdown").out
    assert text.startswith("### ")
    for rows in _markdown_tables(text):
        heading, rule, *body = (re.split(r"(?<!\\)\|", row)[1:-1] for row in rows)
        assert all(re.fullmatch(r" -+:? ", cell) for cell in rule)
        assert body
        assert {len(row) for row in body} == {len(heading)} == {len(rule)}


def _markdown_tables(text: str) -> Iterator[list[str]]:
    lines = [*text.splitlines(), ""]
    rows: list[str] = []
    for line in lines:
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            yield rows
            rows = []


def test_markdown_says_what_the_terminal_says(run: Run) -> None:
    shown, written = run("estimate", "mixtral").out, run("estimate", "mixtral", "--markdown").out
    for text in ("46,702,792,704", "12,879,925,248", "131,072 B", "79.71 GFLOP"):
        assert text in shown
        assert text in written


# ---------------------------------------------------------------------------------------- input
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config.json, as a checkpoint has it."""
    return checkpoint(tmp_path)


def test_a_model_is_named_in_four_ways(run: Run, folder: Path) -> None:
    ways = [
        ("--config", str(folder / "config.json")),
        ("--config", str(folder)),
        (str(folder / "config.json"),),
        (f"{folder}/",),
    ]
    found = [json.loads(run("estimate", *way, "--json").out)["params"] for way in ways]
    assert all(params == found[0] for params in found)
    names = [("mixtral",), ("--preset", "Mixtral_8x7B"), ("--preset", "mixtral-8x7b")]
    totals = {json.loads(run("estimate", *n, "--json").out)["params"]["total"] for n in names}
    assert totals == {46_702_792_704}


def test_settings_reach_the_result(run: Run) -> None:
    given = {
        "context": ("8Ki", 8192),
        "batch": ("3", 3),
        "microbatch": ("2", 2),
        "tokens": ("100", 100),
        "ep": ("4", 4),
        "node": ("2", 2),
        "imbalance": ("1.25", 1.25),
        "attention": ("full", "full"),
        "weights": ("fp8", "fp8"),
        "cache": ("fp8", "fp8"),
        "dispatch": ("bf16", "bf16"),
        "combine": ("fp32", "fp32"),
        "policy": ("copies", "copies"),
        "optimizer": ("adamw-8bit", "adamw-8bit"),
        "gpu": ("H100", "h100-sxm"),
        "price": ("$2/h", 2),
    }
    options = [word for name, (text, _) in given.items() for word in (f"--{name}", text)]
    d = json.loads(run("estimate", "mixtral", *options, "--json").out)
    exchange, memory = d["all_to_all"], d["memory"]
    found = {
        "context": d["flops"]["context"],
        "batch": d["kv_cache"]["batch"],
        "microbatch": memory["training"]["microbatch"],
        **{key: exchange[key] for key in ("tokens", "ep", "node", "imbalance", "policy")},
        "attention": d["flops"]["attention"],
        "weights": memory["weights_format"],
        "cache": d["kv_cache"]["format"],
        "dispatch": exchange["dispatch_format"],
        "combine": exchange["combine_format"],
        "optimizer": memory["training"]["optimizer"],
        "gpu": d["time"]["gpu"],
        "price": d["cost"]["dollars_per_gpu_hour"],
    }
    assert found == {name: value for name, (_, value) in given.items()}


def test_explain_takes_the_same_settings(run: Run) -> None:
    (first, *_) = run("explain", "mixtral", "kv_cache.bytes", "--batch", "3").out.splitlines()
    assert "1,610,612,736 B" in first
    assert run("explain", "mixtral", "kv_cache.bytes", "--depth", "0").out.count("\n") == 1


# ------------------------------------------------------------------------- the program as such
COMMANDS = ("estimate", "compare", "explain", "presets", "hardware", "schema")


def test_help_of_every_command(run: Run) -> None:
    overview = run("--help")
    assert overview.code == 0
    for name in COMMANDS:
        assert name in overview.out
        done = run(name, "-h")
        assert done.code == 0
        assert f"Usage: moeplan {name}" in done.out


def test_version(run: Run) -> None:
    assert run("--version") == Ran(0, f"moeplan {__version__}\n", "")


def _process(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "80", **environment},
        cwd=Path(__file__).parents[1],
        check=False,
    )


def test_as_a_process(run: Run) -> None:
    done = _process("-m", "moeplan", "estimate", "mixtral")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("estimate", "mixtral").out


def test_an_error_of_a_process() -> None:
    done = _process("-m", "moeplan", "estimate", "mixtrall")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("moeplan: preset 'mixtrall' is unknown")
    assert len(done.stderr.splitlines()) == 1


def test_neither_torch_nor_matplotlib_is_loaded() -> None:
    """None of them is needed for a number, and each takes seconds."""
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'matplotlib', 'pyarrow'): sys.modules[name] = None\n"
        "from moeplan.cli import main\n"
        "for words in (['estimate', 'mixtral'], ['explain', 'mixtral', 'params.total'],\n"
        "        ['presets'], ['hardware'], ['schema'], ['compare', 'mixtral', 'qwen3-30b']):\n"
        "    sys.argv = ['moeplan', *words]\n"
        "    try: main()\n"
        "    except SystemExit as e: assert not e.code, words\n"
    )
    done = _process("-c", script)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m moeplan explain deepseek-v3 time | head -1"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert done.stdout == "time\n"
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("explain", "mixtral", "params.total"), b"46,702,792,704"),
        (("estimate", "mixtral"), b"46,702,792,704"),
        (("hardware",), b"h200"),
        (("hardware", "--json"), b"h200"),
        (("estimate", "m\u00efxtral"), b"unknown"),
    ],
)
def test_a_terminal_without_some_signs(command: tuple[str, ...], said: bytes) -> None:
    """Rules, dots and arrows may not be there: the numbers are shown all the same."""
    done = subprocess.run(
        [sys.executable, "-m", "moeplan", *command],
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert said in done.stdout + done.stderr
    if "--json" in command:
        json.loads(done.stdout)


def test_only_the_named_command_is_made_and_no_other_is_lost():
    from typer.main import get_command

    from moeplan import cli

    every = get_command(cli.app).commands
    assert list(get_command(cli._wanted(["estimate"])).commands) == ["estimate"]
    for words in ([], ["estimat"], ["plan"], ["--version"]):
        assert get_command(cli._wanted(words)).commands.keys() == every.keys()
