"""Further families, by sizes alone: the tensors that transformers builds by its defaults."""

from __future__ import annotations

from typing import Any

import pytest

from moeplan.estimation.parameters import parameters
from moeplan.families import read_config
from tests.families.cases_d import (
    BASES,
    CASES,
    EXPERTS,
    HEADS,
    LATENT,
    QWEN,
    ROUTED,
    WIDE,
    case,
)
from tests.oracle import compare, oracle, their_config, theirs

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


# what transformers writes into a file beside the keys of a model, or under a name of its own
WRITTEN = frozenset(
    ("_name_or_path", "id2label", "label2id", "output_attentions", "problem_type", "return_dict")
)


def _kept(data: dict[str, Any]) -> dict[str, Any]:
    """A written file without its empty keys, save the null that says "no rotation"."""
    out = {}
    for key, value in data.items():
        if key not in WRITTEN and (value is not None or key.endswith("_attention")):
            out[key] = _kept(value) if isinstance(value, dict) else value
    return out


# a file that transformers writes has both keys for one number in these, or not the given one
UNWRITTEN = {
    "qwen3_omni_moe": "its talker's class does not write what it needs to be built again",
}


@pytest.mark.parametrize("family", sorted(set(BASES) - set(UNWRITTEN)))
def test_a_file_with_every_default_written_out(family: str) -> None:
    data = case(family, 0)
    full = _kept({**their_config(data).to_dict(), "model_type": family})
    assert compare(read_config(full, family), data) == []


# ---------------------------------------- multimodal files that hold the config of any text model
TEXTS = {
    "qwen3_moe": {"model_type": "qwen3_moe", **QWEN, **EXPERTS, "num_hidden_layers": 2},
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **WIDE,
        **LATENT,
        **ROUTED,
        "n_group": 1,
        "topk_group": 1,
    },
    "mixtral": {"model_type": "mixtral", **WIDE, **HEADS, "num_local_experts": 4},
    "nemotron_h": {
        "model_type": "nemotron_h",
        **WIDE,
        **HEADS,
        **ROUTED,
        "layers_block_type": ["mamba", "moe", "attention"] * 2,
        "head_dim": 16,
        "moe_shared_expert_intermediate_size": 40,
        "mamba_num_heads": 6,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 10,
    },
}
# "llava", "llava_next_video", "llava_onevision" and "vipllava" are like the one here, "ovis2" like
# "lfm2_vl".
WRAPPED = [
    ("internvl", "qwen3_moe"),
    ("kimi_k25", "deepseek_v3"),
    ("lfm2_vl", "qwen3_moe"),
    ("lfm3_vl", "qwen3_moe"),
    ("llava_next", "mixtral"),
    ("nemo_speechlm", "nemotron_h"),
    ("nemotron_h_omni", "nemotron_h"),
]


@pytest.mark.parametrize(("wrapper", "kind"), WRAPPED)
@pytest.mark.parametrize("tied", [False, True])
def test_the_text_part_of_a_multimodal_file(wrapper: str, kind: str, tied: bool) -> None:
    tied = tied and kind != "nemotron_h"  # which never ties
    text = TEXTS[kind] | {"tie_word_embeddings": tied, "num_experts_per_tok": 2}
    tower = {"num_hidden_layers": 1}
    config: dict[str, Any] = {"model_type": wrapper, "text_config": text, "vision_config": tower}
    if wrapper == "nemotron_h_omni":  # its class wants the tower to say so, too
        config |= {
            "vision_config": {"model_type": "radio", **tower, "video_temporal_patch_size": 2}
        }
    config |= {"tie_word_embeddings": tied, "image_token_id": 7, "downsample_ratio": 0.5}
    spec = read_config(config, wrapper)
    assert compare(spec, config) == []
    assert spec.not_counted == ("vision (vision_config)",)
    alone = parameters(read_config(text, kind))
    assert parameters(spec)["total"].value == alone["total"].value
