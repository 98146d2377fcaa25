"""The sections of an estimate: what they take from each other, and their defaults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moeplan.api import estimate
from moeplan.cluster.hardware import gpu, prices
from moeplan.estimation.scenario import DEFAULTS, Scenario
from moeplan.model.ffn import MoE
from moeplan.presets import preset
from tests.reading import READABLE, spec_of

MODEL_KEYS = {  # our word -> the keys that files use for it
    "layers": ("num_hidden_layers", "n_layers"),
    "hidden_size": ("hidden_size", "d_model"),
    "vocabulary": ("vocab_size",),
    "experts": (
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "moe_num_experts",
    ),
    "top_k": (
        "num_experts_per_tok",
        "moe_topk",
        "moe_top_k",
        "moe_k",
        "num_selected_experts",
        "num_experts_per_token",
    ),
}


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """A config with the objects opened that describe the text model."""
    out = dict(config)
    for part in ("text_config", "attn_config", "ffn_config"):
        out |= config.get(part, {})
    return out


@pytest.mark.parametrize("name", READABLE)
def test_the_model_section_says_what_the_file_says(name: str) -> None:
    config = flat(preset(name).config)
    section = estimate(spec_of(name)).to_model()
    checked = 0
    for word, keys in MODEL_KEYS.items():
        said = next((config[key] for key in keys if config.get(key) is not None), None)
        if isinstance(said, int) and section.get(word) is not None:
            if word == "layers" and section["family"] in ("switch_transformers", "nllb-moe"):
                continue  # the file's number is the encoder's alone
            assert section[word] == said, word
            checked += 1
    assert checked >= 2
    assert (section.get("experts") is None) == (section["moe_layers"] == 0)
    assert section["moe_layers"] <= section["layers"]


def test_the_model_section_of_deepseek_v3() -> None:
    section = estimate("deepseek-v3").to_model()
    expected = {
        "layers": 61,
        "moe_layers": 58,
        "experts": 256,
        "top_k": 8,
        "expert_width": 2048,
        "shared_width": 2048,
        "router": "sigmoid",
        "n_group": 8,
        "topk_group": 4,
        "tied_embeddings": False,
        "max_context": 163_840,
    }
    assert {key: section[key] for key in expected} == expected
    assert "deepseek-ai/DeepSeek-V3" in section["source"]


# --------------------------------------------------------------------------- between the sections
@pytest.mark.parametrize("name", READABLE)
def test_sections_agree_with_each_other(name: str) -> None:
    e = estimate(spec_of(name), context=3000, batch=5)
    t = e.tree
    held = t["memory"]["serving"]
    assert held["weights"].value == t["memory"]["weights"].value
    assert held["kv_cache"].value == t["kv_cache"]["bytes"].value
    assert held["total"].value == held["weights"].value + held["kv_cache"].value
    assert t["kv_cache"]["bytes"].value == 5 * t["kv_cache"]["bytes_per_sequence"].value
    state = t["memory"]["training"]
    assert state["total"].value == t["params"]["total"].value * state["bytes_per_parameter"]
    parts = t["memory"]["weights_by_component"]
    assert set(t["params"]["by_component"]) <= set(parts)
    assert (t["all_to_all"] is None) == (t["model"]["moe_layers"] == 0)


def test_gpus_at_least_is_the_next_whole_number() -> None:
    """Mixtral in bf16 is 93.4 GB: two cards of 80 GB or of 48, one of 141, four of 24."""
    wanted = {"h200": 1, "h100": 2, "l40s": 2, "rtx-4090": 4, "gb300": 1}
    for name, number in wanted.items():
        e = estimate("mixtral", gpu=name, context=128)
        assert e["memory.serving.gpus_at_least"].value == number, name


# -------------------------------------------------------------------------------- all-to-all
@pytest.mark.parametrize("name", [n for n in READABLE if spec_of(n).moe is not None])
def test_the_default_group_is_legal_and_large(name: str) -> None:
    section = estimate(spec_of(name)).tree["all_to_all"]
    experts = spec_of(name).moe.values["E"]
    ep, node = section["ep"].value, section["node"].value
    assert experts % ep == 0
    assert ep <= 64
    assert ep % node == 0
    assert node <= 8
    larger = [d for d in range(ep + 1, 65) if experts % d == 0 and (d % 8 == 0 or 8 % d == 0)]
    assert larger == []


def test_bytes_of_an_exchange_double_with_the_tokens() -> None:
    one, two = (estimate("deepseek-v3", tokens=n).tree["all_to_all"] for n in (512, 1024))
    for step in ("per_layer", "forward_step", "training_step"):
        for direction in ("dispatch", "combine"):
            for key in ("local", "same_node", "other_nodes", "forwarded", "sent"):
                a, b = (s[step][direction][key].value for s in (one, two))
                assert b == pytest.approx(2 * a, rel=1e-12)
                assert a > 0


def test_steps_of_an_exchange() -> None:
    """Every MoE layer once forward; in training once more each way: gradients swap directions."""
    section = estimate("deepseek-v3").tree["all_to_all"]
    layer, forward, step = (section[k] for k in ("per_layer", "forward_step", "training_step"))
    for direction, other in (("dispatch", "combine"), ("combine", "dispatch")):
        assert forward[direction]["sent"].value == pytest.approx(
            58 * layer[direction]["sent"].value
        )
        assert step[direction]["sent"].value == pytest.approx(
            58 * 2 * layer[direction]["sent"].value
        ), other


def test_the_published_decode_exchange() -> None:
    """arXiv 2505.09343, 2.3.2: 1 B out and 2 B back, 32 tokens, 9 copies of 7000 values at 50 GB/s.

    Its inputs are rounder than the model's; the bytes of one layer follow from ours.
    """
    section = estimate(
        "deepseek-v3",
        tokens=32,
        policy="copies",
        dispatch="fp8_unscaled",
        combine="bf16",
        ep=256,
        node=8,
    ).tree["all_to_all"]["per_layer"]
    sent = sum(section[d]["sent"].value + section[d]["local"].value for d in section)
    assert sent == pytest.approx(3 * 32 * 8 * 7168)
    assert sent / (3 * 32 * 9 * 7000) == pytest.approx(8 / 9 * 7168 / 7000)


def test_a_dense_model_exchanges_nothing() -> None:
    assert estimate("llama-3.1-8b").tree["all_to_all"] is None
    assert json.loads(estimate("llama-3.1-8b").to_json())["all_to_all"] is None


# --------------------------------------------------------------------------------------- cost
def test_where_no_price_is_known_there_is_no_cost() -> None:
    unpriced = next(g for g in ("l40s", "mi325x", "h20", "rtx-4090") if not prices(gpu(g).id))
    e = estimate("mixtral", gpu=unpriced)
    assert e.tree["cost"] is None
    assert estimate("mixtral", gpu=unpriced, price="$1/h").tree["cost"] is not None


@pytest.mark.parametrize(
    ("price", "kind"), [("$2/h", "user"), (2.5, "user"), ("hyperscaler", None)]
)
def test_a_price_is_an_amount_or_a_kind(price: Any, kind: str | None) -> None:
    cost = estimate("mixtral", gpu="h100", price=price).tree["cost"]
    assert cost["price_kind"] == (kind or price)
    hourly = cost["dollars_per_gpu_hour"]
    assert hourly.value == {"$2/h": 2, 2.5: 2.5, "hyperscaler": 1.3}[price]
    assert hourly.source.kind == ("user" if kind else "datasheet")


# -------------------------------------------------------------------------------- assumptions
def test_a_context_beyond_the_models_own_is_said() -> None:
    assert any("beyond" in a["why"] for a in estimate("mixtral", context=100_000).assumptions)
    assert not any("beyond" in a["why"] for a in estimate("mixtral", context=32_768).assumptions)


def test_notes_of_the_reader_are_among_the_assumptions() -> None:
    why = [a["why"] for a in estimate("switch-c-2048").assumptions]
    assert any("contradicts itself" in text for text in why)


def test_what_is_left_to_the_defaults_is_said_in_words() -> None:
    (why,) = (a["why"] for a in estimate("mixtral").assumptions if "defaults" in a["why"])
    for word in ("attention causal", "cache bf16", "dispatch fp8", "combine bf16", "gpu h200"):
        assert word in why
    (dense,) = (a["why"] for a in estimate("llama-3.1-8b").assumptions if "defaults" in a["why"])
    assert "dispatch" not in dense
    (some,) = (
        a["why"] for a in estimate("mixtral", cache="fp8").assumptions if "defaults" in a["why"]
    )
    assert "cache" not in some


def test_a_scenario_knows_what_was_given() -> None:
    scenario = Scenario.of(context=100, batch=None)
    assert dict(scenario.given) == {"context": 100}
    assert scenario["batch"] == DEFAULTS["batch"].value
    given, left = scenario.quantity("context"), scenario.quantity("batch")
    assert (given.source.kind, left.source.kind) == ("user", "assumed")


# ------------------------------------------------------------------------------------- the tree
def test_paths_reach_into_lists() -> None:
    e = estimate("deepseek-v3")
    assert e["params.by_layer.0.layers"].value == 3
    assert e["time.decode.rows.0.op"] == "embed"


def test_an_estimate_leaves_its_spec_alone() -> None:
    spec = spec_of("deepseek-v3")
    before = spec.checkpoint
    estimate(spec, weights="bf16")
    assert spec.checkpoint is before


def test_moe_blocks_of_different_shape() -> None:
    """Where layers differ, the section describes the first, and every count knows all."""
    spec = spec_of("llama4-maverick")
    assert len(list(spec.blocks(MoE))) >= 1
    section = estimate(spec).to_model()
    assert (section["moe_layers"], section["layers"]) == (24, 48)
