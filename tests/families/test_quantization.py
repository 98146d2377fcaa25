"""Quantised checkpoints: published sizes to the byte, layouts tensor by tensor, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moeplan.errors import UserError
from moeplan.estimation.memory import weight_bytes
from moeplan.families import read_config
from moeplan.families.quantization import merge_quant_config
from moeplan.model.formats import (
    Format,
    awq_int,
    format_named,
    gptq_int,
    nvfp4,
    packed_int,
    scaled_8bit,
)
from moeplan.model.ops import Weight
from moeplan.model.spec import ModelSpec
from moeplan.quantity import evaluate, plain

V3 = "deepseek-ai__DeepSeek-V3"
KIMI = "moonshotai__Kimi-K2-Instruct"
MIXTRAL = "mistralai__Mixtral-8x7B-v0.1"


def read(shared: Path, name: str, **changes: Any) -> ModelSpec:
    data = json.loads((shared / "configs" / f"{name}.json").read_text())
    return read_config(data | changes, name)


def small(quantization: Any, **changes: Any) -> ModelSpec:
    """A Mixtral of two layers and four experts with this quantization_config."""
    data = {
        "model_type": "mixtral",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 128,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "quantization_config": quantization,
    }
    return read_config(data | changes, "file")


def formats(spec: ModelSpec) -> dict[str, Format]:
    """Full tensor name to format."""
    return {
        name: spec.checkpoint.of(weight, name)
        for group in spec.groups
        for block in group.blocks
        for weight in block.weights()
        for name in group.tensor_names(weight)
    }


def converted(spec: ModelSpec) -> set[str]:
    """Names of the tensors that are not stored in the base format."""
    return {n for n, f in formats(spec).items() if f.name != spec.checkpoint.base.name}


LAYERS = [f"model.layers.{i}." for i in (0, 1)]
ATTENTION = {f"{p}self_attn.{x}_proj.weight" for p in LAYERS for x in "qkvo"}
EXPERTS = {f"{p}block_sparse_moe.experts.{{e}}.w{i}.weight" for p in LAYERS for i in (1, 2, 3)}


# ------------------------------------------------------------------------------ published sizes
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("openai__gpt-oss-20b", 13_761_264_768),  # total_size of the index
        ("openai__gpt-oss-120b", 65_248_815_744),
        (MIXTRAL, 93_405_585_408),
        ("Qwen__Qwen3-30B-A3B", 61_064_245_248),
        # elements by type as the hub lists them: FP8, BF16, F32
        (KIMI, 1_023_893_241_856 + 2 * 2_514_967_552 + 4 * (62_495_192 + 23_040)),
    ],
)
def test_checkpoint_size_to_the_byte(name: str, size: int, shared: Path) -> None:
    assert weight_bytes(read(shared, name)) == size


def shared_copies(spec: ModelSpec) -> int:
    """Bytes of embedding and head where an MTP module's checkpoint holds them once more."""
    return sum(
        2 * plain(group.count) * evaluate(weight.elements, block.values)
        for group in spec.groups
        if group.role == "mtp"
        for block in group.blocks
        for weight in block.weights()
        if weight.tied
    )


def test_deepseek_v3_checkpoint_to_the_byte(shared: Path) -> None:
    spec = read(shared, V3)
    fp8, bf16, fp32 = 680_571_043_840, 3_918_786_560, 41_555_600  # elements, as the hub lists them
    stored = weight_bytes(spec) + weight_bytes(spec, ("mtp",)) + shared_copies(spec)
    assert stored == fp8 + 2 * bf16 + 4 * fp32 == 688_574_839_360


