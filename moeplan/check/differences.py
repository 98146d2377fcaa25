"""Differences of single tensors, gathered into lines that a reader can take in."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import groupby
from math import prod
from typing import Literal, NamedTuple, TypeAlias, get_args

__all__ = ["Difference", "Found", "Kind", "gathered"]

Kind: TypeAlias = Literal["missing", "extra", "shape", "format", "total"]


class Difference(NamedTuple):
    """Tensors that differ alike. name: with the numbers that they have in it, such as {0-3}.

    here, there: what the estimate and the source say; hint: what else may explain it.
    """

    kind: Kind
    name: str
    tensors: int
    here: str
    there: str
    hint: str = ""


class Found(NamedTuple):
    """A difference of one tensor; the fields are those of `Difference`."""

    kind: Kind
    name: str
    here: str
    there: str


def gathered(found: list[Found]) -> list[Difference]:
    """Differences that are alike in one line each, by kind and name; renamed tensors get a hint."""
    return _hinted(_folded(found))


_NUMBER = re.compile(r"(?<![^._])[0-9]{1,9}(?=\.|$)")


def _folded(found: list[Found]) -> list[Difference]:
    """One line for differences that are alike, with exactly the numbers that their names have."""
    alike: dict[tuple[tuple[str, ...], Kind, str, str], set[tuple[int, ...]]] = {}
    for one in found:
        words = tuple(_NUMBER.split(one.name))
        numbers = tuple(int(n) for n in _NUMBER.findall(one.name))
        alike.setdefault((words, one.kind, one.here, one.there), set()).add(numbers)
    out = []
    for (words, kind, here, there), places in alike.items():
        for sets in _products(sorted(places)):
            numbers_in = [*map(_ranges, sets), ""]
            name = "".join(word + n for word, n in zip(words, numbers_in, strict=True))
            out.append(Difference(kind, name, prod(map(len, sets)), here, there))
    order = get_args(Kind)
    return sorted(out, key=lambda d: (order.index(d.kind), d.name))


def _products(places: list[tuple[int, ...]]) -> list[list[list[int]]]:
    """Split sorted tuples into products of sets: layers that lack the same experts in one."""
    if not places[0]:
        return [[]]
    below: dict[str, tuple[list[int], list[list[list[int]]]]] = {}
    for first, rows in groupby(places, key=lambda place: place[0]):
        rest = _products([row[1:] for row in rows])
        below.setdefault(repr(rest), ([], rest))[0].append(first)
    return [[firsts, *sets] for firsts, rest in below.values() for sets in rest]


def _ranges(numbers: list[int]) -> str:
    """`5`, or `{0-3,7}` for several."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"


def _hinted(found: list[Difference]) -> list[Difference]:
    """Say of a missing tensor which extra one may be it: as many, of one shape, most like it."""
    extra = [d for d in found if d.kind == "extra"]
    out = []
    for one in found:
        if one.kind == "missing":
            alike = [e for e in extra if e.tensors == one.tensors and e.there in ("", one.here)]
            ratio = [(SequenceMatcher(None, one.name, e.name).ratio(), e.name) for e in alike]
            best = max(ratio, default=(0.0, ""))
            if best[0] > _LIKE:
                one = one._replace(hint=f"is it {best[1]}?")
        out.append(one)
    return out


_LIKE = 0.6
