"""Commands that predict and calibrate op times from measured points."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from moeplan.cli_options import GpuOption
from moeplan.errors import UserError

__all__ = ["register"]

PointsArgument = Annotated[Path, typer.Argument(help="A CSV file of points, with named columns.")]


def predict(
    points: PointsArgument,
    calibration: Annotated[
        str | None, typer.Option(help="A calibration's name, or a JSON file; else the GPU's own.")
    ] = None,
    gpu: GpuOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write: .csv or .json. Standard output otherwise.")
    ] = None,
) -> None:
    """Expected time of each point of a CSV file, with its error band.

    Where the file holds measured times (latency_ms), the errors by regime go to standard error.
    """
    from moeplan.calibration.derived import for_gpu
    from moeplan.calibration.points import read_points
    from moeplan.calibration.predict import form_of, predict, write_predicted
    from moeplan.calibration.store import calibration as load

    if calibration is not None and gpu is not None:
        raise UserError("--calibration and --gpu exclude each other: a calibration is of one GPU")
    found = read_points(points)
    used = load(calibration) if calibration is not None else for_gpu(gpu or "h200")[found.kind]
    answer = predict(found, used)
    if out is None:
        write_predicted(found, answer, sys.stdout, "csv")
    else:
        with out.open("w", encoding="utf-8", newline="") as file:
            write_predicted(found, answer, file, form_of(out))
    if found.seconds is not None:
        from moeplan.report.calibration import errors_table
        from moeplan.report.tables import to_text

        sys.stderr.write(to_text([errors_table(answer.errors(found.seconds), used.name)]))


def calibrate(
    sources: Annotated[
        list[Path], typer.Argument(help="CSV files of points, or records of `moeplan profile`.")
    ],
    backend: Annotated[str, typer.Option(help="What ran the points, such as torch.")] = "torch",
    gpu: GpuOption = None,
    name: Annotated[str, typer.Option(help="The calibration's name.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Where to write the JSON; else only the errors are shown.")
    ] = None,
) -> None:
    """Fit op times to measured points and show the errors on points that the fit did not see."""
    from moeplan.calibration.calibrate import calibrate
    from moeplan.calibration.points import read_points
    from moeplan.calibration.records import calibrate_records
    from moeplan.calibration.store import save
    from moeplan.report.calibration import errors_table

    kinds = {path.suffix.lower() for path in sources}
    if kinds == {".json"}:
        found = calibrate_records(sources, backend, name)
    elif kinds == {".csv"}:
        if gpu is None:
            raise UserError("--gpu is needed: a CSV file does not say on which GPU it was measured")
        found = calibrate([read_points(path) for path in sources], backend, gpu, name=name)
    else:
        given = ", ".join(sorted(kinds))
        raise UserError(f"sources end in {given}: give .csv files of points, or .json records")
    if out is not None:
        save(found, out)
    from rich.console import Console

    from moeplan.report.tables import print_tables

    tables = [errors_table(fit.errors, f"{found.name}, {kind}") for kind, fit in found.fits.items()]
    print_tables(tables, Console(highlight=False))


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(predict)
    app.command()(calibrate)
