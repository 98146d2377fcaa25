"""What is left of a run that is killed, terminated or interrupted, wherever that meets it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moeplan.profile import bench, checks, runner, store
from moeplan.profile.command import run_profile
from moeplan.profile.options import ProfileOptions
from moeplan.profile.record import Record
from moeplan.profile.store import load_record
from tests.profile.records import tiny_config
from tests.profile.test_command import TINY, make, part, states

KILLED = """
import sys, time
from pathlib import Path
from tests.profile.records import tiny_config
from tests.profile.test_command import bench, make, part

def measure(passes, samples, **how):
    if len(passes.turns[0].ids_TK) == 4:
        print("at 4", flush=True)
        time.sleep(60)
    return bench.measure(passes, samples, **how)

make(Path(sys.argv[1]), measure=measure).run([part(1, 2, 4, 8)])
"""


@pytest.fixture
def stopped(tmp_path: Path, root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run in another process that waits in its third case."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at 4\n"
        yield process
        process.kill()


def test_a_killed_run_keeps_its_cases_and_is_resumed(
    stopped: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    os.kill(stopped.pid, signal.SIGKILL)
    stopped.wait()
    (path,) = tmp_path.rglob("*.json")
    before = load_record(path)
    assert before.state == "running"  # nobody was left to write another
    assert states(before) == [(1, "measured"), (2, "measured"), (4, "running")]
    assert before.cases[2].prediction is not None  # made before the run

    again = make(tmp_path, resume=True)
    again.run([part(1, 2, 4, 8)])
    assert again.paths["small"] == path
    after = load_record(path)
    assert [case.tokens for case in after.measured()] == [1, 2, 4, 8]
    assert after.cases[:2] == before.cases[:2]


def test_a_termination_signal_closes_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warm_up(*_: Any) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("the signal did nothing")

    monkeypatch.setattr(bench, "_warm_up", warm_up)
    monkeypatch.setattr("moeplan.profile.roofs.sizes_for", lambda *_, **__: TINY)
    options = ProfileOptions(
        config=tiny_config(tmp_path), tokens="1", quick=True, samples=1, out=tmp_path / "o.json",
        device="cpu",
    )  # fmt: skip
    found = run_profile(options)
    assert found.code == 130
    assert "stopped: 0 measured cases are kept" in found.sentence
    assert "--resume" in found.sentence
    assert load_record(tmp_path / "o.json").state == "interrupted"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is run once, and whose result is given again: its time is not the point."""
    kept: list[Any] = []

    def again(*args: Any, **how: Any) -> Any:
        if not kept:
            kept.append(function(*args, **how))
        return kept[0]

    return again


class _At:
    """Raises at the n-th call of any function that it wraps: before its work, or after."""

    def __init__(self, point: int, error: type[BaseException], *, after: bool) -> None:
        self.left, self.error, self.after = point, error, after

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **how: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise self.error
            out = function(*args, **how)
            if self.left == 0:
                raise self.error
            return out

        return wrapped


@pytest.mark.parametrize("after", [False, True])
def test_wherever_a_run_is_interrupted_no_measured_case_is_lost(
    after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each writing, each check and each measuring of two parts."""
    monkeypatch.setattr(runner.gc, "collect", lambda: 0)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no machine is going to fail here
    plan, measure = [part(1, 2), part(1, name="other")], _once(bench.measure)
    save, check = store.save_record, _once(checks.check_backend)
    points = 0
    for points in range(1, 40, 2 if after else 1):  # after one is before the next
        at, folder = _At(points, KeyboardInterrupt, after=after), tmp_path / str(points)
        with monkeypatch.context() as patch:
            patch.setattr(store, "save_record", at.wrap(save))
            patch.setattr(checks, "check_backend", at.wrap(check))
            first = make(folder, measure=at.wrap(measure))
            try:
                first.run(plan)
            except KeyboardInterrupt:
                pass
            else:
                break
        before = {path.name: load_record(path) for path in folder.rglob("*.json")}
        again = make(folder, resume=True, measure=measure)
        again.run(plan)
        for record in again.records.values():
            path = again.paths[record.name]
            assert {case.state for case in load_record(path).cases} == {"measured"}
            kept = before.get(path.name, record).measured()
            assert all(case in record.cases for case in kept)
        assert sum(len(record.cases) for record in again.records.values()) == 3
        assert len(list(folder.rglob("*.json"))) == 2
        assert not [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".json"]
        _told(first.records.values(), before)
    assert 12 <= points < 39  # writings, checks and measurings; the last run was not interrupted


def _told(records: Any, before: dict[str, Record]) -> None:
    """Files hold every case that was measured; where the end could be written it says so."""
    for record in records:
        for found in before.values():
            if found.name == record.name:
                assert [c.key for c in found.measured()] == [c.key for c in record.measured()]
                assert found.state in ("running", "interrupted") or len(found.cases) == len(
                    list(found.measured())
                )
