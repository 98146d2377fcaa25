"""Records on disk: whole or not at all, upgraded when old, refused when newer or broken."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import UserError
from moeplan.profile import store
from moeplan.profile.record import SCHEMA, Case, Record, Timing, quantile
from moeplan.profile.store import (
    device_folder,
    find_records,
    load_record,
    new_path,
    save_record,
    unfinished,
)
from tests.profile.records import CPU, case, record


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "r.json"
    save_record(record([case([("router", 1e-3, 2e-3), ("combine", 1e-3, 1e-3)])]), path)
    return path


def edited(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_a_record_is_read_as_it_was_written(saved: Path) -> None:
    again = load_record(saved)
    save_record(again, saved)
    assert load_record(saved).cases == again.cases
    assert again.cases[0].key == ("model", 4, "uniform", "torch", "fp32", "forward")
    assert again.schema_version == SCHEMA


def test_samples_stand_on_one_line_each(saved: Path) -> None:
    lines = saved.read_text().splitlines()
    assert any('"rows_per_expert": [4, 0]' in line for line in lines)
    assert len(lines) < 200


def test_a_file_of_schema_1_is_upgraded(saved: Path) -> None:
    data = json.loads(saved.read_text())
    (old,) = data["cases"]
    old["histogram"] = [1, 3]  # what schema 1 called it
    del old["rows_per_expert"]
    saved.write_text(json.dumps({**data, "schema_version": 1}))
    again = load_record(saved)
    assert again.cases[0].rows_per_expert == [1, 3]
    assert again.schema_version == SCHEMA
    save_record(again, saved)
    assert json.loads(saved.read_text())["schema_version"] == SCHEMA


def test_the_old_name_is_refused_in_the_new_schema(saved: Path) -> None:
    data = json.loads(saved.read_text())
    data["cases"][0]["histogram"] = data["cases"][0].pop("rows_per_expert")
    saved.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"r\.json: cases\.0\.(histogram|rows_per_expert)"):
        load_record(saved)


def test_a_newer_schema_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(UserError, match=rf"r\.json: .*schema {SCHEMA + 1}.*up to {SCHEMA}.*newer"):
        load_record(edited(saved, schema_version=SCHEMA + 1))


@pytest.mark.parametrize("version", [None, "2", True, 0, -1, 1.5])
def test_a_schema_number_that_is_none_is_refused(saved: Path, version: Any) -> None:
    with pytest.raises(UserError, match="schema_version is"):
        load_record(edited(saved, schema_version=version))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a record, found list"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "schema_version is None"),
        ('{"schema_version": 2}', "Field required"),
    ],
)
def test_text_that_is_no_record_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        load_record(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: no such record"):
        load_record(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bytes\.json: cannot be read as text"):
        load_record(tmp_path / "bytes.json")


@pytest.mark.parametrize("where", ["ops", "phases"])
def test_a_name_without_a_partner_is_an_error(saved: Path, where: str) -> None:
    data = json.loads(saved.read_text())
    inside = data["cases"][0]["prediction" if where == "ops" else "measured"]
    inside[where][0]["name"] = "rooter"
    saved.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"not both: rooter \(forward\), router \(forward\)"):
        load_record(saved)


def test_a_measured_case_without_figures_is_refused() -> None:
    whole = case([("router", 1e-3, 1e-3)]).model_dump()
    with pytest.raises(ValueError, match="holds its prediction and its measurement"):
        Case.model_validate({**whole, "measured": None})


def test_a_timing_has_samples_or_a_reason() -> None:
    for wrong in ({}, {"samples": [1.0], "absent": "because"}):
        with pytest.raises(ValueError, match="has samples, or says why"):
            Timing.model_validate(wrong)


def test_an_equal_case_is_replaced_and_another_is_added() -> None:
    r = record([case([("router", 1, 1)])])
    r.put(case([("router", 1, 5)]))
    r.put(case([("router", 1, 1)], tokens=8))
    assert [(c.tokens, c.measured.eager.median) for c in r.cases if c.measured] == [(4, 5), (8, 1)]


def test_the_last_of_several_roofs_counts() -> None:
    r = record()
    newer = r.roofs[0].model_copy(update={"value": 7.0})
    r.roofs.append(newer)
    assert [roof.value for roof in r.current_roofs() if roof.name == "gemm"] == [7.0]
    assert len(r.current_roofs()) == len(r.roofs) - 1


@given(st.lists(st.floats(0.001, 1e3), min_size=2, max_size=40))
def test_quantiles_are_those_of_the_standard_library(samples: list[float]) -> None:
    tenths = statistics.quantiles(samples, n=10, method="inclusive")
    assert quantile(samples, 0.1) == pytest.approx(tenths[0])
    assert quantile(samples, 0.5) == pytest.approx(statistics.median(samples))
    assert quantile(samples, 0.9) == pytest.approx(tenths[8])


# ------------------------------------------------------------------------------- writing
@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    before = saved.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    if broken == "fsync":
        monkeypatch.setattr(store.os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_record(record(), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


WRITER = """
import sys
from pathlib import Path
from tests.profile.records import case, record
from moeplan.profile.store import save_record
r = record([case([("router", 1e-3, 1e-3)], tokens=n + 1) for n in range(40)])
save_record(r, Path(sys.argv[1]))
print("ready", flush=True)
while True:
    save_record(r, Path(sys.argv[1]))
