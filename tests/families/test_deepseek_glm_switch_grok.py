"""Published counts of DeepSeek, Kimi, GLM, Switch and Grok, and what their readers refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moeplan.errors import UserError
from moeplan.estimation.memory import kv_cache
from moeplan.estimation.parameters import count, parameters
from moeplan.families import read_config
from moeplan.model.attention import Attention
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Workload
from moeplan.quantity import evaluate, plain
from tests.oracle import ours

GIGA = 10**9


def config(shared: Path, name: str, **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((shared / "configs" / f"{name}.json").read_text())
    return data | changes


def read(shared: Path, name: str, **changes: Any) -> ModelSpec:
    return read_config(config(shared, name, **changes), name)


V3 = "deepseek-ai__DeepSeek-V3"
V2 = "deepseek-ai__DeepSeek-V2"
LITE = "deepseek-ai__DeepSeek-V2-Lite"
MOE_16B = "deepseek-ai__deepseek-moe-16b-base"
KIMI = "moonshotai__Kimi-K2-Instruct"
AIR = "zai-org__GLM-4.5-Air"
GROK = "xai-org__grok-1"
SWITCH = "google__switch-base-32"
SWITCH_C = "google__switch-c-2048"
CORRECTED = {"num_decoder_layers": 15, "decoder_sparse_step": 1}


@pytest.mark.parametrize(
    ("name", "total"),
    [
        (V3, 671_026_404_352),
        ("deepseek-ai__DeepSeek-R1", 671_026_404_352),
        ("deepseek-ai__DeepSeek-V3.infersim", 671_026_404_352),
        ("nvidia__DeepSeek-V3.1-NVFP4", 671_026_404_352),
        (KIMI, 1_026_408_209_408),
        (V2, 235_741_434_880),  # elements of the hub's checkpoint
        (LITE, 15_706_484_224),
        (MOE_16B, 16_375_728_128),
    ],
)
def test_totals_to_the_last_parameter(name: str, total: int, shared: Path) -> None:
    assert count(read(shared, name)) == total


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        (V3, 671.026, 37.552),
        (V2, 235.741, 21.376),
        (LITE, 15.706, 2.661),
        (MOE_16B, 16.376, 2.829),
        (AIR, 106.852, 13.424),
        (GROK, 315.685, 83.757),
    ],
)
def test_billions_as_published(name: str, total: float, active: float, shared: Path) -> None:
    found = parameters(read(shared, name))
    assert round(found["total"].value / GIGA, 3) == total
    assert round(found["active"]["all"].value / GIGA, 3) == active


def test_deepseek_v3_parts(shared: Path) -> None:
    spec = read(shared, V3)
    found = parameters(spec)
    assert plain(found["buffers"]) == 58 * 256 == 14_848
    with_bias = plain(found["active"]["all"]) + plain(found["buffers"])
    assert with_bias == 37_552_297_472
    # per layer, arXiv 2502.07846 table 3
    (sparse,) = [x for x in found["by_layer"] if "moe" in x["name"] and x["role"] == "model"]
    parts = {name: plain(q) for name, q in sparse["by_component"].items()}
    latents = 1536 + 512  # their norms of the latents are in MLA, ours among the norms
    assert parts["attention"] + latents == 187_107_328
    assert parts["router"] == 1_835_008
    assert parts["routed_experts"] + parts["shared_experts"] == 257 * 44_040_192
    # the table adds its rows to 11,320,164,352, which holds the router
    assert parts["routed_experts"] + parts["shared_experts"] + parts["router"] == 11_320_164_352


def test_mtp_module_of_deepseek_v3_is_counted_apart(shared: Path) -> None:
    found = parameters(read(shared, V3))
    # README_WEIGHTS of DeepSeek-V3: 11.5B unique parameters, which leaves eh_proj out
    assert plain(found["mtp"]) / GIGA == pytest.approx(11.5, abs=0.12)
    assert (plain(found["mtp"]) - 7168 * 14336) / GIGA == pytest.approx(11.5, abs=0.01)
    # and 2.4B activated with the shared 0.9B embedding and 0.9B output head
    shared_too = plain(found["mtp_active_with_shared"]) - 7168 * 14336
    assert shared_too / GIGA == pytest.approx(2.4, abs=0.05)
    assert plain(found["mtp_active_with_shared"]) == plain(found["mtp_active"]) + 2 * 129280 * 7168
    names, faults = ours(read(shared, V3), mtp=True)
    last = {n.removeprefix("model.layers.61.") for n in names if n.startswith("model.layers.61.")}
    assert {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"} <= last
    assert names["model.layers.61.eh_proj.weight"].shape == (7168, 14336)
    assert names["model.layers.61.embed_tokens.weight"].tied == "model.embed_tokens.weight"
    assert names["model.layers.61.shared_head.head.weight"].tied == "lm_head.weight"
    assert faults == []
    # elements of the published checkpoint without block scales; embedding and head are in it twice
    assert sum(t.elements for t in names.values()) == 684_489_845_504


@pytest.mark.parametrize(("modules", "groups"), [(0, 0), (1, 1), (3, 1)])
def test_number_of_mtp_modules(modules: int, groups: int, shared: Path) -> None:
    one = plain(parameters(read(shared, V3))["mtp"])
    spec = read(shared, V3, num_nextn_predict_layers=modules)
    assert plain(parameters(spec)["mtp"]) == modules * one
    assert sum(g.role == "mtp" for g in spec.groups) == groups
    assert count(spec) == count(read(shared, V3))


@pytest.mark.parametrize(
    ("name", "changes", "elements"),
    [
        # elements of the published checkpoints, in which the module's embedding and head are again
        (AIR, {}, 110_468_824_832),
        (
            AIR,
            {  # GLM-4.5
                "hidden_size": 5120,
                "num_hidden_layers": 92,
                "first_k_dense_replace": 3,
                "intermediate_size": 12288,
                "moe_intermediate_size": 1536,
                "n_routed_experts": 160,
                "use_qk_norm": True,
            },
            358_337_791_296,
        ),
    ],
)
def test_glm_checkpoints_with_their_mtp_module(
    name: str, changes: dict[str, Any], elements: int, shared: Path
) -> None:
    tensors, _ = ours(read(shared, name, **changes), mtp=True)
    assert sum(t.elements for t in tensors.values()) == elements


@pytest.mark.parametrize("name", [V3, KIMI])
def test_latent_cache_per_token(name: str, shared: Path) -> None:
    cache = kv_cache(read(shared, name), "bf16", 1, 4096)
    assert plain(cache["bytes_per_token"]) == 61 * 576 * 2 == 70_272


def test_routing_of_the_families(shared: Path) -> None:
    def routing(name: str, **changes: Any) -> Any:
        moe = read(shared, name, **changes).moe
        assert moe is not None
        return moe.routing

    v3 = routing(V3)
    assert (v3.score, v3.selection_bias, v3.groups, v3.group_limit) == ("sigmoid", True, 8, 4)
    assert (v3.group_score, v3.renormalise, v3.scale) == ("top2_sum", True, 2.5)
    v2 = routing(V2, topk_method="group_limited_greedy", routed_scaling_factor=16.0)
    assert (v2.score, v2.groups, v2.group_limit, v2.group_score) == ("softmax", 8, 3, "max")
    assert (v2.scale, v2.renormalise, v2.selection_bias) == (16.0, False, False)
    assert routing(V2, topk_method="greedy").groups == 1
    assert routing(LITE).groups == 1
    assert routing(KIMI).groups == 1
    assert routing(AIR).score == "sigmoid"


def test_absent_keys_take_the_class_defaults_and_say_so(shared: Path) -> None:
    data = config(shared, V3)
    for key in ("n_group", "topk_group", "q_lora_rank", "first_k_dense_replace"):
        del data[key]
    spec = read_config(data, "file")
    assert count(spec) == 671_026_404_352
    assert any("n_group and topk_group are absent: 8 and 4" in note for note in spec.notes)
    assumed = {q.source.where for q in parameters(spec)["total"].assumptions() if q.source}
    assert any(where.startswith("q_lora_rank is absent") for where in assumed)


def test_moe_layer_freq_makes_every_second_layer_sparse(shared: Path) -> None:
    spec = read(shared, MOE_16B, moe_layer_freq=2)
    (moe,) = [g for g in spec.groups if "moe" in g.name]
    assert moe.indices == tuple(range(2, 28, 2))


def test_grok_has_the_tensors_of_its_port(shared: Path) -> None:
    names, faults = ours(read(shared, GROK))
    assert faults == []
    layer = {
        n.removeprefix("model.layers.63."): (t.copies, t.shape)
        for n, t in names.items()
        if n.startswith("model.layers.63.")
    }
    assert layer == {
        "attn.q_proj.weight": (1, (6144, 6144)),
        "attn.k_proj.weight": (1, (1024, 6144)),
        "attn.v_proj.weight": (1, (1024, 6144)),
        "attn.o_proj.weight": (1, (6144, 6144)),
        "moe_block.gate.weight": (1, (8, 6144)),
        "moe_block.experts.{e}.linear.weight": (8, (32768, 6144)),
        "moe_block.experts.{e}.linear_v.weight": (8, (32768, 6144)),
        "moe_block.experts.{e}.linear_1.weight": (8, (6144, 32768)),
        "pre_attn_norm.scale": (1, (6144,)),
        "post_attn_norm.scale": (1, (6144,)),
        "pre_moe_norm.scale": (1, (6144,)),
        "post_moe_norm.scale": (1, (6144,)),
    }
    assert names["model.norm.scale"].shape == (6144,)
    assert names["lm_head.weight"].tied == "model.embed_tokens.weight"


def test_grok_ties_its_table(shared: Path) -> None:
    table = 131_072 * 6144
    tied, untied = (count(read(shared, GROK, tie_word_embeddings=t)) for t in (True, False))
    assert untied - tied == table
    assert round((tied - table) / GIGA, 1) == 314.9


def test_switch_c_refuses_its_own_contradiction(shared: Path) -> None:
    with pytest.raises(
        UserError, match=r"num_sparse_decoder_layers is 15.*num_decoder_layers is 12"
    ):
        read(shared, SWITCH_C)
    with pytest.raises(UserError, match="decoder_sparse_step is 0"):
        read(shared, SWITCH_C, num_decoder_layers=15)


def test_switch_c_with_its_decoder_put_right(shared: Path) -> None:
    spec = read(shared, SWITCH_C, **CORRECTED)
    assert int(count(spec) / GIGA) == 1571  # arXiv 2101.03961 table 9
    assert plain(spec.moe_layers) == plain(spec.layers) == 30
    # the total of 1571.33 counts the shared table once more, for the output
    assert round((count(spec) + 32_128 * 2080) / GIGA, 2) == 1571.33


def test_switch_has_one_position_table_a_side(shared: Path) -> None:
    names, _ = ours(read(shared, SWITCH))
    tables = [n for n in names if "relative_attention_bias" in n]
    assert tables == [
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ]


def test_switch_attention_has_no_rotary_rows_and_crosses_in_the_decoder(shared: Path) -> None:
    work = Workload("prefill", B=1, S=64, C=64, X=256)
    crossing = 0
    for group, block in read(shared, SWITCH).blocks(Attention):
        assert not [op for op in block.rows(work) if op.name == "rope"]
        assert block.cross <= (group.role == "model")
        crossing += block.cross * int(plain(group.count))
    assert crossing == 12


def test_partial_rotation_moves_half_the_dimensions(shared: Path) -> None:
    work = Workload("prefill", B=1, S=8, C=8)

    def moved(**changes: Any) -> float:
        block = read(shared, AIR, **changes).first(Attention)
        assert block is not None
        (rope,) = [op for op in block.rows(work) if op.name == "rope"]
        return float(evaluate(rope.read, block.environment(work)))

    assert moved() * 2 == moved(partial_rotary_factor=1.0)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (V3, {"n_routed_experts": None}, "n_routed_experts"),
    (V3, {"scoring_func": "softmax"}, "scoring_func"),
    (V3, {"topk_method": "greedy"}, "topk_method"),
    (V3, {"n_group": 7}, "n_group"),
    (V3, {"topk_group": None}, "topk_group"),
    (V3, {"num_experts_per_tok": 257}, "num_experts_per_tok"),
    (V3, {"q_lora_rank": 0}, "q_lora_rank"),
    (V3, {"first_k_dense_replace": 62}, "first_k_dense_replace"),
    (V3, {"first_k_dense_replace": 61}, "first_k_dense_replace"),
    (V3, {"qk_head_dim": 128}, "qk_head_dim"),
    (V3, {"index_topk": 2048}, "index_topk"),
    (V3, {"num_shared_experts": 2}, "n_shared_experts"),
    (V2, {"scoring_func": "sigmoid"}, "scoring_func"),
    (V2, {"topk_method": "noaux_tc"}, "topk_method"),
    (V2, {"n_shared_experts": "two"}, "n_shared_experts"),
    (V2, {"mlp_bias": True}, "mlp_bias"),
    (MOE_16B, {"q_lora_rank": 512}, "q_lora_rank"),
    (MOE_16B, {"moe_layer_freq": 0}, "moe_layer_freq"),
    (AIR, {"num_key_value_heads": 7}, "num_key_value_heads"),
    (AIR, {"kv_lora_rank": 512}, "kv_lora_rank"),
    (GROK, {"num_experts": 16}, "num_local_experts"),
    (GROK, {"hidden_act": "relu"}, "hidden_act"),
    (SWITCH, {"num_selected_experts": 2}, "num_selected_experts"),
    (SWITCH, {"is_gated_act": True}, "is_gated_act"),
    (SWITCH, {"feed_forward_proj": "gated-gelu"}, "feed_forward_proj"),
    (SWITCH, {"num_sparse_encoder_layers": 5}, "num_sparse_encoder_layers"),
    (SWITCH, {"num_sparse_encoder_layers": 0}, "num_sparse_encoder_layers"),
    (SWITCH, {"encoder_sparse_step": 3}, "encoder_sparse_step"),
    (SWITCH, {"is_full_sparse": True}, "is_full_sparse"),
    (SWITCH, {"tie_word_embeddings": False}, "tie_word_embeddings"),
    (SWITCH, {"num_experts": 1.5}, "num_experts"),
]


@pytest.mark.parametrize(("name", "changes", "key"), REFUSED)
def test_refused_by_name(name: str, changes: dict[str, Any], key: str, shared: Path) -> None:
    with pytest.raises(UserError, match=rf"\b{key}\b"):
        read(shared, name, **changes)


def test_a_misspelt_key_is_not_taken_for_a_dense_model(shared: Path) -> None:
    data = config(shared, V2)
    data["n_routed_expert"] = data.pop("n_routed_experts")
    with pytest.raises(UserError, match=r"n_routed_experts.*did you mean 'n_routed_expert'"):
        read_config(data, "file")


def test_direct_queries_have_no_latent(shared: Path) -> None:
    block = read(shared, LITE).first(LatentAttention)
    assert block is not None
    assert block.rq is None
