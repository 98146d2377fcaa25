"""Searching presets: by every word that a user may know a model by."""

from __future__ import annotations

import pytest

from moeplan.errors import UserError
from moeplan.report.lists import preset_rows


def found(search: str) -> set[str]:
    return {row["name"] for row in preset_rows(search)}


@pytest.mark.parametrize(
    ("search", "name"),
    [
        ("mixtral", "mixtral-8x7b"),
        ("xiaomi", "mimo-v2-flash"),  # maker
        ("moonshot 48b", "kimi-linear-48b-a3b"),  # maker and size
        ("glm_moe_dsa", "glm-5"),  # model type
        ("MIXTRAL 22B", "mixtral-8x22b"),  # any case, two words
        ("mamba-2", "nemotron-3-nano-30b-a3b"),  # mixer
        ("zero-computation", "longcat-flash"),  # feed-forward
        ("dsv3", "deepseek-v3"),  # alias
    ],
)
def test_words_that_find_a_preset(search: str, name: str) -> None:
    assert name in found(search)
    assert len(found(search)) < len(found(""))


def test_every_word_must_be_held() -> None:
    assert found("qwen 30b") == found("qwen") & found("30b")


def test_every_preset_is_found_by_each_of_its_names_and_has_a_source() -> None:
    rows = preset_rows()
    assert len(rows) >= 60
    for row in rows:
        assert row["source"]
        assert row["checked"][:4] == "2026"
    some = rows[:: len(rows) // 6]
    assert all(row["name"] in found(word) for row in some for word in (row["name"], row["family"]))


@pytest.mark.parametrize(
    ("search", "hint"), [("mixtrl", "'mixtral'"), ("xiomi", "'xiaomi"), ("qwen lightning", "")]
)
def test_nothing_found_is_said_with_a_near_miss(search: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"no preset holds '{search}'.*{hint}"):
        preset_rows(search)