def test_deepseek_r1_nvfp4_checkpoint_to_the_byte(shared: Path) -> None:
    own = ("input_layernorm", "post_attention_layernorm", "mlp.gate", "self_attn*")
    left = [f"model.layers.{i}.{module}" for i in range(61) for module in own]
    quantization = {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": 16,
        "kv_cache_quant_algo": None,
        "exclude_modules": [
            *left,
            "model.layers.61*",
            "model.norm",
            "model.embed_tokens",
            "lm_head",
        ],
    }
    spec = read(shared, V3, quantization_config=quantization)
    stored = weight_bytes(spec) + weight_bytes(spec, ("mtp",)) + shared_copies(spec)
    u8, fp8, bf16, fp32 = 328_826_093_568, 41_103_261_696, 26_837_643_264, 15_104
    linears = 3 * 3 + 58 * 257 * 3
    scalars = 2 * 4 * linears  # weight_scale_2 and input_scale, which the hub's list leaves out
    assert stored == u8 + fp8 + 2 * bf16 + 4 * fp32 + scalars


def test_qwen3_fp8_differs_by_the_width_of_its_scales_only(shared: Path) -> None:
    spec = read(shared, "Qwen__Qwen3-30B-A3B-FP8")
    fp8, bf16, scales = 29_896_998_912, 635_123_712, 1_824_768
    assert weight_bytes(spec) == fp8 + 2 * bf16 + 4 * scales
    published = 31_170_895_872  # its scales are stored in bf16, which its config does not say
    assert weight_bytes(spec) - published == 2 * scales
    assert any("bf16" in note for note in spec.notes)


def test_awq_checkpoint_of_mixtral(shared: Path) -> None:
    quantization = {
        "bits": 4,
        "group_size": 128,
        "modules_to_not_convert": ["gate"],
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }
    spec = read(shared, MIXTRAL, torch_dtype="float16", quantization_config=quantization)
    assert round(weight_bytes(spec) / 1e9, 2) == 24.65  # TheBloke/Mixtral-8x7B-Instruct-v0.1-AWQ


def test_gptq_checkpoint_of_qwen_moe(shared: Path) -> None:
    quantization = {"bits": 4, "group_size": 128, "desc_act": False, "quant_method": "gptq"}
    spec = read(
        shared,
        "Qwen__Qwen1.5-MoE-A2.7B-Chat",
        torch_dtype="float16",
        quantization_config=quantization,
    )
    # Qwen1.5-MoE-A2.7B-Chat-GPTQ-Int4: three files of 4.00, 3.79 and 0.622 GB, which also hold
    # a bias of zeros for each matrix that had none (AutoGPTQ's habit)
    zeros = 0
    for name, fmt in formats(spec).items():
        if fmt.bits == 4 and "{e}" in name:
            zeros += 2 * 60 * (2048 if "down_proj" in name else 1408)
        elif fmt.bits == 4 and "shared_expert." in name:
            zeros += 2 * (2048 if "down_proj" in name else 5632)
        elif fmt.bits == 4 and "o_proj" in name:
            zeros += 2 * 2048
    assert weight_bytes(spec) + zeros == pytest.approx(8.412e9, abs=10e6)
    assert any("zero biases" in note for note in spec.notes)


KIMI_THINKING = {
    "config_groups": {
        "group_0": {
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None,
                "block_structure": None,
                "dynamic": False,
                "group_size": 32,
                "num_bits": 4,
                "observer": "minmax",
                "observer_kwargs": {},
                "strategy": "group",
                "symmetric": True,
                "type": "int",
            },
        }
    },
    "format": "pack-quantized",
    "ignore": [
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    ],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}


def test_kimi_k2_thinking_keeps_all_but_its_routed_experts(shared: Path) -> None:
    spec = read(shared, KIMI, quantization_config=KIMI_THINKING)
    assert all(".mlp.experts.{e}." in name for name in converted(spec) - buffers(spec))
    assert round(weight_bytes(spec) / 1e9) == 594  # the hub's page: 594 GB


def buffers(spec: ModelSpec) -> set[str]:
    return {n for n in formats(spec) if n.endswith("e_score_correction_bias")}


