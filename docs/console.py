"""Fenced blocks of a Markdown document: find them, run the commands in them, compare the output."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "Command", "abridge", "blocks", "commands", "matches", "refresh", "sandbox"]

FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})\s*(?P<info>[^`]*)$")
NOTE = re.compile(r"^<!--\s*(?P<key>ci|exit|not run):\s*(?P<value>.+?)\s*-->$")
HEREDOC = re.compile(r"\s*<<\s*'(?P<word>\w+)'$")
SHELL_LANGUAGES = ("bash", "sh", "shell", "zsh")
GAP = "..."
TIME_LIMIT_S = 300


@dataclass(frozen=True)
class Block:
    """The lines [start, end) between two fences, and what the document says about them."""

    start: int
    end: int
    language: str
    options: tuple[str, ...]
    notes: Mapping[str, str]
    body: tuple[str, ...]
    indented: bool
    closed: bool


@dataclass(frozen=True)
class Command:
    """A command as the document shows it, its standard input, and the output below it."""

    shown: tuple[str, ...]
    line: str
    stdin: str
    expected: tuple[str, ...]


def notes_above(lines: Sequence[str], fence: int) -> dict[str, str]:
    """Return the `<!-- key: value -->` lines that stand right above line `fence`."""
    notes = {}
    for line in reversed(lines[:fence]):
        if note := NOTE.match(line.strip()):
            notes[note["key"]] = note["value"]
        elif line.strip():
            break
    return notes


def blocks(lines: Sequence[str]) -> list[Block]:
    """Return every fenced block of a document, in order; one that is never closed runs on."""
    found = []
    row = 0
    while row < len(lines):
        if not (opening := FENCE.match(lines[row])):
            row += 1
            continue
        closing = re.compile(rf"\s*{opening['fence'][0]}{{{len(opening['fence'])},}}\s*$")
        end = next((i for i in range(row + 1, len(lines)) if closing.match(lines[i])), len(lines))
        language, *options = opening["info"].split() or [""]
        found.append(
            Block(
                start=row + 1,
                end=end,
                language=language,
                options=tuple(options),
                notes=notes_above(lines, row),
                body=tuple(lines[row + 1 : end]),
                indented=bool(opening["indent"]),
                closed=end < len(lines),
            )
        )
        row = end + 1
    return found


def commands(body: Sequence[str]) -> list[Command]:
    """Split a console block into its commands, each with the output shown below it.

    A command ends with its line, unless that line ends with a backslash, or opens a here-document
    (`<<'EOF'`), whose lines then belong to it.
    """
    starts = [row for row, line in enumerate(body) if line.startswith("$ ")]
    found = []
    row = 0
    for start in starts:
        if start < row:  # a line of a here-document
            continue
        row = start + 1
        line = body[start][2:]
        while line.endswith("\\") and row < len(body):
            line = line[:-1].rstrip() + " " + body[row].strip()
            row += 1
        stdin: tuple[str, ...] = ()
        if heredoc := HEREDOC.search(line):
            line = line[: heredoc.start()]
            end = next((i for i in range(row, len(body)) if body[i] == heredoc["word"]), len(body))
            stdin, row = tuple(body[row:end]), min(end + 1, len(body))
        after = next((other for other in starts if other >= row), len(body))
        text = "".join(f"{each}\n" for each in stdin)
        found.append(Command(tuple(body[start:row]), line, text, tuple(body[row:after])))
    return found


def matches(expected: Sequence[str], actual: Sequence[str]) -> bool:
    """Say whether the output is as expected, where a line `...` stands for any number of lines."""
    pieces: list[list[str]] = [[]]
    for line in expected:
        if line == GAP:
            pieces.append([])
        else:
            pieces[-1].append(line)
    if len(pieces) == 1:
        return pieces[0] == list(actual)
    first, *middle, last = pieces
    if list(actual[: len(first)]) != first:
        return False
    row, stop = len(first), len(actual) - len(last)
    for piece in middle:
        # The earliest place leaves the most room for the pieces that follow.
        places = range(row, stop - len(piece) + 1)
        place = next((i for i in places if list(actual[i : i + len(piece)]) == piece), None)
        if place is None:
            return False
        row = place + len(piece)
    return row <= stop and list(actual[stop:]) == last


def abridge(expected: Sequence[str], actual: Sequence[str]) -> list[str]:
    """Shorten new output the way the old one was: as many lines before and after its one gap."""
    if list(expected).count(GAP) != 1:
        return list(actual)
    head = list(expected).index(GAP)
    tail = len(expected) - head - 1
    if head + tail >= len(actual):
        return list(actual)
    return [*actual[:head], GAP, *actual[len(actual) - tail :]]


def sandbox(home: Path) -> dict[str, str]:
    """Return the environment that commands run in: the same on every machine, but for the path."""
    return {
        "COLUMNS": "80",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "LINES": "24",
        "MPLBACKEND": "Agg",
        "NO_COLOR": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
        "PYTHONUTF8": "1",
        "SOURCE_DATE_EPOCH": "0",  # matplotlib then writes no dates into its files
        "TERM": "dumb",
        "TZ": "UTC",
    }


def argv(command: Command, root: Path) -> list[str]:
    """Return the words of a command; raise ValueError for one that documentation may not run."""
    lexer = shlex.shlex(command.line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words = list(lexer)
    if any(set(word) <= set("();<>|&") for word in words if word):
        raise ValueError("uses the shell; show one plain command, and `...` for what is left out")
    match words:
        case ["moeplan", *_] | ["python", "-c", _]:
            return words
        case ["python", "-"] if command.stdin:
            return words
        case ["cat" | "head", *rest]:
            paths = [(root / word).resolve() for word in rest if not re.match(r"-|\d+$", word)]
            if paths and all(path.is_file() and path.is_relative_to(root) for path in paths):
                return words
            raise ValueError("reads something that is not a file of this repository")
    raise ValueError("is none of moeplan, python -c, python - <<'EOF', cat, head")


def run(command: Command, root: Path, environment: Mapping[str, str], status: int) -> list[str]:
    """Run a command and return the lines that it printed, standard error among them.

    Raises ValueError when the command may not run, is not installed, takes too long, or ends with
    another exit status than `status`.
    """
    try:
        done = subprocess.run(
            argv(command, root),
            cwd=root,
            env=dict(environment),
            input=command.stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=TIME_LIMIT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise ValueError(f"needs {error.filename} beside {sys.executable}") from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"took more than {TIME_LIMIT_S} s") from error
    lines = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
    if done.returncode != status:
        last = lines[-1] if lines else "nothing"
        raise ValueError(f"ended with exit status {done.returncode}, not {status}: {last}")
    if odd := next((line for line in lines if line == GAP or line.startswith(("$ ", "```"))), None):
        raise ValueError(f"prints a line that has a meaning of its own in a console block: {odd}")
    return lines


def refusal(block: Block) -> str | None:
    """Return why a block cannot be accepted as it stands, or None."""
    shell = block.language in SHELL_LANGUAGES
    if not block.closed:
        return "this block is never closed"
    if block.indented and (shell or block.language == "console"):
        return "start the fence of a block with commands in the first column"
    if shell and not block.notes.keys() & {"ci", "not run"}:
        return f"put <!-- not run: reason --> above this {block.language} block, or make it console"
    if block.language != "console":
        shows = any(line.startswith("$ ") for line in block.body)
        return "tag a block that shows commands as console" if shows and not shell else None
    if block.options not in ((), ("no-run",)):
        return f"unknown option {' '.join(block.options)!r}; a console block knows only no-run"
    if block.options and "not run" not in block.notes:
        return "put <!-- not run: reason --> above a block that is not run"
    if not block.options and not (block.body and block.body[0].startswith("$ ")):
        return "a console block starts with a command: `$ ...`"
    return None


def refresh(
    block: Block, root: Path, environment: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Run a block's commands; return its lines with the output of today, and the problems.

    Output that still matches is kept as it stands, and so is output of a command that failed.
    """
    if reason := refusal(block):
        return list(block.body), [f"{block.start}: {reason}"]
    if block.language != "console" or block.options:
        return list(block.body), []
    body: list[str] = []
    problems = []
    for command in commands(block.body):
        body.extend(command.shown)
        expected = list(command.expected)
        blank = len(expected) - len("\n".join(expected).rstrip().splitlines())
        try:
            actual = run(command, root, environment, int(block.notes.get("exit", "0")))
        except ValueError as error:
            problems.append(f"{block.start + len(body)}: `{command.line}` {error}")
            body.extend(expected)
            continue
        shown = expected[: len(expected) - blank]
        body.extend(shown if matches(shown, actual) else abridge(shown, actual))
        body.extend([""] * blank)
    return body, problems
