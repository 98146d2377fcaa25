"""Lists of modules as quantisation tools write them: names, wildcards, regular expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from moeplan.families.reader import Config, shown

__all__ = ["Modules", "compiled", "modules"]

_EXPERT = re.compile(r"(?<=experts\.)\d+(?=\.|\*|$)")
_REGEX = re.compile(r"[\\^$()\[\]|+?{}]")  # signs that no module name and no wildcard holds


class Modules(NamedTuple):
    """names: (parts of) dotted module names. patterns: regular expressions, to be searched."""

    names: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()

    def as_patterns(self) -> tuple[str, ...]:
        """All of it as regular expressions."""
        return (*(_at_dots(re.escape(name)) for name in sorted(self.names)), *self.patterns)


def modules(q: Config, key: str, entries: Iterable[Any], experts: int | None) -> Modules:
    """Read a list of modules.

    An entry is a module's dotted name or a part of it, a name with `*`, a regular expression after
    `re:` (matched from the start), or one without it, where its signs tell. The first expert
    stands for all: a list that names only some of the `experts` of a layer is refused.
    """
    names: set[str] = set()
    patterns: dict[str, None] = {}
    for entry in _one_expert(q, key, list(entries), experts):
        if entry.startswith("re:"):
            patterns[compiled(q, key, f"^(?:{entry[3:]})")] = None
        elif _REGEX.search(entry):
            patterns[compiled(q, key, rf"^(?:{entry})(?:(?<=\.)|(?=\.|$))")] = None
        elif "*" in entry:
            patterns[_at_dots(re.escape(entry).replace(r"\*", ".*"))] = None
        else:
            names.add(entry)
    return Modules(frozenset(names), tuple(patterns))


def compiled(q: Config, key: str, pattern: str) -> str:
    """The pattern, which must be a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise q.fail(key, f"holds {shown(pattern)}, no regular expression: {error}") from None
    return pattern


def _at_dots(pattern: str) -> str:
    return rf"(?:^|\.){pattern}(?:\.|$)"


def _one_expert(q: Config, key: str, entries: list[Any], experts: int | None) -> Iterable[str]:
    """The entries with the first expert in place of each, every expert being named."""
    seen: dict[str, set[int]] = {}
    for entry in entries:
        if not isinstance(entry, str):
            raise q.fail(key, f"holds {shown(entry)}: names of modules are needed")
        found = _EXPERT.search(entry)
        places = seen.setdefault(_EXPERT.sub("0", entry), set())
        if found:
            places.add(int(found[0]))
    for entry, places in seen.items():
        if places and places != set(range(experts if experts is not None else len(places))):
            raise q.fail(
                key,
                f"names some of the experts only ({entry} for {len(places)} of "
                f"{'them' if experts is None else experts}): experts of one layer that are stored "
                "in different formats are not described",
            )
        yield entry
