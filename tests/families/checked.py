"""What each model type was checked against, gathered from the tests themselves, for the docs."""

from __future__ import annotations

from typing import Any

from moeplan.families import FAMILIES
from moeplan.presets import preset, presets
from tests import meta
from tests.families import cases_c, cases_d, oracle_cases, test_flops_c, test_flops_d
from tests.oracle import is_built

__all__ = ["DIFFERENCES", "flat_ernie", "flops_checked", "small_config", "tensors_checked"]

# Where transformers is known to differ from the published model, or its classes count otherwise.
DIFFERENCES = {
    "deepseek_v4": "transformers adds the indexer's heads up one by one, not by a product",
    "diffusion_gemma": "transformers holds prompt and canvas layers apart; the file has them once, "
    "but for a scalar a layer",
    "doge": "transformers multiplies by every key and masks what was not kept",
    "ernie4_5_vl_moe": "released experts of text and images are one list, and the router is stored "
    "[in, out]",
    "inkling_mm_model": "transformers pads the head to the vocabulary; a file that names its rows "
    "is counted with them",
    "inkling2": "torch does not count how a token's earlier states are mixed: checked by hand",
    "jamba": "transformers' fallback of the scan is element-wise but for its last product",
    "lfm2_moe": "transformers' convolution computes outputs that it throws away",
    "llama4": "transformers runs every expert over every token",
    "longcat_flash": "transformers gives zero-computation experts weights that it never reads and "
    "the checkpoint does not have",
    "minimax": "transformers keeps decays as buffers, which follow from a layer's place",
    "nllb-moe": "transformers takes a 0/1 mask for the numbers of experts and runs them all",
    "qwen3_vl_moe": "released experts are stored [in, out], transformers keeps them [out, in]",
    "qwen4_exp": "transformers multiplies by every key and masks what was not picked; the n-gram "
    "table is one tensor there and parts in the file",
    "step3p7": "transformers gives windowed prediction layers the heads of full layers",
    "switch_transformers": "Switch-C's file says 12 decoder layers of which 15 are sparse; the "
    "preset has the 15 + 15 of its checkpoint",
    "zaya": "transformers runs skipped tokens through an expert and weighs them by nothing",
}
# Checked by tests of their own rather than in a list.
SINGLE = {
    "dbrx",
    "deepseek_v4",
    "diffusion_gemma",
    "inkling2",
    "inkling_mm_model",
    "longcat_flash",
    "nllb-moe",
    "openai_privacy_filter",
    "switch_transformers",
    "zaya",
}
SINGLE_SCANS = {"jamba", "lfm2_moe", "qwen4_exp_text"}


def flat_ernie(config: dict[str, Any]) -> dict[str, Any]:
    """A file of ERNIE 4.5 VL as it was first released: all in one, a number for each modality."""
    text = dict(config["text_config"])
    text.pop("mlp_layer_types", None)  # the first layer is dense
    experts = text.get("moe_num_experts", 64)
    text |= {"moe_num_experts": [experts, experts], "moe_layer_start_index": [1, 1]}
    return text | {"model_type": "ernie4_5_moe_vl", "vision_config": config["vision_config"]}


def tensors_checked(model_type: str) -> str:
    """What the tensors of a model type were compared with."""
    if FAMILIES[model_type] == "wrappers.wrapped":
        names = ", names by transformers" if is_built(model_type) else ""
        return f"as the text part{names}"
    if model_type == "ernie4_5_moe_vl":
        return "as ernie4_5_vl_moe"
    return "transformers" if is_built(model_type) else "published counts"


def _alike(model_type: str) -> set[str]:
    """A model type, its text part or whole, and those that the same function reads."""
    stem = model_type.removesuffix("_text").removesuffix("_thinker")
    same = {other for other, target in FAMILIES.items() if target == FAMILIES[model_type]}
    return same | {model_type, stem, f"{stem}_text", f"{stem}_thinker"}


def flops_checked(model_type: str) -> str:
    """Against what the FLOPs were counted: all of them, all but scans, or nothing."""
    listed = {family for family, _ in (*test_flops_c.EXACT, *test_flops_d.EXACT)}
    listed |= {family for family, _ in test_flops_d.MULTIMODAL} | SINGLE
    built = {str(preset(name).config["model_type"]) for name in meta.MODELS}
    scans = {family for family, *_ in (*test_flops_c.SCANS, *test_flops_d.SCANS)} | SINGLE_SCANS
    alike = _alike(model_type)
    if FAMILIES[model_type] == "wrappers.wrapped":
        return "as the text part"
    if alike & scans or model_type == "qwen3_next":
        return "torch's counter, scans by hand"
    return "torch's counter" if alike & (listed | built) else ""


def small_config(model_type: str) -> dict[str, object] | None:
    """A small config of a model type that has no preset, from the tests' cases."""
    if model_type == "ernie4_5_moe_vl":
        return flat_ernie(cases_d.case("ernie4_5_vl_moe", 0))
    for cases, make in (
        (cases_d.BASES, lambda: cases_d.case(model_type, -1)),
        (cases_c.BASES, lambda: cases_c.case(model_type)),
        (oracle_cases.BASES, lambda: oracle_cases.base(model_type)),
    ):
        if model_type in cases and not isinstance(cases[model_type], str):  # type: ignore[index]
            return make()
    wholes = [cases_d.case(name, -1) for name in cases_d.BASES] + [p.config for p in presets()]
    for whole in wholes:
        text = whole.get("text_config")
        if isinstance(text, dict) and text.get("model_type") == model_type:
            return text
    alike = _alike(model_type) - {model_type}
    found = next((p.config for p in presets() if p.config["model_type"] in alike), None)
    return None if found is None else dict(found) | {"model_type": model_type}
