"""Expert parallelism over real processes (gloo): same output, counted bytes, times, their fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moeplan.errors import UserError
from moeplan.profile import exchange
from moeplan.profile.exchange import fit_times, rows_between
from moeplan.profile.expert_parallel import sharded_layer
from moeplan.profile.view_exchange import exchange_tables
from moeplan.report.tables import to_text
from tests.profile.cases import kinds

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SMALL = ["--samples", "3", "--largest", "16384", "--device", "cpu"]
SIZES = ["--set", "D=64", "--set", "F=32"]


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


CASES: dict[str, list[str]] = {
    "uniform": ["--preset", "olmoe", *SIZES, "--set", "E=16", "--tokens", "24", "--dtype", "bf16"],
    "balanced": ["--preset", "olmoe", *SIZES, "--set", "E=16", "--tokens", "24", "--dtype", "fp32",
                 "--routing", "balanced"],
    "skewed, biases": ["--preset", "gpt-oss-120b", *SIZES, "--set", "E=16", "--tokens", "17",
                       "--dtype", "fp32", "--routing", "zipf:1.5"],
    "groups, shared, own router": ["--preset", "deepseek-v3", *SIZES, "--set", "E=16",
                                   "--set", "Fs=32", "--tokens", "9", "--dtype", "fp32",
                                   "--routing", "router"],
    # one token a rank for one of 16 experts: some ranks get no row
    "idle ranks, weights at the input": ["--preset", "llama4-scout", *SIZES, "--set", "Fs=32",
                                         "--tokens", "1", "--dtype", "fp32"],
}  # fmt: skip


@cache
def _all_documents() -> dict[str, list[dict[str, Any]]]:
    """Every case over 2 and over 4 processes, which find each other as torchrun's do."""
    cases = [[*case, *SMALL] for case in CASES.values()]
    program = [sys.executable, str(Path(__file__).with_name("exchange_worker.py"))]
    run = subprocess.run(
        [*program, json.dumps({2: cases, 4: cases})],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    documents: dict[str, list[dict[str, Any]]] = json.loads(run.stdout)
    return documents


def _documents(ranks: int) -> dict[str, dict[str, Any]]:
    return dict(zip(CASES, _all_documents()[str(ranks)], strict=True))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_sharded_equals_unsharded(ranks: int, name: str) -> None:
    document = _documents(ranks)[name]
    assert document["ranks"] == ranks
    assert document["collectives"] == "gloo"
    assert document["check"]["passed"], document["check"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_that_each_rank_sent(ranks: int, name: str) -> None:
    """As the routing says; on average as the estimate expects, exactly so where it is balanced."""
    document = _documents(ranks)[name]
    traffic, sizes, tokens = document["traffic"], document["sizes"], document["tokens_per_rank"]
    rows = np.array(traffic["rows_between_ranks"])
    assert rows.sum(1).tolist() == [tokens * sizes["k"]] * ranks
    row = sizes["D"] * (2 if document["dtype"] == "bf16" else 4)
    assert traffic["row_bytes"] == row
    for r in range(ranks):
        assert traffic["dispatch"]["sent"][r] == row * (rows[r].sum() - rows[r, r])
        assert traffic["return"]["sent"][r] == row * (rows[:, r].sum() - rows[r, r])
    # a 4-byte count for each expert of every other rank
    assert traffic["counts"] == [4 * sizes["E"] * (ranks - 1) // ranks] * ranks
    for phase in ("dispatch", "return"):
        assert traffic[phase]["equal"]
        estimate = tokens * sizes["k"] * row * (ranks - 1) / ranks
        assert traffic[phase]["estimate"] == pytest.approx(estimate)
        if name == "balanced":
            assert traffic[phase]["sent"] == [estimate] * ranks


def test_a_rank_without_rows_was_among_them() -> None:
    rows = np.array(
        _documents(4)["idle ranks, weights at the input"]["traffic"]["rows_between_ranks"]
    )
    assert 0 in rows.sum(0)


def test_times_of_every_phase_and_size() -> None:
    document = _documents(2)["groups, shared, own router"]
    seconds = document["seconds"]
    assert {"dispatch", "permute", "experts_gate_up", "return", "combine", "layer"} <= set(seconds)
    for phase in seconds.values():
        assert [len(samples) for samples in phase["samples"]] == [3, 3]
    parts = sum(seconds[name]["samples"][0][0] for name in seconds if name != "layer")
    assert parts <= seconds["layer"]["samples"][0][0]
    assert [row["bytes"] for row in document["table"]] == [1024, 4096, 16384]
    assert document["fit"]["latency_s"] >= 0


@pytest.mark.slow
def test_torchrun_prints_one_document(tmp_path: Path) -> None:
    out = tmp_path / "exchange.json"
    run = subprocess.run(
        [
            *TORCHRUN,
            "-m",
            "moeplan.profile",
            *CASES["balanced"],
            *SMALL,
            "--json",
            "--out",
            str(out),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document == json.loads(out.read_text())
    assert document["ranks"] == 2
    assert document["check"]["passed"]
    assert document["traffic"]["dispatch"]["equal"]


def test_tables_say_what_the_document_does() -> None:
    document = _documents(4)["skewed, biases"]
    text = to_text(exchange_tables(document), width=80)
    assert "over 4 ranks" in text
    assert "against the unsharded layer: equal" in text
    assert text.count("every byte") == 2
    assert "fit: " in text
    assert max(map(len, text.splitlines())) <= 80
    document = {**document, "check": {**document["check"], "passed": False}}
    assert "NOT EQUAL" in to_text(exchange_tables(document))


# ---------------------------------------------------------------------------------- one process
def test_one_rank_sends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert exchange.main([*CASES["uniform"], *SMALL, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["traffic"]["dispatch"]["sent"] == [0]
    assert document["traffic"]["dispatch"]["estimate"] == 0
    assert document["check"]["relative_error"] == 0
    assert document["table"] == []


def test_without_torchrun_one_sentence_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert exchange.main(["--preset", "olmoe"]) == 2
    assert "torchrun --nproc-per-node N -m moeplan.profile" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "says"),
    [("E=seven", "expected a whole number"), ("Q=3", "'Q' is no size of the layer")],
)
def test_sizes_that_cannot_be_set(setting: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    options = exchange.options_of(["--preset", "olmoe", "--set", setting])
    with pytest.raises(UserError, match=says):
        exchange._block(options)


def test_a_dense_model_has_nothing_to_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="has no experts"):
        exchange._block(exchange.options_of(["--preset", "llama-3.1-8b"]))


def test_ranks_must_divide_the_experts() -> None:
    block = kinds()["gpt-oss-120b"]
    with pytest.raises(UserError, match=r"3 ranks do not divide the 8 experts.*divides is [24]\)"):
        sharded_layer(block, 3, 0, torch.float32, torch.device("cpu"), 0)


def test_rows_between_ranks_by_hand() -> None:
    """8 experts on 4 ranks, so ranks hold (0, 1), (2, 3), (4, 5), (6, 7)."""
    ids = [[[0, 7], [1, 2]], [[3, 4], [3, 5]], [[6, 7], [6, 7]], [[0, 2], [4, 6]]]
    assert rows_between(ids, 8).tolist() == [
        [2, 1, 0, 1],
        [0, 2, 2, 0],
        [0, 0, 0, 4],
        [1, 1, 1, 1],
    ]


def test_the_fit_finds_latency_and_bandwidth() -> None:
    sizes = [2.0**n for n in range(10, 30, 2)]
    fit = fit_times(sizes, [20e-6 + size / 50e9 for size in sizes])
    assert fit["latency_s"] == pytest.approx(20e-6)
    assert fit["bandwidth_Bps"] == pytest.approx(50e9)
    assert max(map(abs, fit["relative_errors"])) < 1e-6


def test_the_fit_allows_no_negative_latency_or_bandwidth() -> None:
    sizes = [1e3, 1e4, 1e5, 1e6]
    superlinear = fit_times(sizes, [(size / 1e9) ** 1.5 for size in sizes])
    assert superlinear["latency_s"] == 0
    assert superlinear["bandwidth_Bps"] > 0
    falling = fit_times(sizes, [4e-5, 3e-5, 2e-5, 1e-5])
    assert falling["bandwidth_Bps"] is None
    assert falling["latency_s"] > 0
