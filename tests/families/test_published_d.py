"""Models that transformers does not have, by hand from their papers and files, and what it has.

Figures in billions are those of the papers and model cards.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from moeplan.errors import UserError
from moeplan.estimation.memory import kv_cache
from moeplan.estimation.parameters import active, count, parameters
from moeplan.families import FAMILIES, read_config
from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.presets import preset
from tests.families.checked import flat_ernie
from tests.oracle import ours


def _active(name: str) -> Any:
    return active(load_preset(name))["all"].value


# ----------------------------------------------------------------------------- by hand, to the last
def test_grok_2_by_hand() -> None:
    """64 layers: attention, a dense layer of 32768 beside 8 experts of 16384, four norms."""
    D, V, F, E = 8192, 131072, 16384, 8
    expert = 3 * D * F
    layer = 2 * D * D + 2 * D * 1024 + 3 * D * 32768 + E * expert + E * D + 4 * D
    assert count(load_preset("grok-2")) == 64 * layer + 2 * V * D + D
    assert _active("grok-2") == count(load_preset("grok-2")) - 64 * (E - 2) * expert
    assert count(load_preset("grok-2")) / 1e9 == pytest.approx(270, abs=0.5)
    assert _active("grok-2") / 1e9 == pytest.approx(115, abs=0.5)


def test_a_file_of_another_git_is_refused() -> None:
    config = {**preset("grok-2").config, "architectures": ["GitForCausalLM"]}
    with pytest.raises(UserError, match=r"architectures is \['GitForCausalLM'\].*read as Grok-2"):
        read_config(config, "git")


def test_gigachat_by_hand() -> None:
    """28 layers, the first dense; 64 experts of 1792 and two shared ones, 8 key-value heads."""
    D, V, F, E = 2048, 128256, 1792, 64
    attention = 2 * D * D + 2 * D * 8 * 128
    moe = E * D + (E + 2) * 3 * D * F
    whole = 28 * (attention + 2 * D) + 3 * D * 14336 + 27 * moe + 2 * V * D + D
    model = load_preset("gigachat-20b-a3b")
    assert count(model) == whole
    assert _active("gigachat-20b-a3b") == whole - 27 * (E - 6) * 3 * D * F
    assert kv_cache(model, "bf16", 1, 4096)["bytes_per_token"].value == 28 * 2 * 8 * 128 * 2


def test_zaya1_8b() -> None:
    """8.4 B and 760 M without the embedding (Zyphra); its four files hold 17.68 GB in bf16."""
    model = load_preset("zaya1-8b")
    table = 262272 * 2048
    assert (count(model) - table) / 1e9 == pytest.approx(8.4, abs=0.1)
    assert (_active("zaya1-8b") - table) / 1e9 == pytest.approx(0.76, abs=0.04)
    assert count(model) * 2 / 1e9 == pytest.approx(17.68, abs=0.005)


def test_the_first_files_of_ernie_4_5_vl_read_the_same() -> None:
    nested = preset("ernie-4.5-vl-28b-a3b").config
    flat = flat_ernie(nested) | {"moe_layer_end_index": [29, 28], "im_patch_id": 100295}
    assert ours(read_config(flat, "flat")) == ours(read_config(nested, "nested"))
    with pytest.raises(UserError, match="experts in different layers"):
        read_config(flat | {"moe_layer_start_index": [1, 2]}, "flat")
    with pytest.raises(UserError, match="differs for text and images"):
        read_config(flat | {"moe_num_experts": [64, 32]}, "flat")


def test_a_file_without_a_model_type_is_known_by_its_class() -> None:
    config = {k: v for k, v in preset("grok-1").config.items() if k != "model_type"}
    spec = read_config(config, "port")
    assert count(spec) == count(load_preset("grok-1"))
    assert any("model_type is absent: grok-1" in note for note in spec.notes)
    for classes in (None, [], ["SomethingForCausalLM"]):
        with pytest.raises(UserError, match="key model_type is missing"):
            read_config({**config, "architectures": classes}, "port")


@pytest.mark.parametrize("model_type", ["bailing_moe", "bailing_moe_v2"])
def test_ling_2_under_either_model_type(model_type: str, shared: Path) -> None:
    path = shared / "configs" / "inclusionAI__Ling-mini-2.0.json"
    config = json.loads(path.read_text())
    config |= {"model_type": model_type, "architectures": ["BailingMoeV2ForCausalLM"]}
    assert count(read_config(config, "ling")) / 1e9 == pytest.approx(16.2555, abs=0.0005)


def test_ling_lite() -> None:
    """16.8 B total, 2.75 B active; its head's rows are normalised as they are used."""
    config = {
        "architectures": ["BailingMoeForCausalLM"],
        "model_type": "bailing_moe",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "num_shared_experts": 2,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_hidden_layers": 28,
        "first_k_dense_replace": 0,
        "norm_head": True,
        "vocab_size": 126464,
    }
    model = read_config(config, "ling-lite")
    assert count(model) / 1e9 == pytest.approx(16.8, abs=0.05)
    assert active(model)["all"].value / 1e9 == pytest.approx(2.75, abs=0.005)


