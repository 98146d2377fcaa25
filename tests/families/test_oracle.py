"""Every family against the model that transformers builds: real files and altered ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moeplan.errors import UserError
from moeplan.families import FAMILIES, read_config
from moeplan.model.attention import Attention
from moeplan.model.linear_attention import GatedDeltaNet
from moeplan.model.spec import ModelSpec
from moeplan.presets import preset, presets
from moeplan.quantity import plain
from tests.families import cases_c, cases_d
from tests.families.oracle_cases import (
    ALTERED,
    BASES,
    CHUNKED,
    FULL,
    LINEAR,
    SHARED,
    SLIDING,
    altered,
    base,
    load,
    merged,
)
from tests.fingerprint import fingerprint
from tests.oracle import (
    Tensor,
    compare,
    differences,
    is_built,
    oracle,
    ours,
    their_config,
    theirs,
)


def _real() -> list[str]:
    """Files of the reference material whose family this file judges."""
    return [
        path.stem
        for path in sorted(SHARED.glob("*.json"))
        if json.loads(path.read_text()).get("model_type") in BASES
    ]


CASES = [(family, i) for family, changes in ALTERED.items() for i in range(len(changes))]


pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True)
def _needs_transformers() -> None:
    oracle()


@pytest.mark.parametrize("stem", _real())
def test_real_file(stem: str) -> None:
    config = load(stem)
    assert compare(read_config(config, stem), config) == []


# These hold so many experts, each a module of its own, that building them takes minutes.
SLOW = ("switch-base-64", "switch-base-256", "switch-c-2048")
PRESETS = [p.name for p in presets() if p.config["model_type"] in FAMILIES and p.name not in SLOW]


@pytest.mark.parametrize("name", PRESETS)
def test_preset(name: str) -> None:
    config = preset(name).config
    if not is_built(config["model_type"]):
        pytest.skip(f"transformers has no class for model_type {config['model_type']!r}")
    assert compare(read_config(config, name), config) == []


@pytest.mark.parametrize("family", [f for f, given in BASES.items() if isinstance(given, dict)])
def test_small_model(family: str) -> None:
    config = base(family)
    assert compare(read_config(config, family), config) == []


@pytest.mark.parametrize(("family", "i"), CASES)
def test_altered_file(family: str, i: int) -> None:
    config = altered(family, i)
    spec = read_config(config, f"altered {family}")
    assert compare(spec, config) == []
    shrunk = merged(base(family), {"num_hidden_layers": spec.layers, "n_layers": spec.layers})
    assert theirs(config) != theirs(_fitted(shrunk, spec)), "the alteration changed no tensor"


def _fitted(config: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """The unaltered config with as many layers as the altered one."""
    for part in (config, config.get("text_config", {})):
        types = part.get("layer_types")
        part["num_hidden_layers"] = spec.layers
        if types:
            part["layer_types"] = (types * spec.layers)[: spec.layers]
    return config


# ------------------------------------------------------------------- defaults of the real classes
# gemma4_text is saved with per_layer_config, sizes per layer, which its family refuses
@pytest.mark.parametrize("family", [family for family in BASES if family != "gemma4_text"])
def test_a_file_that_transformers_saves_reads_the_same(family: str) -> None:
    config = base(family)
    saved = json.loads(their_config(config).to_json_string(use_diff=False))
    again = read_config(saved, family)
    assert again.unread == ()
    assert ours(again) == ours(read_config(config, family))
    mixers = _by_layer(read_config(config, family)), _by_layer(again)
    scopes = [{i: getattr(m, "scope", None) for i, m in side.items()} for side in mixers]
    assert scopes[0] == scopes[1]


def _without(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in config.items():
        yield key, {k: v for k, v in config.items() if k != key}
        if isinstance(value, dict):
            for inner, rest in _without(value):
                yield f"{key}.{inner}", {**config, key: rest}


@pytest.mark.parametrize("family", BASES)
def test_a_missing_key_is_refused_or_has_the_default_of_the_class(family: str) -> None:
    config = altered(family, 0)
    whole = fingerprint(read_config(config, family))
    for key, rest in _without(config):
        try:
            spec = read_config(rest, family)
        except UserError:
            continue
        if fingerprint(spec) != whole and "quantization" not in key:
            assert compare(spec, rest) == [], key


# ------------------------------------------------------------- what tensors do not show: windows
WORDS = {"full": FULL, "window": SLIDING, "chunk": CHUNKED}


def _by_layer(spec: ModelSpec) -> dict[int, Attention | GatedDeltaNet]:
    return {
        index: block
        for group in spec.groups
        if group.role == "model"
        for block in group.blocks
        if isinstance(block, (Attention, GatedDeltaNet))
        for index in group.indices
    }


TYPED = ("gpt_oss", "llama4", "llama4_text", "qwen2", "qwen3", "qwen3_5_moe", "qwen3_next")


@pytest.mark.parametrize(
    ("family", "i"), [(f, i) for f in TYPED for i in range(-1, len(ALTERED[f]))]
)
def test_kind_of_each_layer(family: str, i: int) -> None:
    config = base(family) if i < 0 else altered(family, i)
    mixers = _by_layer(read_config(config, family))
    real = their_config(config).get_text_config()
    seen = [
        LINEAR if isinstance(mixer, GatedDeltaNet) else WORDS[mixer.scope]
        for _, mixer in sorted(mixers.items())
    ]
    assert seen == real.layer_types
    windows = {plain(m.W) for m in mixers.values() if isinstance(m, Attention) and m.W is not None}
    named = {"sliding_window": SLIDING, "attention_chunk_size": CHUNKED}
    theirs_ = {getattr(real, key) for key, word in named.items() if word in real.layer_types}
    assert windows == theirs_
    if hasattr(real, "no_rope_layers"):  # a 1 marks a layer that rotates
        rotated = [int(m.rope) for _, m in sorted(mixers.items()) if isinstance(m, Attention)]
        assert rotated == list(real.no_rope_layers)
        normed = [m.qk_norm == "unit" for m in mixers.values() if isinstance(m, Attention)]
        assert any(normed) is bool(real.use_qk_norm)


# ------------------------------------------------------------------------- the oracle can say no
def test_differences_are_noticed() -> None:
    real = {
        "a.weight": Tensor((4, 8)),
        "a.bias": Tensor((4,)),
        "x.experts.{e}.gate_proj.weight": Tensor((6, 8), copies=3),
        "x.experts.{e}.up_proj.weight": Tensor((6, 8), copies=3),
        "x.experts.{e}.down_proj.weight": Tensor((8, 6), copies=3),
        "h.weight": Tensor((4, 8), tied="a.weight"),
    }
    assert differences(real, real) == []
    for name in real:
        (line,) = differences({k: v for k, v in real.items() if k != name}, real)[:1]
        assert name.split(".")[0] in line
    changed = (
        ("a.weight", Tensor((8, 4))),
        ("a.bias", Tensor((4,), buffer=True)),
        ("h.weight", Tensor((4, 8))),
        ("x.experts.{e}.down_proj.weight", Tensor((8, 6), copies=4)),
    )
    for name, tensor in changed:
        assert differences({**real, name: tensor}, real), name


def test_fused_equals_split_and_nothing_else() -> None:
    split = {
        "x.experts.{e}.gate_proj.weight": Tensor((6, 8), copies=3),
        "x.experts.{e}.up_proj.weight": Tensor((6, 8), copies=3),
    }
    assert differences({"x.experts.gate_up_proj": Tensor((3, 12, 8), flat=True)}, split) == []
    for shape in ((3, 6, 8), (2, 12, 8), (3, 12, 4), (3, 8, 12)):
        assert differences({"x.experts.gate_up_proj": Tensor(shape, flat=True)}, split), shape


def test_a_wrong_spec_is_noticed() -> None:
    config = base("qwen2")
    spec = read_config(config, "qwen2")
    groups = spec.groups
    assert compare(spec, config) == []
    layer = groups[1]
    without = replace(layer, blocks=layer.blocks[1:])
    assert compare(replace(spec, groups=(groups[0], without, *groups[2:])), config)
    again = replace(layer, blocks=(*layer.blocks, layer.blocks[0]))
    assert compare(replace(spec, groups=(groups[0], again, *groups[2:])), config)
    fewer = replace(layer, indices=layer.indices[:-1])
    assert compare(replace(spec, groups=(groups[0], fewer, *groups[2:])), config)


def test_every_family_that_transformers_has_is_judged() -> None:
    if not SHARED.is_dir():
        pytest.skip("needs the reference configs in the folder `shared` beside the repository")
    judged = {*BASES, *cases_c.BASES, *cases_d.BASES} | {p.config["model_type"] for p in presets()}
    judged.add("step3p5")  # the text part of step3p7, which is judged as a whole
    for path in Path(__file__).parent.glob("test_*.py"):
        text = path.read_text()
        if "compare(" in text:
            judged |= {family for family in FAMILIES if f'"{family}"' in text}
            judged |= {
                json.loads(config.read_text()).get("model_type")
                for config in SHARED.glob("*.json")
                if config.stem in text
            }
    assert {family for family in FAMILIES if is_built(family)} - judged == set()
    assert set(BASES) == set(ALTERED)
    assert all(len(changes) >= 2 for changes in ALTERED.values())


def test_multi_token_prediction_is_apart() -> None:
    config = load("Qwen__Qwen3.5-35B-A3B")
    spec = read_config(config, "qwen3.5")
    with_mtp, faults = ours(spec, mtp=True)
    assert faults == []
    extra = {name for name in with_mtp if name.startswith("mtp.")}
    assert extra == set(with_mtp) - set(ours(spec)[0])
    assert not any(name.startswith("mtp.") for name in theirs(config))
