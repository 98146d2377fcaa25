"""Which experts the tokens of a measured pass go to: drawn by a rule, or recorded from a real run.

Shapes: ids [T, K] of int64, distinct within a token. Drawn choices are repeatable from their seed
and need no torch. Node- and group-limits of a router are not applied: on one device they change
nothing but the histogram, which is recorded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from moeplan.errors import UserError, near_miss

__all__ = ["Assignment", "Ids", "read_trace", "rotated", "rows_per_expert"]

Ids: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"

_KINDS = ("uniform", "balanced", "zipf", "trace")
_FORM = "allowed are uniform, balanced, zipf:EXPONENT (such as zipf:1.2) and trace"


class Assignment(NamedTuple):
    """A rule of who gets which token. exponent is that of `zipf`; trace holds recorded ids."""

    kind: str
    exponent: float = 0.0
    trace: Ids | None = None

    @classmethod
    def parse(cls, text: str, trace: Path | None = None) -> Assignment:
        """Read `uniform`, `balanced`, `zipf:1.2` or `trace`. Raises UserError for another."""
        kind, colon, number = text.strip().lower().partition(":")
        if kind not in _KINDS or (colon and kind != "zipf"):
            raise UserError(f"--routing {text!r}: {_FORM}{near_miss(kind, _KINDS)}")
        if (kind == "trace") != (trace is not None):
            raise UserError(
                "--routing trace and --routing-trace FILE go together: the file holds the expert "
                "ids of each token (.npy or .jsonl)"
            )
        if kind == "trace":
            assert trace is not None
            return cls(kind, trace=read_trace(trace))
        return cls(kind, _exponent(text, number) if kind == "zipf" else 0.0)

    @property
    def text(self) -> str:
        """The rule as it is written."""
        return f"zipf:{self.exponent:g}" if self.kind == "zipf" else self.kind

    def check(self, tokens: int, experts: int, top_k: int) -> None:
        """Raise UserError where a recorded trace does not fit a layer or is too short."""
        if self.trace is not None:
            _fitting(self.trace, tokens, experts, top_k)

    def ids(self, tokens: int, experts: int, top_k: int, seed: int) -> Ids:
        """The experts of each token, [T, K].

        uniform: any K, all sets alike. balanced: round robin, so that loads differ by one row at
        most. zipf: the r-th most popular expert is drawn with weight r^-s, without replacement, and
        who is popular is random. trace: the first T recorded tokens; UserError where it does not
        fit the layer.
        """
        if self.trace is not None:
            return _fitting(self.trace, tokens, experts, top_k)
        if self.kind == "balanced":
            rows = np.arange(tokens * top_k, dtype=np.int64)
            return (rows % experts).reshape(tokens, top_k)
        random = np.random.default_rng(seed)
        popularity = np.zeros(experts)
        if self.kind == "zipf":
            ranks = np.arange(1, experts + 1, dtype=np.float64)
            popularity = random.permutation(-self.exponent * np.log(ranks))
        out = np.empty((tokens, top_k), dtype=np.int64)
        for start in range(0, tokens, 4096):  # bounds the memory of the scores
            part = out[start : start + 4096]
            # the K largest of log(weight) + Gumbel noise are a draw without replacement
            noise = random.gumbel(size=(len(part), experts)) + popularity
            part[:] = np.argpartition(-noise, top_k - 1, axis=1)[:, :top_k]
        return out


def _exponent(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10:
        raise UserError(
            f"--routing {text!r}: the exponent of a Zipf distribution is a number from 0 to 10, "
            "as in zipf:1.2"
        )
    return value


def read_trace(path: Path) -> Ids:
    """Recorded expert ids of each token: a .npy of [N, K] whole numbers, or .jsonl, a list a line.

    Raises UserError that names the file and the line.
    """
    if not path.is_file():
        raise UserError(f"--routing-trace {path}: no such file")
    if path.suffix == ".npy":
        try:
            data = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as problem:
            raise UserError(f"--routing-trace {path}: not a .npy array ({problem})") from None
        if data.ndim != 2 or not np.issubdtype(data.dtype, np.integer) or not data.size:
            raise UserError(
                f"--routing-trace {path}: expected whole numbers of shape [tokens, k], found "
                f"{data.dtype} of shape {list(data.shape)}"
            )
        return _distinct(data.astype(np.int64), path)
    if path.suffix == ".jsonl":
        return _distinct(_read_lines(path), path)
    raise UserError(f"--routing-trace {path}: a trace is a .npy or a .jsonl file")


def _read_lines(path: Path) -> Ids:
    rows: list[list[int]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"--routing-trace {path}: cannot be read as text ({problem})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            ids = json.loads(line)
        except (ValueError, RecursionError):
            ids = None
        if not isinstance(ids, list) or not ids or any(type(i) is not int for i in ids):
            raise UserError(
                f"--routing-trace {path}, line {number}: expected a list of expert ids such as "
                f"[3, 17], found {line.strip()[:40]!r}"
            )
        if rows and len(ids) != len(rows[0]):
            raise UserError(
                f"--routing-trace {path}, line {number}: {len(ids)} experts, and {len(rows[0])} in "
                "the lines before; every token has the same number"
            )
        rows.append(ids)
    if not rows:
        raise UserError(f"--routing-trace {path}: holds no token")
    try:
        return np.array(rows, dtype=np.int64)
    except OverflowError:
        raise UserError(f"--routing-trace {path}: an expert id exceeds 64 bits") from None


def _distinct(ids: Ids, path: Path) -> Ids:
    ordered = np.sort(ids, axis=1)
    twice = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if twice.size:
        raise UserError(
            f"--routing-trace {path}: token {int(twice[0])} names an expert twice "
            f"({ids[twice[0]].tolist()}); a token's experts are distinct"
        )
    return ids


def _fitting(ids: Ids, tokens: int, experts: int, top_k: int) -> Ids:
    if ids.shape[1] != top_k:
        raise UserError(
            f"the routing trace has {ids.shape[1]} experts a token, and the layer uses {top_k}"
        )
    if ids.min() < 0 or ids.max() >= experts:
        raise UserError(
            f"the routing trace names experts {int(ids.min())} to {int(ids.max())}, and the layer "
            f"has 0 to {experts - 1}"
        )
    if len(ids) < tokens:
        raise UserError(
            f"the routing trace holds {len(ids):,} tokens, and a pass of {tokens:,} was asked for; "
            "name smaller sizes with --tokens"
        )
    return ids[:tokens]


def rotated(ids: Ids, turn: int, turns: int, experts: int) -> Ids:
    """The same loads on other experts: ids moved by turn/turns of the way round all experts."""
    return (ids + turn * max(experts // turns, 1)) % experts


def rows_per_expert(ids: Ids, experts: int) -> list[int]:
    """How many rows each expert gets."""
    counts: list[int] = np.bincount(ids.ravel(), minlength=experts).tolist()
    return counts
