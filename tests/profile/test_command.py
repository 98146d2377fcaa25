"""Whole runs on a CPU, and what is left of them when they are stopped, killed, or out of memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moeplan.errors import UserError
from moeplan.model.ffn import MoE
from moeplan.profile import bench, device, runner
from moeplan.profile.assignment import Assignment
from moeplan.profile.command import Outcome, run_profile
from moeplan.profile.failures import DeviceLost, is_device_lost, is_out_of_memory
from moeplan.profile.options import ProfileOptions
from moeplan.profile.record import Measurement, Record
from moeplan.profile.roofs import Sizes
from moeplan.profile.runner import Runner
from moeplan.profile.store import load_record
from moeplan.profile.suite import Job, Part
from tests.profile.records import CPU, VERSIONS, roofs, settings, tiny_config

BLOCK = MoE(D=64, E=8, k=2, F=32)


TINY = Sizes(gemm=96, stream=1 << 20, matrices=2, samples=3, launches=20)


def part(*tokens: int, name: str = "small", block: MoE = BLOCK) -> Part:
    how = (Assignment("uniform"), "torch", "fp32", "forward")
    return Part(name, tuple(Job(name, "a test", block, size, *how) for size in tokens))


def make(folder: Path, **changes: Any) -> Runner:
    how: dict[str, Any] = {
        "where": torch.device("cpu"),
        "facts": CPU,
        "versions": VERSIONS,
        "settings": settings(),
        "folder": folder,
        "measure_roofs": roofs,
    }
    return Runner(**{**how, **changes})


def states(record: Record) -> list[tuple[int, str]]:
    return [(case.tokens, case.state) for case in record.cases]


def breaking(at: int, error: Callable[[], BaseException]) -> Callable[..., Measurement]:
    """`bench.measure` that raises at one size."""

    def measure(passes: bench.Passes, samples: int, **how: Any) -> Measurement:
        if len(passes.turns[0].ids_TK) == at:
            raise error()
        return bench.measure(passes, samples, **how)

    return measure


# ---------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("run")
    options = ProfileOptions(
        config=tiny_config(folder), tokens="1,16", quick=True, samples=3, out=folder / "out",
        device="cpu", note=("a test",), routing="zipf:1.2",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moeplan.profile.roofs.sizes_for", lambda *_, **__: TINY)
        return run_profile(options)


def test_a_run_writes_a_record_that_holds_everything(outcome: Outcome) -> None:
    (path,) = outcome.paths
    assert outcome.code == 0
    record = load_record(path)
    assert record.state == "finished"
    assert [(c.tokens, c.direction, c.state) for c in record.cases] == [
        (size, direction, "measured")
        for direction in ("forward", "forward+backward")
        for size in (1, 16)
    ]
    assert {"gemm", "copy", "reduce", "launch"} < {roof.name for roof in record.roofs}
    assert all(check.passed for check in record.checks)
    assert record.versions.torch == torch.__version__
    assert record.notes[0] == "a test"
    assert "no GPU" in record.notes[1]
    assert record.settings.routing == "zipf:1.2"
    for case in record.cases:
        assert case.measured is not None
        assert case.prediction is not None
        assert len(case.measured.eager.samples) == 3
        assert sum(case.rows_per_expert) == 2 * case.tokens
        assert case.measured.peak_bytes == pytest.approx(case.prediction.peak_bytes, rel=0.02)
    made = [case.prediction.made for case in record.cases if case.prediction]
    assert made == sorted(made)
    assert max(made) <= record.updated


def test_a_run_has_tables_and_a_document(outcome: Outcome) -> None:
    titles = [table.title for table in outcome.tables]
    assert any("Roofs" in title for title in titles)
    assert sum(title.startswith("Ops of") for title in titles) == 2
    (found,) = json.loads(json.dumps(outcome.document))
    assert found["state"] == "finished"
    assert len(found["cases"]) == 4


# ------------------------------------------------------------------------ things go wrong
def test_out_of_memory_is_noted_and_the_run_goes_on(tmp_path: Path) -> None:
    text = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 B"
    r = make(tmp_path, measure=breaking(2, lambda: RuntimeError(text)))
    r.run([part(1, 2, 4)])
    record = load_record(r.paths["small"])
    assert states(record) == [(1, "measured"), (2, "out of memory"), (4, "measured")]
    assert "DefaultCPUAllocator" in record.cases[1].reason
    assert record.state == "finished"


def test_a_lost_device_ends_the_run_and_keeps_what_is_there(tmp_path: Path) -> None:
    lost = RuntimeError("CUDA error: unspecified launch failure\nmore")
    r = make(tmp_path, measure=breaking(4, lambda: lost))
    with pytest.raises(DeviceLost, match="unspecified launch failure"):
        r.run([part(1, 2, 4, 8)])
    record = load_record(r.paths["small"])
    assert states(record) == [(1, "measured"), (2, "measured"), (4, "running")]
    assert (record.state, record.reason) == ("device lost", str(lost).splitlines()[0])


def test_an_interrupted_run_is_resumed_where_it_stopped(tmp_path: Path) -> None:
    r = make(tmp_path, measure=breaking(4, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        r.run([part(1, 2, 4, 8)])
    before = load_record(r.paths["small"])
    assert before.state == "interrupted"
    assert states(before) == [(1, "measured"), (2, "measured"), (4, "running")]

    again = make(tmp_path, resume=True)
    again.run([part(1, 2, 4, 8)])
    assert again.paths == r.paths
    after = load_record(r.paths["small"])
    assert after.state == "finished"
    assert [case.tokens for case in after.measured()] == [1, 2, 4, 8]
    assert after.cases[:2] == before.cases[:2]  # not measured again
    assert after.started == before.started
    assert any("resumed" in note for note in after.notes)
    assert len(after.roofs) == 2 * len(roofs())

    make(
        tmp_path, resume=True, measure_roofs=lambda: pytest.fail("nothing is left to measure")
    ).run([part(1, 2, 4, 8)])
    assert load_record(r.paths["small"]) == after


def test_what_torch_cannot_do_fails_one_case_and_not_the_run(tmp_path: Path) -> None:
    r = make(tmp_path, measure=breaking(2, lambda: RuntimeError("no kernel for this\nmore")))
    r.run([part(1, 2, 4)])
    record = load_record(r.paths["small"])
    assert states(record) == [(1, "measured"), (2, "failed"), (4, "measured")]
    assert record.cases[1].reason.startswith("no kernel for this (test_command.py, line ")
    assert record.state == "finished"
    again = make(tmp_path, resume=True)  # a failed case is tried again
    again.run([part(1, 2, 4)])
    assert states(load_record(r.paths["small"])) == [(n, "measured") for n in (1, 2, 4)]


def test_a_failed_case_ends_the_command_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise ValueError("a mistake")

    monkeypatch.setattr(bench, "_warm_up", fail)
    monkeypatch.setattr("moeplan.profile.roofs.sizes_for", lambda *_, **__: TINY)
    options = ProfileOptions(
        config=tiny_config(tmp_path), tokens="1", backward=False, out=tmp_path / "o.json",
        device="cpu",
    )  # fmt: skip
    found = run_profile(options)
    assert found.code == 1
    assert "1 case failed" in found.sentence
    assert load_record(tmp_path / "o.json").cases[0].reason.startswith("a mistake (")


def test_what_a_small_size_has_no_time_for_a_larger_one_has_not(tmp_path: Path) -> None:
    tried: list[int] = []

    def measure(passes: bench.Passes, samples: int, **how: Any) -> Measurement:
        tried.append(len(passes.turns[0].ids_TK))
        if tried[-1] >= 2:
            raise bench.OutOfTime("its passes would take 9 s more")
        return bench.measure(passes, samples, **how)

    r = make(tmp_path, measure=measure)
    r.run([part(1, 2, 4, 8)])
    record = load_record(r.paths["small"])
    assert tried == [1, 2]
    assert states(record) == [(1, "measured"), *((n, "out of time") for n in (2, 4, 8))]
    assert "too short for a smaller case" in record.cases[-1].reason


# -------------------------------------------------------------------- what is not measured
def test_a_time_below_the_floor_is_flagged(tmp_path: Path) -> None:
    slow, fast = tmp_path / "slow", tmp_path / "fast"
    for folder, rate in ((slow, 1.0), (fast, 1e15)):
        make(folder, measure_roofs=lambda rate=rate: roofs(gemm=rate, bandwidth=1e15)).run(
            [part(2)]
        )
    flags = [
        load_record(next(folder.rglob("*.json"))).cases[0].measured.flags  # type: ignore[union-attr]
        for folder in (slow, fast)
    ]
    assert any(flag.startswith("above the roofs") for flag in flags[0])
    assert not any(flag.startswith("above the roofs") for flag in flags[1])


def test_a_size_that_cannot_fit_is_skipped_with_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "free_bytes", lambda _: 40_000_000)
    r = make(tmp_path)
    r.run([part(1, 100_000)])
    fits, large = load_record(r.paths["small"]).cases
    assert fits.state == "measured"
    assert large.state == "skipped"
    assert large.free_bytes is not None
    assert 40e6 <= large.free_bytes < 50e6  # with what the layers at hand would give back
    assert large.prediction is not None
    assert large.prediction.peak_bytes > 100_000 * 64 * 4
    assert large.reason.startswith("does not fit: ")
    assert large.reason.endswith(f"{large.free_bytes / 1e6:.2f} MB free")
    assert large.measured is None


def test_a_spent_budget_leaves_the_rest_for_a_resumed_run(tmp_path: Path) -> None:
    r = make(tmp_path, deadline=time.monotonic() - 1)
    r.run([part(1, 2)])
    record = load_record(r.paths["small"])
    assert states(record) == [(1, "out of time"), (2, "out of time")]
    assert record.state == "out of time"
    again = make(tmp_path, resume=True)
    again.run([part(1, 2)])
    assert states(load_record(r.paths["small"])) == [(1, "measured"), (2, "measured")]


def test_a_case_that_is_predicted_to_miss_the_deadline_is_not_begun(tmp_path: Path) -> None:
    slow = lambda: roofs(gemm=1.0, bandwidth=1e15)  # noqa: E731
    untouched = lambda *_, **__: pytest.fail("it was begun")  # noqa: E731
    r = make(tmp_path, deadline=time.monotonic() + 60, measure_roofs=slow, measure=untouched)
    r.run([part(1)])
    (case,) = load_record(r.paths["small"]).cases
    assert (case.state, case.prediction is not None) == ("out of time", True)
    assert "it is predicted to take" in case.reason


def test_a_part_with_its_own_limit_leaves_time_for_the_next(tmp_path: Path) -> None:
    hasty = Part("hasty", part(1, name="hasty").jobs, seconds=-1)
    r = make(tmp_path)
    r.run([hasty, part(2)])
    assert states(r.records["hasty"]) == [(1, "out of time")]
    assert states(r.records["small"]) == [(2, "measured")]


def test_a_wrong_backend_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.checks, "TOLERANCE", {"fp32": 1e-12})
    r = make(tmp_path)
    r.run([part(1)])
    record = load_record(r.paths["small"])
    assert states(record) == [(1, "skipped")]
    assert record.cases[0].reason == "the backend's results are wrong: see checks"
    assert not record.checks[0].passed


def test_sizes_that_a_backend_cannot_run_are_skipped(tmp_path: Path) -> None:
    r = make(tmp_path)
    r.run([part(1, block=MoE(D=66, E=4, k=2, F=32))])
    (case,) = load_record(r.paths["small"]).cases
    assert case.state == "skipped"
    assert "strides of 16 bytes" in case.reason


# ------------------------------------------------------------------------------- resuming
def test_records_that_would_not_mix_are_not_resumed(tmp_path: Path) -> None:
    make(tmp_path).run([part(1)])
    with pytest.raises(UserError, match="measured with seed 0, and this run has 1"):
        make(tmp_path, resume=True, settings=settings(seed=1)).run([part(1)])
    other = VERSIONS.model_copy(update={"torch": "9"})
    with pytest.raises(UserError, match="measured with torch 2, and this run has 9"):
        make(tmp_path, resume=True, versions=other).run([part(1)])


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    make(tmp_path, file=file).run([part(1)])
    before = file.read_bytes()
    with pytest.raises(UserError, match="exists: give --resume"):
        make(tmp_path, file=file).run([part(1)])
    assert file.read_bytes() == before
    make(tmp_path).run([part(1)])
    make(tmp_path).run([part(1)])
    assert len(list(tmp_path.glob("cpu-test-cpu/small_*.json"))) == 2


def test_parts_of_one_name_share_a_record_and_its_checks(tmp_path: Path) -> None:
    r = make(tmp_path)
    r.run([part(1), part(2, name="other"), part(4)])
    assert [case.tokens for case in load_record(r.paths["small"]).measured()] == [1, 4]
    assert len(list(tmp_path.rglob("*.json"))) == 2
    assert len(r.records["small"].checks) == 3


def test_the_bar_is_told_what_was_planned(tmp_path: Path) -> None:
    planned: list[float] = []
    steps: list[float] = []
    r = make(tmp_path, planned=planned.append, advanced=lambda _, seconds: steps.append(seconds))
    r.run([part(1, 2)])
    assert sum(steps) == pytest.approx(planned[0])
    assert len(steps) > 10


# -------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("error", "memory", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True, False),
        (MemoryError(), True, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
            True,
            False,
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLt"),
            False,
            False,
        ),
        (RuntimeError("shapes do not match"), False, False),
        (ValueError("out of memory"), False, False),
    ],
)
def test_errors_are_told_apart(error: BaseException, memory: bool, lost: bool) -> None:
    assert is_out_of_memory(error) == memory
    assert (not memory and is_device_lost(error)) == lost


def test_a_trace_that_does_not_fit_leaves_no_record(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("[0, 1]\n" * 4)
    options = ProfileOptions(
        config=tiny_config(tmp_path), tokens="2,5", routing="trace", out=tmp_path / "out",
        routing_trace=tmp_path / "t.jsonl", device="cpu",
    )  # fmt: skip
    with pytest.raises(UserError, match="holds 4 tokens, and a pass of 5"):
        run_profile(options)
    assert not (tmp_path / "out").exists()


def test_without_torch_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeplan.profile.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'moeplan\[profile\]'"):
        run_profile(ProfileOptions(preset="olmoe"))


def test_validating_does_not_import_torch(outcome: Outcome, root: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from moeplan.profile.command import ValidateOptions, run_validate\n"
        f"run_validate(ValidateOptions([Path({str(outcome.paths[0])!r})]))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