# ------------------------------------------------------------------- layouts, tensor by tensor
BYTES = {"i32": 4, "u8": 1, "i8": 1, "f8": 1, "f16": 2, "f32": 4, "i64": 8}
Files = list[tuple[str, tuple[int, ...]]]


def up(a: int, b: int) -> int:
    whole, rest = divmod(a, b)
    return whole + bool(rest)


def gptq_files(r: int, c: int) -> Files:
    return [
        ("i32", (c // 8, r)),
        ("i32", (up(c, 128), r // 8)),
        ("f16", (up(c, 128), r)),
        ("i32", (c,)),
    ]


def gptq3_files(r: int, c: int) -> Files:
    return [("i32", (c // 32 * 3, r)), ("i32", (1, r // 32 * 3)), ("f16", (1, r)), ("i32", (c,))]


def awq_files(r: int, c: int) -> Files:
    return [("i32", (c, r // 8)), ("i32", (c // 64, r // 8)), ("f16", (c // 64, r))]


def packed_files(r: int, c: int) -> Files:
    return [("i32", (r, up(c, 8))), ("f16", (r, c // 32)), ("i64", (2,))]


def packed_zeros_files(r: int, c: int) -> Files:
    zeros: Files = [("i32", (up(r, 8), c // 32)), ("i32", (c,))]
    return packed_files(r, c) + zeros


def fp8_files(r: int, c: int) -> Files:
    return [("f8", (r, c)), ("f32", ()), ("f32", ())]


def channel_files(r: int, c: int) -> Files:
    return [("i8", (r, c)), ("f16", (r, 1)), ("i8", (r, 1))]


def block_files(r: int, c: int) -> Files:
    return [("f8", (r, c)), ("f32", (up(r, 128), up(c, 128)))]


def nvfp4_files(r: int, c: int) -> Files:
    return [("u8", (r, c // 2)), ("f8", (r, c // 16)), ("f32", ()), ("f32", ())]


def mxfp4_files(r: int, c: int) -> Files:
    return [("u8", (r, c // 32, 16)), ("u8", (r, c // 32))]


LAYOUTS: list[tuple[Format, Callable[[int, int], Files]]] = [
    (gptq_int(4, 128), gptq_files),
    (gptq_int(3, None), gptq3_files),
    (awq_int(4, 64), awq_files),
    (packed_int(4, 32), packed_files),
    (packed_int(4, 32, zeros=True, order=True), packed_zeros_files),
    (scaled_8bit("fp8", "tensor", more="4*e"), fp8_files),
    (scaled_8bit("int8", "channel", scale=2, more="e*r"), channel_files),
    (scaled_8bit("fp8", "block", size=(128, 128)), block_files),
    (nvfp4(), nvfp4_files),
    (format_named("mxfp4"), mxfp4_files),
]


@pytest.mark.parametrize(("fmt", "files"), LAYOUTS, ids=lambda x: getattr(x, "name", None))
@pytest.mark.parametrize(
    ("r", "c", "e"), [(512, 256, 1), (256, 384, 3), (96, 192, 5), (576, 7168, 2)]
)
def test_bytes_of_a_layout_are_those_of_its_tensors(
    fmt: Format, files: Callable[[int, int], Files], r: int, c: int, e: int
) -> None:
    stored = 0
    for kind, shape in files(r, c):
        size = BYTES[kind]
        for n in shape:
            size *= n
        stored += e * size
    assert evaluate(fmt.bytes, {"n": e * r * c, "r": r, "c": c, "e": e}) == stored


def test_mxfp4_blocks_run_along_the_inputs(shared: Path) -> None:
    spec = read(shared, "openai__gpt-oss-20b")
    moe = spec.moe
    assert moe is not None
    weights = {w.name: w for w in moe.weights()}
    down = weights["mlp.experts.down_proj"]
    fmt = spec.checkpoint.of(down, "model.layers.0.mlp.experts.down_proj")
    stored = sum(32 * 2880 * n for n in (2880 // 32 * 16, 2880 // 32))
    n = 32 * 2880 * 2880
    assert evaluate(fmt.bytes, {"n": n, "r": 2880, "c": 2880, "e": 32}) == stored
    bias = weights["mlp.experts.down_proj_bias"]
    assert spec.checkpoint.of(bias, "model.layers.0.mlp.experts.down_proj_bias").name == "bf16"


# -------------------------------------------------------------------- which tensors are converted
def test_fp8_leaves_gate_embeddings_norms_and_head() -> None:
    spec = small({"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert converted(spec) == ATTENTION | EXPERTS


def test_listed_modules_are_left_out_in_their_layer_only() -> None:
    listed = ["model.layers.1.self_attn.o_proj", "lm_head"]
    quantization = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    whole = small(quantization)
    spec = small(quantization | {"modules_to_not_convert": listed})
    assert converted(whole) - converted(spec) == {"model.layers.1.self_attn.o_proj.weight"}
    # 64 x 64 in bf16 instead of fp8 with 4 x 4 scales
    assert weight_bytes(spec) - weight_bytes(whole) == 64 * 64 - 4 * 4 * 4


@pytest.mark.parametrize(
    ("entry", "left"),
    [
        ("model.layers.0", {n for n in ATTENTION | EXPERTS if ".0." in n}),
        ("self_attn", ATTENTION),
        ("model.layers.*.self_attn", ATTENTION),
        ("model.layers.*.block_sparse_moe.experts.*", EXPERTS),
        ("*q_proj", {n for n in ATTENTION if "q_proj" in n}),
        ("q_pro", set()),
        ("proj", set()),
        ("model.layers.1", {n for n in ATTENTION | EXPERTS if ".1." in n}),
        (r"model\.layers\.[01]\.self_attn\.(q|k)_proj", {n for n in ATTENTION if n[-13] in "qk"}),
        ("re:.*experts.*", EXPERTS),
        ("re:self_attn", set()),  # matched from the start
    ],
)
def test_what_an_entry_of_a_list_names(entry: str, left: set[str]) -> None:
    spec = small({"quant_method": "fp8", "modules_to_not_convert": [entry]})
    assert converted(spec) | left == ATTENTION | EXPERTS
    assert not converted(spec) & left


def test_gate_does_not_name_gate_proj(shared: Path) -> None:
    fp8 = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["gate"],
    }
    spec = read(shared, V3, quantization_config=fp8)
    assert weight_bytes(spec) == weight_bytes(read(shared, V3))


def test_experts_named_one_by_one_must_all_be_there() -> None:
    def names(count: int) -> list[str]:
        return [f"model.layers.0.block_sparse_moe.experts.{i}.w2" for i in range(count)]

    quantization = {"quant_method": "fp8", "modules_to_not_convert": names(4)}
    left = "model.layers.0.block_sparse_moe.experts.{e}.w2.weight"
    assert converted(small(quantization)) == (ATTENTION | EXPERTS) - {left}
    with pytest.raises(UserError, match="names some of the experts only"):
        small(quantization | {"modules_to_not_convert": names(3)})


def test_a_single_output_gate_is_not_converted(shared: Path) -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    spec = read(shared, "Qwen__Qwen1.5-MoE-A2.7B-Chat", quantization_config=fp8)
    assert formats(spec)["model.layers.0.mlp.shared_expert_gate.weight"].name == "bf16"


def test_compressed_tensors_converts_the_head_unless_ignored() -> None:
    whole = KIMI_THINKING | {"ignore": []}
    assert "lm_head.weight" in converted(small(whole))
    assert "lm_head.weight" not in converted(small(whole | {"ignore": ["lm_head"]}))
    assert "model.embed_tokens.weight" not in converted(small(whole))
    assert not [n for n in converted(small(whole)) if ".gate." in n]


def group(bits: int, kind: str, strategy: str, targets: list[str], **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True} | more
    inputs = {"num_bits": 8, "type": kind, "dynamic": True, "strategy": "token"}
    return {"targets": targets, "weights": weights, "input_activations": inputs}


def test_groups_of_modules_in_different_formats() -> None:
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": {
            "attention": group(8, "float", "channel", ["re:.*self_attn.*"])
            | {"format": "float-quantized"},
            "experts": group(4, "int", "group", [r"re:.*experts.*"], group_size=32)
            | {"format": "pack-quantized", "input_activations": None},
        },
        "ignore": ["lm_head"],
    }
    found = formats(small(quantization))
    assert {found[n].bits for n in ATTENTION} == {8}
    assert {found[n].bits for n in EXPERTS} == {4}
    assert {found[n].peak for n in EXPERTS} == {"bf16"}
    assert found["model.layers.0.block_sparse_moe.gate.weight"].name == "bf16"
    assert found["lm_head.weight"].name == "bf16"


@pytest.mark.parametrize(
    ("layout", "one", "size"),
    [  # bytes of a 64 x 96 expert matrix
        ("float-quantized", group(8, "float", "tensor", ["Linear"]), 64 * 96 + 2),
        ("float-quantized", group(8, "float", "channel", ["Linear"]), 64 * 96 + 2 * 64),
        (
            "float-quantized",
            group(8, "float", "block", ["Linear"], block_structure=[64, 64]),
            64 * 96 + 2 * 2,
        ),
        ("int-quantized", group(8, "int", "channel", ["Linear"], symmetric=False), 64 * (96 + 3)),
        ("pack-quantized", group(8, "int", "channel", ["Linear"]), 64 * (96 + 2) + 16),
        (
            "nvfp4-pack-quantized",
            group(4, "float", "tensor_group", ["Linear"], group_size=16),
            64 * (48 + 6) + 8,
        ),
        (
            "mxfp4-pack-quantized",
            group(4, "float", "group", ["Linear"], group_size=32, scale_dtype="torch.uint8"),
            64 * (48 + 3),
        ),
    ],
)
def test_layouts_of_compressed_tensors(layout: str, one: dict[str, Any], size: int) -> None:
    spec = small(
        {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"g": one}}
    )
    fmt = formats(spec)["model.layers.0.block_sparse_moe.experts.{e}.w2.weight"]
    assert evaluate(fmt.bytes, {"n": 4 * 64 * 96, "r": 64, "c": 96, "e": 4}) == 4 * size


def test_static_inputs_store_a_scale() -> None:
    dynamic = group(8, "float", "tensor", ["Linear"])
    static = dynamic | {"input_activations": {"num_bits": 8, "type": "float", "dynamic": False}}
    base = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    sizes = [
        weight_bytes(small(base | {"config_groups": {"g": g}, "ignore": ["lm_head"]}))
        for g in (dynamic, static)
    ]
    assert sizes[1] - sizes[0] == 2 * 2 * (4 + 3 * 4)  # bf16, two layers, four plus three x four


def test_gptq_leaves_head_and_router_and_obeys_dynamic_rules() -> None:
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "meta": {"quantizer": "x"}}
    spec = small(quantization)
    assert converted(spec) == ATTENTION | EXPERTS
    assert "lm_head.weight" in converted(small(quantization | {"lm_head": True}))
    rules = {r"-:model\.layers\.0\..*": {}, r"+:.*q_proj": {"bits": 8, "group_size": -1}}
    found = formats(small(quantization | {"dynamic": rules}))
    assert {f.name for n, f in found.items() if ".layers.0." in n} == {"bf16"}
    assert found["model.layers.1.self_attn.q_proj.weight"].name == "int8-channel (GPTQ)"
    assert found["model.layers.1.self_attn.k_proj.weight"].name == "int4-g32 (GPTQ)"
    only = quantization | {
        "modules_in_block_to_quantize": [["self_attn.q_proj"], ["self_attn.o_proj"]]
    }
    assert converted(small(only)) == {n for n in ATTENTION if "q_proj" in n or "o_proj" in n}


def test_mixed_precision_of_modelopt_quantises_the_listed_modules_only() -> None:
    quantization = {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {
            "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
            "model.layers.0.block_sparse_moe.experts": {"quant_algo": "NVFP4", "group_size": 16},
            "model.layers.1.self_attn": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
        },
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
    }
    spec = small(quantization)
    found = formats(spec)
    assert found["model.layers.0.self_attn.q_proj.weight"].bits == 8
    assert found["model.layers.0.self_attn.k_proj.weight"].name == "bf16"
    assert {found[n].name for n in EXPERTS if ".0." in n} == {"nvfp4"}
    assert {found[n].name for n in EXPERTS if ".1." in n} == {"bf16"}
    assert {found[n].peak for n in ATTENTION if ".1." in n} == {"bf16"}
    assert spec.checkpoint.cache == "fp8"


@pytest.mark.parametrize(
    ("scheme", "cache"),
    [(None, None), ("FP8", "fp8"), ({"num_bits": 8, "type": "float"}, "fp8")],
)
def test_format_of_the_cache(scheme: Any, cache: str | None) -> None:
    quantization = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": scheme}
    assert small(quantization).checkpoint.cache == cache


# ------------------------------------------------------------------------- hf_quant_config.json
BESIDE = {
    "producer": {"name": "modelopt", "version": "0.23.0"},
    "quantization": {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": "FP8",
        "group_size": 16,
        "exclude_modules": ["lm_head", "model.layers.1*"],
    },
}


def config_of(spec_changes: dict[str, Any]) -> dict[str, Any]:
    return {
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
        **spec_changes,
    }


def test_quantisation_file_beside_the_config() -> None:
    plain_config = config_of({})
    merged = merge_quant_config(plain_config, BESIDE, "hf_quant_config.json")
    assert "quantization_config" not in plain_config
    spec = read_config(merged, "file")
    assert {n for n in converted(spec) if ".layers.1." in n} == set()
    assert {n.split(".")[2] for n in converted(spec)} == {"0"}
    assert spec.checkpoint.cache == "fp8"


def test_newer_config_holds_the_same_under_other_names() -> None:
    own = {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "ignore": ["lm_head", "model.layers.1*"],
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "config_groups": {
            "group_0": {
                "input_activations": {"dynamic": False, "num_bits": 4, "group_size": 16},
                "weights": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
                "targets": ["Linear"],
            }
        },
        "producer": {"name": "modelopt"},
    }
    config = config_of({"quantization_config": own})
    alone = read_config(config, "file")
    both = read_config(merge_quant_config(config, BESIDE, "beside"), "file")
    older = read_config(merge_quant_config(config_of({}), BESIDE, "beside"), "file")
    assert weight_bytes(alone) == weight_bytes(both) == weight_bytes(older)


@pytest.mark.parametrize(
    ("own", "beside", "message"),
    [
        ({}, {"quantisation": {}}, "quantization is missing"),
        ({}, [], "quantization is missing"),
        ({}, {"quantization": "NVFP4"}, "quantization is missing"),
        ({"quantization_config": {"quant_algo": "FP8"}}, BESIDE, "they must agree"),
        ({"quantization_config": "fp8"}, BESIDE, "not an object"),
    ],
)
def test_quantisation_file_that_is_none(own: dict[str, Any], beside: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        merge_quant_config(config_of(own), beside, "hf_quant_config.json")


# ------------------------------------------------------------------------------------- refused
CT = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method is 'bitsandbytes'"),
        ({"quant_method": "quark"}, "quant_method is 'quark'"),
        ({"quant_method": "gtpq", "bits": 4}, "did you mean 'gptq'"),
        ({"bits": 4}, "quant_method is missing"),
        ({"quant_method": 4}, "quant_method is 4"),
        ("fp8", "an object of keys is needed"),
        (["fp8"], "an object of keys is needed"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [128, "128"]}, "weight_block_size"),
        ({"quant_method": "fp8", "activation_scheme": "sometimes"}, "activation_scheme"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "modules_to_not_convert"),
        ({"quant_method": "fp8", "modules_to_not_convert": [1]}, "modules_to_not_convert"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:("]}, "no regular expression"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "expert_dtype"),
        ({"quant_method": "gptq", "group_size": 128}, "bits is missing"),
        ({"quant_method": "gptq", "bits": 5}, "bits is 5"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size is 0"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -2}, "group_size"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:(": {}}}, "no regular expression"),
        ({"quant_method": "gptq", "bits": 4, "adapter_rank": 8}, "adapter_rank"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo is 'W4A8_AWQ'"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "quantized_layers"),
        ({"quant_method": "modelopt"}, "quant_algo is missing"),
        ({"quant_algo": "NVFP4", "kv_cache_scheme": "FP4"}, "kv_cache_scheme"),
        (CT, "config_groups is missing"),
        (CT | {"config_groups": {}}, "targets nothing"),
        (CT | {"config_groups": {"W8A8": ["Linear"]}}, "an object of keys is needed"),
        (CT | {"config_groups": {"g": {"targets": ["Linear"]}}}, "weights is missing"),
        (CT | {"format": "marlin-24"}, "format is 'marlin-24'"),
        (
            CT | {"config_groups": {"g": group(4, "int", "group", ["Linear"])}},
            "group_size is missing",
        ),
        (
            CT | {"config_groups": {"g": group(4, "int", "tensor", ["Linear"])}},
            "not described in the format pack-quantized",
        ),
        (
            CT | {"config_groups": {"g": group(4, "int", "channel", ["MixtralSparseMoeBlock"])}},
            "Linear or names of modules",
        ),
        (
            CT
            | {
                "config_groups": {"g": group(4, "int", "channel", ["Linear"])},
                "sparsity_config": {"format": "sparse-bitmask"},
            },
            "sparse weights are not described",
        ),
        (
            CT
            | {
                "config_groups": {"g": group(4, "int", "channel", ["Linear"])},
                "transform_config": {"config_groups": {"R1": {}}},
            },
            "transformed weights are not described",
        ),
    ],
)
def test_refused_by_name(quantization: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(quantization)


def test_quantisation_of_mlx_is_refused() -> None:
    with pytest.raises(UserError, match="MLX"):
        read_config(config_of({"quantization": {"group_size": 64, "bits": 4}}), "file")


def test_an_unknown_harmless_key_is_reported() -> None:
    spec = small({"quant_method": "fp8", "weight_block_size": [64, 64], "made_on": "a Tuesday"})
    assert spec.unread == ("quantization_config.made_on",)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_base_format_from_the_dtype(dtype: str) -> None:
    spec = small(None, torch_dtype=dtype)
    assert spec.checkpoint.quantised is None
    assert not spec.checkpoint.assumed
    elements = {"bfloat16": 2, "float16": 2, "float32": 4}[dtype]
    assert weight_bytes(spec) % elements == 0
    assert spec.checkpoint.base.bits == 8 * elements


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", 16, ["bfloat16"], True])
def test_dtype_that_is_not_read(dtype: Any) -> None:
    with pytest.raises(UserError, match="torch_dtype"):
        small(None, torch_dtype=dtype)


def test_user_chooses_another_format() -> None:
    spec = small(KIMI_THINKING)
    chosen = spec.checkpoint.stored_as("bf16")
    names: list[tuple[Weight, str]] = [
        (w, n)
        for g in spec.groups
        for b in g.blocks
        for w in b.weights()
        for n in g.tensor_names(w)
    ]
    assert {chosen.of(w, n).name for w, n in names} == {"bf16"}
    fp8 = spec.checkpoint.stored_as("fp8")
    assert {n for w, n in names if fp8.of(w, n).name == "fp8"} == ATTENTION | EXPERTS
