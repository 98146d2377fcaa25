"""Record files: upgraded when read, written whole or not at all, named by device and subject."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moeplan.errors import UserError
from moeplan.profile.record import SCHEMA, Device, Record, now

__all__ = ["device_folder", "find_records", "load_record", "new_path", "save_record", "unfinished"]


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 called the rows of each expert `histogram`."""
    for case in data.get("cases", ()):
        if isinstance(case, dict) and "histogram" in case:
            case["rows_per_expert"] = case.pop("histogram")
    return data


def _from_2(data: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 had no cases that failed: such an error ended the run."""
    return data


_UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}
"""Schema number to the function that makes the next one of it."""


def _upgraded(data: dict[str, Any], path: Path) -> dict[str, Any]:
    version = data.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(
            f"{path}: schema_version is {version!r}; a profile record states the number of its "
            f"schema, 1 to {SCHEMA}"
        )
    if version > SCHEMA:
        raise UserError(
            f"{path}: written with record schema {version}, and this moeplan reads up to {SCHEMA}; "
            "install a newer moeplan to read it"
        )
    while version < SCHEMA:
        data = _UPGRADES[version](data)
        version += 1
        data["schema_version"] = version
    return data


def load_record(path: Path) -> Record:
    """Read a record of this schema or an older one. Raises UserError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such record") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read as text ({problem})") from None
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path}: not valid JSON ({problem})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a record, found {type(data).__name__}")
    try:
        return Record.model_validate(_upgraded(data, path))
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where or 'record'}: {first['msg']}") from None


_NUMBERS = re.compile(r"\[\s+((?:[-+\d.eE]+,?\s+)+)\]")


def _text(record: Record) -> str:
    """JSON of one field a line, with lists of numbers on one line each."""
    text = json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def save_record(record: Record, path: Path) -> None:
    """Write a record so that the file is always whole: the old one or the new one."""
    record.updated = now()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(_text(record))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name too
    finally:
        os.close(folder)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unnamed"


def device_folder(device: Device) -> str:
    """The folder of a device's records: its name, with `cpu-` in front of a processor's."""
    name = _slug(device.name)
    return name if device.kind == "cuda" or name.startswith("cpu-") else f"cpu-{name}"


def new_path(folder: Path, device: Device, name: str) -> Path:
    """`folder`/<device>/<name>_<date>.json, with a number where that is taken."""
    here, stem = folder / device_folder(device), f"{_slug(name)}_{now()[:10]}"
    path, number = here / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = here / f"{stem}-{number}.json"
    return path


def find_records(places: Sequence[Path]) -> list[Path]:
    """The record files at the places: files as they are, folders searched. UserError if none."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(p for p in place.rglob("*.json") if not p.name.startswith("."))
            if not inside:
                raise UserError(f"{place}: the folder holds no record (*.json)")
            found += inside
        else:
            found.append(place)
    return list(dict.fromkeys(found))


def unfinished(folder: Path, device: Device, name: str) -> Path | None:
    """The newest record of that device and name in `folder`, for a run to go on with."""
    pattern = f"{_slug(name)}_*.json"
    found = sorted((folder / device_folder(device)).glob(pattern), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None
