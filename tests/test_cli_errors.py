"""How the command line says no: one sentence on stderr, status 2, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import MIXTRAL, Ran, Run, checkpoint, runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, at a width."""
    return runner(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("estimate", "mixtrall"), "did you mean 'mixtral'"),
        (("estimate", "--preset", "depseek-v3"), "did you mean 'deepseek-v3'"),
        (("estimate", "--preset", "../../etc"), "is unknown"),
        (("estimate",), "nothing was given"),
        (("estimate", "mixtral", "--preset", "mixtral"), "several were given"),
        (("estimate", "--preset", "mixtral", "--config", "x.json"), "several were given"),
        (("estimate", "--config", "nowhere/config.json"), "no such file"),
        (("estimate", "mixtral", "--context", "12q"), "--context"),
        (("estimate", "mixtral", "--context", "4.5"), "--context"),
        (("estimate", "mixtral", "--context", "-1"), "--context"),
        (("estimate", "mixtral", "--context", "0"), "--context is 0"),
        (("estimate", "mixtral", "--context", "9" * 30), "--context is too large"),
        (("estimate", "mixtral", "--batch", "0"), "--batch is 0"),
        (("estimate", "mixtral", "--batch", "9" * 400), "--batch is too large"),
        (("estimate", "mixtral", "--imbalance", "0.5"), "--imbalance is 0.5"),
        (("estimate", "mixtral", "--imbalance", "nan"), "--imbalance is nan"),
        (("estimate", "mixtral", "--imbalance", "inf"), "--imbalance is too large"),
        (("estimate", "mixtral", "--gpu", "h20O"), "did you mean 'h20'"),
        (("estimate", "mixtral", "--gpu", "none.toml"), "none.toml"),
        (("estimate", "mixtral", "--weights", "fp9"), "did you mean 'fp8'"),
        (("estimate", "mixtral", "--cache", "bf61"), "did you mean 'bf16'"),
        (("estimate", "mixtral", "--attention", "causl"), "did you mean 'causal'"),
        (("estimate", "mixtral", "--policy", "per-nodes"), "did you mean 'per-node'"),
        (("estimate", "llama-3.1-8b", "--dispatch", "fp6"), "--dispatch"),
        (("estimate", "mixtral", "--optimizer", "adam"), "optimizer 'adam'"),
        (("estimate", "mixtral", "--price", "rentl"), "did you mean 'rental'"),
        (("estimate", "mixtral", "--price", "2"), "dollars start with '$'"),
        (("estimate", "mixtral", "--ep", "3"), "nearest ep that divides is 2"),
        (("estimate", "mixtral", "--ep", "4", "--node", "3"), "do not fit"),
        (("estimate", "mixtral", "--json", "--csv"), "exclude each other"),
        (("estimate", "mixtral", "--markdown", "--json"), "exclude each other"),
        (("explain", "mixtral", "params.totl"), "did you mean 'total'"),
        (("explain", "mixtral", "params.total.x"), "holds nothing below it"),
        (("explain", "mixtral", "assumptions.0"), "assumptions are listed, not computed"),
        (
            ("explain", "mixtral", "time.prefill.expected"),
            "did you mean 'time.prefill.calibrated.expected'",
        ),
        (("hardware", "--gpu", "h300"), "no GPU 'h300'"),
        (("hardware", "h100", "--gpu", "h200"), "two were given"),
        (("layout", "mixtral", "tp=1", "--cluster", "h100x0", "--train"), "a count is 1 or more"),
        (("presets", "--json", "--csv"), "exclude each other"),
    ],
)
def test_a_mistake_is_one_sentence(run: Run, arguments: tuple[str, ...], said: str) -> None:
    _one_sentence(run(*arguments), said)


def _one_sentence(done: Ran, said: str) -> None:
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("moeplan: ")
    assert said in line
    assert "Traceback" not in line
    assert len(line) < 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[1]", "expected an object"),
        ("\0\x01", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "model_type"),
        (json.dumps(MIXTRAL | {"model_type": "mixtrl"}), "did you mean 'mixtral'"),
        (json.dumps(MIXTRAL | {"num_experts_per_tok": 9}), "num_experts_per_tok is 9"),
        (json.dumps(MIXTRAL | {"num_local_experts": "8"}), "num_local_experts is '8'"),
        (json.dumps(MIXTRAL | {"hidden_size": None}), "hidden_size is missing"),
    ],
)
def test_a_broken_file_is_one_sentence(run: Run, tmp_path: Path, text: str, said: str) -> None:
    folder = checkpoint(tmp_path, text)
    done = run("estimate", "--config", str(folder))
    _one_sentence(done, said)
    assert "config.json" in done.err or str(folder) in done.err


def test_a_folder_without_a_config_and_a_file_that_is_no_text(run: Run, tmp_path: Path) -> None:
    _one_sentence(run("estimate", "--config", str(tmp_path)), "holds no config.json")
    binary = tmp_path / "weights.json"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    _one_sentence(run("estimate", str(binary)), "cannot be read as text")


def test_a_bare_folder_is_a_path_where_no_preset_has_its_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = MIXTRAL | {"num_hidden_layers": 1}
    for name in ("mine", "mixtral"):
        (tmp_path / name).mkdir()
        checkpoint(tmp_path / name, small)
    own, known = (
        json.loads(run("estimate", name, "--json").out)["params"]["total"]
        for name in ("mine", "mixtral")
    )
    assert own < known == 46702792704
    _one_sentence(run("estimate", "other"), "preset 'other' is unknown")


UNPARSED = [("estimat",), ("estimate", "--bogus"), ("explain", "mixtral")]


@pytest.mark.parametrize("arguments", UNPARSED)
def test_what_the_parser_refuses(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Usage: moeplan" in done.err
    assert "Traceback" not in done.err
