"""Small and altered configs of the families with other mixers, compressed keys and hybrids."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.families.oracle_cases import DROP, SHARED, merged

__all__ = ["BASES", "CASES", "case"]

SIZES = {
    "hidden_size": 96,
    "intermediate_size": 80,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 5,
    "vocab_size": 320,
}
DENSE = {**SIZES, "moe_intermediate_size": DROP}
LATENT = {
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "q_lora_rank": 40,
    "kv_lora_rank": 36,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 12,
    "qk_head_dim": DROP,
    "v_head_dim": 28,
}
INDEXER = {"index_n_heads": 3, "index_head_dim": 24, "index_topk": 64}
EXPERTS = {"n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 3}
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"

# where each family's cases start: a file of the reference material, or keys given here
BASES: dict[str, str | dict[str, Any]] = {
    "deepseek_v32": "deepseek-ai__DeepSeek-V3.2",
    "deepseek_v4": "deepseek-ai__DeepSeek-V4-Flash",
    "dots1": "rednote-hilab__dots.llm1",
    "ernie4_5_moe": {
        "model_type": "ernie4_5_moe",
        **SIZES,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "moe_num_experts": 10,
        "moe_k": 3,
        "moe_num_shared_experts": 2,
        "tie_word_embeddings": True,
    },
    "gemma4": "google__gemma-4-26B-A4B",
    "gemma4_text": {
        "model_type": "gemma4_text",
        **SIZES,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "global_head_dim": 40,
        "sliding_window": 16,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 320,
        "enable_moe_block": True,
        "num_experts": 6,
        "top_k_experts": 2,
    },
    "glm4_moe_lite": {
        "model_type": "glm4_moe_lite",
        **SIZES,
        **LATENT,
        **EXPERTS,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "glm_moe_dsa": "zai-org__GLM-5",
    "hunyuan_v1_moe": {
        "model_type": "hunyuan_v1_moe",
        **SIZES,
        "moe_intermediate_size": DROP,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "num_experts": 6,
        "moe_topk": 2,
    },
    "jamba": "ai21labs__Jamba-v0.1",
    "kimi_linear": {
        "model_type": "kimi_linear",
        **SIZES,
        **{k: v for k, v in LATENT.items() if k != "qk_head_dim"},
        "q_lora_rank": None,
        "pad_token_id": None,
        "num_experts": 12,
        "num_experts_per_token": 3,
        "num_shared_experts": 1,
        "linear_attn_config": {
            "head_dim": 16,
            "num_heads": 4,
            "short_conv_kernel_size": 3,
            "full_attn_layers": [2, 5],
            "kda_layers": [1, 3, 4],
        },
    },
    "lfm2_moe": {
        "model_type": "lfm2_moe",
        **SIZES,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "layer_types": ["conv", FULL, "conv", "conv", FULL],
    },
    "longcat_flash": "meituan-longcat__LongCat-Flash-Chat",
    "mimo_v2_flash": "XiaomiMiMo__MiMo-V2-Flash",
    "minimax": {
        "model_type": "minimax",
        **SIZES,
        "moe_intermediate_size": DROP,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
    "nemotron_h": "nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "nllb-moe": "facebook__nllb-moe-54b",
}

MAMBA2 = {
    "mamba_num_heads": 6,
    "mamba_head_dim": 16,
    "ssm_state_size": 10,
    "n_groups": 2,
    "conv_kernel": 3,
    "chunk_size": 16,
}
NEMOTRON = {
    **SIZES,
    **MAMBA2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_shared_expert_intermediate_size": 56,
}
V4 = {
    **SIZES,
    "intermediate_size": DROP,
    "num_attention_heads": 6,
    "num_key_value_heads": 1,
    "head_dim": 40,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 28,
    "o_groups": 3,
    "o_lora_rank": 20,
    "sliding_window": 8,
    "n_routed_experts": 10,
    "num_experts_per_tok": 3,
    **INDEXER,
}

# changes to a family's base; each case differs from the base in the tensors that it has
CASES: dict[str, list[dict[str, Any]]] = {
    "deepseek_v32": [
        SIZES | LATENT | INDEXER | EXPERTS | {"first_k_dense_replace": 2},
        SIZES
        | LATENT
        | EXPERTS
        | {"attention_bias": True, "n_shared_experts": 2, "tie_word_embeddings": True},
    ],
    "deepseek_v4": [
        V4,
        V4
        | {
            "num_hidden_layers": 6,
            "compress_ratios": [4, 0, 128, 4, 4, 128],
            "num_hash_layers": 1,
            "hc_mult": 3,
            "scoring_func": "sigmoid",
        },
        V4 | {"compress_ratios": DROP, "num_hash_layers": 5, "compress_rate_csa": 8},
    ],
    "dots1": [
        SIZES | {"num_key_value_heads": 8, "attention_bias": True, "max_window_layers": 2},
        SIZES
        | EXPERTS
        | {"sliding_window": None, "head_dim": 12, "tie_word_embeddings": True}
        | {"layer_types": [FULL, SLIDING, FULL, SLIDING, FULL], "sliding_window": 32},
    ],
    "ernie4_5_moe": [
        {"use_bias": True, "moe_layer_start_index": 2, "tie_word_embeddings": False},
        {"moe_num_shared_experts": 0, "moe_layer_interval": 2, "moe_layer_end_index": 3},
    ],
    "gemma4": [
        {
            "text_config": {
                **SIZES,
                "num_hidden_layers": 7,
                "layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING, FULL],
                "attention_k_eq_v": False,
                "attention_bias": True,
            }
        },
        {
            "text_config": {
                **SIZES,
                "layer_types": DROP,
                "num_hidden_layers": 6,
                "num_experts": 9,
                "num_global_key_value_heads": 4,
                "global_head_dim": 64,
            }
        },
    ],
    "gemma4_text": [
        {"num_kv_shared_layers": 2, "layer_types": [FULL, SLIDING] * 4},
        {
            "num_kv_shared_layers": 3,
            "layer_types": [FULL, SLIDING] * 4,
            "use_double_wide_mlp": True,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
        },
    ],
    "glm4_moe_lite": [
        {"q_lora_rank": None, "attention_bias": True},
        {"mlp_layer_types": ["sparse", "dense", "sparse", "dense", "sparse"]},
    ],
    "glm_moe_dsa": [
        SIZES
        | LATENT
        | INDEXER
        | EXPERTS
        | {"index_topk_freq": 2, "index_skip_topk_offset": 1, "pad_token_id": None},
        SIZES
        | LATENT
        | EXPERTS
        | {"pad_token_id": None}
        | {"indexer_types": ["full", "shared", "shared", "full", "shared"]}
        | {"mlp_layer_types": ["dense", "sparse", "dense", "sparse", "sparse"]},
    ],
    "hunyuan_v1_moe": [
        {"attention_bias": True, "moe_topk": [1, 2, 3, 2, 1], "tie_word_embeddings": True},
        {"num_key_value_heads": DROP, "head_dim": 20, "num_experts": 3},
    ],
    "jamba": [
        DENSE | {"attn_layer_period": 3, "attn_layer_offset": 0, "mamba_proj_bias": True},
        DENSE
        | {
            "mamba_d_state": 6,
            "mamba_dt_rank": "auto",
            "mamba_expand": 3,
            "mamba_conv_bias": False,
            "expert_layer_period": 3,
            "num_experts": 4,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
        },
    ],
    "kimi_linear": [
        {
            "linear_attn_config": {
                "head_dim": 24,
                "full_attn_layers": [4],
                "kda_layers": [1, 2, 3, 5],
            }
        },
        {
            "linear_attn_config": DROP,
            "linear_num_heads": 3,
            "linear_head_dim": 20,
            "num_shared_experts": 2,
            "first_k_dense_replace": 3,
        },
    ],
    "lfm2_moe": [
        {"conv_bias": True, "conv_L_cache": 4, "num_dense_layers": 0, "head_dim": 20},
        {
            "use_expert_bias": False,
            "tie_word_embeddings": False,
            "layer_types": [FULL, "conv", "conv", FULL, "conv"],
        },
    ],
    "longcat_flash": [
        LATENT
        | {
            "hidden_size": 96,
            "vocab_size": 320,
            "num_layers": 3,
            "num_key_value_heads": DROP,
            "head_dim": 12,
            "n_routed_experts": 8,
            "zero_expert_num": 4,
            "moe_topk": 6,
            "ffn_hidden_size": 80,
            "expert_ffn_hidden_size": 24,
        },
        {"num_layers": 2, "n_routed_experts": 6, "zero_expert_num": 0, "attention_bias": True}
        | {"moe_topk": 3, "router_bias": True},
    ],
    "mimo_v2_flash": [
        SIZES
        | {
            "hybrid_layer_pattern": DROP,
            "moe_layer_freq": DROP,
            "swa_num_key_value_heads": DROP,
            "num_key_value_heads": 2,
            "num_attention_heads": 8,
            "swa_num_attention_heads": 8,
            "attention_bias": True,
        },
        SIZES
        | {
            "num_hidden_layers": 4,
            "hybrid_layer_pattern": [1, 0, 1, 1],
            "layer_types": [SLIDING, FULL, SLIDING, SLIDING],
            "moe_layer_freq": [1, 0, 1, 0],
            "mlp_layer_types": ["sparse", "dense", "sparse", "dense"],
            "head_dim": 24,
            "swa_head_dim": 24,
            "v_head_dim": 12,
            "swa_v_head_dim": 12,
            "n_routed_experts": 9,
            "tie_word_embeddings": True,
        },
    ],
    "minimax": [
        {"layer_types": [LINEAR, FULL, LINEAR, LINEAR, FULL], "head_dim": 20, "block_size": 32},
        {"num_key_value_heads": 8, "num_local_experts": 3, "tie_word_embeddings": True},
    ],
    "nemotron_h": [
        NEMOTRON
        | {"hybrid_override_pattern": "M*E-M", "mlp_bias": True, "n_group": 4, "topk_group": 2},
        NEMOTRON
        | {
            "hybrid_override_pattern": DROP,
            "layers_block_type": ["moe", "linear_attention", "moe", "full_attention", "moe"],
            "moe_latent_size": 32,
            "use_bias": True,
            "mamba_proj_bias": True,
            "use_conv_bias": False,
        },
    ],
    "nllb-moe": [
        {
            "encoder_layers": 4,
            "num_hidden_layers": 4,
            "decoder_layers": 6,
            "encoder_sparse_step": 2,
            "decoder_sparse_step": 3,
            "num_experts": 5,
            "router_bias": True,
        },
        {
            "d_model": 96,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 40,
            "decoder_attention_heads": 8,
            "encoder_sparse_step": 0,
            "num_experts": 3,
            "vocab_size": 320,
        },
    ],
}


def case(family: str, i: int = -1) -> dict[str, Any]:
    """A family's base (i = -1) or its i-th altered config; skips where its file is absent."""
    given = BASES[family]
    if isinstance(given, str):
        path = SHARED / f"{given}.json"
        if not path.is_file():
            pytest.skip("needs the reference configs in the folder `shared` beside the repository")
        base: dict[str, Any] = json.loads(path.read_text())
    else:
        base = {key: value for key, value in given.items() if value is not DROP}
    return base if i < 0 else merged(base, CASES[family][i])
