"""torch counts the FLOPs and parameters that the estimate states, for layers of full size.

Tensors are on the meta device: shapes without data, so that DeepSeek-V3's 22 GB of experts cost
nothing. torch's counter sees the shapes of the matmuls that run; the formulas it does not know.
"""

from __future__ import annotations

import pytest
import torch

from moeplan.estimation.flops import forward_by_component
from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.model.workload import Workload
from moeplan.profile.counting import count_flops
from moeplan.profile.layer import Layer
from moeplan.quantity import evaluate
from tests.profile.cases import full_size, kinds

PRESETS = ("mixtral", "deepseek-v3", "qwen3-30b", "gpt-oss-120b", "olmoe")
TOKENS = 4096


@pytest.mark.parametrize("name", sorted(full_size()))
def test_counted_flops_and_parameters_equal_the_estimate(name: str) -> None:
    """Every kind of layer among the presets, as large as it is."""
    block = full_size()[name]
    work = Workload("train", B=1, S=TOKENS, C=TOKENS)
    env = block.environment(work)
    estimated = {op.name: evaluate(op.flops, env) for op in block.rows(work)
                 if op.kind != "exchange"}  # fmt: skip
    layer = Layer(block, device="meta")
    counts = count_flops(layer, layer.input(TOKENS), backward=True)
    assert counts["forward"] == estimated
    assert {**dict.fromkeys(estimated, 0), **counts["backward"]} == {
        name: 2 * flops for name, flops in estimated.items()
    }
    _assert_parameters(block)


@pytest.mark.parametrize("name", PRESETS)
def test_counted_flops_of_all_moe_layers_equal_the_models(name: str) -> None:
    spec = load_preset(name)
    assert spec.moe is not None
    layer = Layer(spec.moe, device="meta")
    counted = sum(count_flops(layer, layer.input(TOKENS))["forward"].values())
    parts = forward_by_component(spec, Workload("train", B=1, S=TOKENS, C=TOKENS))
    moe = ("router", "routed_experts", "shared_experts")
    estimated = sum(parts[part].value for part in moe if part in parts)
    assert counted * spec.moe_layers == estimated


def _assert_parameters(block: MoE) -> None:
    layer = Layer(block, device="meta")
    trained = sum(tensor.numel() for tensor in layer.parameters())
    held = sum(tensor.numel() for tensor in layer.buffers())
    rows = [(weight.buffer, evaluate(weight.elements, block.values)) for weight in block.weights()]
    assert trained == sum(elements for buffer, elements in rows if not buffer)
    assert held == sum(elements for buffer, elements in rows if buffer)


def test_the_count_does_not_depend_on_who_gets_which_token() -> None:
    layer = Layer(kinds()["gpt-oss-120b"], dtype=torch.float32)
    ids_TK = torch.arange(layer.k).expand(30, -1)
    x_TD = layer.input(30)
    assert count_flops(layer, x_TD, backward=True) == count_flops(
        layer, x_TD, ids_TK, backward=True
    )


def test_without_the_mapping_torch_counts_no_expert() -> None:
    """The reason for the mapping; when torch counts grouped matmuls itself, it may go."""
    from torch.utils.flop_counter import FlopCounterMode

    layer = Layer(kinds()["gpt-oss-120b"], device="meta")
    with FlopCounterMode(display=False) as counter:
        layer(layer.input(8))
    values = layer.block.values
    assert counter.get_total_flops() == 2 * 8 * values["D"] * values["E"]  # the router alone