@pytest.mark.parametrize(
    ("name", "total", "definition", "touched"),
    [
        ("inkling", 975, "all", 41),
        ("ernie-4.5-vl-28b-a3b", 28.6, "without_embeddings", 3.09),
        ("privacy-filter", 1.4, "without_embeddings", 0.0506),
    ],
)
def test_published_counts(name: str, total: float, definition: str, touched: float) -> None:
    """975 B and 41 B active; 28 B and 3 B, without its tower; 50 M active beside the tables."""
    model = load_preset(name)
    assert count(model) / 1e9 == pytest.approx(total, rel=0.002)
    assert active(model)[definition].value / 1e9 == pytest.approx(touched, rel=0.002)


def test_ring_linear() -> None:
    """16.4 B and 1.6 B active, 957 M of them in layers; 104 B and 6.1 B in the larger one."""
    model = load_preset("ring-mini-linear-2.0")
    assert count(model) / 1e9 == pytest.approx(16.4, abs=0.05)
    found = active(model)
    assert found["all"].value / 1e9 == pytest.approx(1.6, abs=0.005)
    assert found["without_embeddings"].value / 1e6 == pytest.approx(957, abs=0.5)
    cache = kv_cache(model, "bf16", 1, 4096)
    assert cache["bytes_per_token"].value == 4 * 2 * 4 * 128 * 2
    assert cache["fixed_bytes"].value == 16 * 16 * 128 * 128 * 4
    larger = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
    larger |= {"intermediate_size": 9216, "moe_intermediate_size": 1024, "layer_group_size": 8}
    larger["moe_shared_expert_intermediate_size"] = 1024
    flash = read_config({**preset("ring-mini-linear-2.0").config, **larger}, "flash")
    assert count(flash) / 1e9 == pytest.approx(104, abs=0.5)
    assert active(flash)["without_embeddings"].value / 1e9 == pytest.approx(6.1, abs=0.1)


# -------------------------------------------------------------------------------------- from papers
GLAM = [  # hidden, layers, heads, head dimension, experts, vocabulary; total and active of table 4
    (8192, 64, 128, 128, 64, 256_000, 1161.7e9, 96.586e9),
    (4096, 32, 32, 128, 64, 32_000, 143e9, 9.8e9),
    (2048, 24, 16, 128, 64, 32_000, 27e9, 1.879e9),
    (2048, 24, 16, 128, 128, 32_000, 53e9, 1.881e9),
]


