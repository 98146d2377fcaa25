"""The layer computes what transformers' own modules compute, with their weights copied into it.

The modules share no code with this package. Their experts run as a loop over the experts; the
comparison is in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.profile.layer import Layer
from tests.profile.cases import SHARED, relative, small

pytest.importorskip("transformers", reason="the oracle is transformers")
pytestmark = pytest.mark.oracle


class Case(NamedTuple):
    """A module of transformers, how its config names our sizes, and where its weights belong.

    config: extra keys. sizes: our symbol to the config's key. weights: our tensor to theirs.
    """

    preset: str
    module: str
    config: str
    sizes: dict[str, str]
    weights: dict[str, str]
    extra: Mapping[str, Any] = MappingProxyType({})
    convert: Callable[[str, Tensor], Tensor] = lambda _, theirs: theirs


STACKED = {"up_EHL": "experts.gate_up_proj", "down_ELF": "experts.down_proj"}
GATED = {**STACKED, "router_ED": "gate.weight"}
WIDTHS = {"D": "hidden_size", "k": "num_experts_per_tok"}
BIASED = {**GATED, "selection_bias_E": "gate.e_score_correction_bias"}


def _transposed(name: str, theirs: Tensor) -> Tensor:
    return theirs.transpose(1, 2) if name in STACKED else theirs


def _gpt_oss(name: str, theirs: Tensor) -> Tensor:
    """gpt-oss stores [in, out] and gate and up in turns; ours are [out, in], gate before up."""
    theirs = _transposed(name, theirs)
    if name in ("up_EHL", "up_bias_EH"):
        return torch.cat((theirs[:, ::2], theirs[:, 1::2]), 1)
    return theirs


CASES = [
    Case("mixtral", "mixtral.MixtralSparseMoeBlock", "MixtralConfig",
         {**WIDTHS, "E": "num_local_experts", "F": "intermediate_size"}, GATED),
    Case("qwen3-30b", "qwen3_moe.Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig",
         {**WIDTHS, "E": "num_experts", "F": "moe_intermediate_size"}, GATED,
         {"norm_topk_prob": True}),
    Case("olmoe", "olmoe.OlmoeSparseMoeBlock", "OlmoeConfig",
         {**WIDTHS, "E": "num_experts", "F": "intermediate_size"}, GATED),
    Case("qwen1.5-moe", "qwen2_moe.Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig",
         {**WIDTHS, "E": "num_experts", "F": "moe_intermediate_size",
          "Fs": "shared_expert_intermediate_size"},
         {**GATED, "shared": "shared_expert", "shared_gate_1D": "shared_expert_gate.weight"}),
    Case("deepseek-v3", "deepseek_v3.DeepseekV3MoE", "DeepseekV3Config",
         {**WIDTHS, "E": "n_routed_experts", "F": "moe_intermediate_size"},
         {**BIASED, "shared": "shared_experts"},
         {"n_group": 8, "topk_group": 4, "n_shared_experts": 1, "norm_topk_prob": True,
          "routed_scaling_factor": 2.5}),
    Case("gpt-oss-120b", "gpt_oss.GptOssMLP", "GptOssConfig",
         {**WIDTHS, "E": "num_local_experts", "F": "intermediate_size"},
         {**STACKED, "router_ED": "router.weight", "router_bias_E": "router.bias",
          "up_bias_EH": "experts.gate_up_proj_bias", "down_bias_EL": "experts.down_proj_bias"},
         {}, _gpt_oss),
    Case("llama4-scout", "llama4.Llama4TextMoe", "Llama4TextConfig",
         {**WIDTHS, "E": "num_local_experts", "F": "intermediate_size"},
         {**STACKED, "router_ED": "router.weight", "shared": "shared_expert"}, {}, _transposed),
    Case("granite-3.1-1b-a400m", "granitemoe.GraniteMoeMoE", "GraniteMoeConfig",
         {**WIDTHS, "E": "num_local_experts", "F": "intermediate_size"},
         {**STACKED, "router_ED": "router.weight"}),
    Case("phi-3.5-moe", "phimoe.PhimoeSparseMoeBlock", "PhimoeConfig",
         {**WIDTHS, "E": "num_local_experts", "F": "intermediate_size"},
         {**STACKED, "router_ED": "router.weight"}),
    Case("minimax-m2", "minimax_m2.MiniMaxM2SparseMoeBlock", "MiniMaxM2Config",
         {**WIDTHS, "E": "num_local_experts", "F": "intermediate_size"},
         {**GATED, "selection_bias_E": "e_score_correction_bias"}),
    Case("deepseek-v4-flash", "deepseek_v4.DeepseekV4SparseMoeBlock", "DeepseekV4Config",
         {**WIDTHS, "E": "n_routed_experts", "F": "moe_intermediate_size"},
         {**BIASED, "shared": "shared_experts"}, {"routed_scaling_factor": 1.5}),
    Case("deepseek-v2", "deepseek_v2.DeepseekV2Moe", "DeepseekV2Config",
         {**WIDTHS, "E": "n_routed_experts", "F": "moe_intermediate_size"},
         {**GATED, "shared": "shared_experts"},
         {"n_group": 8, "topk_group": 3, "n_shared_experts": 1, "norm_topk_prob": False,
          "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0}),
    Case("ernie-4.5-21b-a3b", "ernie4_5_moe.Ernie4_5_MoeSparseMoeBlock", "Ernie4_5_MoeConfig",
         {**WIDTHS, "E": "moe_num_experts", "k": "moe_k", "F": "moe_intermediate_size"},
         {**GATED, "shared": "shared_experts",
          "selection_bias_E": "gate.moe_statics.e_score_correction_bias"},
         {"moe_num_shared_experts": 1}, lambda name, theirs: theirs.squeeze(0)),
    Case("nemotron-nano", "nemotron_h.NemotronHMoE", "NemotronHConfig",
         {**WIDTHS, "E": "n_routed_experts", "F": "moe_intermediate_size",
          "Fs": "moe_shared_expert_intermediate_size", "Dl": "moe_latent_size"},
         {**BIASED, "up_EHL": "experts.up_proj", "down_ELF": "experts.down_proj",
          "into_LD": "fc1_latent_proj.weight", "out_of_DL": "fc2_latent_proj.weight",
          "shared": "shared_experts"},
         {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True}),
    Case("gemma-4", "gemma4.Gemma4TextRouter and Gemma4TextExperts", "Gemma4TextConfig",
         {"D": "hidden_size", "k": "top_k_experts", "E": "num_experts",
          "F": "moe_intermediate_size"},
         {**STACKED, "router_ED": "router.proj.weight", "router_scale_D": "router.scale",
          "expert_scale_E": "router.per_expert_scale"}),
]  # fmt: skip


def _block(case: Case) -> MoE:
    """The preset's last kind of MoE layer (the first of DeepSeek-V4 is routed by a table)."""
    block = small([block for _, block in load_preset(case.preset).blocks(MoE)][-1])
    shared = SHARED if "Fs" in case.sizes else 32  # the others give their shared expert F
    latent = 16 if "Dl" in case.sizes else None  # as in Nemotron 3 Super; Nano has none
    return replace(block, Fs=None if block.Fs is None else shared, Dl=latent)


