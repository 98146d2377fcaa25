"""What a GPU has to show: kernels, whole layers, graphs and memory. Skipped where there is none.

In bf16, which Triton's interpreter gets wrong, and at sizes past 32-bit offsets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moeplan.errors import UserError
from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.presets import presets
from moeplan.profile import bench, eager
from moeplan.profile.activations import ACTIVATIONS, Activation
from moeplan.profile.assignment import Assignment
from moeplan.profile.backends import backends
from moeplan.profile.checks import check_backend
from moeplan.profile.command import run_profile
from moeplan.profile.layer import Layer
from moeplan.profile.memory import peak_memory
from moeplan.profile.options import ProfileOptions
from moeplan.profile.roofs import measure_roofs
from moeplan.profile.store import load_record
from tests.profile.cases import errors, is_built, kinds, relative
from tests.profile.records import tiny_config

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
CUDA = torch.device("cuda")
FIVE = ("mixtral", "deepseek-v3", "qwen3-30b", "gpt-oss-120b", "olmoe")


@pytest.fixture(autouse=True)
def _freed() -> Iterator[None]:
    """No test leaves memory to the next."""
    yield
    torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------- kernels
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("how", ACTIVATIONS.values(), ids=lambda how: how.name)
def test_activation_in_bf16(how: Activation, gated: bool) -> None:
    from moeplan.profile import kernels

    h_RH = (5 * torch.randn(1000, 2880 * (2 if gated else 1), device=CUDA)).bfloat16()
    d_RF = torch.randn(1000, 2880, device=CUDA).bfloat16()
    wide = h_RH.float(), d_RF.float()
    value = kernels.activate(h_RH, how, gated)
    gradient = kernels.activate_gradient(d_RF, h_RH, how, gated)
    assert relative(value, eager.activate(wide[0], how, gated)) < 4e-3
    assert relative(gradient, eager.activate_gradient(wide[1], wide[0], how, gated)) < 4e-3


def test_rows_past_32_bit_offsets() -> None:
    """65,536 tokens of 8 choices of width 7168: 3.8 billion elements. Checked row by row."""
    from moeplan.profile import kernels

    tokens, choices, width = 65_536, 8, 7168
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("needs 12 GB of free memory")
    x_TD = torch.randn(tokens, width, device=CUDA, dtype=torch.bfloat16)
    place_TK = torch.randperm(tokens * choices, device=CUDA).view(tokens, choices)
    rows_RD = kernels.scatter_rows(x_TD, None, place_TK)
    for token in (0, 1, tokens // 2, tokens - 1):
        for row in place_TK[token].tolist():
            assert torch.equal(rows_RD[row], x_TD[token])
    sums_TD = kernels.gather_sum(rows_RD, None, place_TK)
    for start in range(0, tokens, 8192):  # eight equal numbers: exact in bf16
        assert torch.equal(sums_TD[start : start + 8192], 8 * x_TD[start : start + 8192])


# --------------------------------------------------------------------------------------- layers
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", sorted(kinds()))
def test_output_and_gradients_equal_the_reference(name: str, dtype: torch.dtype) -> None:
    layer = Layer(kinds()[name], dtype=dtype, device="cuda")
    assert max(errors(layer, tokens=65).values()) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", [b.name for b in backends() if b.name != "reference"])
@pytest.mark.parametrize("name", FIVE)
def test_every_backend_is_right_on_the_presets(name: str, backend: str) -> None:
    """Uniform, one token, and all tokens on the same experts; forward and gradients."""
    block = load_preset(name).moe
    assert block is not None
    try:
        found = check_backend(block, name, backend, "bf16", CUDA, 0)
    except UserError as refused:  # not installed, or experts that it does not run
        pytest.skip(str(refused))
    assert all(check.passed for check in found), found


def test_every_preset_runs_at_its_own_width() -> None:
    """One narrow layer of each preset: routing and activations as they are."""
    for preset in presets():
        block = load_preset(preset.name).moe
        if block is None or not is_built(block):
            continue
        assert all(c.passed for c in check_backend(block, preset.name, "torch", "bf16", CUDA, 0))


# --------------------------------------------------------------------------- graphs, memory, times
def _passes(block: MoE, tokens: int, direction: str) -> bench.Passes:
    layers = bench.make_layers(block, "torch", "bf16", CUDA, seed=0, cache_bytes=1 << 20)
    ids = Assignment("zipf", 1.0).ids(tokens, int(block.values["E"]), int(block.values["k"]), 3)
    how = {"cache_bytes": 1 << 20, "touched": 1 << 30, "seed": 5}
    return bench.Passes(layers, ids, direction, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("name", FIVE)
def test_a_graph_replays_what_a_plain_call_gives(name: str, direction: str) -> None:
    """Hopper's grouped matmul has no host sync; cards below it have one, and no graph."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("grouped matmuls of this card wait for the host")
    block = load_preset(name).moe
    assert block is not None
    timing = bench._graph(_passes(block, 64, direction), 3)
    assert timing.samples, timing.absent


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("name", FIVE)
def test_predicted_peak_is_the_allocators(name: str, direction: str) -> None:
    block = load_preset(name).moe
    assert block is not None
    backward = direction != "forward"
    predicted = peak_memory(block, 4096, backward=backward, kernels=True).peak
    if predicted > 0.8 * torch.cuda.mem_get_info()[0]:
        pytest.skip("does not fit")
    passes = _passes(block, 4096, direction)
    passes.run(0)  # libraries make their workspace on their first call
    peak, _ = bench._peak(passes)
    assert peak == pytest.approx(predicted, rel=0.02)


def test_roofs_of_a_gpu() -> None:
    roofs = {roof.name: roof for roof in measure_roofs(CUDA, "bf16", quick=True)}
    assert list(roofs) == ["gemm", "copy", "reduce", "launch", "dispatch"]
    assert roofs["launch"].value < roofs["dispatch"].value


def test_a_run_gives_all_three_times(tmp_path: Path) -> None:
    options = ProfileOptions(config=tiny_config(tmp_path), tokens="64", quick=True, out=tmp_path)
    found = run_profile(options)
    for case in load_record(found.paths[0]).cases:
        assert case.measured is not None
        assert case.measured.phase_clock == "kernels"
        assert case.measured.kernels.samples
        assert case.measured.peak_source == "CUDA allocator"
