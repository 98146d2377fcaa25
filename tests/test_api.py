"""The library: one call for a question, four ways to name a model, settings that are checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeplan
from moeplan import UserError, compare, estimate, explain
from moeplan.estimation.scenario import DEFAULTS
from moeplan.load import load_model
from moeplan.model.ffn import MoE
from moeplan.quantity import Quantity
from tests.commands import MIXTRAL


def total(model: Any, **scenario: Any) -> int:
    found: int = estimate(model, **scenario)["params.total"].value
    return found


# --------------------------------------------------------------------------------- one package
def test_the_package_offers_what_it_says() -> None:
    for name in moeplan.__all__:
        assert getattr(moeplan, name) is not None, name
    assert sorted(moeplan.__all__) == dir(moeplan)
    assert isinstance(moeplan.__version__, str)
    with pytest.raises(AttributeError, match="no attribute 'estimat'"):
        moeplan.estimat  # noqa: B018 - the access itself is tested


def test_the_example_of_the_package() -> None:
    assert moeplan.estimate("mixtral").to_dict()["params"]["total"] == 46_702_792_704


# ------------------------------------------------------------------------------- one model each
def test_a_model_by_name_by_path_by_mapping_and_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(MIXTRAL))
    spec = load_model(MIXTRAL)
    ways = [MIXTRAL, file, str(file), tmp_path, str(tmp_path) + "/", spec]
    assert len({total(way) for way in ways}) == 1
    # embedding and head; per layer q, k, v, o, two norms, router, 4 experts; one norm
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 2 * 64 + 4 * 64 + 4 * 3 * 96 * 64
    assert total(spec) == 2 * 100 * 64 + 2 * layer + 64


def test_a_folder_gives_the_model_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MIXTRAL))
    assert estimate(folder)["model.name"] == "my-model"
    (tmp_path / "other.json").write_text(json.dumps(MIXTRAL))
    assert estimate(tmp_path / "other.json")["model.name"] == "other"


def test_a_quantisation_file_beside_the_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    before = estimate(tmp_path)["memory.weights"].value
    beside = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    after = estimate(tmp_path)
    assert after["memory.weights_format"].startswith("fp8")
    assert after["memory.weights"].value < 0.65 * before


def test_nothing_is_written_into_a_mapping() -> None:
    config = json.loads(json.dumps(MIXTRAL))
    estimate(config)
    assert config == MIXTRAL


@pytest.mark.parametrize("model", [{}, {"model_type": "gpt2"}, "", "no-such-preset", "a/b"])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(UserError):
        estimate(model)


# ------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"contxt": 1}, "did you mean 'context'"),
        ({"context": "4096"}, "a number is needed"),
        ({"context": 0}, "at least 1"),
        ({"context": 1.5}, "a whole number"),
        ({"context": True}, "a number is needed"),
        ({"context": 10**16}, "too large"),
        ({"batch": -1}, "at least 1"),
        ({"tokens": float("nan")}, "at least 1"),
        ({"imbalance": 0.9}, "at least 1"),
        ({"gpu": 5}, "a word is needed"),
        ({"gpu": "h20O"}, "did you mean 'h20'"),
        ({"attention": "half"}, "allowed are causal, full"),
        ({"weights": "bf17"}, "did you mean 'bf16'"),
        ({"price": "$2/day"}, "price"),
        ({"price": "spot"}, "use one of rental"),
        ({"ep": 7}, "does not divide"),
        ({"optimizer": "sgd"}, "optimizer 'sgd'"),
    ],
)
def test_a_setting_is_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        estimate("mixtral", **given)
    assert said in str(refused.value)


def test_every_setting_changes_something_and_none_is_lost() -> None:
    """Each one alone, off its default, gives another document."""
    base = estimate("mixtral").to_dict()
    other: dict[str, Any] = {
        "context": 1000,
        "batch": 2,
        "microbatch": 2,
        "tokens": 1,
        "ep": 4,
        "node": 2,
        "imbalance": 2.0,
        "attention": "full",
        "weights": "fp8",
        "cache": "fp8",
        "dispatch": "bf16",
        "combine": "fp32",
        "policy": "copies",
        "optimizer": "muon",
        "gpu": "b200",
        "price": "$9/h",
    }
    # these two ask for a section that a model without MTP modules does not have
    assert other.keys() | {"draft", "acceptance"} == DEFAULTS.keys()
    for name, value in other.items():
        changed = estimate("mixtral", **{name: value}).to_dict()
        changed["assumptions"] = base["assumptions"]  # which differ already by not listing it
        assert changed != base, name


def test_none_means_not_given() -> None:
    settings = dict.fromkeys(DEFAULTS)
    assert estimate("mixtral", **settings).to_dict() == estimate("mixtral").to_dict()


def test_whole_floats_and_numpys_numbers_are_numbers() -> None:
    expected = estimate("mixtral", context=2048)["kv_cache.bytes"].value
    for context in (2048.0, np.int32(2048), np.float64(2048)):
        assert estimate("mixtral", context=context)["kv_cache.bytes"].value == expected


def test_the_chosen_weight_format_replaces_the_checkpoints() -> None:
    own, chosen = estimate("deepseek-v3"), estimate("deepseek-v3", weights="bf16")
    assert own["memory.weights_format"] == "fp8-block128"
    assert chosen["memory.weights_format"] == "bf16"
    buffers = chosen["params.buffers"].value
    assert chosen["memory.weights"].value == 2 * chosen["params.total"].value + 4 * buffers
    assert own["memory.weights"].value < 0.51 * chosen["memory.weights"].value
    # 16-bit matmuls also run at the 16-bit peak
    assert chosen["time.prefill.compute"].value > 1.5 * own["time.prefill.compute"].value


def test_the_cache_format_of_the_checkpoint_holds_unless_another_is_given() -> None:
    spec = load_model("mixtral")
    asking = replace(spec, checkpoint=replace(spec.checkpoint, cache="fp8"))
    assert estimate(asking)["kv_cache.format"] == "fp8"
    assert estimate(asking, cache="bf16")["kv_cache.format"] == "bf16"


# ------------------------------------------------------------------------------- other answers
def test_explain_is_the_quantity_behind_the_number() -> None:
    found = explain("mixtral", "params.total")
    assert isinstance(found, Quantity)
    assert found.value == 46_702_792_704
    assert explain("mixtral", "kv_cache.bytes", batch=2).value == 2 * 4096 * 131_072
    assert explain("mixtral", "memory.weights_format") == "bf16"


def test_compare_is_one_estimate_each_in_one_scenario() -> None:
    both = compare("mixtral", MIXTRAL, context=100)
    assert [e["flops.context"].value for e in both] == [100, 100]
    assert [e["params.total"].value for e in both] == [46_702_792_704, total(MIXTRAL)]
    assert compare() == []


def test_a_spec_of_ones_own_making() -> None:
    """What-if: the same model with twice as many experts of half the width."""
    spec = load_model("mixtral")
    moe = spec.moe
    assert moe is not None
    split = spec.vary(MoE, E=16, k=4, F=7168)
    router = 32 * 4096 * 8
    assert total(split) == total(spec) + router
    with pytest.raises(UserError, match="MoE has no symbol width"):
        spec.vary(MoE, width=1)
