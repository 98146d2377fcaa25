"""Presets: models as data files, found by their stem or by an alias."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from moeplan.errors import UserError, near_miss

__all__ = ["Preset", "names", "preset", "presets"]

_FOLDER = Path(__file__).parent / "data" / "models"
_ALIASES = "aliases"


@dataclass(frozen=True, eq=False)
class Preset:
    """A model's config with where it comes from; `published` is what its makers say of its size."""

    name: str
    title: str
    source: str
    checked: str
    config: dict[str, Any] = field(repr=False)
    aliases: tuple[str, ...] = ()
    published: str = ""
    notes: str = ""

    @property
    def organisation(self) -> str:
        """Who made the model: the owner of the repository in its source, or "" where none is."""
        found = re.search(r"huggingface\.co/([^/\s]+)/", self.source)
        return found[1] if found else ""

    @property
    def words(self) -> str:
        """What a search looks through: names, maker, model type, published sizes."""
        kind = str(self.config.get("model_type", ""))
        own = (self.name, self.title, kind, self.organisation, self.published, *self.aliases)
        return " ".join(own).lower()


@cache
def _aliases() -> dict[str, str]:
    with (_FOLDER / f"{_ALIASES}.toml").open("rb") as file:
        return dict(tomllib.load(file))


def names() -> list[str]:
    """Every name that `preset` takes, aliases too."""
    return sorted({*_names(), *_aliases()})


def _names() -> list[str]:
    return sorted(p.stem for p in _FOLDER.glob("*.toml") if p.stem != _ALIASES)


def _load(stem: str) -> Preset:
    with (_FOLDER / f"{stem}.toml").open("rb") as file:
        data = tomllib.load(file)
    return Preset(
        name=stem,
        title=data["title"],
        source=data["source"],
        checked=str(data["checked"]),
        config=_with_nulls(data["config"], data.get("null_keys", ())),
        aliases=tuple(a for a, target in _aliases().items() if target == stem),
        published=data.get("published", ""),
        notes=data.get("notes", ""),
    )


def _with_nulls(config: dict[str, Any], null_keys: Iterable[str]) -> dict[str, Any]:
    """Set the keys that the vendor's file sets to null, which TOML cannot say."""
    for path in null_keys:
        *outer, last = path.split(".")
        here = config
        for part in outer:
            here = here.setdefault(part, {})
        here[last] = None
    return config


@cache
def preset(name: str) -> Preset:
    """The preset of that name or alias, in any case; UserError with a near miss otherwise."""
    wanted = name.strip().lower().replace("_", "-")
    if "/" not in wanted and wanted != _ALIASES and (_FOLDER / f"{wanted}.toml").is_file():
        return _load(wanted)
    if wanted in _aliases():
        return _load(_aliases()[wanted])
    hint = near_miss(wanted, names())
    raise UserError(f"preset {name!r} is unknown{hint}; `moeplan presets` lists them")


def presets(search: str = "") -> list[Preset]:
    """All presets, or those that hold every word of `search` (see `Preset.words`)."""
    wanted = search.lower().split()
    every = (preset(stem) for stem in _names())
    return [entry for entry in every if all(word in entry.words for word in wanted)]
