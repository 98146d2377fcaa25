"""Qwen's MoE models: Qwen1.5-MoE and Qwen2-57B-A14B (arXiv 2407.10671), Qwen3 (2505.09388)."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import (
    attention,
    decoder,
    layer_groups,
    layer_types,
    pre_norm,
    selection,
)
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["qwen2_moe", "qwen3_moe", "shared_expert_moe", "sparse_layers"]

SHARED = ExpertNames(shared="mlp.shared_expert.")


def sparse_layers(c: Config, layers: int) -> list[bool]:
    """Which layers hold experts: every decoder_sparse_step-th, none in mlp_only_layers."""
    step = int(c.int("decoder_sparse_step", default=1).value)
    dense = c.indices("mlp_only_layers", layers)
    sparse = [(i + 1) % step == 0 and i not in dense for i in range(layers)]
    if not any(sparse):
        key = "mlp_only_layers" if dense else "decoder_sparse_step"
        raise c.fail(key, "leaves no layer with experts")
    return sparse


def shared_expert_moe(c: Config, hidden: Quantity, **how: Any) -> MoE:
    """Softmax-routed experts beside one shared expert behind a sigmoid gate."""
    names = how.pop("names", SHARED)
    width = c.int("shared_expert_intermediate_size", symbol="Fs")
    return _moe(c, hidden, Fs=width, shared_gate=True, names=names, **how)


def _moe(c: Config, hidden: Quantity, *, renormalise: bool | None = None, **how: Any) -> MoE:
    """The experts; `renormalise` None reads norm_topk_prob, whose default is false."""
    experts = c.int("num_experts", "num_local_experts", symbol="E")
    if renormalise is None:
        renormalise = c.flag("norm_topk_prob", default=False)
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=c.int("moe_intermediate_size", symbol="F"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax", renormalise=renormalise),
        **how,
    )


def _decoder(c: Config, name: str, hidden: Quantity, mixer: Attention, moe: MoE) -> ModelSpec:
    layers = c.int("num_hidden_layers", symbol="L")
    count = int(layers.value)
    why = "the versions of this family disagree about which layers would have windows"
    c.expect("use_sliding_window", [False], why)
    c.ignore("sliding_window", "max_window_layers")
    layer_types(c, count, {"full_attention": "full"}, ())
    sparse = sparse_layers(c, count)
    dense: Block | None = None
    if not all(sparse):
        dense = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"))
    c.ignore("intermediate_size")

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return pre_norm(hidden, mixer, dense if kind[1] == "dense" and dense else moe)

    kinds = [("attention", "moe" if here else "dense") for here in sparse]
    return decoder(c, hidden, layer_groups(kinds, build, count=layers), name=name)


def qwen2_moe(c: Config) -> ModelSpec:
    """Read a Qwen1.5-MoE or Qwen2-MoE config: biases on q, k and v unless `qkv_bias` is false."""
    hidden = c.int("hidden_size", symbol="D")
    mixer = attention(c, hidden, grouped=True, qkv_bias=c.flag("qkv_bias", default=True))
    return _decoder(c, "qwen2_moe", hidden, mixer, shared_expert_moe(c, hidden))


def qwen3_moe(c: Config) -> ModelSpec:
    """Read a Qwen3-MoE config: normalised queries and keys, no shared expert."""
    hidden = c.int("hidden_size", symbol="D")
    bias = c.flag("attention_bias", default=False)
    c.expect("use_qk_norm", [True], "this family normalises each head's queries and keys")
    mixer = attention(c, hidden, grouped=True, qkv_bias=bias, o_bias=bias, qk_norm="head")
    return _decoder(c, "qwen3_moe", hidden, mixer, _moe(c, hidden))
