"""The command `sweep`: the estimate over many values of any input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeplan.cli_job import ClusterOption, ServeOption, TrainOption, job_fields, takes_job
from moeplan.cli_options import (
    Batch,
    ConfigOption,
    Context,
    Csv,
    Ep,
    GpuOption,
    Json,
    Microbatch,
    Model,
    Node,
    PresetOption,
    Tokens,
)
from moeplan.errors import UserError, near_miss

if TYPE_CHECKING:
    from moeplan.sweep import Sweep

__all__ = ["register"]

_ON_SCREEN = 40  # rows of a table; a file holds all
_DRAWN = 100_000  # points of a plot


@takes_job
def sweep(
    model: Model = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", help="NAME=VALUES: ep=1,2,4 or ep=1:64:x2 or tokens=1k:9k:+4k."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=FORMULA of what varies, such as width=14336/g."),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(help="Numbers to list: paths of `estimate --json`, by commas."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A file that ends in .csv, .json or .parquet.")
    ] = None,
    plot: Annotated[
        list[str] | None,
        typer.Option(help="X,Y or X,Y,COLOUR: columns to draw, as PNG and SVG beside --out."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    context: Context = None,
    batch: Batch = None,
    microbatch: Microbatch = None,
    tokens: Tokens = None,
    ep: Ep = None,
    node: Node = None,
    gpu: GpuOption = None,
    layout: Annotated[
        str | None, typer.Option(help="On a cluster: degrees that do not vary, or '' for none.")
    ] = None,
    cluster: ClusterOption = None,
    train: TrainOption = False,
    serve: ServeOption = False,
    *,
    job: Mapping[str, Any],
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """The estimate over many values of any input, as arrays, to a table, a file and plots."""
    from moeplan.cli import _output, _scenario
    from moeplan.sweep import Sweep

    output = _output(as_json, False, as_csv)
    if output != "rich" and out is not None:
        raise UserError("one place is needed: --out FILE, or --json or --csv for the terminal")
    alone = {"microbatch": microbatch, "tokens": tokens, "ep": ep, "node": node, "gpu": gpu}
    named = _named(model, preset, config)
    metrics = [name.strip() for name in (table or "").split(",") if name.strip()]
    if layout is None:
        shared = {n: x for n, x in job.items() if n in _SCENARIO}
        wrong = [n for n in job if n not in _SCENARIO]
        if wrong or cluster is not None or train or serve:
            first = f"--{wrong[0].replace('_', '-')}" if wrong else "--cluster, --train or --serve"
            raise UserError(f"{first} needs --layout (with --layout '' all degrees may vary)")
        scenario = _scenario(context, **alone, **shared)
        made = Sweep.of(named, vary=vary or [], sets=sets or [], metrics=metrics, scenario=scenario)
    else:
        made = _on_layouts(named, vary, sets, metrics, layout, cluster, job, alone, context,
                           train=train, serve=serve)  # fmt: skip
    _run(made, out, plot or [], workers, output)


_SCENARIO = ("batch", "imbalance", "weights", "cache", "dispatch", "combine", "policy", "optimizer",
             "price", "draft", "acceptance")  # fmt: skip


def _named(model: str | None, preset: str | None, config: Path | None) -> str:
    from moeplan.cli_job import as_path

    given = [x for x in (model, preset, None if config is None else as_path(config)) if x]
    if len(given) != 1:
        found = "nothing" if not given else "several"
        raise UserError(f"one model is needed and {found} was given: use --preset NAME")
    return given[0]


def _on_layouts(
    model: str, vary: list[str] | None, sets: list[str] | None, metrics: list[str], layout: str,
    cluster: str | None, job: Mapping[str, Any], alone: Mapping[str, Any], context: str | None,
    *, train: bool, serve: bool,
) -> Sweep:  # fmt: skip
    from moeplan.sweep import Sweep

    wrong = [f"--{n}" for n, x in {**alone, "context": context}.items() if x is not None]
    if wrong:
        raise UserError(f"{wrong[0]} describes one GPU without a layout: name it in --vary, or in "
                        "--layout or its options")  # fmt: skip
    if train == serve:
        given = "both were" if train else "neither was"
        raise UserError(f"one of --train and --serve is needed beside --layout, and {given} given")
    if cluster is None:
        raise UserError("--layout needs --cluster, such as --cluster h100x64")
    kinds, fields = job_fields(job, training=train)
    degrees = ",".join(x for x in (layout, *kinds) if x)
    return Sweep.of(model, vary=vary or [], sets=sets or [], metrics=metrics, layout=degrees,
                    cluster=cluster, job=fields, training=train)  # fmt: skip


def _run(made: Sweep, out: Path | None, plots: list[str], workers: int, output: str) -> None:
    from moeplan.sweep.write import CsvFile, JsonFile, writer

    drawn = [_columns(text, made) for text in plots]
    kept = _Kept(made, sorted({name for names in drawn for name in names}))
    if out is not None:
        target = writer(out, made.columns)
    elif output == "csv":
        target = CsvFile(sys.stdout, made.columns)
    elif output == "json":
        target = JsonFile(sys.stdout, made.columns)
    else:
        target = _Screen(made)
    with _progress(made.size) as advance, target:
        for table in made.tables(workers):
            target.write(table)
            kept.add(table)
            advance(len(table["reason"]))
    if out is not None:
        print(
            f"{out}: {made.size:,} rows, {kept.left:,} of them without an answer", file=sys.stderr
        )
    for names in drawn:
        _draw(made, kept.table(), names, out)


def _columns(text: str, made: Sweep) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if len(names) not in (2, 3):
        raise UserError(f"--plot {text!r} must be X,Y or X,Y,COLOUR")
    for name in names:
        if name not in made.columns:
            raise UserError(
                f"--plot: no column {name!r}{near_miss(name, made.columns)}; there are "
                f"{', '.join(made.columns)}"
            )
    return names


class _Kept:
    """The columns that plots need, of at most `_DRAWN` points; and how many had no answer."""

    def __init__(self, made: Sweep, names: list[str]) -> None:
        self._step = -(-made.size // _DRAWN)
        self._at = 0
        self._parts: dict[str, list[Any]] = {name: [] for name in names}
        self.left = 0

    def add(self, table: dict[str, Any]) -> None:
        """Keep every n-th point."""
        n = len(table["reason"])
        self.left += int((table["reason"] != "").sum())
        first = -self._at % self._step
        for name, parts in self._parts.items():
            parts.append(table[name][first :: self._step].copy())
        self._at += n

    def table(self) -> dict[str, Any]:
        """The columns."""
        import numpy as np

        return {name: np.concatenate(parts) for name, parts in self._parts.items()}


class _Screen:
    """A table on the terminal: the first rows."""

    def __init__(self, made: Sweep) -> None:
        self._made = made
        self._rows: list[tuple[Any, ...]] = []

    def __enter__(self) -> _Screen:
        return self

    def write(self, table: dict[str, Any]) -> None:
        """Keep what is shown."""
        from itertools import islice

        from moeplan.sweep.write import rows

        room = _ON_SCREEN - len(self._rows)
        if room > 0:
            head = {name: table[name][:room] for name in self._made.columns}
            self._rows += list(islice(rows(head), room))

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            from moeplan.cli import _show, _width
            from moeplan.report.sweep_table import sweep_table

            _show([sweep_table(self._made, self._rows, _width())], "rich")


@contextmanager
def _progress(points: int) -> Iterator[Any]:
    """A progress bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), "points", TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=points)
        yield lambda n: bar.advance(task, n)


def _draw(made: Sweep, table: dict[str, Any], names: list[str], out: Path | None) -> None:
    from moeplan.report.plots.sweep import draw_sweep

    base = out.with_suffix("") if out is not None else Path("sweep")
    short = "-".join(name.replace(".", "_") for name in names)
    linked = [f"{f.name} = {f.text}" for f in made.formulas]
    about = " · ".join([made.setting.model, made.setting.cluster, made.setting.degrees, *linked])
    about = " · ".join(part for part in about.split(" · ") if part)
    title = f"{names[1]} against {names[0]}"
    stem = base.with_name(f"{base.name}-{short}")
    for path in draw_sweep(table, names, stem, title, about, made.units):
        print(path, file=sys.stderr)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(sweep)
