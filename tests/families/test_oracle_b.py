"""DeepSeek, Kimi, GLM, Switch and Grok: our tensors against the models that transformers builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moeplan.families import read_config
from tests.oracle import compare, oracle

SMALL = {
    "hidden_size": 96,
    "intermediate_size": 80,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 5,
    "vocab_size": 320,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "V3": ("deepseek-ai__DeepSeek-V3", {}),
    "V3, direct queries, tied, biases": (
        "deepseek-ai__DeepSeek-V3",
        SMALL
        | {
            "q_lora_rank": None,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 40,
            "v_head_dim": 24,
            "kv_lora_rank": 36,
        },
    ),
    "V3, other experts, every layer sparse": (
        "deepseek-ai__DeepSeek-V3",
        SMALL
        | {
            "first_k_dense_replace": 0,
            "n_shared_experts": 3,
            "n_routed_experts": 40,
            "n_group": 5,
            "topk_group": 2,
            "num_experts_per_tok": 7,
            "q_lora_rank": 28,
        },
    ),
    "R1": ("deepseek-ai__DeepSeek-R1", {}),
    "Kimi-K2": ("moonshotai__Kimi-K2-Instruct", {}),
    "Kimi-K2, small": ("moonshotai__Kimi-K2-Instruct", SMALL | {"n_routed_experts": 11}),
    "Kimi-K2, several dense layers": (
        "moonshotai__Kimi-K2-Instruct",
        SMALL | {"first_k_dense_replace": 4, "n_routed_experts": 9, "kv_lora_rank": 17},
    ),
    "V2": ("deepseek-ai__DeepSeek-V2", {}),
    "V2-Lite": ("deepseek-ai__DeepSeek-V2-Lite", {}),
    "V2, biases, tied": (
        "deepseek-ai__DeepSeek-V2",
        SMALL
        | {
            "attention_bias": True,
            "tie_word_embeddings": True,
            "n_routed_experts": 16,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
        },
    ),
    "V2-Lite, no dense layer": (
        "deepseek-ai__DeepSeek-V2-Lite",
        SMALL | {"first_k_dense_replace": 0, "n_shared_experts": 1, "num_experts_per_tok": 1},
    ),
    "GLM-4.5-Air": ("zai-org__GLM-4.5-Air", {}),
    "GLM, query and key norms, no biases": (
        "zai-org__GLM-4.5-Air",
        SMALL
        | {
            "pad_token_id": None,
            "use_qk_norm": True,
            "attention_bias": False,
            "num_key_value_heads": 4,
        },
    ),
    "GLM, other heads, tied": (
        "zai-org__GLM-4.5-Air",
        SMALL
        | {
            "pad_token_id": None,
            "use_qk_norm": True,
            "tie_word_embeddings": True,
            "num_attention_heads": 10,
            "num_key_value_heads": 5,
            "head_dim": 24,
            "first_k_dense_replace": 2,
            "n_shared_experts": 2,
        },
    ),
    "Switch-base-32": ("google__switch-base-32", {}),
    "Switch-base-32, other halves": (
        "google__switch-base-32",
        {
            "num_layers": 9,
            "num_sparse_encoder_layers": 3,
            "encoder_sparse_step": 3,
            "num_decoder_layers": 4,
            "num_sparse_decoder_layers": 4,
            "decoder_sparse_step": 1,
            "num_experts": 5,
        },
    ),
    "Switch-base-32, other widths, router biases": (
        "google__switch-base-32",
        {
            "d_model": 72,
            "d_ff": 56,
            "d_kv": 12,
            "num_heads": 5,
            "relative_attention_num_buckets": 20,
            "router_bias": True,
            "num_experts": 3,
        },
    ),
    "Switch-C with 15 decoder layers and few experts": (
        "google__switch-c-2048",
        {"num_decoder_layers": 15, "decoder_sparse_step": 1, "num_experts": 6},
    ),
}


def config(shared: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((shared / "configs" / f"{name}.json").read_text())
    return read | changes


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_tensors_are_those_that_transformers_builds(case: str, shared: Path) -> None:
    oracle()
    data = config(shared, *CASES[case])
    assert compare(read_config(data, case), data) == []
