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
DISTINCT = {(h.curve, h.slope, h.limit, h.shift): h for h in ACTIVATIONS.values()}.values()
EVERY = [(how, gated) for how in DISTINCT for gated in (True, False)]
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


@pytest.mark.parametrize(
    ("dtype", "shape"), [(torch.float32, (37, 48)), (torch.float16, (5, 1040))], ids=str
)
@ACTIVATED
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
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(
    ("tokens", "choices", "width", "dtype"),
    [(1, 1, 8, torch.float32), (13, 3, 80, torch.float16), (2, 8, 1032, torch.float32)],
)
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


def test_no_rows_and_views_of_rows(kernels: ModuleType) -> None:
    """A rank may be left without a token; a view's rows stand apart."""
    how = ACTIVATIONS["silu"]
    places = torch.empty(0, 2, dtype=torch.int64)
    assert kernels.activate(torch.empty(0, 32), how, True).shape == (0, 16)
    assert kernels.activate_gradient(torch.empty(0, 16), torch.empty(0, 32), how, True).numel() == 0
    assert kernels.scatter_rows(torch.empty(0, 16), None, places).shape == (0, 16)
    assert kernels.gather_sum(torch.empty(0, 16), torch.empty(0, 2), places).shape == (0, 16)
    assert kernels.row_dots(torch.empty(0, 16), torch.empty(0, 16), places).shape == (0, 2)
    wide = torch.randn(6, 64)
    view, plain = wide[:, 16:48], wide[:, 16:48].clone()
    assert torch.equal(kernels.activate(view, how, True), kernels.activate(plain, how, True))
    place_TK = torch.tensor([[4, 0, 2], [1, 3, 5]])
    for rows in (view, plain):
        torch.testing.assert_close(
            kernels.gather_sum(rows, None, place_TK), eager.gather_sum(plain, None, place_TK)
        )
    for name in ("scatter_rows", "row_dots"):
        inputs = (None, place_TK) if name == "scatter_rows" else (plain, place_TK)
        found, wanted = (getattr(where, name)(view[:2], *inputs) for where in (kernels, eager))
        torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.add_bias_(view, torch.zeros(2, 32), torch.zeros(6, dtype=torch.int16))


def test_rows_go_where_they_belong() -> None:
    """Plain torch against indexing by hand: 2 tokens of 2 choices."""
    x_TD = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    place_TK, weights_TK = torch.tensor([[2, 0], [1, 3]]), torch.tensor([[0.5, 2.0], [1.0, 10.0]])
    rows = eager.scatter_rows(x_TD, weights_TK, place_TK)
    assert rows.tolist() == [[2, 4], [3, 4], [0.5, 1], [30, 40]]
    assert eager.gather_sum(rows, None, place_TK).tolist() == [[2.5, 5], [33, 44]]
    assert eager.gather_sum(rows, weights_TK, place_TK).tolist() == [[4.25, 8.5], [303, 404]]
    assert eager.row_dots(x_TD, rows, place_TK).tolist() == [[2.5, 10], [25, 250]]


@pytest.mark.parametrize(
    ("ends", "dtype"),
    [([4, 4, 9, 70, 70], torch.float16), ([0, 0, 0, 0, 3], torch.float32)],
    ids=str,
)
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
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("gpt-oss-120b", torch.float32), ("deepseek-r1", torch.float16),
     ("llama4-maverick", torch.float32), ("jamba-v0.1", torch.float16)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_layer_that_runs_on_the_kernels(
    kernels: ModuleType, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interpreted(tensor: Tensor) -> ModuleType:
        calls.append(tensor.shape)
        return kernels

    monkeypatch.setattr(functions, "_rows", interpreted)
    found = errors(Layer(kinds()[name], dtype=dtype), tokens=5)
    assert calls
    assert max(found.values()) < {torch.float32: 1e-5, torch.float16: 1e-2}[dtype], found


def test_kernels_run_on_cuda_alone() -> None:
    assert not functions.uses_kernels("cpu")


def test_kernels_that_do_not_compile_leave_rows_to_plain_torch(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = functions.kernels_missing.__wrapped__
    monkeypatch.setattr(functions, "_try_kernel", lambda _, try_=functions._try_kernel: try_("cpu"))
    assert missing("cuda") is None
    monkeypatch.setattr(kernels, "gather_sum", lambda *_: torch.zeros(1, 128))
    assert missing("cuda") == "Triton failed: ValueError: one and one are not two"


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