"""


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "r.json"
    for wait in (0.0, 0.011, 0.023):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(wait)
            os.kill(writer.pid, signal.SIGKILL)
        assert len(load_record(path).cases) == 40


# --------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("kind", "name", "folder"),
    [
        ("cuda", "NVIDIA H200", "nvidia-h200"),
        ("cuda", "NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("cpu", "AMD EPYC", "cpu-amd-epyc"),
        ("cpu", "Intel(R) Xeon(R) CPU @ 2.20GHz", "cpu-intel-r-xeon-r-cpu-2.20ghz"),
        ("cpu", "../../etc", "cpu-etc"),
        ("cuda", "..", "unnamed"),
    ],
)
def test_folders_are_named_by_device(kind: Any, name: str, folder: str) -> None:
    assert device_folder(CPU.model_copy(update={"kind": kind, "name": name})) == folder


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    first = new_path(tmp_path, CPU, "Qwen3 30B/A3B")
    assert first.parent == tmp_path / "cpu-test-cpu"
    assert first.name.startswith("qwen3-30b-a3b_20")
    save_record(record(), first)
    second = new_path(tmp_path, CPU, "Qwen3 30B/A3B")
    assert second.name == f"{first.stem}-2.json"


def test_the_newest_record_of_a_name_is_found(tmp_path: Path) -> None:
    assert unfinished(tmp_path, CPU, "model") is None
    paths = [new_path(tmp_path, CPU, "model")]
    save_record(record(), paths[0])
    paths.append(new_path(tmp_path, CPU, "model"))
    save_record(record(), paths[1])
    os.utime(paths[0], (1, 1))
    assert unfinished(tmp_path, CPU, "model") == paths[1]
    assert unfinished(tmp_path, CPU, "mode") is None


def test_records_are_found_in_folders(tmp_path: Path, saved: Path) -> None:
    inner = tmp_path / "gpu" / "a_1.json"
    save_record(record(), inner)
    (tmp_path / "gpu" / ".a_1.json.123").write_text("half")
    assert find_records([tmp_path]) == [inner, saved]
    assert find_records([saved, tmp_path]) == [saved, inner]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: the folder holds no record"):
        find_records([tmp_path / "empty"])


def test_the_schema_has_an_upgrade_from_each_older_number() -> None:
    assert sorted(store._UPGRADES) == list(range(1, SCHEMA))
    assert Record.model_fields["schema_version"].default == SCHEMA
