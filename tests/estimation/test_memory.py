"""Memory: published caches and training states, a cache that evicts, activations by row."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import UserError
from moeplan.estimation.memory import (
    OPTIMIZERS,
    activations,
    kv_cache,
    layer_bytes,
    training_state,
    weight_bytes,
    weights_by_component,
)
from moeplan.estimation.parameters import count, parameters
from moeplan.families import read_config
from moeplan.model.formats import FORMATS
from moeplan.model.residual import HyperCollapse
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Workload
from moeplan.presets import preset
from moeplan.quantity import Quantity
from tests.families.oracle_cases import merged
from tests.meta import MODELS, TWO, meta_model, tokens
from tests.oracle import oracle
from tests.reading import READABLE, spec_of

GIB, MIB = 2**30, 2**20

# -------------------------------------------------------------------------- cache, as published
# Bytes a token in bf16, from the models' reports; the latent's is 61 x (512 + 64) x 2.
PER_TOKEN = {
    "deepseek-v3": 70_272,
    "kimi-k2": 70_272,
    "mixtral-8x7b": 131_072,
    "qwen3-30b-a3b": 98_304,
    "longcat-flash": 64_512,
    "minimax-text-01": 40_960,
    "qwen3-next-80b-a3b": 24_576,
    "step3": 62_464,
    "hunyuan-large": 81_920,
    "gpt-oss-120b": 73_728,
}


@pytest.mark.parametrize("name", PER_TOKEN)
def test_published_cache_bytes_per_token(name: str) -> None:
    found = kv_cache(spec_of(name), "bf16", 1, 4096)
    assert found["bytes_per_token"].value == PER_TOKEN[name]


def test_half_of_gpt_oss_stops_growing() -> None:
    found = kv_cache(spec_of("gpt-oss-120b"), "bf16", 1, 4096)
    assert found["bytes_per_token_beyond_windows"].value == 73_728 // 2


def test_no_other_figure_comes_from_the_expanded_heads() -> None:
    """Keys and values of all heads would be 57 times the latent (3,997,696 bytes a token)."""
    spec = spec_of("deepseek-v3")
    found = kv_cache(spec, "bf16", 1, 4096)
    assert found["bytes"].value == 4096 * 70_272
    assert found["fixed_bytes"].value == 0


# ------------------------------------------------------------------- cache, against a simulation
def simulated(windows: list[int | None], width: int, context: int) -> int:
    """Values that a cache holds after `context` tokens, layer by layer, evicting the oldest."""
    held = 0
    for window in windows:
        layer: deque[int] = deque(maxlen=window)
        for _ in range(context):
            layer.append(2 * width)  # a key and a value
        held += sum(layer)
    return held


@pytest.mark.parametrize("context", [1, 100, 127, 128, 129, 1000])
def test_windows_of_gpt_oss_against_a_cache_that_evicts(context: int) -> None:
    config = preset("gpt-oss-20b").config
    kinds = {"sliding_attention": config["sliding_window"], "full_attention": None}
    windows = [kinds[kind] for kind in config["layer_types"]]
    width = config["num_key_value_heads"] * config["head_dim"]
    found = kv_cache(spec_of("gpt-oss-20b"), "bf16", 3, context)
    assert found["bytes_per_sequence"].value == 2 * simulated(windows, width, context)
    assert found["bytes"].value == 3 * found["bytes_per_sequence"].value
    # what the next token adds, once every window is full
    grown = simulated(windows, width, 501) - simulated(windows, width, 500)
    assert found["bytes_per_token_beyond_windows"].value == 2 * grown


@given(
    window=st.integers(1, 40),
    context=st.integers(1, 90),
    layers=st.integers(1, 5),
    first=st.integers(0, 5),
)
def test_windows_in_any_layers(window: int, context: int, layers: int, first: int) -> None:
    config = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 100,
        "use_sliding_window": True,
        "sliding_window": window,
        "max_window_layers": first,
    }
    windows = [window if i >= first else None for i in range(layers)]
    found = kv_cache(read_config(config, "windows"), "fp32", 1, context)
    assert found["bytes"].value == 4 * simulated(windows, 2 * 16, context)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mixtral-8x7b", TWO),
        ("llama-3.1-8b", TWO),
        ("qwen3-30b-a3b", TWO),
        ("gpt-oss-120b", MODELS["gpt-oss-120b"] | {"sliding_window": 16}),
        ("qwen3-next-80b-a3b", MODELS["qwen3-next-80b-a3b"]),
    ],
)
def test_cache_that_transformers_fills(name: str, changes: dict[str, Any]) -> None:
    """Its sliding layers hold what the next query sees besides itself: one token less than ours.

    Its convolutions hold all taps, where the oldest is never read again.
    """
    oracle()
    from transformers import DynamicCache

    config = merged(preset(name).config, changes)
    spec = read_config(config, name)
    model = meta_model(config)
    cache = DynamicCache(config=model.config)
    model(**tokens(2, 40, 40), past_key_values=cache, use_cache=True)
    theirs = 0
    for layer in cache.layers:
        kept = [
            t
            for t in (getattr(layer, "keys", None), getattr(layer, "values", None))
            if t is not None
        ]
        theirs += sum(t.numel() * t.element_size() for t in kept)
        if getattr(layer, "sliding_window", None):
            theirs += sum(t[:, :, :1].numel() * t.element_size() for t in kept)
        for state in getattr(layer, "recurrent_states", {}).values():
            theirs += state.numel() * 4  # the recurrence is kept in fp32
        for state in getattr(layer, "conv_states", {}).values():
            theirs += state[..., 1:].numel() * state.element_size()
    found = kv_cache(spec, "bf16", 2, 40)
    assert found["bytes"].value == theirs


@pytest.mark.parametrize("name", READABLE)
def test_cache_scales(name: str) -> None:
    spec = spec_of(name)

    def held(batch: int, context: int, fmt: str = "bf16") -> int:
        found: int = kv_cache(spec, fmt, batch, context)["bytes"].value
        return found

    assert held(6, 500) == 2 * held(3, 500)
    contexts = [held(1, context) for context in (1, 64, 128, 5000, 200_000)]
    assert contexts == sorted(contexts)
    beyond = kv_cache(spec, "bf16", 1, 10**9)
    growth = held(1, 10**9 + 1) - held(1, 10**9)
    if spec.family != "switch_transformers":  # cross-attention keeps the source's length instead
        assert growth == pytest.approx(beyond["bytes_per_token_beyond_windows"].value, abs=1)
    if not beyond["fixed_bytes"].value:
        assert 2 * held(1, 100, "fp8") == pytest.approx(held(1, 100), abs=2)


# ------------------------------------------------------------------------------------ weights
@pytest.mark.parametrize("name", READABLE)
def test_unquantised_weights_are_two_bytes_each(name: str) -> None:
    spec = spec_of(name)
    plain = spec.checkpoint.stored_as("bf16")
    stored = _stored(spec, plain)
    buffers = parameters(spec)["buffers"].value
    assert stored == 2 * count(spec) + 4 * buffers  # selection biases are fp32
    assert _stored(spec, spec.checkpoint.stored_as("fp32")) == 4 * (count(spec) + buffers)


def _stored(spec: ModelSpec, checkpoint: Any) -> Any:
    from dataclasses import replace

    return weight_bytes(replace(spec, checkpoint=checkpoint))


@pytest.mark.parametrize("name", READABLE)
def test_weight_bytes_by_component_and_by_layer_make_the_whole(name: str) -> None:
    spec = spec_of(name)
    whole = weight_bytes(spec)
    assert sum(q.value for q in weights_by_component(spec).values()) == whole
    each = layer_bytes(spec)
    total = sum(
        group.number * each[id(group), id(block), weight.name]
        for group in spec.groups
        if group.role != "mtp"
        for block in group.blocks
        for weight in block.weights()
        if weight.tied is None
    )
    assert total == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("fmt", FORMATS)
def test_no_format_is_smaller_than_its_elements(fmt: str) -> None:
    """Scales come on top: between nothing and an eighth of what stays."""
    spec = spec_of("mixtral-8x7b")
    stored = _stored(spec, spec.checkpoint.stored_as(fmt))
    bits = FORMATS[fmt].bits
    components = parameters(spec)["by_component"]
    converted = sum(components[c].value for c in ("attention", "routed_experts"))
    if bits >= 16:  # the whole model changes
        assert stored == count(spec) * bits / 8
        return
    rest = 2 * (count(spec) - converted)
    assert converted * bits / 8 < stored - rest < converted * bits / 8 * 1.14


def test_weights_of_deepseek_v3_in_blocks() -> None:
    """FP8 with an fp32 scale per 128 x 128 block, edge blocks whole; counted block by block."""
    spec = spec_of("deepseek-v3")
    by_name = layer_bytes(spec)
    (group,) = [g for g in spec.groups if g.name == "attention + moe" and g.role == "model"]
    for block in group.blocks:
        for weight in block.weights():
            if weight.name == "self_attn.kv_a_proj_with_mqa.weight":  # [576, 7168]
                blocks = math.ceil(576 / 128) * math.ceil(7168 / 128)
                assert by_name[id(group), id(block), weight.name] == 576 * 7168 + 4 * blocks
            if weight.name == "mlp.experts.{e}.down_proj.weight":
                one = 7168 * 2048 + 4 * 56 * 16
                assert by_name[id(group), id(block), weight.name] == 256 * one
            if weight.name == "mlp.gate.weight":  # routers are not converted
                assert by_name[id(group), id(block), weight.name] == 2 * 256 * 7168


# ------------------------------------------------------------------------------- training state
def test_training_state_of_a_deepseek_v3_stage() -> None:
    """arXiv 2502.07846, table 6: 6,250,364,928 parameters, 2 + 4 + 8 bytes each, 81.54 GiB."""
    parameters_of_a_device = Quantity.given(6_250_364_928, "parameters", "N")
    state = training_state(parameters_of_a_device, "adamw-bf16-moments")
    assert state["bytes_per_parameter"] == 2 + 4 + 8
    assert state["total"].value / GIB == pytest.approx(81.54, rel=1e-3)


def test_training_state_as_megatron_core_counts_it() -> None:
    """arXiv 2603.07685, table 3: 6 bytes of weight and gradient, 12 of optimizer a parameter."""
    state = training_state(Quantity.given(10**9, "parameters", "N"), "adamw-fp32")
    assert state["weights"].value + state["gradients"].value == 6 * 10**9
    assert state["main_parameters"].value + state["moments"].value == 12 * 10**9


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_state_is_the_sum_of_what_it_names(name: str) -> None:
    state = training_state(Quantity.given(1000, "parameters", "N"), name)
    parts = [state[key].value for key in ("weights", "gradients", "main_parameters", "moments")]
    assert sum(parts) == state["total"].value == 1000 * state["bytes_per_parameter"]
    # fp32 somewhere: no setting trains on bf16 alone without saying so
    assert state["main_parameters"].value or name in ("adamw-pure-bf16", "adamw-full-fp32")


def test_an_optimizer_misspelt() -> None:
    with pytest.raises(UserError, match="did you mean 'adamw-8bit'"):
        training_state(Quantity.given(1, symbol="N"), "adam-8bit")


# --------------------------------------------------------------------------------- activations
# arXiv 2603.07685, table 3: MiB of one MoE layer of DeepSeek-V3, 4096 tokens in bf16, and the row
# that is the same tensor here. "row map" is 8 there: its kernel keeps a map of tokens by experts
# (8 bytes each); here a sorted position for each of the 8 copies of a token.
ACTIVATIONS = {
    "input_layernorm_input": 56,
    "attn_input": 56,  # norm
    "q_a": 12,
    "q_a_normed": 12,
    "kv_a": 4,
    "kv_a_normed": 4,
    "q": 192,
    "k": 192,
    "v": 128,
    "attn_out": 128,
    "softmax_sum": 2,  # ctx
    "post_attention_layernorm_input": 56,  # bias-dropout-add
    "moe_input": 56,  # shared AG
    "probs": 2,
    "shared_activation_input": 32,
    "shared_down_input": 16,
    "experts_input": 448,  # permute
    "experts_activation_input": 256,
    "experts_down_input": 128,
    "experts_output": 448,  # unpermute
}
ROW_MAP = {"theirs": 8, "ours": 4096 * 8 * 8 / MIB}


def test_kept_activations_of_deepseek_v3_by_row() -> None:
    work = Workload("train", B=1, S=4096, C=4096)
    (layer,) = [a for a in activations(spec_of("deepseek-v3"), work) if "moe" in a["name"]]
    ours = {name: q.value / MIB for name, q in layer["by_row"].items()}
    assert ours.pop("row_map") == ROW_MAP["ours"]
    assert ours == ACTIVATIONS
    assert sum(ACTIVATIONS.values()) + ROW_MAP["theirs"] == 2236
    assert layer["none"].value / MIB == 2236 - ROW_MAP["theirs"] + ROW_MAP["ours"]
    assert layer["full"].value / MIB == 56
    assert layer["layers"].value == 58


def test_what_recomputation_saves_of_deepseek_v3() -> None:
    """Megatron-Core's savings of the same table, over 60 microbatches in flight of 14.5 layers.

    Up-projections 30.4 GB and SwiGLU 3.8 GB: 512 MiB (queries, keys, values), and 128 + 16 MiB.
    """
    work = Workload("train", B=1, S=4096, C=4096)
    (layer,) = [a for a in activations(spec_of("deepseek-v3"), work) if "moe" in a["name"]]
    dropped = 192 + 192 + 128 + 128 + 16 + 56 + 12 + 4 + 56  # and the norms' outputs
    assert (layer["none"].value - layer["selective"].value) / MIB == dropped
    in_flight = 60
    assert 512 * in_flight * MIB / 1e9 == pytest.approx(32.2, abs=0.1)  # printed 30.4 GiB
    assert 512 * in_flight * MIB / GIB == pytest.approx(30.4, abs=0.5)


@pytest.mark.parametrize("name", READABLE)
def test_activations_scale_and_recomputation_only_removes(name: str) -> None:
    spec = spec_of(name)

    def kept(batch: int, length: int) -> list[dict[str, Any]]:
        return activations(spec, Workload("train", B=batch, S=length, C=length))

    # longer than what sparse attention picks for a query, whose places are kept
    for one, two, long in zip(kept(1, 4096), kept(2, 4096), kept(1, 8192), strict=True):
        assert one["full"].value <= one["selective"].value < one["none"].value
        for key in ("none", "selective", "full"):
            assert two[key].value == 2 * one[key].value
            assert long[key].value == 2 * one[key].value  # nothing of s² is kept
        assert sum(q.value for q in one["by_row"].values()) == one["none"].value


@pytest.mark.parametrize("name", READABLE)
def test_full_recomputation_keeps_the_layers_input(name: str) -> None:
    """Two bytes for each value of the residual stream (or streams), and nothing else."""
    spec = spec_of(name)
    mixed = spec.first(HyperCollapse)
    width = spec.hidden.value * (1 if mixed is None else mixed.values["hc"])
    for layer in activations(spec, Workload("train", B=3, S=256, C=256)):
        assert layer["full"].value == 2 * 3 * 256 * width, layer["name"]
