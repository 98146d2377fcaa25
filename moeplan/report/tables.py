"""Tables as data, drawn for a terminal, as Markdown or as CSV: computing and drawing stay apart."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["Column", "Table", "print_tables", "to_csv", "to_markdown", "to_text"]


@dataclass(frozen=True)
class Column:
    """A column's heading and how its cells stand: numbers right, words left.

    fixed: cells are never broken over lines.
    """

    title: str
    align: Literal["left", "right"] = "right"
    fixed: bool = False


@dataclass
class Table:
    """Rows of text under headings. notes stand below, a total row is set apart.

    `values` holds the bare numbers of each row for CSV, where they differ from the text. commands:
    what a shell runs, drawn last so that it can be copied.
    """

    title: str
    columns: Sequence[Column]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    total: Sequence[str] | None = None
    values: list[Sequence[Any]] | None = None
    commands: list[str] = field(default_factory=list)

    def all_rows(self) -> list[Sequence[str]]:
        """The rows with the total last."""
        return [*self.rows, self.total] if self.total is not None else list(self.rows)


def print_tables(tables: Iterable[Table], console: Console) -> None:
    """Draw tables one below the other on a rich console; nothing is wider than the console."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    cell = _cell_type()
    for number, table in enumerate(tables):
        if number:
            console.print()
        console.print(Text(table.title, style="bold"))
        drawn = RichTable(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1),
            show_header=any(column.title for column in table.columns),
            header_style="bold",
        )
        for column in table.columns:
            drawn.add_column(
                column.title, justify=column.align, overflow="fold", no_wrap=column.fixed
            )
        for row in table.rows:
            drawn.add_row(*(cell(text) for text in row))
        if table.total is not None:
            drawn.add_section()
            drawn.add_row(*(cell(text, style="bold") for text in table.total))
        if table.columns:
            console.print(drawn)
        for note in table.notes:
            for line in _wrapped(note, console.width):
                console.print(Text(line, style="dim"), soft_wrap=True)
        for command in table.commands:
            for line in command_lines(command, console.width):
                console.print(Text(line), soft_wrap=True)


_PARTS = re.compile(r"(?<=[-_./])(?=[A-Za-z{*])")  # where a name, and no number, may be broken


@cache
def _cell_type() -> type[Text]:
    """A cell's text, which breaks a name that is too long after its hyphens, dots and underscores
    instead of in the middle of a word (rich is loaded only where something is drawn)."""
    from rich.text import Text

    class Cell(Text):
        def wrap(self, console: Console, width: int, **options: Any) -> Any:
            broken = re.sub(r"\S+", lambda word: _broken(word[0], width), self.plain)
            return Text(broken, self.style).wrap(console, width, **options)

    return Cell


def _broken(word: str, width: int) -> str:
    """A word in lines of at most that width, where its parts allow it."""
    if len(word) <= width:
        return word
    lines = [""]
    for part in _PARTS.split(word):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def to_text(tables: Iterable[Table], width: int = 100) -> str:
    """The tables as plain text of that width."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, highlight=False, color_system=None)
    print_tables(tables, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _wrapped(note: str, width: int) -> list[str]:
    """A note in lines of the console's width, the later ones indented; words are not broken."""
    from textwrap import wrap

    indent = len(note) - len(note.lstrip()) + 2
    wrapped = wrap(
        note,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapped or [""]


def command_lines(command: str, width: int) -> list[str]:
    """A command in lines that a shell joins again; a word wider than a line stays whole."""
    lines = [""]
    for word in map(shlex.quote, shlex.split(command)):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and len(longer) > width - 2:  # room for the backslash
            lines.append(word)
        else:
            lines[-1] = longer
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def to_markdown(tables: Iterable[Table]) -> str:
    """GitHub-flavoured Markdown, one heading a table."""
    out: list[str] = []
    for table in tables:
        out += [f"### {table.title}", ""]
        if table.columns:
            out.append(_line([column.title for column in table.columns]))
            out.append(_line(["---:" if c.align == "right" else "---" for c in table.columns]))
            out += [_line(row) for row in table.rows]
            if table.total is not None:
                out.append(_line([f"**{cell}**" if cell else "" for cell in table.total]))
            out.append("")
        out += [f"- {note}" for note in table.notes]
        out += [""] if table.notes else []
        if table.commands:
            out += ["```sh", *table.commands, "```", ""]
    return "\n".join(out).rstrip() + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_csv(tables: Iterable[Table]) -> str:
    """One CSV text: a table's name in the first column, bare numbers where the table has them."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for table in tables:
        if table.columns:
            writer.writerow(["table", *(column.title for column in table.columns)])
            rows = table.values if table.values is not None else table.all_rows()
            for row in rows:
                writer.writerow([table.title, *row])
    return buffer.getvalue()
