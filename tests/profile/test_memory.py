"""Predicted peak memory against tracked bytes of tensors, forward and with the backward pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.model.workload import Workload
from moeplan.profile.layer import Layer
from moeplan.profile.memory import peak_memory
from moeplan.profile.tracking import TrackedMemory, saved_bytes
from moeplan.quantity import evaluate
from tests.profile.cases import kinds

NAMES = sorted(kinds())
BAND = 0.02  # what is promised; TIGHT is what is reached
TIGHT = 0.002


def _wide(block: MoE) -> MoE:
    """Wide enough that activations, not a router's few numbers, decide."""
    return replace(
        block,
        D=128,
        F=96,
        Fs=None if block.Fs is None else 160,
        Dl=None if block.Dl is None else 64,
    )


def _tracked(layer: Layer, tokens: int, backward: bool) -> tuple[int, int]:
    """Peak bytes of one pass, and those that the forward left for the backward pass."""
    with TrackedMemory() as memory:
        memory.watch(*layer.parameters(), *layer.buffers())
        x_TD = layer.input(tokens).requires_grad_(backward)
        d_TD = torch.randn_like(x_TD) if backward else None
        before = memory.now
        with torch.set_grad_enabled(backward):
            y_TD = layer(x_TD)
        kept = memory.now - before - y_TD.nbytes
        if d_TD is not None:
            y_TD.backward(d_TD)
    layer.zero_grad(set_to_none=True)
    return memory.peak, kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_predicted_peak_equals_tracked_bytes(name: str, dtype: torch.dtype) -> None:
    block = _wide(kinds()[name])
    layer = Layer(block, dtype=dtype)
    for tokens in (1, 256) if dtype == torch.bfloat16 else (256,):
        for backward in (False, True):
            predicted = peak_memory(block, tokens, backward=backward, element=dtype.itemsize)
            peak, kept = _tracked(layer, tokens, backward)
            assert predicted.peak == pytest.approx(peak, rel=BAND)
            assert predicted.kept == pytest.approx(kept, abs=8)
            if tokens > 1:
                assert predicted.peak == pytest.approx(peak, rel=TIGHT)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-30b", "deepseek-v3", "gpt-oss-120b", "olmoe"])
def test_a_layer_with_the_presets_proportions(name: str) -> None:
    """Widths of the real layer over 32; its top-k, and experts up to 32."""
    block = load_preset(name).moe
    assert block is not None
    size = {symbol: max(16, int(block.values.get(symbol, 0)) // 512 * 16) for symbol in ("D", "F")}
    shared = None if block.Fs is None else size["F"]
    block = replace(block, **size, Fs=shared, E=min(32, block.values["E"]))
    layer = Layer(block)
    for backward in (False, True):
        peak, _ = _tracked(layer, 256, backward)
        assert peak_memory(block, 256, backward=backward).peak == pytest.approx(peak, rel=TIGHT)


@pytest.mark.parametrize("name", NAMES)
def test_kept_tensors_of_the_rows_are_what_autograd_keeps(name: str) -> None:
    """The tensors by which the estimate counts activations, one by one, all but the router's."""
    block, tokens = _wide(kinds()[name]), 64
    layer = Layer(block)
    x_TD = layer.input(tokens).requires_grad_()
    with saved_bytes(x_TD, *layer.parameters(), *layer.buffers()) as kept:
        layer(x_TD)
    found = sorted(size for (_, *shape), size in kept.items()
                   if len(shape) == 2 and shape[1] >= 48)  # fmt: skip
    work = Workload("train", B=1, S=tokens, C=tokens)
    env = block.environment(work)
    rows = {
        k.name: evaluate(k.elements, env) * k.bits // 8
        for op in block.rows(work) for k in op.kept
    }  # fmt: skip
    for router in ("moe_input", "probs", "row_map"):
        rows.pop(router, None)
    if block.router_scales:
        rows["router_input"] = 2 * tokens * 128
    assert found == sorted(rows.values())


def test_arrays_equal_scalars() -> None:
    block = kinds()["gpt-oss-120b"]
    tokens = [1, 64, 4096]
    swept = peak_memory(block, np.array(tokens, dtype=np.float64), backward=True).peak
    one_by_one = [peak_memory(block, t, backward=True).peak for t in tokens]
    assert swept.tolist() == one_by_one
    assert all(type(peak) is int for peak in one_by_one)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_need_no_more_than_plain_torch(name: str) -> None:
    block = _wide(kinds()[name])
    for backward in (False, True):
        plain, fused = (
            peak_memory(block, 512, backward=backward, kernels=kernels).peak
            for kernels in (False, True)
        )
        assert fused <= plain
        assert fused > plain // 2


def test_a_backward_pass_holds_all_weights_twice() -> None:
    block = kinds()["gpt-oss-120b"]
    memory = peak_memory(block, 1, backward=True)
    assert memory.peak > 2 * memory.weights
    assert peak_memory(block, 1, backward=False).peak < 1.2 * memory.weights


def test_tracked_memory_counts_a_storage_once_and_until_it_dies() -> None:
    with TrackedMemory() as memory:
        a = torch.zeros(100)  # 400 bytes
        view = a[10:]
        del a
        assert memory.now == 400
        del view
        assert memory.now == 0
        b = torch.ones(10) + torch.ones(10)  # two of 40 bytes and their sum
        del b
        assert (memory.now, memory.peak) == (0, 400)
        memory.reset_peak()
        assert memory.peak == 0
