"""Keep the documentation equal to what the program prints.

`python docs/check.py` checks README.md and everything under docs/; `--write` brings them up to
date instead. It looks at four things:

1. Fenced ```console blocks. A line that starts with `$ ` is a command: it is run from the
   repository's root, and the lines below it must be its output. A line `...` in the output stands
   for any number of lines. `<!-- exit: 2 -->` above the block says that its commands end with
   that status. A block that cannot run here is tagged ```console no-run and has its reason
   above it: `<!-- not run: reason -->`. A ```sh block is never run, so it carries such a reason
   too, or `<!-- ci: NAME -->`, which says that CI takes its command from there.
2. `<!-- generated: NAME -->` ... `<!-- end generated -->`, which a function in generated.py fills.
3. Links and images to files of this repository, and links to headings.
4. docs/commands.md, which has one heading per command of the CLI, and no others.

The blocks of a document run in their order; two documents are worked on at a time.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from typer import Typer
from typer.main import get_command

from console import blocks, refresh, sandbox
from generated import SECTIONS

__all__ = ["broken_links", "command_names", "fill_sections", "main", "misdocumented", "updated"]

ROOT = Path(__file__).resolve().parents[1]
JOBS = 2

SECTION_START = re.compile(r"^<!--\s*generated:\s*(\S+)\s*-->$")
SECTION_END = "<!-- end generated -->"
HEADING = re.compile(r"^#{1,6}\s+(?P<text>.+?)\s*#*$")
COMMAND_HEADING = re.compile(r"^`(?P<command>moeplan( [a-z0-9-]+)+)`$")
CODE_SPAN = re.compile(r"(`+).+?\1")
LINK = re.compile(
    r"\]\(\s*<?(?P<inline>[^)\s>]+)[^)]*\)"
    r"|^\s*\[[^\]]+\]:\s*<?(?P<reference>[^\s>]+)"
    r"|\b(?:src|href)=\"(?P<html>[^\"]+)\""
)


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines outside fenced blocks, numbered from 1."""
    lines = text.splitlines()
    code = {row for block in blocks(lines) for row in range(block.start - 1, block.end + 1)}
    return ((row + 1, line) for row, line in enumerate(lines) if row not in code)


def fill_sections(
    text: str, sections: Mapping[str, Callable[[], str]] = SECTIONS
) -> tuple[str, list[str]]:
    """Return a document with its generated sections written anew, and the problems found.

    Problems start with a line number of the document as it was.
    """
    lines = text.splitlines()
    filled: list[str] = []
    problems = []
    row = 0
    starts = {number - 1: m[1] for number, line in prose(text) if (m := SECTION_START.match(line))}
    for start, name in starts.items():
        end = next((i for i in range(start, len(lines)) if lines[i] == SECTION_END), None)
        if end is None or any(start < other < end for other in starts):
            problems.append(f"{start + 1}: generated section {name!r} has no {SECTION_END}")
        elif name not in sections:
            known = ", ".join(sorted(sections))
            problems.append(f"{start + 1}: docs/generated.py has no section {name!r}, only {known}")
        else:
            filled += [*lines[row : start + 1], *sections[name]().splitlines()]
            row = end
    return "\n".join([*filled, *lines[row:]]) + "\n", problems


def updated(text: str, root: Path, environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return a document brought up to date, and the problems that writing cannot mend.

    Commands run in `root` with `environment`. Problems start with a line number.
    """
    text, problems = fill_sections(text)
    lines = text.splitlines()
    shift = 0
    for block in blocks(lines):
        body, found = refresh(block, root, environment)
        lines[block.start + shift : block.end + shift] = body
        shift += len(body) - len(block.body)
        problems += found
    return "\n".join(lines) + "\n", problems


def anchors(text: str) -> set[str]:
    """Return the names by which a document's headings can be linked to."""
    names: set[str] = set()
    seen: Counter[str] = Counter()
    for _, line in prose(text):
        if heading := HEADING.match(line):
            slug = re.sub(r"[^\w\- ]", "", heading["text"].lower()).replace(" ", "-")
            names.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return names


def broken_links(path: Path, root: Path) -> Iterator[str]:
    """Yield the links and images of a document that lead nowhere inside the repository."""
    for number, line in prose(path.read_text(encoding="utf-8")):
        for link in LINK.finditer(CODE_SPAN.sub("", line)):
            target = link["inline"] or link["reference"] or link["html"]
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            if not (file.exists() and file.is_relative_to(root)):
                yield f"{number}: the link to {target} leads to no file of this repository"
            elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
                yield f"{number}: {file.name} has no heading #{anchor}"


def command_names(app: Typer) -> set[str]:
    """Return every command of a command line that is not hidden, as it is typed."""
    found = set()
    waiting: list[tuple[str, Any]] = [("moeplan", get_command(app))]
    while waiting:
        name, command = waiting.pop()
        if not hasattr(command, "commands"):
            found.add(name)
            continue
        for word, inner in command.commands.items():
            if not inner.hidden:
                waiting.append((f"{name} {word}", inner))
    return found


def misdocumented(text: str, commands: set[str]) -> Iterator[str]:
    """Yield the commands without a heading `moeplan NAME`, and such headings without a command."""
    headings = {}
    for number, line in prose(text):
        heading = HEADING.match(line)
        if heading and (command := COMMAND_HEADING.match(heading["text"])):
            headings[command["command"]] = number
    for name in sorted(commands - headings.keys()):
        yield f"0: the command `{name}` has no heading of its own: ## `{name}`"
    for name in sorted(headings.keys() - commands):
        # A heading for a group of commands may stand above theirs.
        if not any(command.startswith(f"{name} ") for command in commands):
            yield f"{headings[name]}: there is no command `{name}`"


def check_file(
    path: Path, write: bool, environment: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Check one document, or bring it up to date; return what to show, and the problems."""
    name = str(path.relative_to(ROOT))
    before = path.read_text(encoding="utf-8")
    after, problems = updated(before, ROOT, environment)
    shown = []
    if write and after != before:
        path.write_text(after, encoding="utf-8")
        shown = [f"{name}: brought up to date"]
    elif after != before:
        old, new = before.splitlines(), after.splitlines()
        shown = list(difflib.unified_diff(old, new, name, f"{name}, today", lineterm=""))
        problems.append("0: out of date; run `python docs/check.py --write` and read the change")
    problems += broken_links(path, ROOT)
    if path == ROOT / "docs" / "commands.md":
        from moeplan.cli import app

        problems += misdocumented(after, command_names(app))
    return shown, [f"{name}:{problem}" for problem in problems]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; return 0 when all is well and 1 when something needs mending."""
    parser = argparse.ArgumentParser(description="Check that the documentation is program output.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="print differences (the default)")
    mode.add_argument("--write", action="store_true", help="rewrite outputs and sections in place")
    parser.add_argument("files", nargs="*", type=Path, help="only these documents (default: all)")
    options = parser.parse_args(arguments)

    everything = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
    paths = [path.resolve() for path in options.files] or everything
    problems: list[str] = []
    if not options.files and ROOT / "docs" / "commands.md" not in paths:
        problems.append("docs/commands.md:0: missing")
    with tempfile.TemporaryDirectory() as home, ThreadPoolExecutor(JOBS) as pool:
        environment = sandbox(Path(home))
        for shown, found in pool.map(lambda p: check_file(p, options.write, environment), paths):
            print("\n".join(shown), end="\n" if shown else "")
            problems += found
    print("\n".join(problems), end="\n" if problems else "", file=sys.stderr)
    print(f"{len(paths)} documents, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
