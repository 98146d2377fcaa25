"""Reading the fact files in ``moeplan/data``: tables by name, parsed when they are asked for.

Each file holds top-level tables only, so its text can be cut at the ``[name]`` lines and a small
command parses the one or two tables it needs: the whole of ``gpus.toml`` takes about 5 ms.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from moeplan.errors import UserError, near_miss
from moeplan.quantity import Source

__all__ = ["check_keys", "datasheet", "names", "table"]

_DATA = Path(__file__).parents[1] / "data"
_HEADER = re.compile(r"^\[([^\[\]]+)\]\n", re.MULTILINE)


@cache
def _texts(stem: str) -> Mapping[str, str]:
    pieces = _HEADER.split((_DATA / f"{stem}.toml").read_text(encoding="utf-8"))
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


@cache
def names(stem: str, prefix: str = "") -> tuple[str, ...]:
    """The tables of ``data/<stem>.toml`` that start with `prefix`, without it, in file order."""
    return tuple(name.removeprefix(prefix) for name in _texts(stem) if name.startswith(prefix))


@cache
def table(stem: str, name: str) -> Mapping[str, Any]:
    """One table of a data file; KeyError where there is none of that name."""
    return tomllib.loads(_texts(stem)[name])


def check_keys(row: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse a key that is not known, with what is allowed and the closest spelling."""
    for key in row:
        if key not in known:
            raise UserError(
                f"{where}: unknown key {key!r}, known are {', '.join(known)}{near_miss(key, known)}"
            )


def datasheet(row: Mapping[str, Any], key: str = "") -> Source:
    """Where a figure of a row comes from: the row's source, or why it is there unverified.

    `unverified` is a reason for the whole row or a table of reasons by key; ``verified = false``
    makes the row's note the reason.
    """
    why = row.get("unverified", {})
    reason = why if isinstance(why, str) else why.get(key)
    if reason is None and row.get("verified") is False:
        reason = row.get("note") or "not verified"
    if reason is not None:
        return Source("assumed", reason)
    return Source("datasheet", f"{row['source']}, checked {row['checked']}")
