"""The configs that the oracle judges: where each family starts from, and what is altered."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

__all__ = ["ALTERED", "BASES", "SHARED", "altered", "base", "load", "merged"]

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "configs"
DROP = object()

# Small models that no real file is at hand for, and the real files that alterations start from.
BASES: dict[str, dict[str, Any] | str] = {
    "dbrx": "databricks__dbrx-base",
    "gemma4_text": {
        "model_type": "gemma4_text",
        "hidden_size": 256,
        "intermediate_size": 384,
        "moe_intermediate_size": 96,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "global_head_dim": 64,
        "enable_moe_block": True,
        "hidden_size_per_layer_input": 0,
        "num_experts": 6,
        "top_k_experts": 2,
        "sliding_window": 64,
        "vocab_size": 1000,
    },
    "gpt_oss": "openai__gpt-oss-20b",
    "granitemoe": "ibm-granite__granite-3.1-3b-a800m-instruct",
    "hunyuan_v1_moe": {
        "model_type": "hunyuan_v1_moe",
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 6,
        "moe_topk": 2,
        "vocab_size": 1000,
    },
    "llama": "meta-llama__Meta-Llama-3.1-8B",
    "llama4": "meta-llama__Llama-4-Scout-17B-16E-Instruct",
    "llama4_text": {
        "model_type": "llama4_text",
        "hidden_size": 512,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "vocab_size": 1000,
    },
    "minimax": {
        "model_type": "minimax",
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "vocab_size": 1000,
    },
    "minimax_m2": "MiniMaxAI__MiniMax-M2.5",
    "mistral": {
        "model_type": "mistral",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
    },
    "mixtral": "mistralai__Mixtral-8x7B-v0.1",
    "olmoe": "allenai__OLMoE-1B-7B-0924",
    "phimoe": "microsoft__Phi-mini-MoE-instruct",
    "qwen2": {
        "model_type": "qwen2",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
    },
    "qwen2_moe": "Qwen__Qwen1.5-MoE-A2.7B-Chat",
    "qwen3": "Qwen__Qwen3-8B",
    "qwen3_5_moe": "Qwen__Qwen3.5-35B-A3B",
    "qwen3_5_moe_text": {
        "model_type": "qwen3_5_moe_text",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 96,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "vocab_size": 1000,
    },
    "qwen3_moe": "Qwen__Qwen3-30B-A3B",
    "qwen3_next": "Qwen__Qwen3-Next-80B-A3B-Instruct",
}

LINEAR, FULL = "linear_attention", "full_attention"
SLIDING, CHUNKED = "sliding_attention", "chunked_attention"

# What is changed in the base, per family; nested objects are merged, DROP removes a key.
ALTERED: dict[str, list[dict[str, Any]]] = {
    "dbrx": [
        {"n_layers": 3, "n_heads": 24, "attn_config": {"kv_n_heads": 6}},
        {"n_layers": 2, "ffn_config": {"moe_num_experts": 5, "ffn_hidden_size": 999}},
    ],
    "gemma4_text": [
        {"num_hidden_layers": 7, "attention_k_eq_v": True, "num_global_key_value_heads": 2},
        {"num_kv_shared_layers": 1, "layer_types": [SLIDING, FULL] * 3, "num_experts": 5},
    ],
    "gpt_oss": [
        {"num_hidden_layers": 3, "layer_types": DROP, "attention_bias": False},
        {
            "num_hidden_layers": 4,
            "layer_types": [FULL, SLIDING, FULL, FULL],
            "head_dim": 48,
            "num_key_value_heads": 16,
            "num_local_experts": 6,
            "intermediate_size": 960,
            "tie_word_embeddings": True,
        },
    ],
    "granitemoe": [
        {"num_hidden_layers": 3, "attention_bias": True, "tie_word_embeddings": False},
        {"num_hidden_layers": 2, "num_key_value_heads": DROP, "num_local_experts": 9},
    ],
    "hunyuan_v1_moe": [
        {"num_key_value_heads": 8, "num_experts": 5},
        {"head_dim": 48, "attention_bias": True, "tie_word_embeddings": True},
    ],
    "llama": [
        {"num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True},
        {"num_hidden_layers": 2, "num_key_value_heads": DROP, "tie_word_embeddings": True},
    ],
    "llama4": [
        {
            "text_config": {
                "num_hidden_layers": 7,
                "interleave_moe_layer_step": 2,
                "no_rope_layer_interval": 3,
                "attention_bias": True,
                "use_qk_norm": False,
            }
        },
        {
            "text_config": {
                "num_hidden_layers": 5,
                "interleave_moe_layer_step": DROP,
                "moe_layers": [1, 4],
                "no_rope_layers": [1, 0, 0, 1, 1],
                "head_dim": 96,
                "intermediate_size_mlp": DROP,
            }
        },
    ],
    "llama4_text": [
        {"layer_types": [FULL, CHUNKED] * 3, "num_experts_per_tok": 2, "num_local_experts": 5},
        {"moe_layers": [0], "tie_word_embeddings": True},
    ],
    "minimax": [
        {"layer_types": [LINEAR, LINEAR, FULL] * 2, "num_local_experts": 5},
        {"head_dim": 48, "num_key_value_heads": 4, "tie_word_embeddings": True},
    ],
    "minimax_m2": [
        {"num_hidden_layers": 2, "head_dim": DROP, "num_local_experts": 12},
        {"num_hidden_layers": 3, "num_key_value_heads": 4, "tie_word_embeddings": True},
    ],
    "mistral": [
        {"sliding_window": 128, "num_key_value_heads": 4},
        {"head_dim": 96, "tie_word_embeddings": True},
    ],
    "mixtral": [
        {"num_hidden_layers": 2, "num_local_experts": 5, "head_dim": 96},
        {"num_hidden_layers": 3, "num_key_value_heads": 32, "tie_word_embeddings": True},
    ],
    "olmoe": [
        {"num_hidden_layers": 2, "num_key_value_heads": 4, "attention_bias": True},
        {"num_hidden_layers": 3, "num_key_value_heads": DROP, "tie_word_embeddings": True},
    ],
    "phimoe": [
        {"num_hidden_layers": 2, "attention_bias": False, "lm_head_bias": False},
        {
            "num_hidden_layers": 3,
            "head_dim": DROP,
            "num_key_value_heads": 4,
            "sliding_window": None,
        },
    ],
    "qwen2": [
        {
            "use_sliding_window": True,
            "sliding_window": 64,
            "max_window_layers": 1,
            "num_key_value_heads": 4,
        },
        {"layer_types": [FULL] * 4, "head_dim": 96, "tie_word_embeddings": True},
    ],
    "qwen2_moe": [
        {
            "num_hidden_layers": 6,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "qkv_bias": False,
        },
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "head_dim": 96,
            "num_experts": 7,
            "shared_expert_intermediate_size": 640,
            "tie_word_embeddings": True,
        },
    ],
    "qwen3": [
        {
            "num_hidden_layers": 5,
            "use_sliding_window": True,
            "sliding_window": 256,
            "max_window_layers": 3,
            "attention_bias": True,
        },
        {"num_hidden_layers": 2, "head_dim": DROP, "tie_word_embeddings": True},
    ],
    "qwen3_5_moe": [
        {
            "text_config": {
                "num_hidden_layers": 5,
                "layer_types": [FULL, LINEAR, FULL, LINEAR, LINEAR],
                "full_attention_interval": DROP,
                "linear_num_value_heads": 48,
                "linear_value_head_dim": 64,
                "linear_conv_kernel_dim": 3,
            }
        },
        {
            "tie_word_embeddings": True,
            "text_config": {
                "tie_word_embeddings": True,
                "num_hidden_layers": 6,
                "layer_types": DROP,
                "full_attention_interval": 3,
                "attention_bias": True,
                "head_dim": DROP,
                "num_experts": 12,
            },
        },
    ],
    "qwen3_5_moe_text": [
        {"linear_num_key_heads": 8, "full_attention_interval": 2},
        {"layer_types": [FULL, LINEAR, LINEAR, LINEAR], "tie_word_embeddings": True},
    ],
    "qwen3_moe": [
        {"num_hidden_layers": 6, "decoder_sparse_step": 3, "attention_bias": True},
        {
            "num_hidden_layers": 4,
            "mlp_only_layers": [0, 3],
            "head_dim": DROP,
            "tie_word_embeddings": True,
        },
    ],
    "qwen3_next": [
        {
            "num_hidden_layers": 7,
            "full_attention_interval": 3,
            "linear_num_value_heads": 48,
            "linear_key_head_dim": 96,
            "linear_conv_kernel_dim": 3,
            "num_experts": 16,
        },
        {
            "num_hidden_layers": 4,
            "layer_types": [FULL, LINEAR, LINEAR, FULL],
            "full_attention_interval": DROP,
            "mlp_only_layers": [1],
            "attention_bias": True,
            "num_experts": 12,
            "tie_word_embeddings": True,
        },
    ],
}


def load(stem: str) -> dict[str, Any]:
    """A real config from the reference material, or a skip where it is absent."""
    path = SHARED / f"{stem}.json"
    if not path.is_file():
        pytest.skip("needs the reference configs in the folder `shared` beside the repository")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def base(family: str) -> dict[str, Any]:
    """The config that a family's alterations start from."""
    given = BASES[family]
    return load(given) if isinstance(given, str) else copy.deepcopy(given)


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with `changes`, nested objects merged."""
    out = dict(config)
    for key, value in changes.items():
        if value is DROP:
            out.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def altered(family: str, i: int) -> dict[str, Any]:
    """The i-th altered config of a family."""
    return merged(base(family), ALTERED[family][i])
