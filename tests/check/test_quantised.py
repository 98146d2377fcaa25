"""Quantised checkpoints: several stored tensors are one weight, and its bytes are compared.

The layouts are written down here as each method's files have them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest

from moeplan.check import check
from tests.check.files import BYTES, MIXTRAL, Tensors, folder, matrices, mixtral, write_index


def converted(each: Callable[[str, int, int], Tensors]) -> Tensors:
    """The checkpoint with `each` of its matrices (module, rows, columns) stored in another way."""
    tensors = mixtral()
    for name in matrices(tensors):
        rows, columns = tensors.pop(name)[1]
        tensors |= each(name.removesuffix(".weight"), rows, columns)
    return tensors


def fp8(scale: str = "F32", block: int = 128) -> Callable[[str, int, int], Tensors]:
    def each(m: str, r: int, c: int) -> Tensors:
        scales = (-(-r // block), -(-c // block))
        return {
            f"{m}.weight": ("F8_E4M3", (r, c)),
            f"{m}.weight_scale_inv": (scale, scales),
        }

    return each


def static_fp8(m: str, r: int, c: int) -> Tensors:
    return {
        f"{m}.weight": ("F8_E4M3", (r, c)),
        f"{m}.weight_scale": ("F32", ()),
        f"{m}.input_scale": ("F32", ()),
    }


def nvfp4(m: str, r: int, c: int) -> Tensors:
    return {
        f"{m}.weight": ("U8", (r, c // 2)),
        f"{m}.weight_scale": ("F8_E4M3", (r, c // 16)),
        f"{m}.weight_scale_2": ("F32", ()),
        f"{m}.input_scale": ("F32", ()),
    }


def packed(m: str, r: int, c: int) -> Tensors:
    return {
        f"{m}.weight_packed": ("I32", (r, c // 8)),
        f"{m}.weight_scale": ("BF16", (r, c // 32)),
        f"{m}.weight_shape": ("I64", (2,)),
    }


def gptq(m: str, r: int, c: int) -> Tensors:
    return {
        f"{m}.qweight": ("I32", (c // 8, r)),
        f"{m}.qzeros": ("I32", (c // 128, r // 8)),
        f"{m}.scales": ("F16", (c // 128, r)),
        f"{m}.g_idx": ("I32", (c,)),
    }


def awq(m: str, r: int, c: int) -> Tensors:
    return {
        f"{m}.qweight": ("I32", (c, r // 8)),
        f"{m}.qzeros": ("I32", (c // 128, r // 8)),
        f"{m}.scales": ("F16", (c // 128, r)),
    }


PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "ignore": ["lm_head", "re:.*gate$"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group"},
        }
    },
}
KEPT = ["lm_head", "*.gate"]

LAYOUTS: dict[str, tuple[Callable[[str, int, int], Tensors], dict[str, Any]]] = {
    "fp8": (fp8(), {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "fp8 with ragged blocks": (
        fp8(block=96),
        {"quant_method": "fp8", "weight_block_size": [96, 96]},
    ),
    "static fp8": (
        static_fp8,
        {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": KEPT},
    ),
    "nvfp4": (
        nvfp4,
        {
            "quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16,
            "exclude_modules": KEPT,
        },
    ),
    "packed integers": (packed, PACKED),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128, "meta": {}}),
    "awq": (
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_its_weight_to_the_byte(tmp_path: Path, name: str) -> None:
    each, how = LAYOUTS[name]
    tensors = converted(each)
    found = check(folder(tmp_path, tensors, quantization_config=how))
    assert found.differences == []
    assert found.here is not None
    values = sum(prod(shape) for _, shape in mixtral().values())
    assert found.there.values == found.here.values == values
    size = sum(prod(shape) * BYTES[dtype] for dtype, shape in tensors.values())
    assert found.there.size == found.here.size == size


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_from_an_index(tmp_path: Path, name: str) -> None:
    each, how = LAYOUTS[name]
    write_index(folder(tmp_path, quantization_config=how), converted(each))
    assert check(tmp_path).equal


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_config_that_does_not_say_so_is_told(tmp_path: Path, name: str) -> None:
    """The same files beside a config without quantisation: the formats differ, not the model."""
    found = check(folder(tmp_path, converted(LAYOUTS[name][0]))).differences
    assert {d.kind for d in found} == {"format"}
    assert sum(d.tensors for d in found) == len(matrices(mixtral()))


def test_scales_of_another_type_are_a_difference_of_bytes(tmp_path: Path) -> None:
    how = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    found = check(folder(tmp_path, converted(fp8("BF16")), quantization_config=how)).differences
    assert {d.kind for d in found} == {"format"}
    small = next(d for d in found if "k_proj" in d.name)  # one block of 128 x 256: two scales
    assert small.here == f"fp8-block128, {128 * 256 + 2 * 4:,} B"
    assert small.there == f"F8_E4M3, {128 * 256 + 2 * 2:,} B"


def test_a_missing_scale_is_noticed(tmp_path: Path) -> None:
    tensors = converted(fp8())
    del tensors["model.layers.0.self_attn.q_proj.weight_scale_inv"]
    how = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (found,) = check(folder(tmp_path, tensors, quantization_config=how)).differences
    assert (found.kind, found.name) == ("format", "model.layers.0.self_attn.q_proj.weight")


def test_a_scale_without_its_weight_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    tensors = mixtral() | {"model.layers.0.router.scale": ("BF16", (4,))}
    (found,) = check(folder(tmp_path, tensors)).differences
    assert (found.kind, found.name) == ("extra", "model.layers.0.router.scale")


# ----------------------------------------------------------------------------- stacked experts
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8,
    "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 128,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "layer_types": ["sliding_attention", "full_attention"],
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}  # fmt: skip


def gpt_oss() -> Tensors:
    """Every tensor of GPT_OSS; the experts' matrices in blocks of 16 bytes and their exponents."""
    e, d, f = 4, 64, 96
    plain: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (128, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (128, d),
    }
    out: Tensors = {}
    for i in range(2):
        at, experts = f"model.layers.{i}.", f"model.layers.{i}.mlp.experts."
        for which, rows in (("q", 64), ("k", 32), ("v", 32)):
            plain[f"{at}self_attn.{which}_proj.weight"] = (rows, d)
            plain[f"{at}self_attn.{which}_proj.bias"] = (rows,)
        plain |= {
            f"{at}self_attn.o_proj.weight": (d, 64),
            f"{at}self_attn.o_proj.bias": (d,),
            f"{at}self_attn.sinks": (4,),
            f"{at}input_layernorm.weight": (d,),
            f"{at}post_attention_layernorm.weight": (d,),
            f"{at}mlp.router.weight": (e, d),
            f"{at}mlp.router.bias": (e,),
            f"{experts}gate_up_proj_bias": (e, 2 * f),
            f"{experts}down_proj_bias": (e, d),
        }
        out |= {
            f"{experts}gate_up_proj_blocks": ("U8", (e, 2 * f, d // 32, 16)),
            f"{experts}gate_up_proj_scales": ("U8", (e, 2 * f, d // 32)),
            f"{experts}down_proj_blocks": ("U8", (e, d, f // 32, 16)),
            f"{experts}down_proj_scales": ("U8", (e, d, f // 32)),
        }
    return out | {name: ("BF16", shape) for name, shape in plain.items()}


def test_mxfp4_experts_of_gpt_oss(tmp_path: Path) -> None:
    found = check(folder(tmp_path, gpt_oss(), GPT_OSS))
    assert found.differences == []
    assert found.there.values is not None
    experts = 2 * 4 * (2 * 96 * 64 + 96 * 64)
    assert found.there.values > experts
    assert found.there.dtypes["U8"] == (8, experts // 2 + experts // 32)


def test_an_expert_too_few_in_a_stack(tmp_path: Path) -> None:
    tensors = gpt_oss()
    for name, (dtype, shape) in gpt_oss().items():
        if "layers.1.mlp.experts.down_proj" in name:
            tensors[name] = (dtype, (3, *shape[1:]))
    found = check(folder(tmp_path, tensors, GPT_OSS)).differences
    assert [(d.kind, d.name) for d in found] == [
        ("shape", "model.layers.1.mlp.experts.down_proj"),
        ("shape", "model.layers.1.mlp.experts.down_proj_bias"),
    ]


def test_packed_integers_of_an_unknown_family_are_counted_by_the_bits_of_the_config(
    tmp_path: Path,
) -> None:
    found = check(
        folder(tmp_path, converted(packed), quantization_config=PACKED, model_type="brand_new")
    )
    assert found.there.values == sum(prod(shape) for _, shape in mixtral().values())
    assert MIXTRAL["model_type"] != "brand_new"
