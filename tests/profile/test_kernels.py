"""The Triton kernels against plain torch, interpreted on the CPU; and compiled for sm_90.

The interpreter is right in fp32 and fp16 and silently wrong in bf16, so bf16 is left to a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from moeplan.profile import eager, functions
from moeplan.profile.activations import ACTIVATIONS, Activation
from moeplan.profile.backends import _plain_activation
from moeplan.profile.layer import Layer
from tests.profile.cases import errors, kinds, relative

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
EVERY = [(how, gated) for how in ACTIVATIONS.values() for gated in (True, False)]
ACTIVATED = pytest.mark.parametrize(("how", "gated"), EVERY, ids=lambda v: getattr(v, "name", v))


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    """The kernels, interpreted: conftest asks Triton for it where there is no GPU."""
    pytest.importorskip("triton", reason="triton is not in torch's CPU wheel: pip install triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("a GPU is at hand: test_layer runs the kernels on it")
    return import_module("moeplan.profile.kernels")


def _hidden(rows: int, width: int, dtype: torch.dtype, gated: bool) -> Tensor:
    """Values up to about 15, so that clamps at 7 and 10 are reached, and both sides of zero."""
    generator = torch.Generator().manual_seed(rows)
    h_RH = torch.empty(rows, 2 * width if gated else width).normal_(0, 5, generator=generator)
    return h_RH.to(dtype)


def _places(tokens: int, choices: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    places = torch.randperm(tokens * choices, generator=generator).view(tokens, choices)
    return places, torch.rand(tokens, choices, generator=generator)


# --------------------------------------------------------------------------------- activations
@ACTIVATED
def test_plain_gradient_equals_autograds(how: Activation, gated: bool) -> None:
    h_RH = _hidden(23, 48, torch.float64, gated).requires_grad_()
    d_RF = torch.rand(23, 48, dtype=torch.float64) - 0.5
    wanted = _plain_activation(h_RH, how, gated)
    wanted.backward(d_RF)
    found = eager.activate_gradient(d_RF, h_RH.detach(), how, gated)
    torch.testing.assert_close(eager.activate(h_RH.detach(), how, gated), wanted.detach())
    torch.testing.assert_close(found, h_RH.grad)


@DTYPES
@ACTIVATED
@pytest.mark.parametrize("shape", [(1, 16), (37, 48), (5, 1040)], ids=str)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_activation(
    kernels: ModuleType, how: Activation, gated: bool, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    h_RH, d_RF = _hidden(*shape, dtype, gated), _hidden(*shape, dtype, gated=False)
    wide = h_RH.float(), d_RF.float()
    value = kernels.activate(h_RH, how, gated)
    gradient = kernels.activate_gradient(d_RF, h_RH, how, gated)
    assert value.dtype == gradient.dtype == dtype
    assert relative(value, eager.activate(wide[0], how, gated)) < TOLERANCE[dtype]
    wanted = eager.activate_gradient(wide[1], wide[0], how, gated)
    assert relative(gradient, wanted) < TOLERANCE[dtype]


# ---------------------------------------------------------------------------------------- rows
@DTYPES
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("tokens", "choices", "width"), [(1, 1, 8), (13, 3, 80), (6, 8, 1032)])
def test_rows_out_and_back(
    kernels: ModuleType, tokens: int, choices: int, width: int, weighted: bool, dtype: torch.dtype
) -> None:
    place_TK, weights_TK = _places(tokens, choices)
    weights = weights_TK if weighted else None
    torch.manual_seed(7)
    x_TD, y_RD = (
        torch.randn(tokens, width).to(dtype),
        torch.randn(tokens * choices, width).to(dtype),
    )
    for name, rows in (("scatter_rows", x_TD), ("gather_sum", y_RD)):
        found = getattr(kernels, name)(rows, weights, place_TK)
        wanted = getattr(eager, name)(rows.float(), weights, place_TK)
        assert found.dtype == dtype
        assert relative(found, wanted) < TOLERANCE[dtype]
    x_TD, y_RD = x_TD.abs(), y_RD.abs()  # so that no sum cancels
    dots_TK = kernels.row_dots(x_TD, y_RD, place_TK)
    assert relative(dots_TK, eager.row_dots(x_TD.float(), y_RD.float(), place_TK)) < 1e-6


def test_rows_go_where_they_belong() -> None:
    """Plain torch against indexing by hand: 2 tokens of 2 choices."""
    x_TD = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    place_TK, weights_TK = torch.tensor([[2, 0], [1, 3]]), torch.tensor([[0.5, 2.0], [1.0, 10.0]])
    rows = eager.scatter_rows(x_TD, weights_TK, place_TK)
    assert rows.tolist() == [[2, 4], [3, 4], [0.5, 1], [30, 40]]
    assert eager.gather_sum(rows, None, place_TK).tolist() == [[2.5, 5], [33, 44]]
    assert eager.gather_sum(rows, weights_TK, place_TK).tolist() == [[4.25, 8.5], [303, 404]]
    assert eager.row_dots(x_TD, rows, place_TK).tolist() == [[2.5, 10], [25, 250]]


@DTYPES
@pytest.mark.parametrize("ends", [[4, 4, 9, 70, 70], [0, 0, 0, 0, 3], [1, 2, 3, 4, 5]], ids=str)
def test_biases_of_experts_some_of_them_empty(
    kernels: ModuleType, ends: list[int], dtype: torch.dtype
) -> None:
    ends_E = torch.tensor(ends, dtype=torch.int32)
    counts = torch.diff(ends_E, prepend=torch.zeros(1, dtype=torch.int32))
    expert_R = torch.repeat_interleave(torch.arange(5), counts).to(torch.int16)
    torch.manual_seed(7)
    h_RH, bias_EH = torch.randn(ends[-1], 72).to(dtype), torch.randn(5, 72).to(dtype)
    found = kernels.add_bias_(h_RH.clone(), bias_EH, expert_R)
    assert (
        relative(found, eager.add_bias_(h_RH.float(), bias_EH.float(), expert_R)) < TOLERANCE[dtype]
    )
    sums_EH = kernels.sum_bias(h_RH, expert_R, ends_E)
    for e, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
        torch.testing.assert_close(
            sums_EH[e], h_RH[first:last].float().sum(0), atol=1e-4, rtol=1e-5
        )


# --------------------------------------------------------------------------------- whole layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["gpt-oss-120b", "deepseek-r1", "llama4-maverick", "jamba-v0.1"])
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_layer_that_runs_on_the_kernels(
    kernels: ModuleType, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interpreted(tensor: Tensor) -> ModuleType:
        calls.append(tensor.shape)
        return kernels

    monkeypatch.setattr(functions, "_rows", interpreted)
    found = errors(Layer(kinds()[name], dtype=dtype), tokens=7)
    assert calls
    assert max(found.values()) < {torch.float32: 1e-5, torch.float16: 1e-2}[dtype], found


def test_kernels_run_on_cuda_alone() -> None:
    assert not functions.uses_kernels("cpu")


# ------------------------------------------------------------------------------ ahead of time
@pytest.mark.slow
def test_every_kernel_compiles_for_sm_90_without_spills(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not in torch's CPU wheel: pip install triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    run = subprocess.run(
        [sys.executable, "-m", "moeplan.profile.aot", "--first"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()[1:]
    assert len(lines) == 7
    for line in lines:
        registers, spilled = map(int, line.split()[-3:-1])
        assert 0 < registers <= 128
        assert spilled == 0
