"""Files and folders that a command is to write, refused before the work that fills them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moeplan.errors import UserError, near_miss

__all__ = ["STDOUT", "Part", "check_file", "check_folder", "writing"]

STDOUT = "-"
"""Standard output, in the place of a file's name."""


def check_file(option: str, path: Path, example: str) -> None:
    """Refuse a file that cannot be written; `example` is a name that would do. `UserError`."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder, and must be a file such as {example}")
    _check_parent(option, path, path.parent)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        what = "the file" if path.exists() else f"a file in {path.parent}"
        raise UserError(f"{option} {path}: {what} may not be written, choose another place")


def check_folder(option: str, path: Path) -> None:
    """Refuse a folder that is none, or that cannot be made or written to. `UserError`."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{option} {path} is a file, and must be a folder")
    there = path.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{option} {path}: {there} is a file, and no folder can be made in it")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: {there} may not be written, choose another place")


def _check_parent(option: str, path: Path, folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise UserError(f"{option} {path}: {folder} is a file, and must be a folder")
    there = folder.absolute()
    while not there.parent.is_dir():
        there = there.parent
    try:
        beside = [entry.name for entry in there.parent.iterdir() if entry.is_dir()]
    except OSError:
        beside = []
    hint = near_miss(there.name, beside)
    raise UserError(f"{option} {path}: there is no folder {folder}{hint}; make it first")


@contextmanager
def writing(option: str, target: str) -> Iterator[None]:
    """Turn what the system says while a file is written into one sentence. `UserError`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as problem:
        why = problem.strerror or type(problem).__name__
        raise UserError(f"{option} {target}: cannot be written ({why})") from None


class Part:
    """A file in the making, beside its final place, so that an older one stays until it is whole.

    `path` is what to write to: `NAME.part`, or the target itself where it is no regular file (a
    pipe, a link, /dev/null) or where its folder takes no new files.
    """

    def __init__(self, target: Path) -> None:
        self.whole = target.resolve()
        beside = target.with_name(f"{target.name}.part")
        direct = target.is_symlink() or (target.exists() and not target.is_file())
        self.path = target if direct or not os.access(target.parent, os.W_OK) else beside

    def keep(self) -> None:
        """Put the file in its place; it is closed and whole. `OSError` where that fails."""
        if self.path.resolve() != self.whole:
            self.path.replace(self.whole)

    def drop(self) -> None:
        """Remove what was written."""
        if self.path.resolve() != self.whole:
            self.path.unlink(missing_ok=True)
