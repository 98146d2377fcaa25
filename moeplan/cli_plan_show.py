"""Showing what a search found: tables, front, the picked row as a plan file or launch arguments."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import typer

from moeplan.errors import UserError

__all__ = ["Shown", "check_save", "searching", "show_plan"]


class Shown(NamedTuple):
    """How an answer is shown: the output, its rows, the picked row, and files to write."""

    output: str
    top: int
    pick: int
    explain: bool
    plot: Path | None
    save: Path | None
    export: str | None


def show_plan(answer: Any, how: Shown) -> None:
    """Print an answer's tables, draw its front, show and save the picked row."""
    from moeplan.cli import _print_json, _show
    from moeplan.report.plan_serving_tables import serving_plan_tables
    from moeplan.report.plan_tables import plan_tables

    tree = answer.tree
    rows = len(tree["best"])
    if how.pick > max(1, rows):
        raise UserError(f"--pick is {how.pick}, and there are {rows} layouts that fit")
    tree = {**tree, "best": tree["best"][: how.top]}
    if how.plot is not None:
        from moeplan.report.plots.front import draw_front

        for path in draw_front(tree, how.plot):
            print(path, file=sys.stderr)
    if how.save is not None and rows:  # first: a reader such as head may close the output
        answer.chosen(how.pick - 1).save(how.save)
        print(how.save, file=sys.stderr)
    exported = _exported(how.export, answer, how) if how.export is not None and rows else None
    full = answer.full(how.pick - 1) if how.explain and rows else ()
    if how.output == "json":
        more = {"picked": list(full)} if full else {}
        if exported is not None:
            more["export"] = exported.document()
        _print_json({**tree, **more})
        exported = None
    else:
        tables = plan_tables if tree["kind"] == "training plan" else serving_plan_tables
        made = tables(tree)
        if rows and exported is None and how.output != "csv":  # CSV has no notes
            made[0].notes.append(_expressed(answer, how.pick))
        _show(made, how.output)
        for one in full:
            from moeplan.report.layout_tables import layout_tables

            if how.output == "rich":
                print()
            _show(layout_tables(one), how.output)
    if not rows:
        raise typer.Exit(1)
    if exported is not None:
        sys.stdout.write(f"\n{exported.text()}")


def check_save(path: Path | None) -> None:
    """Refuse a place for a plan file before the search, not after it."""
    if path is not None:
        from moeplan.plan.planfile import check_writable

        check_writable(path)


@contextmanager
def searching(what: str) -> Iterator[None]:
    """A line at a terminal while a search runs; nothing elsewhere, or where `what` is empty.

    No spinner: its thread must not run while workers are forked.
    """
    shown = bool(what) and sys.stderr.isatty()
    if shown:
        print(f"searching {what} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def _expressed(answer: Any, pick: int) -> str:
    """Which engines can express the picked row."""
    from moeplan.plan.export.able import expressed

    return expressed(answer.chosen(pick - 1), "the best" if pick == 1 else f"row {pick}")


def _exported(engine: str, answer: Any, how: Shown) -> Any:
    """The picked row for an engine; a table in another form cannot hold a script."""
    from moeplan.plan.export import export

    if how.output in ("csv", "md"):
        raise UserError("--export prints a script: it goes with the usual output or --json")
    return export(engine, answer.chosen(how.pick - 1))
