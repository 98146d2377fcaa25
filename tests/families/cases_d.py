"""Small configs of the families that came last: one with the class's defaults, others altered.

A case names sizes and leaves the rest to the class, so that it also checks the defaults.
"""

from __future__ import annotations

from typing import Any

from tests.families.oracle_cases import merged

__all__ = ["BASES", "CASES", "case"]

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
INDEXED = "indexed_attention"
DENSE, SPARSE = "dense", "sparse"

SIZES = {"hidden_size": 96, "num_hidden_layers": 6, "vocab_size": 320, "pad_token_id": 0}
WIDE = {**SIZES, "intermediate_size": 80}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
ROUTED = {"n_routed_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
LATENT = {
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "q_lora_rank": 40,
    "kv_lora_rank": 36,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 12,
    "v_head_dim": 28,
}
DIRECT = {k: v for k, v in LATENT.items() if k != "q_lora_rank"}
INDEXER = {"index_n_heads": 3, "index_head_dim": 24, "index_topk": 64}
GRANITE = {**WIDE, **HEADS, "num_local_experts": 8, "num_experts_per_tok": 3}
MAMBA = {"mamba_n_heads": 12, "mamba_d_state": 10, "mamba_d_conv": 3}
ARIA = {**WIDE, **HEADS, "moe_num_experts": 6, "moe_topk": 2}
QWEN = {**WIDE, **HEADS, "head_dim": 16, "tie_word_embeddings": False}
OCR = {**WIDE, "num_attention_heads": 6, "num_key_value_heads": 6, **ROUTED}
VISION = {"depth": 1, "num_hidden_layers": 1}

QWEN4 = {
    **SIZES,
    **HEADS,
    **EXPERTS,
    "head_dim": 16,
    "shared_expert_intermediate_size": 40,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 14,
    "linear_value_head_dim": 18,
    "hc_lowrank": 22,
    "indexer_n_heads": 3,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "eos_token_id": 1,
}
INKLING = {
    **HEADS,
    **ROUTED,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "sliding_window_size": 8,
}
PLE = {
    "ngram_vocab_size_base": 50,
    "ple_embed_dim": 64,
    "split_ngram_parts": 5,
    "make_ngram_vocab_size_divisible_by": 16,
}

BASES: dict[str, dict[str, Any]] = {
    "afmoe": {**WIDE, **HEADS, **EXPERTS},
    "aria": {"text_config": {"model_type": "aria_text", **ARIA}},
    "aria_text": ARIA,
    "axk1": {**WIDE, **LATENT, **ROUTED, "n_group": 4, "topk_group": 2},
    "axk2": {**WIDE, **LATENT, **ROUTED, **INDEXER},
    "bailing_hybrid": {**WIDE, **DIRECT, **EXPERTS, "num_expert_group": 4, "topk_group": 2},
    "beam": {**WIDE, **HEADS, **EXPERTS, "n_group": 4, "topk_group": 3},
    "cohere2_moe": {**WIDE, **HEADS, "num_experts": 8, "num_experts_per_tok": 2},
    "deepseek_ocr2": {
        "text_config": {
            "model_type": "deepseek_ocr2_text",
            **OCR,
            "mlp_layer_types": [DENSE] + [SPARSE] * 5,
        }
    },
    "diffusion_gemma": {
        "text_config": {
            "model_type": "diffusion_gemma_text",
            **WIDE,
            **HEADS,
            "num_experts": 8,
            "top_k_experts": 3,
            "moe_intermediate_size": 24,
        },
        "vision_config": {"model_type": "gemma4_vision", "num_hidden_layers": 1},
    },
    "doge": {
        **WIDE,
        "num_attention_heads": 6,
        "is_moe": True,
        "num_experts": 90,
        "num_experts_per_tok": 5,
    },
    "dots3_note": {
        "text_config": {"model_type": "dots3_note_text", **WIDE, **LATENT, **ROUTED, **INDEXER},
        "vision_config": {"adapter_out_dim": 96},
        "audio_config": {"adapter_out_dim": 96},
    },
    "dots3_note_text": {**WIDE, **LATENT, **ROUTED, **INDEXER},
    "ernie4_5_vl_moe": {
        "text_config": {
            "model_type": "ernie4_5_vl_moe_text",
            **WIDE,
            **HEADS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [3, 3, 2],
            },
        },
        "vision_config": {"depth": 1},
    },
    "exaone_moe": {**WIDE, **HEADS, **EXPERTS, "head_dim": 20},
    "flex_olmo": {**WIDE, **HEADS, "num_experts": 6, "num_experts_per_tok": 2},
    "flint": {**WIDE, **HEADS, **EXPERTS, "shared_expert_intermediate_size": 40},
    "glm4v_moe": {
        "text_config": {"model_type": "glm4v_moe_text", **WIDE, **HEADS, **ROUTED},
        "vision_config": VISION,
    },
    "glm5_next": {
        "text_config": {
            "model_type": "glm5_next_text",
            **WIDE,
            **LATENT,
            "qk_rope_head_dim": 0,
            **ROUTED,
            **INDEXER,
            "linear_num_heads": 5,
            "linear_head_dim": 14,
        },
        "vision_config": VISION,
    },
    "granitemoe_swa": GRANITE,
    "granitemoehybrid": {**GRANITE, **MAMBA},
    "granitemoeshared": GRANITE,
    "hy_v3": {**WIDE, **HEADS, **EXPERTS},
    "hy_v4": {**WIDE, **LATENT, **ROUTED, **INDEXER},
    "inkling2": {
        "text_config": {"model_type": "inkling2_text", **SIZES, **INKLING},
        "vision_config": {"num_hidden_layers": 1, "text_hidden_size": 96},
    },
    "inkling_mm_model": {
        "text_config": {"model_type": "inkling_text", **WIDE, **INKLING},
        "vision_config": {"num_hidden_layers": 6},
        "audio_config": {},
    },
    "jetmoe": {
        **WIDE,
        "num_key_value_heads": 4,
        "kv_channels": 20,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
    "kolibri1": {**SIZES, **HEADS, **EXPERTS, "shared_expert_intermediate_size": 40},
    "laguna": {**WIDE, **HEADS, **EXPERTS, "shared_expert_intermediate_size": 40},
    "mellum": {**WIDE, **HEADS, **EXPERTS},
    "minimax_m3_vl": {
        "text_config": {
            "model_type": "minimax_m3_vl_text",
            **WIDE,
            **HEADS,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        "vision_config": VISION,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral4", **WIDE, **LATENT, **ROUTED},
        "vision_config": {"model_type": "pixtral", "num_hidden_layers": 1},
        "tie_word_embeddings": False,
    },
    "mistral4": {**WIDE, **LATENT, **ROUTED},
    "mistral_large4": {
        "text_config": {"model_type": "mistral_large4_text", **WIDE, **DIRECT, **ROUTED, **INDEXER},
        "vision_config": {"model_type": "pixtral", "num_hidden_layers": 1},
    },
    "muse_spark": {
        "text_config": {
            "model_type": "muse_spark_text",
            **WIDE,
            **HEADS,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "moe_hidden_size": 48,
        },
        "vision_config": VISION,
        "audio_config": {"out_hidden_size": 96},
    },
    "openai_privacy_filter": {
        **WIDE,
        **HEADS,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
    },
    "qwen3_omni_moe": {
        "thinker_config": {
            "text_config": {"model_type": "qwen3_omni_moe_text", **QWEN, **EXPERTS},
            "vision_config": VISION,
            "audio_config": {"encoder_layers": 1},
        },
        "talker_config": {
            "text_config": {"num_hidden_layers": 1, "shared_expert_intermediate_size": 16},
            "code_predictor_config": {"num_hidden_layers": 1},
            "spatial_merge_size": 2,
        },
        "code2wav_config": {"num_hidden_layers": 1},
    },
    "qwen3_omni_moe_thinker": {
        "text_config": {"model_type": "qwen3_omni_moe_text", **QWEN, **EXPERTS},
        "vision_config": VISION,
        "audio_config": {"encoder_layers": 1},
    },
    "qwen3_vl_moe": {
        "text_config": {"model_type": "qwen3_vl_moe_text", **QWEN, **EXPERTS},
        "vision_config": VISION,
    },
    "qwen4_exp": {
        "text_config": {"model_type": "qwen4_exp_text", **QWEN4},
        "vision_config": VISION,
    },
    "qwen4_exp_text": QWEN4,
    "solar_open": {**SIZES, **HEADS, **ROUTED},
    "step3p7": {
        "text_config": {
            "model_type": "step3p5",
            **WIDE,
            **HEADS,
            **ROUTED,
            "share_expert_dim": 40,
            "sliding_window": 32,
        },
        "vision_config": VISION,
    },
    "unlimited_ocr": {"text_config": {"model_type": "unlimited_ocr_text", **OCR}},
    "zaya": {**SIZES, **HEADS, **EXPERTS, "num_experts_per_tok": 1},
}


def _text(**keys: Any) -> dict[str, Any]:
    return {"text_config": keys}


WORDS = [DENSE, SPARSE, SPARSE, DENSE, SPARSE, DENSE]
MIXED = [FULL, SLIDING, SLIDING, FULL, FULL, SLIDING]
BIASED = {"attention_bias": True, "tie_word_embeddings": True}
SWA = {f"swa_{k}": v for k, v in LATENT.items()} | {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 24,
    "swa_kv_lora_rank": 44,
    "swa_head_dim": 30,
    "swa_qk_nope_head_dim": 16,
    "swa_qk_rope_head_dim": 14,
    "sliding_window": 16,
}

CASES: dict[str, list[dict[str, Any]]] = {
    "afmoe": [
        {**BIASED, "head_dim": 20, "num_dense_layers": 2, "num_shared_experts": 1},
        {"global_attn_every_n_layers": 2, "num_dense_layers": 0, "num_hidden_layers": 5},
    ],
    "aria": [
        _text(moe_num_shared_experts=3, attention_bias=True),
        _text(moe_num_experts=4, num_hidden_layers=2, num_key_value_heads=6),
    ],
    "aria_text": [
        {**BIASED, "moe_num_shared_experts": 1},
        {"moe_num_experts": 9, "moe_topk": 4, "num_key_value_heads": 3},
    ],
    "axk1": [
        {**BIASED, "n_shared_experts": 2},
        {"mlp_layer_types": WORDS, "qk_nope_head_dim": 32, "n_routed_experts": 16},
    ],
    "axk2": [
        {**BIASED, "gated_norm_rank": 6, "n_shared_experts": 2},
        {"mlp_layer_types": WORDS, "n_group": 4, "topk_group": 2, "index_n_heads": 5},
    ],
    "bailing_hybrid": [
        {"layer_group_size": 2, "first_k_dense_replace": 1, "head_dim": 20},
        {"layer_types": [LINEAR, FULL] * 3, "mlp_layer_types": WORDS, "short_conv_kernel_size": 3},
    ],
    "beam": [
        {**BIASED, "mlp_layer_types": WORDS, "layer_types": MIXED},
        {"head_dim": 20, "num_hidden_layers": 9, "num_experts": 16},
    ],
    "cohere2_moe": [
        {"attention_bias": True, "num_shared_experts": 2, "mlp_layer_types": WORDS}
        | {"prefix_dense_intermediate_size": 56, "layer_types": MIXED},
        {"head_dim": 20, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "num_experts": 5}
        | {"expert_selection_fn": "sigmoid", "first_k_dense_replace": 2},
    ],
    "deepseek_ocr2": [
        _text(n_shared_experts=1, attention_bias=True),
        _text(mlp_layer_types=WORDS, n_routed_experts=16),
    ],
    "diffusion_gemma": [
        _text(attention_bias=True, head_dim=20, layer_types=[SLIDING, FULL] * 3),
        _text(num_hidden_layers=3, num_global_key_value_heads=3, global_head_dim=24),
    ],
    "doge": [
        {**BIASED, "mlp_bias": True, "num_key_value_heads": 2},
        {"num_experts": 64, "num_key_value_heads": 3, "keep_window_size": 8},
    ],
    "dots3_note": [
        _text(**SWA),
        _text(use_dsa=False, n_shared_experts=2, mlp_layer_types=WORDS),
    ],
    "dots3_note_text": [
        {**SWA, "attention_bias": True, "moe_shared_expert_intermediate_size": 20},
        {"use_sliding_window": False, "first_k_dense_replace": 2, "index_head_dim": 40},
    ],
    "ernie4_5_vl_moe": [
        _text(moe_num_experts=6, moe_k=2, moe_intermediate_size=[28, 12], mlp_layer_types=WORDS),
        _text(moe_num_shared_experts=0, moe_num_experts=9, num_hidden_layers=2),
    ],
    "exaone_moe": [
        {"tie_word_embeddings": True, "layer_types": MIXED, "num_shared_experts": 2},
        {"mlp_layer_types": WORDS, "sliding_window_pattern": 3, "num_experts": 16},
    ],
    "flex_olmo": [
        {**BIASED, "num_key_value_heads": 6},
        {"num_experts": 9, "num_experts_per_tok": 4, "num_hidden_layers": 2},
    ],
    "flint": [
        {**BIASED, "mlp_only_layers": [1, 4], "layer_types": MIXED},
        {"head_dim": 20, "decoder_sparse_step": 2, "num_experts": 7},
    ],
    "glm4v_moe": [
        _text(attention_bias=False, first_k_dense_replace=2),
        _text(n_shared_experts=2, n_group=4, topk_group=2, num_hidden_layers=3),
    ],
    "glm5_next": [
        _text(layer_types=[INDEXED, LINEAR] * 3, mlp_layer_types=WORDS, index_kpool=8),
        _text(hc_mult=2, indexer_types=["full"] * 6, linear_conv_kernel_dim=3, num_hidden_layers=6),
    ],
    "granitemoe_swa": [
        {**BIASED, "shared_intermediate_size": 40},
        {"layer_types": MIXED, "num_local_experts": 5, "layer_rope_theta": [1e4, 0, 0, 5e3, 0, 7]},
    ],
    "granitemoehybrid": [
        {**BIASED, "layer_types": [LINEAR, FULL] * 3, "shared_intermediate_size": 40},
        {"mamba_n_groups": 3, "mamba_proj_bias": True, "mamba_conv_bias": False}
        | {"mamba_d_head": 32, "mamba_n_heads": 9, "mamba_expand": 3},
    ],
    "granitemoeshared": [
        {**BIASED, "shared_intermediate_size": 40},
        {"num_local_experts": 5, "num_key_value_heads": 6, "num_hidden_layers": 2},
    ],
    "hy_v3": [
        {**BIASED, "num_shared_experts": 2, "head_dim": 20},
        {"mlp_layer_types": WORDS, "num_experts": 7},
    ],
    "hy_v4": [
        {**BIASED, "hc_mult": 3, "n_shared_experts": 2},
        {"mlp_layer_types": WORDS, "indexer_types": ["full", "shared"] * 3, "v_head_dim": 20},
    ],
    "inkling2": [
        _text(layer_types=["hybrid", "hybrid_sliding"] * 3, d_rel=5, rel_extent=30),
        _text(num_hidden_layers=9, swa_head_dim=20, conv_kernel_size=3, n_routed_experts=7),
    ],
    "inkling_mm_model": [
        _text(mlp_layer_types=WORDS, head_dim=20, d_rel=5, rel_extent=30, n_shared_experts=3),
        _text(local_layer_ids=[0, 4], dense_mlp_idx=2, swa_head_dim=20, conv_kernel_size=3),
    ],
    "jetmoe": [
        {"tie_word_embeddings": False, "num_experts_per_tok": 3, "kv_channels": 16},
        {"num_local_experts": 9, "num_hidden_layers": 2, "num_key_value_heads": 5},
    ],
    "kolibri1": [
        {"tie_word_embeddings": True, "layer_types": MIXED, "num_experts": 7},
        {"sliding_window": None, "layer_types": [FULL] * 6, "head_dim": 20, "num_experts": 5},
    ],
    "laguna": [
        {**BIASED, "gating": "per-element", "layer_types": MIXED, "mlp_layer_types": WORDS}
        | {"num_attention_heads_per_layer": [6, 4, 4, 6, 8, 4]},
        {"head_dim": 20, "num_experts": 7, "shared_expert_intermediate_size": 24},
    ],
    "mellum": [
        {**BIASED, "layer_types": MIXED, "mlp_layer_types": WORDS},
        {"head_dim": 20, "num_experts": 7, "num_hidden_layers": 2},
    ],
    "minimax_m3_vl": [
        _text(
            layer_types=[FULL] * 3 + ["minimax_m3_sparse"] * 3,
            mlp_layer_types=WORDS,
            dense_intermediate_size=56,
        ),
        _text(
            sparse_attention_config={
                "sparse_attention_freq": [0, 1, 0, 1, 1, 1],
                "sparse_num_index_heads": 2,
                "sparse_index_dim": 48,
            },
            moe_layer_freq=[0, 1, 1, 1, 1, 1],
            shared_intermediate_size=40,
        ),
    ],
    "mistral3": [
        _text(first_k_dense_replace=2, attention_bias=True),
        _text(q_lora_rank=None, n_shared_experts=2),
    ],
    "mistral4": [
        {**BIASED, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2},
        {"q_lora_rank": None, "n_shared_experts": 2, "num_hidden_layers": 3},
    ],
    "mistral_large4": [
        _text(
            no_rope_layers=[1, 0, 1, 0, 1, 0],
            kv_source_layers=[0, 1, 0, 1, 4, 5],
            indexer_types=["full", "full", "shared", "full", "full", "shared"],
        ),
        _text(mlp_layer_types=WORDS, n_shared_experts=2, no_rope_layer_interval=2),
    ],
    "muse_spark": [
        _text(attention_bias=True, mlp_layer_types=WORDS, layer_types=MIXED),
        _text(moe_hidden_size=32, num_local_experts=5, num_hidden_layers=3),
    ],
    "openai_privacy_filter": [
        {"attention_bias": False, "sliding_window": 8},
        {"id2label": {"0": "a", "1": "b"}, "num_local_experts": 5},
        {"num_labels": 7, "head_dim": 20, "num_key_value_heads": 3, "num_hidden_layers": 2},
    ],
    "qwen3_omni_moe": [
        {"thinker_config": _text(attention_bias=True, mlp_only_layers=[0, 3])},
        {"thinker_config": _text(num_experts=7, decoder_sparse_step=2)},
    ],
    "qwen3_omni_moe_thinker": [
        _text(attention_bias=True, mlp_only_layers=[2]),
        _text(num_experts=7, num_hidden_layers=2, head_dim=20),
    ],
    "qwen3_vl_moe": [
        _text(attention_bias=True, mlp_only_layers=[0, 3]),
        _text(num_experts=7, decoder_sparse_step=2, head_dim=20),
    ],
    "qwen4_exp": [
        _text(ple_layer_ids=[3, 1], hc_count=2, attention_bias=True, **PLE),
        _text(layer_types=[FULL, LINEAR, LINEAR] * 2, num_experts=7, indexer_n_heads=5),
    ],
    "qwen4_exp_text": [
        {"ple_layer_ids": [2], **PLE, "heads_per_ngram": 4, "ngram_size": 5, "hc_count": 3},
        {"ple_layer_ids": [1], **PLE, "split_ngram_parts": 4, "full_attention_interval": 2},
    ],
    "solar_open": [
        {**BIASED, "n_shared_experts": 2},
        {"n_group": 4, "topk_group": 2, "head_dim": 20},
    ],
    "step3p7": [
        _text(layer_types=MIXED, num_sliding_attention_heads=8, moe_layers_enum="1,2,5"),
        _text(
            attention_bias=True,
            head_dim=20,
            mlp_layer_types=WORDS,
            share_expert_dim=24,
            n_routed_experts=7,
        ),
    ],
    "unlimited_ocr": [
        _text(attention_bias=True, n_shared_experts=1, sliding_window=64),
        _text(mlp_layer_types=WORDS, n_routed_experts=16, num_experts_per_tok=5),
    ],
    "zaya": [
        {**BIASED, "router_hidden_size": 20, "lm_head_bias": True, "tie_word_embeddings": False},
        {"cca_time0": 3, "cca_time1": 4, "head_dim": 20, "sliding_window": 8}
        | {"layer_types": ["hybrid", "hybrid_sliding"] * 3, "num_experts": 7},
    ],
}


def case(family: str, i: int) -> dict[str, Any]:
    """The config of a family's base (-1) or altered cases."""
    base = {"model_type": family, **BASES[family]}
    return base if i < 0 else merged(base, CASES[family][i])
