"""Points from a CSV file whose columns say what they are.

Columns that no kind knows are kept as they stand and come back beside the prediction.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from moeplan.calibration.loads import parse_distribution
from moeplan.calibration.points import COLUMNS, OPTIONAL, Kind, Points
from moeplan.errors import UserError, near_miss

__all__ = ["column_of_numbers", "read_points", "read_rows", "refuse"]

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
LATENCY = "latency_ms"
_TEXTS = ("distribution",)
_FLAGS = ("gated", "weight_on_input")
_FRACTIONS = ("weight_bytes", "moved")
_READABLE: tuple[Kind, ...] = ("moe", "gemm")
_LARGEST = 2**40


def read_points(path: str | Path) -> Points:
    """The points of a CSV file with a header line; its columns say of which kind they are.

    Columns that are not known are kept as they stand, unless they look like a misspelt one. Raises
    UserError that names the file, the line and the column.
    """
    path = Path(path)
    header, rows = read_rows(path)
    kind = _kind_of(header, path)
    known = (*COLUMNS[kind], *OPTIONAL[kind], LATENCY)
    _check_spelling(header, known, path)
    lines = np.array([number for number, _ in rows])
    cells = {
        name: [row[place] for _, row in rows] for place, name in enumerate(header) if name in known
    }
    columns = {n: _column(n, texts, lines, path) for n, texts in cells.items() if n != LATENCY}
    seconds = None
    if LATENCY in cells:
        seconds = column_of_numbers(LATENCY, cells[LATENCY], lines, path) * 1e-3
        refuse(seconds <= 0, LATENCY, cells[LATENCY], lines, path, "a time above 0")
    extra = {
        name: np.array([row[place] for _, row in rows])
        for place, name in enumerate(header)
        if name not in known
    }
    points = Points(kind, columns, seconds, source=str(path), lines=lines, extra=extra)
    if kind == "moe":
        _check_moe(points, path)
    return points


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and lines of a CSV file, each line with its number. Raises UserError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise UserError(f"{path}: cannot be read as CSV ({problem})") from None
    if not header or not rows:
        raise UserError(f"{path}: a header line and at least one line of values are needed")
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise UserError(f"{path}, line 1: the column {min(twice)!r} stands there twice")
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(row)} values stand under {len(header)} columns"
            )
    return header, rows


def _kind_of(header: Sequence[str], path: Path) -> Kind:
    for kind in _READABLE:
        if set(COLUMNS[kind]) <= set(header):
            return kind
    shared = {kind: len(set(COLUMNS[kind]) & set(header)) for kind in _READABLE}
    likely: Kind = max(_READABLE, key=lambda kind: shared[kind])
    missing = next(name for name in COLUMNS[likely] if name not in header)
    known = "; ".join(f"{kind}: {', '.join(COLUMNS[kind])}" for kind in _READABLE)
    raise UserError(
        f"{path}, line 1: the column {missing!r} is missing{near_miss(missing, header)}; "
        f"columns of the kinds that are known: {known}; collective: collective, num_gpus, "
        "message_elements_half (or message_bytes); exchange (DeepEP): num_token, hidden_size, "
        "num_topk, num_experts"
    )


def _check_spelling(header: Sequence[str], known: Sequence[str], path: Path) -> None:
    absent = [name for name in known if name not in header]
    for name in header:
        hint = near_miss(name, absent) if name not in known else ""
        if hint:
            raise UserError(f"{path}, line 1: the column {name!r} is not known{hint}")


def _column(name: str, texts: Sequence[str], lines: _Array, path: Path) -> _Array:
    if name in _TEXTS:
        for place, text in enumerate(texts):
            parse_distribution(text, f"{path}, line {lines[place]}, {name}")
        return np.array([text.strip().lower() for text in texts])
    if name in _FLAGS:
        flags = [text.strip().lower() for text in texts]
        bad = np.array([flag not in ("0", "1", "true", "false") for flag in flags])
        refuse(bad, name, texts, lines, path, "0 or 1")
        return np.array([flag in ("1", "true") for flag in flags])
    numbers = column_of_numbers(name, texts, lines, path)
    if name in _FRACTIONS:
        refuse(numbers <= 0, name, texts, lines, path, "a number above 0")
        return numbers
    wrong = (numbers < 1) | (numbers > _LARGEST) | (numbers != np.floor(numbers))
    refuse(wrong, name, texts, lines, path, "a whole number of at least 1")
    return numbers.astype(np.int64)


def column_of_numbers(name: str, texts: Sequence[str], lines: _Array, path: Path) -> _Array:
    """A column as finite numbers. Raises UserError that names the first line where it is not."""
    try:
        out = np.array(texts, dtype=np.float64)
    except ValueError:
        out = np.array([_number(text) for text in texts])
    refuse(~np.isfinite(out), name, texts, lines, path, "a number")
    return out


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def refuse(
    bad: _Array, name: str, texts: Sequence[str], lines: _Array, path: Path, allowed: str
) -> None:
    """Raise UserError for the first line that is bad: what stands there, and what is allowed."""
    if bad.any():
        place = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{path}, line {lines[place]}, column {name}: {texts[place].strip()!r} is given and "
            f"{allowed} is needed"
        )


def _check_moe(points: Points, path: Path) -> None:
    """What must divide what, said of the first line where it does not."""
    for part, whole in (("moe_tp_size", "inter_size"), ("moe_ep_size", "num_experts")):
        bad = points[whole] % points[part] != 0
        if bad.any():
            place = int(np.flatnonzero(bad)[0])
            raise UserError(
                f"{path}, line {_line(points, place)}, column {part}: {points[part][place]} does "
                f"not divide {whole} = {points[whole][place]}"
            )
    bad = points["topk"] > points["num_experts"]
    if bad.any():
        place = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{path}, line {_line(points, place)}, column topk: {points['topk'][place]} is more "
            f"than num_experts = {points['num_experts'][place]}"
        )


def _line(points: Points, place: int) -> int:
    return 0 if points.lines is None else int(points.lines[place])
