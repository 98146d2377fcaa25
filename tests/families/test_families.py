"""What single families claim beyond their tensors: published sizes, caches, MTP, formats."""

from __future__ import annotations

from typing import Any

import pytest

from moeplan.errors import UserError
from moeplan.estimation.memory import weight_bytes
from moeplan.families import read_config
from moeplan.model.attention import Attention
from moeplan.model.ffn import MoE
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import evaluate, plain
from tests.families.oracle_cases import base, load, merged


def spec_of(stem: str, **changes: Any) -> ModelSpec:
    return read_config(merged(load(stem), changes), stem)


def parameters(groups: list[Group] | tuple[Group, ...], *, every: bool = False) -> int:
    """Trained parameters of the groups; of one layer of each unless `every`."""
    total = 0
    for group in groups:
        count = plain(group.count) if every and group.is_layer else 1
        for block in group.blocks:
            for w in block.weights():
                if not (w.tied or w.buffer):
                    total += count * int(evaluate(w.elements, block.values))
    return total


# Totals as the publishers and their checkpoints' indices give them, MTP and vision apart.
PUBLISHED = {
    "Qwen__Qwen1.5-MoE-A2.7B-Chat": 14_315_784_192,
    "Qwen__Qwen3-30B-A3B": 30_532_122_624,
    "Qwen__Qwen3-235B-A22B": 235_093_634_560,
    "Qwen__Qwen3-Next-80B-A3B-Instruct": 79_674_391_296,
    "openai__gpt-oss-120b": 116_829_156_672,
    "openai__gpt-oss-20b": 20_914_757_184,
    "meta-llama__Llama-4-Scout-17B-16E-Instruct": 107_769_861_120,
}


@pytest.mark.parametrize("stem", PUBLISHED)
def test_published_total(stem: str) -> None:
    groups = [g for g in spec_of(stem).groups if g.role == "model"]
    assert parameters(groups, every=True) == PUBLISHED[stem]


# metadata.total_size of the released model.safetensors.index.json
@pytest.mark.parametrize(
    ("stem", "size"),
    [("openai__gpt-oss-20b", 13_761_264_768), ("openai__gpt-oss-120b", 65_248_815_744)],
)
def test_size_of_an_mxfp4_checkpoint(stem: str, size: int) -> None:
    assert weight_bytes(spec_of(stem)) == size


# -------------------------------------------------------------------------------------- caches
def cache_bytes(spec: ModelSpec, context: int) -> int:
    """Cache of one sequence in bf16, keys and values only."""
    total = 0
    for group, block, entry in spec.cache():
        held = int(evaluate(entry.per_token, block.values))
        window = context if entry.window is None else int(evaluate(entry.window, block.values))
        total += int(plain(group.count)) * held * min(context, window) * 2
    return total


@pytest.mark.parametrize(
    ("stem", "per_token"),
    [
        ("Qwen__Qwen3-30B-A3B", 98_304),
        ("Qwen__Qwen3-Next-80B-A3B-Instruct", 24_576),  # one layer in four
        ("openai__gpt-oss-120b", 73_728),  # below the window all layers keep all tokens
    ],
)
def test_published_cache_per_token(stem: str, per_token: int) -> None:
    assert cache_bytes(spec_of(stem), 100) == 100 * per_token


def test_windows_and_chunks_stop_growing() -> None:
    gpt_oss = spec_of("openai__gpt-oss-120b")
    # half of the 36 layers keep 128 tokens of 8 heads x 64 x 2 in bf16
    assert cache_bytes(gpt_oss, 10_000) == 18 * 2048 * 10_000 + 18 * 2048 * 128
    scout = spec_of("meta-llama__Llama-4-Scout-17B-16E-Instruct")
    # every fourth of 48 layers sees all tokens, the others a chunk of 8192
    assert cache_bytes(scout, 100_000) == 4096 * (12 * 100_000 + 36 * 8192)


# --------------------------------------------------------------------- multi-token prediction
def test_an_mtp_layer_is_a_full_attention_layer() -> None:
    spec = spec_of("Qwen__Qwen3.5-35B-A3B")
    mtp = [g for g in spec.groups if g.role == "mtp"]
    (full,) = [g for g in spec.groups if g.name.startswith("full")]
    # beside the layer: the projection [D, 2D] and three norms of D = 2048
    assert parameters(mtp) == parameters([full]) + 2 * 2048 * 2048 + 3 * 2048
    assert all(name.startswith("mtp.") for g in mtp for name in _names(g))


def _names(group: Group) -> list[str]:
    return [n for b in group.blocks for w in b.weights() for n in group.tensor_names(w)]


def test_an_mtp_module_that_no_key_names_is_said() -> None:
    stem = "Qwen__Qwen3-Next-80B-A3B-Instruct"
    silent, named = spec_of(stem), spec_of(stem, num_nextn_predict_layers=2)
    assert "multi-token" in " ".join(silent.notes)
    assert "multi-token" not in " ".join(named.notes)
    counts = [
        [g.count for g in s.groups if g.role == "mtp" and g.is_layer] for s in (silent, named)
    ]
    assert [[plain(n) for n in one] for one in counts] == [[1], [2]]


def test_unreleased_mtp_is_a_note() -> None:
    spec = spec_of("MiniMaxAI__MiniMax-M2.5")
    assert not [g for g in spec.groups if g.role == "mtp"]
    assert any("3 multi-token-prediction modules" in note for note in spec.notes)
    plainly = spec_of("MiniMaxAI__MiniMax-M2.5", use_mtp=False)
    assert not any("multi-token" in note for note in plainly.notes)