@pytest.mark.parametrize(("D", "L", "H", "dh", "E", "V", "total", "touched"), GLAM)
def test_glam(
    D: int, L: int, H: int, dh: int, E: int, V: int, total: float, touched: float
) -> None:
    """The smaller ones come out with a vocabulary of 32,000, the largest with 256,000."""
    config = {
        **preset("glam-64b-64e").config,
        "hidden_size": D,
        "intermediate_size": 4 * D,
        "num_hidden_layers": L,
        "num_attention_heads": H,
        "head_dim": dh,
        "num_experts": E,
        "vocab_size": V,
    }
    model = read_config(config, "glam")
    assert count(model) == pytest.approx(total, rel=0.025 if total < 1e11 else 0.005)
    assert active(model)["all"].value == pytest.approx(
        touched, rel=0.015 if touched < 1e10 else 3e-4
    )


@pytest.mark.parametrize(
    ("experts", "layers", "billions"),
    [
        (2048, 36, 600),
        (2048, 12, 200),
        (512, 36, 150),
        (512, 12, 50),
        (128, 36, 37),
        (128, 12, 12.5),
    ],
)
def test_gshard(experts: int, layers: int, billions: float) -> None:
    """Sizes as the paper rounds them; the experts' share by hand."""
    half = layers // 2
    config = {**preset("gshard-600b").config, "num_experts": experts}
    config |= {"encoder_layers": half, "decoder_layers": half}
    model = read_config(config, "gshard")
    found = parameters(model)["by_component"]["routed_experts"].value
    assert found == layers // 2 * experts * 2 * 1024 * 8192
    assert count(model) / 1e9 == pytest.approx(billions, rel=0.08)


# -------------------------------------------------------------------- what transformers has of them
# Directories of transformers' models that hold experts, and why no file of theirs is read.
LEFT_OUT = {
    "vitpose_backbone": "a vision backbone: all of its experts run, and are chosen by the dataset",
}
# Their other model types, which are parts of one that is read: towers, talkers, text parts.
PARTS = re.compile(
    r"_(text|vision|vision_model|vision_encoder|audio|audio_encoder|encoder|sam_vision_model"
    r"|talker_text|talker_code_predictor)$|^pixtral$"
)


def _with_experts() -> dict[str, list[str]]:
    """Directory of a model with a class for experts to the model types of its configurations."""
    transformers = pytest.importorskip("transformers", reason="compares with its models")
    found = {}
    for folder in sorted((Path(transformers.__file__).parent / "models").iterdir()):
        code = "".join(f.read_text(encoding="utf-8") for f in folder.glob("modeling_*.py"))
        classes = re.findall(r"^class (\w+)\(.*Module\):$", code, re.MULTILINE)
        own = "".join(word.capitalize() for word in folder.name.split("_"))
        held = [c for c in classes if re.search(r"Expert|Router|Moe|MoE", c.removeprefix(own))]
        if held and re.search(r"\bself\.(\w*experts?\w*|num_experts)\b", code):
            files = folder.glob("configuration_*.py")
            text = "".join(f.read_text(encoding="utf-8") for f in files)
            types = re.findall(r'^    model_type = "([^"]+)"$', text, re.MULTILINE)
            found[folder.name] = types
    return found


def test_every_model_of_transformers_with_experts_is_read_or_left_out_with_a_reason() -> None:
    found = _with_experts()
    assert len(found) > 60
    unread = {name: types for name, types in found.items() if not set(types) & set(FAMILIES)}
    assert set(unread) == set(LEFT_OUT)
    rest = {t for name, types in found.items() if name not in LEFT_OUT for t in types}
    assert {t for t in rest - set(FAMILIES) if not PARTS.search(t)} == set()


def test_a_text_model_alone_says_what_it_is_a_part_of() -> None:
    for family in ("qwen3_vl_moe_text", "glm4v_moe_text"):
        with pytest.raises(UserError, match=r"not read.*`moeplan families` lists all"):
            read_config({"model_type": family}, "file")


def test_zero_computation_experts_are_sent_nothing() -> None:
    from moeplan.api import estimate

    section = estimate("zaya1-8b", ep=16, node=8).tree["all_to_all"]
    assert section["expected_gpus"].value == pytest.approx(16 / 17)
    assert load_preset("zaya1-8b").first(MoE) is not None
