"""The preset files as data: well formed, sourced, and reachable by one unambiguous name each.

What a preset means (layers, parameters) is checked where configurations are read.
"""

from __future__ import annotations

import datetime
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODELS = Path(__file__).parents[2] / "moeplan" / "data" / "models"
FILES = sorted(path for path in MODELS.glob("*.toml") if path.name != "aliases.toml")
STEMS = {path.name.removesuffix(".toml") for path in FILES}
ALIASES_FILE = MODELS / "aliases.toml"

KNOWN_TOP_LEVEL = {
    "title", "source", "checked", "aliases", "published", "notes", "null_keys", "config",
}  # fmt: skip
BOOKKEEPING = {
    "auto_map", "bos_token_id", "eos_token_id", "initializer_range", "pad_token_id",
    "transformers_version", "use_cache",
}  # fmt: skip
FOUNDATIONS = {
    "dbrx", "deepseek-moe-16b", "deepseek-r1", "deepseek-v2", "deepseek-v2-lite", "deepseek-v3",
    "deepseek-v3.1", "glm-4.5", "glm-4.5-air", "gpt-oss-120b", "gpt-oss-20b",
    "granite-3.1-1b-a400m", "granite-3.1-3b-a800m", "grok-1", "kimi-k2", "llama-3.1-405b",
    "llama-3.1-70b", "llama-3.1-8b", "llama-3.2-1b", "llama4-maverick", "llama4-scout",
    "minimax-m2", "mistral-7b", "mixtral-8x22b", "mixtral-8x7b", "moonlight-16b-a3b",
    "olmoe-1b-7b", "phi-3.5-moe", "phi-mini-moe", "qwen1.5-moe-a2.7b", "qwen2-57b-a14b",
    "qwen3-235b-a22b", "qwen3-30b-a3b", "qwen3-30b-a3b-fp8", "qwen3-32b", "qwen3-4b", "qwen3-8b",
    "qwen3-coder-480b-a35b", "qwen3-next-80b-a3b", "qwen3.5-35b-a3b", "switch-base-32",
    "switch-base-8", "switch-c-2048",
}  # fmt: skip
PARSE_SECONDS = 0.05
"""A listing reads every preset, so one file may cost a small part of a keystroke's patience."""


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def aliases() -> dict[str, Any]:
    return read(ALIASES_FILE)


def keys_below(table: dict[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        yield key
        if isinstance(value, dict):
            yield from keys_below(value)


def has_path(table: dict[str, Any], dotted: str) -> bool:
    """Whether `dotted` names a key of `table`; a key is never itself dotted in these files."""
    *parents, last = dotted.split(".")
    for parent in parents:
        table = table.get(parent, {})
    return last in table


every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def test_the_foundation_families_are_all_there() -> None:
    assert sorted(FOUNDATIONS - STEMS) == []


@every_file
def test_a_preset_says_what_it_is_and_where_it_came_from(path: Path) -> None:
    preset = read(path)
    assert set(preset) <= KNOWN_TOP_LEVEL
    for field in ("title", "source"):
        assert preset[field].strip(), field
    assert datetime.date.fromisoformat(preset["checked"]) >= datetime.date(2025, 1, 1)
    named_somewhere = ("https://" in preset["source"]) or ("documentation" in preset["source"])
    assert named_somewhere or preset["source"].startswith("transformers'"), preset["source"]
    for field in ("published", "notes"):
        assert preset.get(field, "something").strip(), f"{field} is empty: leave it out"


@every_file
def test_the_config_names_its_family_and_carries_no_bookkeeping(path: Path) -> None:
    config = read(path)["config"]
    assert re.fullmatch(r"[a-z0-9_-]+", config["model_type"])
    assert sorted(BOOKKEEPING & set(keys_below(config))) == []


@every_file
def test_null_keys_are_absent_from_the_config(path: Path) -> None:
    """TOML has no null: a key that the vendor sets to null is listed, and then has no value."""
    preset = read(path)
    null_keys = preset.get("null_keys", [])
    assert len(null_keys) == len(set(null_keys))
    assert [key for key in null_keys if has_path(preset["config"], key)] == []


@every_file
def test_file_names_are_plain_and_lower_case(path: Path) -> None:
    assert re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", path.name.removesuffix(".toml"))


@every_file
def test_a_preset_parses_quickly(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    best = min(timed(text) for _ in range(3))
    assert best < PARSE_SECONDS, f"{best:.3f} s for {len(text)} characters"


def timed(text: str) -> float:
    start = time.perf_counter()
    tomllib.loads(text)
    return time.perf_counter() - start


def test_aliases_are_flat_and_point_at_presets() -> None:
    # A repeated key is an error of the TOML parser itself, so duplicates cannot hide here.
    table = aliases()
    assert table
    assert sorted(alias for alias, stem in table.items() if stem not in STEMS) == []


def test_no_alias_shadows_a_preset_or_differs_from_another_by_case_only() -> None:
    table = aliases()
    assert sorted(set(table) & STEMS) == []
    assert [alias for alias in table if alias != alias.lower()] == []


def test_each_preset_lists_exactly_the_aliases_that_lead_to_it() -> None:
    listed = {(alias, path.name.removesuffix(".toml")) for path in FILES
              for alias in read(path)["aliases"]}  # fmt: skip
    assert listed == set(aliases().items())


def test_names_people_type_find_a_preset() -> None:
    table = aliases()
    for name in ("mixtral", "mixtral-8x22b", "deepseek-v3", "deepseek-r1", "qwen3-30b",
                 "qwen3-235b", "gpt-oss-120b", "kimi-k2", "glm-4.5-air", "olmoe", "dbrx",
                 "llama4-scout", "llama4-maverick"):  # fmt: skip
        assert table.get(name, name) in STEMS, name
