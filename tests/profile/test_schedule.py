"""What is asked for, what would run and how long: options, their mistakes, and dry runs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from moeplan.errors import UserError
from moeplan.load import load_preset
from moeplan.presets import presets
from moeplan.profile import comparisons
from moeplan.profile.command import run_profile
from moeplan.profile.options import ProfileOptions, samples_of
from moeplan.profile.schedule import Step, datasheet, schedule, schedule_tables
from moeplan.profile.suite import FIVE, suite
from moeplan.report.tables import to_text
from moeplan.units import fmt_bytes
from tests.profile.cases import is_built

SIZES = (1, 16, 64, 512, 4096, 16384)
BOTH = ["forward", "forward+backward"]


def _steps(gpu: str, budget: float = 660.0, samples: int = 20) -> list[Step]:
    parts = suite("gpu", SIZES, ["torch", "transformers"], "bf16", BOTH)  # type: ignore[arg-type]
    return schedule(parts, datasheet(gpu, "bf16"), samples, budget)


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_all_of_the_gpu_suite_is_home_within_twelve_minutes(gpu: str) -> None:
    steps = _steps(gpu)
    assert [step.why for step in steps if step.why] == []
    end = steps[-1].start + steps[-1].seconds
    assert 240 < end < 0.8 * 660  # room for what is not foreseen
    assert all(a.start + a.seconds == pytest.approx(b.start) for a, b in pairwise(steps))
    forward = [s for s in steps if s.job.subject in FIVE and s.start < 90]
    assert len(forward) == 30  # five presets at six sizes, before all else


def test_a_short_budget_keeps_the_first_cases_and_names_the_others() -> None:
    steps, whole = _steps("h200", budget=100.0), _steps("h200")
    ran = [step for step in steps if not step.why]
    assert 30 <= len(ran) < len(whole)
    assert [step.job.key for step in ran[:30]] == [step.job.key for step in whole[:30]]
    assert max(step.start + step.seconds for step in ran) <= 100
    assert {step.why for step in steps if step.why} == {"no time left"}
    text = to_text(schedule_tables(steps, datasheet("h200", "bf16"), 100.0), width=80)
    assert "no time left: " in text
    assert "ends after 1:40 in any case" in text


def test_a_card_with_little_memory_leaves_the_large_ones() -> None:
    left = {(s.job.subject, s.job.direction) for s in _steps("rtx-4090") if s.why == "does not fit"}
    assert ("deepseek-v3", "forward+backward") in left
    assert ("olmoe-1b-7b", "forward") not in left
    steps = [s for s in _steps("rtx-4090") if s.why == "does not fit"]
    text = " ".join(to_text(schedule_tables(steps, datasheet("rtx-4090", "bf16"), 1e9)).split())
    assert f"{steps[0].job.tokens:,} (needs {fmt_bytes(steps[0].needed)})" in text
    assert "22.34 GB can be used here" in text  # 95 % of 98 % of 24 GB
    assert "–" not in text


def test_more_samples_take_longer_and_a_faster_card_less() -> None:
    few, many = (sum(s.seconds for s in _steps("h100", samples=n)) for n in (5, 20))
    assert few < many
    assert sum(s.seconds for s in _steps("h200")) < many


def test_a_dry_run_measures_nothing_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    how = ProfileOptions(suite="gpu", backend="all", dry_run=True, gpu="h200", detail=True)
    found = run_profile(how)
    assert list(tmp_path.iterdir()) == []
    assert found.paths == []
    assert found.code == 0
    text = to_text(found.tables, width=80)
    assert "What would run on NVIDIA H200" in text
    assert "nothing has been measured" in text
    assert "qwen3-30b-a3b, 16,384, fwd, uniform, torch" in text
    assert max(map(len, text.splitlines())) <= 80
    assert found.document[0]["case"][:2] == ["qwen3-30b-a3b", 1]


def test_a_suite_names_what_it_cannot_build() -> None:
    how = ProfileOptions(suite="all", tokens="1", backward=False, dry_run=True, gpu="h200")
    steps = run_profile(how).document
    left = {step["part"] for step in steps if step["left"] == "not built"}
    assert left == {p.name for p in presets() if (m := load_preset(p.name).moe) and not is_built(m)}
    assert "longcat-flash" in left


def test_quick_takes_fewer_samples_unless_told() -> None:
    assert samples_of(ProfileOptions(preset="olmoe")) == 20
    assert samples_of(ProfileOptions(preset="olmoe", quick=True)) == 5
    assert samples_of(ProfileOptions(preset="olmoe", quick=True, samples=7)) == 7


# -------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize("name", ["transformers", "liger"])
def test_a_backend_without_its_library_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparisons, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"--backend {name}: .* is not installed: pip install"):
        run_profile(ProfileOptions(preset="olmoe", backend=name))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "one thing to measure is needed and nothing was given"),
        ({"preset": "olmoe", "suite": "all"}, "several were given"),
        ({"preset": "olmo"}, "did you mean 'olmoe"),
        ({"preset": "llama-3.1-8b"}, "a dense model has no MoE layer to measure"),
        ({"preset": "olmoe", "dtype": "bf61"}, "did you mean 'bf16'"),
        ({"preset": "olmoe", "backend": "torhc"}, "did you mean 'torch'"),
        ({"preset": "olmoe", "device": "gpu"}, "allowed are auto, cpu, cuda and cuda:N"),
        ({"preset": "olmoe", "device": "tpu0"}, "allowed are auto, cpu, cuda and cuda:N"),
        ({"preset": "olmoe", "device": "cuda:99"}, "sees . CUDA devices"),
        ({"preset": "olmoe", "tokens": "0"}, "at least one token"),
        ({"preset": "olmoe", "tokens": "1,,2"}, "--tokens"),
        ({"preset": "olmoe", "tokens": "1.5"}, "--tokens"),
        ({"preset": "olmoe", "budget": "12"}, "--budget"),
        ({"preset": "olmoe", "samples": 0}, "--samples 0"),
        ({"preset": "olmoe", "gpu": "h100"}, "needs --dry-run"),
        ({"preset": "longcat-flash", "dry_run": True, "gpu": "h200"}, r"does not build MoE\.Z=256"),
        ({"preset": "olmoe", "gpu": "h1000", "dry_run": True}, "h1000"),
        ({"preset": "olmoe", "gpu": "h100", "dry_run": True, "device": "cpu"}, "exclude"),
        ({"preset": "olmoe", "routing": "zipf"}, "exponent"),
        ({"suite": "gup"}, "did you mean 'gpu'"),
        ({"suite": "gpu", "out": Path("x.json")}, "name a folder"),
        ({"suite": "gpu", "routing": "balanced"}, "a suite has its own routings"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run_profile(ProfileOptions(**changes))
