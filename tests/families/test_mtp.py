"""Multi-token-prediction modules against the ones that transformers builds, and published sizes.

transformers' MtpModel makes norms, projection and decoder layer of each module from the model's own
classes; its tensors are compared by shape, as its names are not those of any checkpoint.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from moeplan.api import estimate
from moeplan.families import read_config
from moeplan.model.spec import ModelSpec
from tests.families import cases_d
from tests.oracle import _build, oracle, ours
from tests.reading import spec_of

SLIDING, FULL = "sliding_attention", "full_attention"
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 96,
    "intermediate_size": 80,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "q_lora_rank": 40,
    "kv_lora_rank": 36,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 12,
    "v_head_dim": 28,
    "n_routed_experts": 12,
    "n_group": 4,
    "topk_group": 3,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "vocab_size": 320,
    "num_nextn_predict_layers": 2,
}
GLM = {
    "model_type": "glm4_moe",
    "hidden_size": 96,
    "intermediate_size": 80,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "vocab_size": 320,
    "use_qk_norm": True,
    "num_nextn_predict_layers": 1,
}


def _step() -> dict[str, Any]:
    """Step-3.7's files: lists with entries for the prediction layers behind those of the model.

    Not windowed ones: transformers' module forgets that these have more heads than the others.
    """
    config = cases_d.case("step3p7", 0)
    text = dict(config["text_config"])
    layers = text["num_hidden_layers"]
    text["layer_types"] = [*text["layer_types"][:layers], FULL, FULL]
    return config | {"text_config": text | {"num_nextn_predict_layers": 2}}


CASES = {
    "deepseek_v3": DEEPSEEK,
    "glm4_moe": GLM,
    "mellum": cases_d.case("mellum", 0) | {"num_nextn_predict_layers": 1},
    "step3p7": _step(),
}


def _modules(spec: ModelSpec) -> dict[str, Any]:
    """The modules' own tensors by name."""
    every, faults = ours(spec, mtp=True)
    assert not faults
    model = ours(spec)[0]
    return {n: t for n, t in every.items() if n not in model and not t.tied}


def _shapes(tensors: list[tuple[tuple[int, ...], int, bool]]) -> Counter[Any]:
    """How many matrices of each shape; stacked and separate experts, gates and ups count alike."""
    out: Counter[Any] = Counter()
    for shape, copies, buffer in tensors:
        stack, (*rows, columns) = (shape[0], shape[1:]) if len(shape) == 3 else (1, shape)
        out[columns, buffer] += copies * stack * (rows[0] if rows else 1)
    return out


@pytest.mark.oracle
@pytest.mark.parametrize("family", CASES)
def test_modules_that_transformers_builds(family: str) -> None:
    oracle()
    layers = pytest.importorskip("transformers.modeling_layers")
    if not hasattr(layers, "MtpModel"):
        pytest.skip("needs a transformers that builds prediction modules")
    import torch

    config = CASES[family]
    text = config.get("text_config", config)
    count = text["num_nextn_predict_layers"]
    with torch.device("meta"):
        main = _build(config)
        model = layers.MtpModel(main, count)
    shared = {id(p) for p in main.parameters()}
    theirs = [
        (tuple(p.shape), 1, not p.requires_grad)
        for p in model.state_dict(keep_vars=True).values()
        if id(p) not in shared
    ]
    spec = read_config(config, family)
    mine = [(t.shape, t.copies, t.buffer) for t in _modules(spec).values()]
    assert _shapes(mine) == _shapes(theirs)
    assert sum(t.elements for t in _modules(spec).values()) == sum(
        p.numel() for p in model.state_dict(keep_vars=True).values() if id(p) not in shared
    )


def test_modules_of_mimo() -> None:
    """Xiaomi's README counts 0.33 B a block; three are released (arXiv 2601.02780)."""
    spec = spec_of("mimo-v2-flash")
    modules = _modules(spec)
    assert {name.split(".")[3] for name in modules} == {"0", "1", "2"}
    assert sum(t.elements for t in modules.values()) / 3e9 == pytest.approx(0.33, abs=0.005)


def test_modules_of_longcat() -> None:
    """The tensors that vLLM maps for its module, one layer of attention and dense feed-forward."""
    at = "model.mtp.layers.0."
    attention = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm")
    parts = [f"self_attn.{x}" for x in (*attention, "kv_b_proj", "o_proj")]
    parts += [f"transformer_layer.mlp.{x}_proj" for x in ("gate", "up", "down")]
    parts += ["enorm.m", "hnorm.m", "eh_proj", "input_layernorm", "post_attention_layernorm"]
    modules = _modules(spec_of("longcat-flash"))
    assert set(modules) == {f"{at}{part}.weight" for part in parts} | {"model.mtp.norm.weight"}


@pytest.mark.parametrize("kind", [SLIDING, FULL])
def test_modules_of_k_exaone_are_dense(kind: str) -> None:
    """A layer's attention and norms, three matrices, and a projection with three norms for all."""
    config = cases_d.case("exaone_moe", 0) | {"mtp_layer_types": [kind] * 2}
    spec = read_config(config | {"num_nextn_predict_layers": 2}, "k-exaone")
    layer = sum(t.elements for n, t in ours(spec)[0].items() if n.startswith("model.layers.0."))
    D = config["hidden_size"]
    found = sum(t.elements for t in _modules(spec).values())
    assert found == 2 * layer + 2 * D * D + 3 * D


@pytest.mark.parametrize("name", ["longcat-flash", "mimo-v2-flash", "qwen3-next-80b-a3b"])
def test_modules_that_no_key_names_are_said_and_can_be_left_out(name: str) -> None:
    from moeplan.presets import preset

    spec = spec_of(name)
    assert "released checkpoints hold" in " ".join(spec.notes)
    without = read_config(preset(name).config | {"num_nextn_predict_layers": 0}, name)
    assert not [g for g in without.groups if g.role == "mtp"]
    assert ours(spec)[0] == ours(without)[0]


@pytest.mark.parametrize("name", ["longcat-flash", "mimo-v2-flash", "qwen3-next-80b-a3b"])
def test_drafting_at_a_given_acceptance(name: str) -> None:
    """Nothing accepted: a step yields one token and costs more; all accepted: it yields two."""
    none, every = (estimate(name, draft=1, acceptance=a) for a in (0.0, 1.0))
    assert none["speculation.tokens_per_step"].value == 1
    assert every["speculation.tokens_per_step"].value == 2
    assert none["speculation.speedup.sequential"].value < 1
    assert every["speculation.speedup.sequential"].value > 1
