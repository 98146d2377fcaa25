"""From what the user names (preset, path, mapping) to a `ModelSpec`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from moeplan.errors import UserError
from moeplan.families import read_config
from moeplan.model.spec import ModelSpec
from moeplan.presets import preset

__all__ = [
    "config_data",
    "load_config",
    "load_model",
    "load_preset",
    "looks_like_path",
    "read_json",
]

_QUANTISATION_FILE = "hf_quant_config.json"


@cache
def load_preset(name: str) -> ModelSpec:
    """The model of a preset; its provenance names the preset's source and date."""
    found = preset(name)
    path = f"preset {found.name}"
    spec = read_config(found.config, path, origin=path)
    notes = (*spec.notes, found.notes) if found.notes else spec.notes
    source = f"{found.source}, checked {found.checked}"
    return replace(spec, name=found.name, title=found.title, source=source, notes=notes)


def load_config(path: str | Path) -> ModelSpec:
    """The model of a `config.json`, or of a folder that holds one.

    A quantisation file beside it (hf_quant_config.json) is read with it.
    """
    file, data = config_data(path)
    spec = read_config(data, str(path))
    name = file.parent.name if file.name == "config.json" else file.stem
    return replace(spec, name=name or spec.name, title=name or spec.name, source=str(path))


def config_data(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file of a config, or of the folder that holds it, and its keys with those beside it."""
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
        if not file.is_file():
            raise UserError(f"{path}: the folder holds no config.json")
    data = read_json(file)
    beside = file.with_name(_QUANTISATION_FILE)
    if beside.is_file():
        from moeplan.families.quantization import merge_quant_config

        data = merge_quant_config(data, read_json(beside), str(beside))
    return file, data


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError where there is none, or a key stands twice."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{file}: cannot be read as text ({problem})") from None
    try:
        data = json.loads(text, object_pairs_hook=partial(_no_duplicates, file))
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{file}: not valid JSON ({problem})") from None
    if not isinstance(data, dict):
        raise UserError(f"{file}: expected an object of keys, found {type(data).__name__}")
    return data


def _no_duplicates(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out and out[key] != value:
            raise UserError(f"{file}: key {key!r} is given twice, with different values")
        out[key] = value
    return out


def load_model(model: str | Path | Mapping[str, Any] | ModelSpec) -> ModelSpec:
    """A preset's name, a path to a config file or folder, a parsed config, or a spec itself."""
    if isinstance(model, ModelSpec):
        return model
    if isinstance(model, Mapping):
        return read_config(model, "config")
    if isinstance(model, Path) or looks_like_path(model):
        return load_config(model)
    return load_preset(model)


def looks_like_path(text: str) -> bool:
    """Whether a model's name is a path; else it is a preset's.

    A bare name is a path too where no preset has it and a folder of that name holds a config.json.
    """
    if text.endswith(".json") or "/" in text or "\\" in text or text in (".", ".."):
        return True
    return (Path(text) / "config.json").is_file() and not _is_preset(text)


def _is_preset(name: str) -> bool:
    try:
        preset(name)
    except UserError:
        return False
    return True
