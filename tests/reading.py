"""Presets as the tests of the folds use them."""

from __future__ import annotations

from typing import Any

import pytest

from moeplan.families import FAMILIES
from moeplan.load import load_preset
from moeplan.model.spec import ModelSpec
from moeplan.presets import preset, presets

__all__ = ["ONE_OF_EACH_FAMILY", "READABLE", "digits", "spec_of"]

READABLE = [p.name for p in presets() if p.config.get("model_type") in FAMILIES]
"""Names of the presets whose family is read."""


def _families() -> dict[str, str]:
    return {str(preset(name).config["model_type"]): name for name in READABLE}


ONE_OF_EACH_FAMILY = sorted(_families().values())
"""One readable preset of each model type."""


def spec_of(name: str) -> ModelSpec:
    """The model of a preset, or a skip while no family reads its config."""
    kind = preset(name).config.get("model_type")
    if kind not in FAMILIES:
        pytest.skip(f"no family reads model_type {kind!r} yet")
    return load_preset(name)


def digits(value: Any, like: str, scale: float = 1e9) -> str:
    """`value` written as `like` is: every digit ("46,702"), or so many decimals of `scale`."""
    if "." not in like:
        return f"{value:,}"
    return f"{value / scale:.{len(like.partition('.')[2])}f}"
