"""Tables of the documentation that are made from the package itself.

`<!-- generated: NAME -->` and `<!-- end generated -->` in a document stand around the text that
`SECTIONS[NAME]()` returns. To add one, write a function here that returns Markdown and give it a
name with `@section`; then `python docs/check.py --write` fills it in.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

__all__ = ["SECTIONS", "section", "table"]

ROOT = Path(__file__).resolve().parents[1]

SECTIONS: dict[str, Callable[[], str]] = {}


def section(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register the function that writes the generated section `name`."""

    def register(function: Callable[[], str]) -> Callable[[], str]:
        if name in SECTIONS:
            raise ValueError(f"two functions write the generated section {name!r}")
        SECTIONS[name] = function
        return function

    return register


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@section("extras")
def extras() -> str:
    """Return what each optional extra of the package adds, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = [
        [f"`{name}`", ", ".join(f"`{requirement}`" for requirement in requirements)]
        for name, requirements in project["optional-dependencies"].items()
    ]
    return table(["extra", "adds"], rows)


@section("families")
def families() -> str:
    """Return the model types with their kinds of block, sizes, and what they were checked against."""
    from tests.oracle import is_built

    from moeplan.report.families import family_rows
    from moeplan.units import fmt_count

    rows = []
    for row in family_rows():
        sizes = [fmt_count(row[key]) if key in row else "" for key in ("total", "active")]
        kinds = ["; ".join(row[key]) for key in ("mixers", "feed_forward")]
        checked = "transformers" if is_built(row["model_type"]) else "published counts"
        rows.append([f"`{row['model_type']}`", *kinds, row["preset"], *sizes, checked])
    header = ["model type", "mixers", "feed-forward", "preset", "total", "active", "checked"]
    return table(header, rows)


import accuracy_tables  # noqa: E402, F401 - it registers the sections of accuracy.md
