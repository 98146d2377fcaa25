"""Broken quantization_config objects end in a UserError, never in anything else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import UserError
from moeplan.estimation.memory import weight_bytes
from moeplan.families import read_config
from moeplan.families.quantization import merge_quant_config

CONFIG: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 128,
    "tie_word_embeddings": False,
}
GROUP: dict[str, Any] = {
    "targets": ["Linear"],
    "weights": {
        "num_bits": 4,
        "type": "int",
        "strategy": "group",
        "group_size": 32,
        "symmetric": True,
        "actorder": "group",
        "scale_dtype": "torch.bfloat16",
    },
    "input_activations": {"num_bits": 8, "type": "float", "dynamic": False},
}
VALID: list[dict[str, Any]] = [
    {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate", "re:.*q_proj"],
        "kv_cache_scheme": "static",
    },
    {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["model.layers.*.self_attn"]},
    {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
    {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "dynamic": {"-:.*gate": {}, "+:.*q_proj": {"bits": 8}},
        "modules_in_block_to_quantize": [["self_attn.q_proj"]],
        "lm_head": False,
    },
    {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": 16,
        "exclude_modules": ["lm_head", "model.layers.1*"],
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 16}}},
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    },
    {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"model.layers.0.self_attn": {"quant_algo": "FP8"}},
    },
    {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": GROUP},
        "ignore": ["lm_head", "re:.*self_attn.*"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
    },
    {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["re:.*experts.*"],
                "weights": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": "block",
                    "block_structure": "64x64",
                },
            }
        },
    },
]
KEYS = sorted({key for quantization in VALID for key in quantization} | {*GROUP, *GROUP["weights"]})
METHODS = ("fp8", "gptq", "modelopt", "NVFP4", "FP8", "MIXED_PRECISION", "group", "Linear")
NAMES = ("re:(", "*", "**", "[", "a{1000000}", "(?i)x", "experts.1.w1", "0x0", "-1x2", "", ".")
WORDS = st.sampled_from([*KEYS, *METHODS, *NAMES, "²x²"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=6),
    WORDS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=6), WORDS), inner, max_size=3),
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a JSON value."""
    out = [path]
    if isinstance(value, dict):
        out += [p for key, inner in value.items() for p in places(inner, (*path, key))]
    elif isinstance(value, list):
        out += [p for i, inner in enumerate(value) for p in places(inner, (*path, i))]
    return out


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """A valid quantization_config with one to three places changed, taken out or added to."""
    value = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        if not path:
            how = draw(st.sampled_from(["add", "replace"]))
            if how == "replace" or not isinstance(value, dict):
                return draw(VALUES)
            value[draw(WORDS)] = draw(VALUES)
            continue
        here = value
        for step in path[:-1]:
            here = here[step]
        if draw(st.booleans()):
            here[path[-1]] = draw(VALUES)
        else:
            del here[path[-1]]
    return value


@given(broken())
def test_a_broken_quantization_config_is_read_or_refused(quantization: Any) -> None:
    try:
        spec = read_config(CONFIG | {"quantization_config": quantization}, "file")
    except UserError:
        return
    size = weight_bytes(spec)
    assert isinstance(size, int)
    assert size > 0


@given(VALUES, st.sampled_from(["torch_dtype", "dtype", "quantization", "compression_config"]))
def test_other_keys_about_formats(value: Any, key: str) -> None:
    try:
        spec = read_config(CONFIG | {key: value}, "file")
    except UserError:
        return
    assert weight_bytes(spec) > 0


@given(st.one_of(broken(), VALUES), VALUES)
def test_a_broken_quantisation_file(inner: Any, whole: Any) -> None:
    for beside in ({"quantization": inner}, whole):
        try:
            merged = merge_quant_config(CONFIG, beside, "hf_quant_config.json")
            spec = read_config(merged, "file")
        except UserError:
            continue
        assert weight_bytes(spec) > 0


@pytest.mark.parametrize("quantization", VALID)
def test_the_starting_points_are_valid(quantization: dict[str, Any]) -> None:
    spec = read_config(CONFIG | {"quantization_config": quantization}, "file")
    assert spec.checkpoint.quantised is not None
    # 4-bit formats and GPTQ's index of each input: never larger than bf16
    assert weight_bytes(spec) < weight_bytes(read_config(CONFIG, "file"))
