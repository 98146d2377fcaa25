"""Experts of other libraries, run on this layer's weights, against the fp32 loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moeplan.errors import UserError
from moeplan.profile.backends import backend_named
from moeplan.profile.comparisons import LigerBackend
from moeplan.profile.layer import Layer, phase_names
from moeplan.profile.predict import OTHERS, TOGETHER, Shape, predict
from moeplan.profile.store import load_record
from tests.profile.cases import errors, kinds
from tests.profile.records import roofs
from tests.profile.test_command import make, part

PLAIN = ("deepseek-r1", "gemma-4-26b-a4b", "nemotron-3-nano-30b-a3b", "qwen3-next-80b-a3b")
OTHER = [("gpt-oss-120b", "biases"), ("llama4-maverick", "weigh"), ("minimax-m3", "clamps")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["transformers", "transformers-eager"])
@pytest.mark.parametrize("name", PLAIN)
def test_transformers_experts_are_right(name: str, backend: str, dtype: torch.dtype) -> None:
    """With empty experts: 8 experts and more, and few tokens."""
    pytest.importorskip("transformers", reason="the experts are transformers'")
    found = errors(Layer(kinds()[name], backend=backend, dtype=dtype), tokens=24)
    assert max(found.values()) < {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype], found


@pytest.mark.parametrize(("name", "why"), OTHER)
def test_experts_of_another_kind_are_refused_by_name(name: str, why: str) -> None:
    pytest.importorskip("transformers", reason="the experts are transformers'")
    with pytest.raises(UserError, match=rf"backend 'transformers' cannot run this layer: .*{why}"):
        Layer(kinds()[name], backend="transformers")


def test_liger_runs_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LigerBackend, "missing", lambda _: None)
    with pytest.raises(UserError, match="kernels run on CUDA alone"):
        Layer(kinds()["deepseek-r1"], backend="liger")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_liger_is_right_where_it_is_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGER_FUSED_MOE_AUTOTUNE", "0")  # the interpreter cannot tune
    pytest.importorskip("liger_kernel", reason="Liger-Kernel is not among the dev tools")
    monkeypatch.setattr(LigerBackend, "unfit", lambda *_: None)
    found = errors(Layer(kinds()["deepseek-r1"], backend="liger", dtype=torch.float32), tokens=5)
    assert max(found.values()) < 1e-5, found


def test_one_call_is_one_phase_with_the_work_of_all_its_rows() -> None:
    block = kinds()["qwen3-next-80b-a3b"]
    names = phase_names(block, together=True)
    assert names == ("router", "select", TOGETHER, "shared_gate_up", "shared_activation",
                     "shared_down", "shared_gate", "shared_add")  # fmt: skip
    rows = [1] * int(block.values["E"])
    apart = predict(Shape(block, 16, rows, "fp32", "forward+backward"), roofs(), 0)
    shape = Shape(block, 16, rows, "fp32", "forward+backward", "transformers", together=True)
    joined = predict(shape, roofs(), 0)
    assert joined.note == OTHERS
    assert joined.expected == pytest.approx(apart.expected)
    for what in ("flops", "bytes"):
        assert sum(getattr(op, what) for op in joined.ops) == sum(
            getattr(op, what) for op in apart.ops
        )
    assert {(op.name, op.stage) for op in joined.ops} == {
        (name, stage) for name in names for stage in ("forward", "backward")
    }


def test_the_phase_is_opened_once_forward_and_backward() -> None:
    pytest.importorskip("transformers", reason="the experts are transformers'")
    layer = Layer(kinds()["deepseek-r1"], backend="transformers", dtype=torch.float32)
    opened: dict[str, set[str]] = {"forward": set(), "backward": set()}

    @contextmanager
    def hook(phase: str, stage: str) -> Iterator[None]:
        opened[stage].add(phase)
        yield

    layer(layer.input(5).requires_grad_(), phase_hook=hook).sum().backward()
    assert opened["forward"] == set(layer.phase_names)
    assert TOGETHER in opened["backward"]


def test_a_run_of_it_is_recorded_beside_the_others(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the experts are transformers'")
    own = part(2)
    others = [replace(job, backend="transformers") for job in own.jobs]
    r = make(tmp_path)
    r.run([replace(own, jobs=(*own.jobs, *others))])
    first, second = load_record(r.paths["small"]).cases
    assert (first.state, second.state) == ("measured", "measured")
    assert second.measured is not None
    assert [phase.name for phase in second.measured.phases] == ["router", "select", TOGETHER]
    assert backend_named("transformers").together
