"""From a config file to a `ModelSpec`: one small function per model type, one table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeAlias

from moeplan.errors import near_miss
from moeplan.families.reader import Config, shown
from moeplan.model.spec import ModelSpec

__all__ = ["FAMILIES", "agree_on_class", "family", "read_config", "read_with_keys"]

Family: TypeAlias = Callable[[Config], ModelSpec]

# model_type -> "module.function"; a module is imported when one of its models is read
FAMILIES: dict[str, str] = {
    "afmoe": "afmoe.afmoe",
    "arctic": "arctic.arctic",
    "aria": "aria.aria",
    "aria_text": "aria.aria_text",
    "axk1": "axk.axk1",
    "axk2": "axk.axk2",
    "bailing_hybrid": "bailing_hybrid.bailing_hybrid",
    "bailing_moe": "bailing.bailing_moe",
    "bailing_moe_linear": "bailing.bailing_moe_linear",
    "bailing_moe_v2": "bailing.bailing_moe_v2",
    "beam": "beam.beam",
    "cohere2_moe": "cohere2_moe.cohere2_moe",
    "dbrx": "dbrx.dbrx",
    "deepseek": "deepseek.deepseek",
    "deepseek_ocr2": "ocr.deepseek_ocr2",
    "deepseek_v2": "deepseek.deepseek_v2",
    "deepseek_v3": "deepseek.deepseek_v3",
    "deepseek_v32": "deepseek_sparse.deepseek_v32",
    "deepseek_v4": "deepseek_v4.deepseek_v4",
    "deepseek_vl_v2": "wrappers.wrapped",
    "diffusion_gemma": "gemma.diffusion_gemma",
    "doge": "doge.doge",
    "dots1": "dots.dots1",
    "dots3_note": "dots3.dots3_note",
    "dots3_note_text": "dots3.dots3_note_text",
    "ernie": "ernie.ernie",
    "ernie4_5_moe": "ernie.ernie4_5_moe",
    "ernie4_5_moe_vl": "ernie.ernie4_5_moe_vl",
    "ernie4_5_vl_moe": "ernie.ernie4_5_vl_moe",
    "exaone_moe": "exaone_moe.exaone_moe",
    "flex_olmo": "flex_olmo.flex_olmo",
    "flint": "flint.flint",
    "gemma4": "gemma.gemma4",
    "gemma4_text": "gemma.gemma4_text",
    "git": "grok.grok_2",
    "glam": "papers.glam",
    "glm4_moe": "glm.glm4_moe",
    "glm4_moe_lite": "glm.glm4_moe_lite",
    "glm4v_moe": "vision_language.glm4v_moe",
    "glm5_next": "glm5_next.glm5_next",
    "glm_moe_dsa": "deepseek_sparse.glm_moe_dsa",
    "gpt_oss": "gpt_oss.gpt_oss",
    "granitemoe": "granitemoe.granitemoe",
    "granitemoe_swa": "granite_hybrid.granitemoe_swa",
    "granitemoehybrid": "granite_hybrid.granitemoehybrid",
    "granitemoeshared": "granite_hybrid.granitemoeshared",
    "grok-1": "grok.grok_1",
    "gshard": "papers.gshard",
    "hunyuan": "hunyuan.hunyuan",
    "hunyuan_v1_moe": "hunyuan.hunyuan_v1_moe",
    "hy_v3": "hy_v3.hy_v3",
    "hy_v4": "hy_v4.hy_v4",
    "inkling2": "inkling.inkling2",
    "inkling_mm_model": "inkling.inkling_mm_model",
    "interns1": "wrappers.wrapped",
    "internvl": "wrappers.wrapped",
    "internvl_chat": "wrappers.wrapped",
    "jamba": "jamba.jamba",
    "jetmoe": "jetmoe.jetmoe",
    "kimi_k2": "deepseek.deepseek_v3",
    "kimi_k25": "wrappers.wrapped",
    "kimi_linear": "kimi_linear.kimi_linear",
    "kimi_vl": "wrappers.wrapped",
    "kolibri1": "flint.kolibri1",
    "laguna": "laguna.laguna",
    "lfm2_moe": "lfm2.lfm2_moe",
    "lfm2_vl": "wrappers.wrapped",
    "lfm3_vl": "wrappers.wrapped",
    "llama": "dense.llama",
    "llama4": "llama4.llama4",
    "llama4_text": "llama4.llama4_text",
    "llava": "wrappers.wrapped",
    "llava_next": "wrappers.wrapped",
    "llava_next_video": "wrappers.wrapped",
    "llava_onevision": "wrappers.wrapped",
    "longcat_flash": "longcat.longcat_flash",
    "mellum": "laguna.mellum",
    "mimo_v2_flash": "mimo.mimo_v2_flash",
    "minimax": "minimax.minimax",
    "minimax_m1": "minimax.minimax",
    "minimax_m2": "minimax_m2.minimax_m2",
    "minimax_m3_vl": "minimax_m3.minimax_m3_vl",
    "minimax_text_01": "minimax.minimax",
    "minimax_vl_01": "wrappers.wrapped",
    "mistral": "dense.mistral",
    "mistral3": "vision_language.mistral3",
    "mistral4": "vision_language.mistral4",
    "mistral_large4": "mistral_large4.mistral_large4",
    "mixtral": "mixtral.mixtral",
    "muse_spark": "muse_spark.muse_spark",
    "nemo_speechlm": "wrappers.wrapped",
    "nemotron_h": "nemotron_h.nemotron_h",
    "nemotron_h_omni": "wrappers.wrapped",
    "nllb-moe": "nllb.nllb_moe",
    "olmoe": "olmoe.olmoe",
    "openai_privacy_filter": "privacy_filter.openai_privacy_filter",
    "ovis2": "wrappers.wrapped",
    "phimoe": "phimoe.phimoe",
    "qwen2": "dense.qwen2",
    "qwen2_moe": "qwen.qwen2_moe",
    "qwen3": "dense.qwen3",
    "qwen3_5_moe": "qwen_hybrid.qwen3_5_moe",
    "qwen3_5_moe_text": "qwen_hybrid.qwen3_5_moe_text",
    "qwen3_moe": "qwen.qwen3_moe",
    "qwen3_next": "qwen_hybrid.qwen3_next",
    "qwen3_omni_moe": "vision_language.qwen3_omni_moe",
    "qwen3_omni_moe_thinker": "vision_language.qwen3_omni_moe_thinker",
    "qwen3_vl_moe": "vision_language.qwen3_vl_moe",
    "qwen4_exp": "qwen4_exp.qwen4_exp",
    "qwen4_exp_text": "qwen4_exp.qwen4_exp_text",
    "solar_open": "solar.solar_open",
    "step3_text": "step3.step3_text",
    "step3_vl": "step3.step3_vl",
    "step3p5": "step3p5.step3p5",
    "step3p7": "step3p5.step3p7",
    "switch_transformers": "switch.switch_transformers",
    "unlimited_ocr": "ocr.unlimited_ocr",
    "vipllava": "wrappers.wrapped",
    "zaya": "zaya.zaya",
}

# Model types whose files name the class of another one.
_NAMED_AS = {
    "bailing_moe": "bailing_moe_v2",
    "ernie4_5_moe_vl": "ernie4_5_vl_moe",
    "git": "grok-1",
}
# Baselines without experts; a file of any other family that leaves no layer with experts is wrong.
_DENSE = frozenset(("llama", "mistral", "qwen2", "qwen3"))


def family(model_type: str) -> Family:
    """The function that reads files of a model type, which must be in the table."""
    module, function = FAMILIES[model_type].rsplit(".", 1)
    found: Family = getattr(import_module(f"moeplan.families.{module}"), function)
    return found


def read_config(data: Mapping[str, Any], path: str, *, origin: str = "config") -> ModelSpec:
    """Read a parsed config file.

    `path` names the file in messages; `origin` says more about it (a preset's source). Raises
    UserError, naming file and key, for anything that bears on the result and is not understood.
    """
    return _read(Config(data, path, origin=origin))


def read_with_keys(data: Mapping[str, Any], path: str) -> tuple[ModelSpec, Config]:
    """The model, and the config that knows which keys its family looked for."""
    config = Config(data, path)
    return _read(config), config


def _read(config: Config) -> ModelSpec:
    _, model_type = config.raw("model_type", default=_by_class(config))
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        hint = near_miss(model_type, FAMILIES) if isinstance(model_type, str) else ""
        problem = f"is {shown(model_type)}, which is not read{hint}; `moeplan families` lists all"
        raise config.fail("model_type", problem)
    agree_on_class(config, model_type)
    spec = family(model_type)(config)
    if spec.moe is None and model_type not in _DENSE:
        raise config.fail("model_type", f"is {model_type!r}, but no layer of it would hold experts")
    return spec


def _by_class(config: Config) -> str:
    """The model type whose class `architectures` names, for files that do not say it."""
    _, names = config.raw("architectures", default=None)
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    words = re.sub("[^a-z0-9]", "", name.lower())
    stems = {re.sub("[^a-z0-9]", "", other): other for other in FAMILIES}
    found = [other for stem, other in stems.items() if re.match(f"{stem}(for|model|lm)", words)]
    if len(found) != 1:
        config.raw("model_type")  # says that it is missing
        return ""
    if "model_type" not in config:
        config.note(f"model_type is absent: {found[0]}, whose class architectures names")
    return found[0]


def agree_on_class(config: Config, model_type: str) -> None:
    """Refuse a file whose `architectures` names the class of another family."""
    _, names = config.raw("architectures", default=None)
    for name in names if isinstance(names, list) else ():
        words = re.sub("[^a-z0-9]", "", name.lower()) if isinstance(name, str) else ""
        for other, target in FAMILIES.items():
            stem = re.sub("[^a-z0-9]", "", other)
            if other == _NAMED_AS.get(model_type) or target == FAMILIES[model_type]:
                continue
            if re.match(f"{stem}(for|model|lm)", words):
                problem = f"is {model_type!r}, but architectures names {name}, of {other}"
                raise config.fail("model_type", problem)
