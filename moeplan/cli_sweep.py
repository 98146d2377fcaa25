"""The command `sweep`: every combination of some inputs, to a table, files and plots."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from moeplan.cli_interrupt import stoppable
from moeplan.cli_options import ConfigOption, Markdown, Model, PresetOption
from moeplan.cli_sweep_files import Outputs
from moeplan.errors import UserError

__all__ = ["register"]

_REDRAWN = 0.1  # seconds between two drawings of the bar


def sweep(
    model: Model = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUES", help="An axis: experts=64,128 or tokens=1k:64k:x2."),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=FORMULA", help="Fix or link an input: experts=8*g."),
    ] = None,
    show: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A column: a path of the JSON result; commas for more."),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Such as h800x2048: layouts on it, with --train or --serve.")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Training steps of layouts.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Instances that serve.")] = False,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="CSV; - is here.")] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="JSON; - is here.")] = None,
    parquet: Annotated[
        str | None, typer.Option(metavar="FILE", help="Parquet, where pyarrow is installed.")
    ] = None,
    plot: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y[,COLOUR]", help="Plot these columns, as PNG and SVG."),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where plots go, if not here.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the points.")] = 1,
    max_points: Annotated[int, typer.Option(min=1, help="More points are refused.")] = 1_000_000,
    names: Annotated[bool, typer.Option("--names", help="List what can be varied.")] = False,
    markdown: Markdown = False,
) -> None:
    """Every combination of inputs: architecture, hardware, layout, workload; tables and plots."""
    from moeplan.sweeping import ask, ready

    given = _given(model, preset, config)
    mode = _mode(cluster, train, serve)
    if names:
        _list(given, mode, markdown)
        return
    outputs = Outputs(csv, json, parquet, plot or [], plots)
    paths = [path.strip() for text in show or [] for path in text.split(",")]
    asked = ask(given, _pairs(vary, "--vary"), _pairs(link, "--set"), paths, cluster, mode,
                max_points)  # fmt: skip
    outputs.check_model([given, *asked.models])
    glance = ready(asked)
    outputs.check_plots([*asked.inputs, *asked.show])
    found, signal = _evaluated(asked, glance, outputs, workers)
    if signal:
        sentence = outputs.stopped(glance.points, glance.planned)
    else:
        _say(outputs, found)
    if not outputs.on_stdout and glance.points:
        _tables(glance, markdown)
    if signal:
        print(f"moeplan: {sentence}", file=sys.stderr)
        raise typer.Exit(128 + signal)


def _evaluated(asked: Any, glance: Any, outputs: Outputs, workers: int) -> tuple[Any, int]:
    """Evaluate the points and write them as they come.

    Returns the last of them (all, where they are needed at a time), and the signal that stopped
    the work, if one did.
    """
    from moeplan.sweeping import stretches

    found = None
    with stoppable() as signalled, _progress(asked.grid.count) as progress:
        try:
            outputs.begin()
            for found in stretches(
                asked, glance, whole=outputs.whole, workers=workers, progress=progress,
                stopped=lambda: bool(signalled()),
            ):  # fmt: skip
                outputs.add(found)
        except UserError as problem:
            raise outputs.failed(problem, glance.legal) from None
        except BrokenPipeError:
            outputs.drop()
            raise
        return found, signalled() if glance.points < glance.planned else 0


def _say(outputs: Outputs, found: Any) -> None:
    """Put files in their places, draw plots, and say where all of them are."""
    said = outputs.keep()
    for wanted in outputs.plot:
        from moeplan.report.plots.sweep import draw_sweep

        said += draw_sweep(found, wanted, outputs.folder)
    for file in said:
        print(file, file=sys.stderr)


def _given(model: str | None, preset: str | None, config: Path | None) -> str | Path | None:
    """The one model that was named, or None where an axis names them."""
    found = [x for x in (model, preset, config) if x is not None]
    if len(found) > 1:
        raise UserError("one model is needed and several were given")
    return found[0] if found else None


def _mode(cluster: str | None, train: bool, serve: bool) -> Any:
    if train and serve:
        raise UserError("one of --train and --serve is needed, and both were given")
    if cluster is not None and not (train or serve):
        raise UserError("--cluster needs --train or --serve: what runs on it")
    return "train" if train else "serve" if serve else "estimate"


def _pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise UserError(f"{option} {text}: write NAME=..., such as {option} tokens=4096")
        if name in out:
            raise UserError(f"{option} {name} is given twice")
        out[name] = value
    return out


@contextmanager
def _progress(points: int) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from time import monotonic

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("points", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    drawn = 0.0
    with Progress(
        *columns, console=Console(stderr=True), transient=True, auto_refresh=False
    ) as bar:  # without a thread of its own: workers are forked
        task = bar.add_task("points", total=points)

        def progress(done: int, _: int) -> None:
            nonlocal drawn
            late = monotonic() - drawn > _REDRAWN or done == points
            drawn = monotonic() if late else drawn
            bar.update(task, completed=done, refresh=late)

        yield progress


def _tables(found: Any, markdown: bool) -> None:
    from moeplan.cli import _show, _width
    from moeplan.report.sweep import sweep_tables

    _show(sweep_tables(found, None if markdown else _width()), "md" if markdown else "rich")


def _list(given: str | Path | None, mode: Any, markdown: bool) -> None:
    """What can be varied here, with the model's own values where one is named."""
    from moeplan.cli import _show
    from moeplan.report.sweep import names_table
    from moeplan.sweeping.inputs import input_rows

    rows = input_rows(given, mode)
    _show([names_table(rows, "Inputs of a sweep")], "md" if markdown else "rich")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(sweep)
