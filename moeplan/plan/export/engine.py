"""What an export is made of: options that the engine's table holds, commands, files and notes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from moeplan.cluster.datafile import table
from moeplan.errors import UserError

if TYPE_CHECKING:
    from moeplan.cluster.hardware import Cluster
    from moeplan.cluster.layout import Layout
    from moeplan.model.spec import ModelSpec
    from moeplan.plan.chosen import Chosen

__all__ = ["Arguments", "Exported", "Refusals", "Subject", "checkpoint", "options"]


def options(engine: str) -> dict[str, str]:
    """Options that may be written for an engine, each with the file that it was read in."""
    return dict(table("engines", f"options.{engine}"))


@dataclass(frozen=True)
class Subject:
    """What is exported: the choice, its model and its machine."""

    chosen: Chosen
    spec: ModelSpec
    cluster: Cluster

    @cached_property
    def layout(self) -> Layout:
        """The layout (of decoding, where prefill has its own)."""
        return self.chosen.layout

    @cached_property
    def degrees(self) -> dict[str, int]:
        """Degrees by name, as whole numbers, with `world` and `edp`."""
        return degrees_of(self.layout)

    def hosts(self, gpus: int) -> tuple[int, int]:
        """Hosts that so many GPUs take, and GPUs on each."""
        each = min(gpus, int(self.cluster.host_size.value))
        return -(-gpus // each), each


def degrees_of(layout: Layout) -> dict[str, int]:
    """Whole degrees of one legal layout."""
    return {name: int(x) for name, x in layout.values.items() if name != "m"} | {
        "m": int(layout.values["m"])
    }


class Refusals:
    """What an engine cannot express, all of it in one error."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.found: list[str] = []

    def unless(self, good: bool, why: str) -> None:
        """Note a reason where something is not so."""
        if not good:
            self.found.append(why)

    def stop(self) -> None:
        """Raise `UserError` with all reasons, if there are any."""
        if self.found:
            raise UserError(f"{self.engine} cannot express this: {'; '.join(self.found)}")


class Arguments:
    """Options in groups, each checked against the engine's table when it is added."""

    def __init__(self, engine: str) -> None:
        self._known = options(engine)
        self.groups: list[tuple[str, list[tuple[str, ...]]]] = []

    def group(self, name: str) -> None:
        """Start a group."""
        self.groups.append((name, []))

    def add(self, option: str, *values: Any) -> None:
        """Add an option with its values."""
        assert option in self._known, f"{option} is not in the table of options"
        self.groups[-1][1].append((option, *map(str, values)))

    def flag(self, on: bool, option: str, *values: Any) -> None:
        """Add an option where it is wanted."""
        if on:
            self.add(option, *values)

    @property
    def words(self) -> list[str]:
        """All arguments in order, as a shell would pass them."""
        return [word for _, rows in self.groups for row in rows for word in row]

    def lines(self) -> list[str]:
        """One line for each option."""
        return [
            " ".join((row[0], *map(_quoted, row[1:]))) for _, rows in self.groups for row in rows
        ]


def _quoted(word: str) -> str:
    """A word for the shell; one that is a variable of the shell stays one."""
    return f'"{word}"' if word.startswith("$") else shlex.quote(word)


@dataclass(frozen=True)
class Exported:
    """An export: a shell script, the files that it needs, and what a reader must know.

    notes: what is not expressed, or differs, in sentences. arguments: the words of each command,
    by its name. files: text by name.
    """

    engine: str
    script: tuple[str, ...]
    arguments: dict[str, list[str]]
    notes: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The script with its source and notes as comments, ready to copy."""
        about = table("engines", f"source.{self.engine}")
        read = sorted({*about["files"].values()})
        head = [f"# {about['title']}. Options as read on {about['checked']} in"]
        head += [f"#   {where}" for where in read]
        for note in self.notes:
            head += _wrapped(f"note: {note}")
        out = [*head, ""]
        for name, text in self.files.items():
            out += [f"cat > {name} <<'END'", text.rstrip("\n"), "END", ""]
        return "\n".join([*out, *self.script]) + "\n"

    def document(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "engine": self.engine,
            "arguments": self.arguments,
            "files": self.files,
            "notes": list(self.notes),
            "source": {k: str(x) if k == "checked" else x for k, x in
                       table("engines", f"source.{self.engine}").items()},
        }  # fmt: skip


def _wrapped(text: str) -> Iterable[str]:
    from textwrap import wrap

    return wrap(text, 80, initial_indent="# ", subsequent_indent="#   ")


def continued(head: str, lines: Iterable[str]) -> str:
    """A command over several lines."""
    return " \\\n    ".join([head, *lines])


def checkpoint(subject: Subject) -> tuple[str, list[str]]:
    """What an engine loads: a repository, or the folder of a config; with a note if neither."""
    from moeplan.load import looks_like_path
    from moeplan.presets import preset

    model = subject.chosen.model
    if looks_like_path(model):
        return model.removesuffix("/config.json"), []
    host = "https://huggingface.co/"
    source = preset(model).source.split()[0]
    if source.startswith(host):
        return "/".join(source.removeprefix(host).split("/")[:2]), []
    return "$MODEL", [f"MODEL is to be set: the preset {model} names no repository of weights"]
