"""Shapes by the keys that each family reads, and models with edited configs."""

from __future__ import annotations

import json

import pytest

import moeplan
from moeplan.errors import UserError
from moeplan.presets import preset
from moeplan.sweeping.architecture import SHAPES, Architecture
from tests.commands import MIXTRAL

# The keys as they stand in these models' own config.json files.
KEYS = {
    "mixtral": ("num_local_experts", "num_experts_per_tok", "intermediate_size",
                "num_hidden_layers"),
    "deepseek-v3": ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size",
                    "num_hidden_layers"),
    "dbrx": ("ffn_config.moe_num_experts", "ffn_config.moe_top_k", "ffn_config.ffn_hidden_size",
             "n_layers"),
    "gemma-4": ("text_config.num_experts", "text_config.top_k_experts",
                "text_config.moe_intermediate_size", "text_config.num_hidden_layers"),
    "longcat-flash": ("n_routed_experts", "moe_topk", "expert_ffn_hidden_size", "num_layers"),
    "hunyuan-a13b": ("num_experts", "moe_topk", "moe_intermediate_size", "num_hidden_layers"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_a_shape_is_the_key_that_the_model_has(name):
    model = Architecture(name)
    assert tuple(model.key(s) for s in ("experts", "top_k", "width", "layers")) == KEYS[name]


def test_shared_experts_are_a_count_or_a_width():
    deepseek, qwen = Architecture("deepseek-v3"), Architecture("qwen1.5-moe")
    assert deepseek.key("shared") == "n_shared_experts"
    assert qwen.key("shared_width") == "shared_expert_intermediate_size"
    with pytest.raises(UserError, match=r"no key for it, it has shared_width \(shared_expert_"):
        qwen.key("shared")
    with pytest.raises(UserError, match=r"no key for it, it has shared \(n_shared_experts\)"):
        deepseek.key("shared_width")
    with pytest.raises(UserError, match="the class always routes a token to two experts"):
        Architecture("nllb-moe").key("top_k")


CHANGES = [
    ("mixtral", {"experts": 16, "top_k": 3, "width": 7168},
     {"num_local_experts": 16, "num_experts_per_tok": 3, "intermediate_size": 7168}),
    ("deepseek-v3", {"shared": 2, "layers": 30, "hidden": 3584},
     {"n_shared_experts": 2, "num_hidden_layers": 30, "hidden_size": 3584}),
    ("qwen1.5-moe", {"shared_width": 1408}, {"shared_expert_intermediate_size": 1408}),
    ("qwen3-30b", {"config:head_dim": 64, "heads": 16},
     {"head_dim": 64, "num_attention_heads": 16}),
    ("grok-1", {"experts": 16}, {"num_experts": 16, "num_local_experts": 16}),
    ("gpt-oss-20b", {"layers": 36},
     {"num_hidden_layers": 36, "layer_types": ["sliding_attention", "full_attention"] * 18}),
    ("gpt-oss-20b", {"layers": 5},
     {"num_hidden_layers": 5, "layer_types": ["sliding_attention", "full_attention"] * 2
      + ["sliding_attention"]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "edits"), CHANGES)
def test_a_changed_model_is_its_edited_config(name, changes, edits, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**preset(name).config, **edits}))
    edited = moeplan.estimate(file).to_dict()
    found = moeplan.estimate(Architecture(name).changed(changes)).to_dict()
    for section in ("params", "flops", "kv_cache", "memory", "all_to_all", "time"):
        assert found[section] == edited[section]


def test_what_the_reader_refuses_is_refused():
    with pytest.raises(UserError, match="num_experts_per_tok is 9: it must be at most the 8"):
        Architecture("mixtral").changed({"top_k": 9})
    kinds = ["full_attention"] * 23 + ["sliding_attention"]  # no pattern to go on with
    model = Architecture({**preset("gpt-oss-20b").config, "layer_types": kinds})
    with pytest.raises(UserError, match="layer_types lists 24 layers without a pattern"):
        model.changed({"layers": 30})


def test_a_key_that_changes_nothing_is_refused():
    with pytest.raises(UserError, match=r"did you mean 'config:num_local_experts'"):
        Architecture("mixtral").check_key("num_local_expert")
    with pytest.raises(UserError, match="nothing would change"):
        Architecture("mixtral").check_key("attention_dropout")


def test_own_values_and_models_without_config():
    model = Architecture(MIXTRAL)
    assert {name: model.value(name) for name in ("experts", "width", "layers", "shared")} == {
        "experts": 4, "width": 96, "layers": 2, "shared": None,
    }  # fmt: skip
    assert model.value("config:vocab_size") == 100
    assert set(SHAPES) >= {"experts", "top_k", "width", "layers", "hidden", "shared"}
    bare = Architecture(model.spec)
    assert bare.changed({}) is model.spec
    with pytest.raises(UserError, match="without its config"):
        bare.changed({"experts": 8})
