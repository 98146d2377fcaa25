"""Presets: how they are found, what is refused, and that each one is read as it is written."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

import moeplan
from moeplan.errors import UserError
from moeplan.load import load_model, load_preset
from moeplan.presets import preset, presets
from tests.reading import READABLE, spec_of

FOLDER = Path(moeplan.__file__).parent / "data" / "models"


def raw(stem: str) -> dict[str, Any]:
    """The data file itself."""
    return tomllib.loads((FOLDER / f"{stem}.toml").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------ by name
@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("mixtral", "mixtral-8x7b"),
        ("deepseek-v3", "deepseek-v3"),
        ("qwen3-30b", "qwen3-30b-a3b"),
        ("  Mixtral-8x7B ", "mixtral-8x7b"),
        ("QWEN3_30B", "qwen3-30b-a3b"),
        ("gpt_oss_120b", "gpt-oss-120b"),
    ],
)
def test_names_and_aliases_in_any_case(word: str, name: str) -> None:
    assert preset(word).name == name


def test_every_alias_leads_to_a_preset_and_hides_none() -> None:
    names = {p.name for p in presets()}
    for alias, target in raw("aliases").items():
        assert target in names, alias
        assert alias not in names, f"{alias} is an alias and a preset"
        assert preset(alias).name == target
        assert alias in preset(target).aliases


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("mixtrall", "did you mean 'mixtral'"),
        ("depseek-v3", "did you mean 'deepseek-v3'"),
        ("qwen3-30b-a3", "did you mean 'qwen3-30b-a3b'"),
        ("", "is unknown"),
        ("aliases", "is unknown"),
        ("../models/mixtral-8x7b", "is unknown"),
        ("mixtral-8x7b.toml", "did you mean 'mixtral-8x7b'"),
        ("mixtral\0", "is unknown"),
        ("x" * 200, "is unknown"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(word: str, hint: str) -> None:
    with pytest.raises(UserError, match="`moeplan presets` lists them") as refused:
        preset(word)
    assert hint in str(refused.value)


def test_search_takes_every_word() -> None:
    def found(text: str) -> set[str]:
        return {p.name for p in presets(text)}

    assert found("mixtral") == {"mixtral-8x7b", "mixtral-8x22b"}
    assert found("MIXTRAL 22b") == {"mixtral-8x22b"}
    assert found("deepseek_v2") >= {"deepseek-v2", "deepseek-v2-lite"}  # by model type
    assert found("no such model") == set()
    assert found("") == {path.stem for path in FOLDER.glob("*.toml")} - {"aliases"}


# ------------------------------------------------------------------------------------- as read
def test_there_are_enough_and_the_usual_ones() -> None:
    assert len(READABLE) >= 25
    usual = {"mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "gpt-oss-120b", "llama-3.1-8b"}
    assert usual <= set(READABLE)


@pytest.mark.parametrize("name", READABLE)
def test_a_preset_is_read_without_leftovers(name: str) -> None:
    spec, entry = spec_of(name), preset(name)
    assert spec.unread == ()  # a preset's file is known: each of its keys is read or irrelevant
    assert (spec.name, spec.title) == (entry.name, entry.title)
    assert entry.source in spec.source
    assert entry.checked in spec.source
    if entry.notes:
        assert entry.notes in spec.notes


@pytest.mark.parametrize("name", READABLE)
def test_a_preset_names_itself_as_the_origin_of_its_numbers(name: str) -> None:
    hidden = spec_of(name).hidden
    assert hidden.source is not None
    assert hidden.source.kind == "config"
    assert f"preset {name}" in hidden.source.where


def test_keys_that_the_vendor_sets_to_null() -> None:
    """TOML has no null, and null is not the same as absent: it says that there is none."""
    for entry in presets():
        data = raw(entry.name)
        for path in data.get("null_keys", ()):
            here: Any = entry.config
            for part in path.split("."):
                assert part in here, f"{entry.name}: {path}"
                here = here[part]
            assert here is None


def test_a_preset_is_loaded_once_and_whole() -> None:
    assert load_preset("mixtral") is load_preset("mixtral")
    assert load_model("mixtral") is load_preset("mixtral")
    spec = load_preset("mixtral")
    assert load_model(spec) is spec