def _module(case: Case, block: MoE) -> nn.Module:
    package, names = case.module.split(".")
    name, *more = names.split(" and ")
    modeling = import_module(f"transformers.models.{package}.modeling_{package}")
    config = getattr(import_module(f"transformers.models.{package}"), case.config)(
        **{key: block.values[symbol] for symbol, key in case.sizes.items()}, **case.extra
    )
    config._experts_implementation = "eager"
    arguments = (len(config.mlp_layer_types) - 1,) if package == "deepseek_v4" else ()
    module: nn.Module = getattr(modeling, name)(config, *arguments)
    return _Apart(module, getattr(modeling, more[0])(config)) if more else module.eval()


class _Apart(nn.Module):
    """A router and experts that their model calls one after the other."""

    def __init__(self, router: nn.Module, experts: nn.Module) -> None:
        super().__init__()
        self.router, self.experts = router, experts

    def forward(self, x_1TD: Tensor) -> Any:
        _, weights_TK, ids_TK = self.router(x_1TD[0])
        return self.experts(x_1TD[0], ids_TK, weights_TK)


def _copied(case: Case, block: MoE, module: nn.Module) -> Layer:
    """Our layer with their weights, which are set to random numbers first."""
    generator = torch.Generator().manual_seed(5)
    theirs = dict(module.state_dict())
    for name, tensor in theirs.items():
        scale = 0.05 if name.endswith("correction_bias") else tensor.shape[-1] ** -0.5
        scale *= 5 if "gate_up_proj" in name else 1  # some values reach the clamps, 7 and 10
        tensor.normal_(0, scale, generator=generator)
    layer = Layer(block, dtype=torch.float32)
    ours = dict(layer.state_dict())
    used = set()
    for name, where in case.weights.items():
        if name == "shared":
            *first, last = [name for name in theirs if name.startswith(f"{where}.")]
            ours["shared_up_GD"].copy_(torch.cat([theirs[name] for name in first]))
            ours["shared_down_DS"].copy_(theirs[last])
            used |= {*first, last}
        else:
            ours[name].copy_(case.convert(name, theirs[where]))
            used.add(where)
    assert used == set(theirs), "a tensor of theirs has no place in our layer"
    return layer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.preset)
def test_output_and_gradient_equal_theirs(case: Case) -> None:
    block = _block(case)
    module = _module(case, block)
    layer = _copied(case, block, module)
    tokens = 300  # some of them with experts that are nearly as good as their best
    x_TD = layer.input(tokens)
    results = []
    for run in (lambda x: module(x[None]), layer):
        x = x_TD.clone().requires_grad_()
        y = run(x)
        y = (y[0] if isinstance(y, tuple) else y).reshape(tokens, -1)
        y.backward(layer.input(tokens, seed=3))
        results.append((y, x.grad))
    (theirs, their_grad), (ours, our_grad) = results
    assert relative(ours, theirs) < 1e-5
    assert relative(our_grad, their_grad) < 1e-5