# ------------------------------------------------------------------------------ other claims
@pytest.mark.parametrize(
    "stem", ["Qwen__Qwen3.5-35B-A3B", "meta-llama__Llama-4-Scout-17B-16E-Instruct"]
)
def test_vision_towers_are_reported_not_counted(stem: str) -> None:
    spec = spec_of(stem)
    assert spec.not_counted == ("vision tower (vision_config)",)
    assert not any("vision" in name for group in spec.groups for name in _names(group))


def test_only_the_down_projection_of_dbrx_is_stored_input_first() -> None:
    moe = spec_of("databricks__dbrx-base").moe
    assert moe is not None
    stored = {w.name.rsplit(".", 1)[-1]: w.transposed for w in moe.weights() if w.stacked}
    assert stored == {"w1": False, "v1": False, "w2": True}


@pytest.mark.parametrize(
    ("family", "score", "renormalise", "biased"),
    [
        ("dbrx", "softmax", True, False),
        ("gpt_oss", "softmax_topk", True, False),
        ("granitemoe", "softmax_topk", True, False),
        ("llama4", "sigmoid", False, False),
        ("minimax_m2", "sigmoid", True, True),
        ("olmoe", "softmax", False, False),
        ("phimoe", "sparsemixer", False, False),
        ("qwen2_moe", "softmax", False, False),
        ("qwen3_5_moe", "softmax", True, False),
        ("qwen3_moe", "softmax", True, False),
        ("qwen3_next", "softmax", True, False),
    ],
)
def test_routing(family: str, score: str, renormalise: bool, biased: bool) -> None:
    moe = read_config(base(family), family).moe
    assert moe is not None
    assert moe.routing.score == score
    assert moe.routing.renormalise is renormalise
    assert moe.routing.selection_bias is biased


def test_rotated_dimensions_of_a_head() -> None:
    stems = {
        "Qwen__Qwen3-Next-80B-A3B-Instruct": 64,  # a quarter of 256
        "Qwen__Qwen3.5-35B-A3B": 64,  # the factor stands in rope_parameters
        "MiniMaxAI__MiniMax-M2.5": 64,
        "zai-org__GLM-4.5-Air": 64,  # half of 128
    }
    for stem, width in stems.items():
        mixer = spec_of(stem).first(Attention)
        assert mixer is not None
        assert plain(mixer.dr) == width
    with pytest.raises(UserError, match="partial_rotary_factor"):
        spec_of("Qwen__Qwen3-Next-80B-A3B-Instruct", partial_rotary_factor=1.5)


def test_layers_share_one_block_per_kind() -> None:
    spec = spec_of("meta-llama__Llama-4-Scout-17B-16E-Instruct")
    assert [(g.name, plain(g.count)) for g in spec.groups if g.is_layer] == [
        ("chunked attention + moe", 36),
        ("full attention + no rotation + moe", 12),
    ]
    assert len({id(block) for _, block in spec.blocks(MoE)}) == 1


# ------------------------------------------------------------ values that the rows do not describe
REFUSED = [
    ("dbrx", {"ffn_config": {"ffn_act_fn": {"name": "gelu"}}}, "ffn_act_fn"),
    ("dbrx", {"ffn_config": {"moe_normalize_expert_weights": 2.0}}, "moe_normalize_expert_weights"),
    ("dbrx", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    ("gpt_oss", {"layer_types": ["full_attention"] * 23 + ["slidin_attention"]}, "did you mean"),
    ("gpt_oss", {"layer_types": ["full_attention"] * 23}, "24 are needed"),
    ("gpt_oss", {"sliding_window": None}, "sliding_window is missing"),
    ("gpt_oss", {"experts_per_token": 5}, "must agree"),
    ("llama4", {"text_config": {"moe_layers": [1]}}, "contradicts"),
    ("llama4", {"text_config": {"interleave_moe_layer_step": 49}}, "no layer with experts"),
    ("llama4", {"text_config": {"no_rope_layers": [1, 2] * 24}}, "no_rope_layers"),
    ("llama4", {"text_config": {"model_type": "llama"}}, "text_config.model_type"),
    ("minimax_m2", {"qk_norm_type": "per_head"}, "qk_norm_type"),
    ("minimax_m2", {"shared_intermediate_size": 1536}, "shared_intermediate_size"),
    ("minimax_m2", {"attn_type_list": [1, 0] * 31}, "attn_type_list"),
    ("olmoe", {"head_dim": 64}, "head_dim"),
    ("phimoe", {"num_experts_per_tok": 4}, "SparseMixer"),
    ("qwen2_moe", {"use_sliding_window": True}, "use_sliding_window"),
    ("qwen2_moe", {"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size"),
    ("qwen3_moe", {"mlp_only_layers": list(range(48))}, "mlp_only_layers"),
    ("qwen3_moe", {"mlp_only_layers": [48]}, "from 0 to 47"),
    ("qwen3_moe", {"decoder_sparse_step": 49}, "decoder_sparse_step"),
    ("qwen3_moe", {"hidden_act": "gelu"}, "hidden_act"),
    ("qwen3_next", {"linear_num_value_heads": 40}, "linear_num_key_heads"),
    ("qwen3_next", {"layer_types": ["full_attention"] * 48}, "contradicts"),
    ("qwen3_5_moe", {"text_config": {"attn_output_gate": False}}, "attn_output_gate"),
    ("qwen3_5_moe", {"text_config": {"mtp_use_dedicated_embeddings": True}}, "dedicated"),
    ("qwen3_5_moe", {"text_config": {"tie_word_embeddings": True}}, "must agree"),
    ("qwen3_5_moe", {"text_config": {"mlp_only_layers": [0]}}, "mlp_only_layers"),
]


@pytest.mark.parametrize(("family", "changes", "said"), REFUSED)
def test_undescribed_values_are_refused(family: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read_config(merged(base(family), changes), "config.json")
    assert str(caught.value).startswith("config.json: ")
