"""From a config file to a `ModelSpec`: one small function per model type, one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeAlias

from moeplan.errors import UserError, near_miss
from moeplan.families.reader import Config
from moeplan.model.spec import ModelSpec

__all__ = ["FAMILIES", "read_config"]

Family: TypeAlias = Callable[[Config], ModelSpec]

# model_type -> "module.function"; a module is imported when one of its models is read
FAMILIES: dict[str, str] = {
    "deepseek": "deepseek.deepseek",
    "deepseek_v2": "deepseek.deepseek_v2",
    "deepseek_v3": "deepseek.deepseek_v3",
    "glm4_moe": "glm.glm4_moe",
    "grok-1": "grok.grok_1",
    "kimi_k2": "deepseek.deepseek_v3",
    "llama": "dense.llama",
    "mistral": "dense.mistral",
    "mixtral": "mixtral.mixtral",
    "qwen3": "dense.qwen3",
    "switch_transformers": "switch.switch_transformers",
}


def _family(model_type: str) -> Family:
    module, function = FAMILIES[model_type].rsplit(".", 1)
    found: Family = getattr(import_module(f"moeplan.families.{module}"), function)
    return found


def read_config(data: Mapping[str, Any], path: str, *, origin: str = "config") -> ModelSpec:
    """Read a parsed config file.

    `path` names the file in messages; `origin` says more about it (a preset's source). Raises
    UserError, naming file and key, for anything that bears on the result and is not understood.
    """
    config = Config(data, path, origin=origin)
    _, model_type = config.raw("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        hint = near_miss(str(model_type), FAMILIES)
        raise config.fail("model_type", f"is {model_type!r}, which is not read{hint}; known: {known}")
    return _family(model_type)(config)
