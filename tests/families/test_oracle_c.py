"""Hybrids, sparse and compressed attention, encoder-decoders: tensors that transformers builds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moeplan.families import read_config
from tests.families.cases_c import BASES, CASES, case
from tests.families.oracle_cases import SHARED
from tests.oracle import compare, oracle, theirs

pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True)
def _needs_transformers() -> None:
    oracle()


@pytest.mark.parametrize(("family", "i"), [(f, i) for f in BASES for i in range(-1, len(CASES[f]))])
def test_tensors_are_those_that_transformers_builds(family: str, i: int) -> None:
    data = case(family, i)
    assert compare(read_config(data, family), data) == []


@pytest.mark.parametrize("family", BASES)
def test_each_case_is_another_model(family: str) -> None:
    built = [theirs(case(family, i)) for i in range(-1, len(CASES[family]))]
    assert all(a != b for i, a in enumerate(built) for b in built[:i])
    assert len(CASES[family]) >= 2


# --------------------------------------- files in a model's own keys, where transformers has others
def _load(stem: str) -> dict[str, Any]:
    path = SHARED / f"{stem}.json"
    if not path.is_file():
        pytest.skip("needs the reference configs in the folder `shared` beside the repository")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _as_minimax(data: dict[str, Any]) -> dict[str, Any]:
    """MiniMax-Text-01's own keys as transformers' class has them."""
    words = {0: "linear_attention", 1: "full_attention"}
    types = [words[mark] for mark in data["attn_type_list"]]
    return {**data, "model_type": "minimax", "layer_types": types}


def _as_hunyuan_v1(data: dict[str, Any]) -> dict[str, Any]:
    """Hunyuan-A13B's own keys as transformers' class has them."""
    kept = {k: v for k, v in data.items() if k != "rope_scaling"}
    return {**kept, "model_type": "hunyuan_v1_moe", "head_dim": data["attention_head_dim"]}


def test_minimax_text_01() -> None:
    data = _load("MiniMaxAI__MiniMax-Text-01")
    assert compare(read_config(data, "text-01"), _as_minimax(data)) == []
    few = data | {"num_hidden_layers": 3, "attn_type_list": [1, 0, 0], "num_local_experts": 4}
    assert compare(read_config(few, "altered"), _as_minimax(few)) == []


def test_hunyuan_a13b() -> None:
    data = _load("tencent__Hunyuan-A13B-Instruct")
    assert compare(read_config(data, "a13b"), _as_hunyuan_v1(data)) == []
    lists = ("moe_topk", "moe_intermediate_size", "num_shared_expert")
    few = data | {key: data[key][:3] for key in lists} | {"num_hidden_layers": 3}
    few["moe_topk"] = [4, 8, 2]
    spec = read_config(few, "altered")
    assert compare(spec, _as_hunyuan_v1(few)) == []
    assert sorted(g.name for g in spec.groups if g.is_layer) == [
        f"attention + moe + top-{k} of 64 x 3072 + 1" for k in (2, 4, 8)
    ]


def test_a_pretraining_file_of_ernie_has_the_released_structure() -> None:
    data = _load("baidu__ERNIE-4.5-300B-A47B.pretrain")
    released = {
        k: v
        for k, v in data.items()
        if k not in ("remove_tail_layer", "moe_gate", "moe_capacity", "use_rmsnorm")
    }
    released |= {
        "model_type": "ernie4_5_moe",
        "num_hidden_layers": data["num_hidden_layers"] - data["remove_tail_layer"],
        "tie_word_embeddings": False,
    }
    assert compare(read_config(data, "pre-training"), released) == []
