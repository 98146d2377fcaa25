"""Published counts and caches of families with other mixers, compressed keys and hybrids.

Figures in billions are those of the papers and model cards; their sources stand beside them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moeplan.estimation.flops import forward
from moeplan.estimation.memory import kv_cache
from moeplan.estimation.parameters import active, active_range, count, parameters
from moeplan.families import FAMILIES, read_config
from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Workload
from moeplan.presets import presets
from moeplan.quantity import evaluate


def spec(shared: Path, name: str) -> ModelSpec:
    return read_config(json.loads((shared / "configs" / f"{name}.json").read_text()), name)


def active_of(model: ModelSpec, definition: str) -> Any:
    return active(model)[definition].value


ALL, NO_INPUT, NEITHER = "all", "without_input_embedding", "without_embeddings"


# name, total, {definition: active}: billions, to the last digit that is given
COUNTS: list[tuple[str, float, dict[str, float]]] = [
    ("Snowflake__snowflake-arctic-instruct", 478.58, {ALL: 17.32}),
    ("MiniMaxAI__MiniMax-Text-01", 456.09, {ALL: 48.40, NEITHER: 45.94}),
    ("meituan-longcat__LongCat-Flash-Chat", 560.66, {NO_INPUT: 27.15}),
    ("tencent__Hunyuan-Large-A52B-Instruct", 388.70, {ALL: 51.32}),
    ("stepfun-ai__step3", 316.29, {ALL: 38.84, NO_INPUT: 37.92}),
    ("inclusionAI__Ling-mini-2.0", 16.2556, {ALL: 1.4330, NEITHER: 0.7891}),
    ("tencent__Hunyuan-A13B-Instruct", 80.4, {ALL: 12.7}),  # "80 B total, 13 B active"
    ("ai21labs__Jamba-v0.1", 51.6, {ALL: 12.1}),  # "52 B total, 12 B active"
    ("nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31.6, {NO_INPUT: 3.2}),  # "31.6 B, 3.2 B"
    ("XiaomiMiMo__MiMo-V2-Flash", 308.8, {ALL: 15.4}),  # "309 B, 15 B active"
    ("deepseek-ai__DeepSeek-V4-Flash", 284.3, {NO_INPUT: 13.3}),  # "284 B, 13 B active"
    ("facebook__nllb-moe-54b", 54.5, {}),  # "54.5 B"
    ("google__gemma-4-26B-A4B", 25.2, {ALL: 3.8}),  # "25.2 B, 3.8 B active"
]


@pytest.mark.parametrize(("name", "total", "touched"), COUNTS)
def test_published_counts(name: str, total: float, touched: dict[str, float], shared: Path) -> None:
    model = spec(shared, name)
    digits = len(str(total).partition(".")[2])
    assert count(model) / 1e9 == pytest.approx(total, abs=0.51 * 10**-digits)
    for definition, billions in touched.items():
        digits = len(str(billions).partition(".")[2])
        found = active_of(model, definition) / 1e9
        assert found == pytest.approx(billions, abs=0.51 * 10**-digits), definition


def test_ernie_300b_as_released() -> None:
    model = load_preset("ernie-4.5-300b-a47b")
    assert count(model) / 1e9 == pytest.approx(299.48, abs=0.005)
    assert active_of(model, ALL) / 1e9 == pytest.approx(47.93, abs=0.005)
    assert active_of(model, NO_INPUT) / 1e9 == pytest.approx(47.08, abs=0.005)


def test_ernie_pretraining_file_differs_by_its_vocabulary_only(shared: Path) -> None:
    file = spec(shared, "baidu__ERNIE-4.5-300B-A47B.pretrain")
    released = load_preset("ernie-4.5-300b-a47b")
    assert count(released) - count(file) == 2 * (103424 - 100352) * 8192
    assert file.layers == 56 - 2


def test_nllb_matrices(shared: Path) -> None:
    """54.483 B is what its matrices hold; biases and norms add 17 million."""
    model = spec(shared, "facebook__nllb-moe-54b")
    matrices = sum(
        group.number * block.sizes[w.name].elements
        for group in model.groups
        for block in group.blocks
        for w in block.tensors
        if len(w.dims) > 1 and w.tied is None
    )
    assert matrices / 1e9 == pytest.approx(54.483, abs=0.0005)


# ------------------------------------------------------------- zero-computation experts: a range
def test_longcat_range(shared: Path) -> None:
    """18.6 to 31.3 B, 27 B on average, without the input embedding."""
    model = spec(shared, "meituan-longcat__LongCat-Flash-Chat")
    ends = active_range(model)
    assert ends is not None
    found = [ends["fewest"], active(model), ends["most"]]
    published = {NO_INPUT: (18.69, 27.15, 31.38), ALL: (19.50, 27.96, 32.18)}
    for definition, billions in published.items():
        assert [q[definition].value / 1e9 for q in found] == pytest.approx(billions, abs=0.006)
    assumed = [a.source.where for a in found[1][ALL].assumptions() if a.source]
    assert any("zero-computation" in where for where in assumed)
    # the same as experts are drawn: 0, 8 or 12 of a token's 12
    by_hand = [active_of(model.vary(MoE, r=r), ALL) for r in (0, 8, 12)]
    assert by_hand == [q[ALL].value for q in found]
    assert active_range(load_preset("mixtral-8x7b")) is None


def test_longcat_flops_follow_the_real_experts(shared: Path) -> None:
    model = spec(shared, "meituan-longcat__LongCat-Flash-Chat")
    work = Workload("prefill", B=1, S=64, C=64)
    none, all_ = (forward(model.vary(MoE, r=r), work) for r in (0, 12))
    expert = 3 * 6144 * 2048
    assert all_ - none == 28 * 64 * 12 * 2 * expert
    assert forward(model, work) - none == 28 * 64 * 8 * 2 * expert


# ---------------------------------------------------------------------------------------- caches
CACHES = {
    "meituan-longcat__LongCat-Flash-Chat": 64_512,
    "MiniMaxAI__MiniMax-Text-01": 40_960,
    "stepfun-ai__step3": 62_464,
    "tencent__Hunyuan-Large-A52B-Instruct": 81_920,
    # 61 layers of 576 in the latents and 128 in the indexer's keys, two bytes each
    "deepseek-ai__DeepSeek-V3.2": 61 * (576 + 128) * 2,
    # 4 of 32 layers, 8 heads of 128 for keys and values
    "ai21labs__Jamba-v0.1": 4 * 2 * 8 * 128 * 2,
    # 6 of 52 layers, 2 heads of 128
    "nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 6 * 2 * 2 * 128 * 2,
}


@pytest.mark.parametrize("name", CACHES)
def test_cache_of_a_token(name: str, shared: Path) -> None:
    cache = kv_cache(spec(shared, name), "bf16", 1, 4096)
    assert cache["bytes_per_token"].value == CACHES[name]


def test_cache_of_hybrids_at_long_context(shared: Path) -> None:
    """State and windows stop growing: only the layers with full attention do."""
    for name, grows in {
        "MiniMaxAI__MiniMax-Text-01": 40_960,
        "XiaomiMiMo__MiMo-V2-Flash": 9 * 4 * (192 + 128) * 2,
        "google__gemma-4-26B-A4B": 5 * 2 * (512 + 512) * 2,
        "ai21labs__Jamba-v0.1": 16_384,
    }.items():
        model = spec(shared, name)
        near, far = (kv_cache(model, "bf16", 1, c)["bytes_per_sequence"].value for c in _LONG)
        assert (far - near) / (_LONG[1] - _LONG[0]) == grows, name
        fixed = kv_cache(model, "bf16", 1, 1)["fixed_bytes"].value
        assert (fixed > 0) == (name.startswith(("MiniMax", "ai21"))), name


_LONG = (131_072, 1_048_576)


def test_compressed_cache_of_v4_by_hand(shared: Path) -> None:
    """43 layers: 2 with windows only, 21 of ratio 4 with indexer, 20 of ratio 128."""
    model = spec(shared, "deepseek-ai__DeepSeek-V4-Flash")
    near, far = (kv_cache(model, "bf16", 1, c)["bytes_per_sequence"].value for c in _LONG)
    assert far - near == 917_504 * (21 * (512 + 128) / 4 + 20 * 512 / 128) * 2
    state = 21 * 2 * 8 * 2 * (512 + 128) * 4 + 20 * 2 * 128 * 512 * 4
    assert kv_cache(model, "bf16", 1, 1)["fixed_bytes"].value == state
    assert near == state + 43 * 128 * 512 * 2 + 131_072 * (21 * 160 + 80) * 2


def test_shared_keys_are_read_and_not_kept(shared: Path) -> None:
    model = spec(shared, "tencent__Hunyuan-Large-A52B-Instruct")
    layers = [g for g in model.groups if g.is_layer]
    assert sorted(len(g.indices) for g in layers) == [32, 32]
    held = sorted(
        sum(evaluate(e.per_token, block.values) for block in g.blocks for e in block.cache())
        for g in layers
    )
    assert held == [0, 2 * 8 * 80]


# ------------------------------------------------------------------------- released file formats
def test_v4_is_stored_in_four_and_eight_bits(shared: Path) -> None:
    """An expert's 25.2 M weights: half a byte each, and a byte of scale for every 32."""
    from moeplan.estimation.memory import layer_bytes

    model = spec(shared, "deepseek-ai__DeepSeek-V4-Flash")
    stored = layer_bytes(model)
    group = next(g for g in model.groups if g.name == "csa + moe")
    places = {id(block) for block in group.blocks}
    by_name = {key[-1]: v for key, v in stored.items() if places & set(key[:-1])}
    assert by_name["ffn.experts.{e}.w1.weight"] == 256 * (2048 * 4096 // 2 + 2048 * 4096 // 32)
    assert by_name["ffn.shared_experts.w1.weight"] == 2048 * 4096 + 16 * 32
    assert by_name["attn.compressor.wkv.weight"] == 1024 * 4096 * 4
    assert by_name["attn.indexer.weights_proj.weight"] == 64 * 4096 * 2


# ---------------------------------------------------------------------------------- every preset
@pytest.mark.parametrize("name", [p.name for p in presets()])
def test_every_preset_is_read_without_unread_keys(name: str) -> None:
    model = load_preset(name)
    assert model.unread == ()
    assert count(model) > 1e8


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_refuses_an_empty_file(family: str) -> None:
    from moeplan.errors import UserError

    with pytest.raises(UserError, match="is missing"):
        read_config({"model_type": family}, "empty")


def test_mtp_of_v4_is_apart(shared: Path) -> None:
    """One layer with a window, two projections of D x D, norms, and a collapse of the streams."""
    found = parameters(spec(shared, "deepseek-ai__DeepSeek-V4-Flash"))
    D, F, E = 4096, 2048, 256
    expert = 3 * D * F
    attention = D * 1024 + 1024 + 32768 * 1024 + D * 512 + 512 + 64 + 8192 * 4096 + D * 8192
    streams = 2 * (24 * 4 * D + 24 + 3) + 4 * 4 * D + 4 + 1
    moe = E * D + (E + 1) * expert
    assert found["mtp"].value == attention + streams + moe + 2 * D * D + 5 * D
    assert found["mtp_active"].value == found["mtp"].value - (E - 6) * expert


def test_lfm2_8b_a1b() -> None:
    """Liquid AI: 8.3 B parameters, 1.5 B active; 18 of 24 layers are short convolutions."""
    attends = {2, 6, 10, 14, 18, 21}
    config = {
        "model_type": "lfm2_moe",
        "hidden_size": 2048,
        "intermediate_size": 7168,
        "moe_intermediate_size": 1792,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 65536,
        "conv_L_cache": 3,
        "num_dense_layers": 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "layer_types": ["full_attention" if i in attends else "conv" for i in range(24)],
    }
    model = read_config(config, "lfm2")
    assert count(model) / 1e9 == pytest.approx(8.3, abs=0.05)
    assert active_of(model, ALL) / 1e9 == pytest.approx(1.5, abs=0.06)
    cache = kv_cache(model, "bf16", 1, 32_768)
    assert cache["bytes_per_token"].value == 6 * 2 * 8 * 64 * 2
    assert cache["fixed_bytes"].value == 18 * 2048 * 2 * 2


def test_kimi_linear_48b_a3b() -> None:
    """Moonshot AI: 48 B parameters, 3 B active; 7 of 27 layers keep a latent of each token."""
    full = [4, 8, 12, 16, 20, 24, 27]
    config = {
        "model_type": "kimi_linear",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "moe_intermediate_size": 1024,
        "num_hidden_layers": 27,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "vocab_size": 163840,
        "first_k_dense_replace": 1,
        "num_experts": 256,
        "num_experts_per_token": 8,
        "num_shared_experts": 1,
        "linear_attn_config": {
            "head_dim": 128,
            "num_heads": 32,
            "short_conv_kernel_size": 4,
            "full_attn_layers": full,
            "kda_layers": [i for i in range(1, 28) if i not in full],
        },
    }
    model = read_config(config, "kimi")
    assert count(model) / 1e9 == pytest.approx(48, abs=1.2)
    assert active_of(model, ALL) / 1e9 == pytest.approx(3, abs=0.6)
    cache = kv_cache(model, "bf16", 1, 4096)
    assert cache["bytes_per_token"].value == 7 * 576 * 2
    assert cache["fixed_bytes"].value == 20 * (32 * 128 * 128 * 4 + 3 * 32 * 128 * 3 * 2)


# ------------------------------------- families outside transformers: the whole model, by hand
def test_arctic_by_hand(shared: Path) -> None:
    """35 layers: attention, a residual FFN as wide as the model, 128 experts, three norms."""
    D, F, E = 7168, 4864, 128
    attention = 2 * D * D + 2 * D * 1024
    layer = attention + 3 * D * D + E * D + E * 3 * D * F + 3 * D
    whole = 35 * layer + 2 * 32000 * D + D
    model = spec(shared, "Snowflake__snowflake-arctic-instruct")
    assert count(model) == whole
    assert active_of(model, ALL) == whole - 35 * (E - 2) * 3 * D * F


def test_step3_by_hand(shared: Path) -> None:
    """61 layers, 56 with experts; queries through 2048, one key-value head of 256."""
    D, dense, F, E = 7168, 18432, 5120, 48
    attention = D * 2048 + 2048 + 2048 * 64 * 256 + 2 * D * 256 + 64 * 256 * D
    moe = E * D + (E + 1) * 3 * D * F
    whole = 61 * (attention + 2 * D) + 5 * 3 * D * dense + 56 * moe + 2 * 128815 * D + D
    model = spec(shared, "stepfun-ai__step3")
    assert count(model) == whole
    assert active_of(model, ALL) == whole - 56 * (E - 3) * 3 * D * F


def test_hunyuan_large_by_hand(shared: Path) -> None:
    """64 layers, every second without keys and values of its own; tied tables."""
    D, F, E = 6400, 18304, 16
    attention, keys_values = 2 * D * D + 2 * 80, 2 * D * 8 * 80
    layer = attention + E * D + (E + 1) * 3 * D * F + 2 * D
    whole = 64 * layer + 32 * keys_values + 129024 * D + D
    model = spec(shared, "tencent__Hunyuan-Large-A52B-Instruct")
    assert count(model) == whole
    assert active_of(model, ALL) == whole - 64 * (E - 1) * 3 * D * F


def test_ling_mini_by_hand(shared: Path) -> None:
    """20 layers, the first dense; fused projection, head norms, 256 experts and a shared one."""
    D, F, E = 2048, 512, 256
    attention = D * (16 + 2 * 4) * 128 + 16 * 128 * D + 2 * 128
    moe = E * D + (E + 1) * 3 * D * F
    whole = 20 * (attention + 2 * D) + 3 * D * 5120 + 19 * moe + 2 * 157184 * D + D
    model = spec(shared, "inclusionAI__Ling-mini-2.0")
    assert count(model) == whole
    assert active_of(model, ALL) == whole - 19 * (E - 8) * 3 * D * F
