"""Commands that measure a layer, and that predict and calibrate op times."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeplan.cli_options import ConfigOption, GpuOption, Json, PresetOption
from moeplan.errors import UserError

if TYPE_CHECKING:
    from moeplan.profile.command import Outcome

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

    Points are MoE ops, dense GEMMs, collectives or expert-parallel exchanges: the columns say
    which. Where the file holds measured times, the errors by regime go to standard error.
    """
    from moeplan.calibration.derived import for_gpu
    from moeplan.calibration.messages import is_of_messages
    from moeplan.calibration.predict import form_of, predict, write_predicted
    from moeplan.calibration.reader import read_points
    from moeplan.calibration.store import calibration as load

    if calibration is not None and gpu is not None:
        raise UserError("--calibration and --gpu exclude each other: a calibration is of one GPU")
    if is_of_messages(points):
        _predict_messages(points, calibration, gpu, out)
        return
    found = read_points(points)
    used = load(calibration) if calibration is not None else for_gpu(gpu or "h200")[found.kind]
    answer = predict(found, used)
    fit = used.fit_of(found.kind)
    if fit.origin != "measured":
        _say_carried(fit.note, fit.widen)
    if out is None:
        write_predicted(found, answer, sys.stdout, "csv")
    else:
        with out.open("w", encoding="utf-8", newline="") as file:
            write_predicted(found, answer, file, form_of(out))
    if found.seconds is not None:
        from moeplan.report.calibration import errors_table
        from moeplan.report.tables import to_text

        sys.stderr.write(to_text([errors_table(answer.errors(found.seconds), used.name)]))


def _say_carried(source: str, wider: float) -> None:
    """That times rest on no measurement of this GPU, and how wide their band is for that."""
    print(
        f"times are carried over, not measured on this GPU: {source}; the error band is wider, the "
        f"origin's to the power of {wider:g}",
        file=sys.stderr,
    )


def _predict_messages(
    path: Path, calibration: str | None, gpu: str | None, out: Path | None
) -> None:
    from moeplan.calibration.messages import predict_messages, read_messages
    from moeplan.calibration.predict import form_of, write_columns
    from moeplan.cluster.hardware import gpu as card

    if calibration is not None:
        raise UserError("--calibration is for ops: messages take the tables of --gpu")
    found = read_messages(path)
    columns, errors = predict_messages(found, card(gpu or "h200"))
    kept = {name: column for name, column in found.columns.items() if name not in columns}
    every = {name: column.tolist() for name, column in {**kept, **columns}.items()}
    if "assumed" in columns["origin"]:
        _say_carried(f"{found.name}, by the ratio of the links' datasheet rates", 2)
    if out is None:
        write_columns(every, sys.stdout, "csv")
    else:
        with out.open("w", encoding="utf-8", newline="") as file:
            write_columns(every, file, form_of(out))
    if errors:
        from moeplan.report.calibration import errors_table
        from moeplan.report.tables import to_text

        sys.stderr.write(
            to_text(
                [errors_table(errors, f"network {found.name} (exact at the sizes of its tables)")]
            )
        )


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
    from moeplan.calibration.messages import is_of_messages
    from moeplan.calibration.reader import read_points
    from moeplan.calibration.records import calibrate_records
    from moeplan.calibration.store import save
    from moeplan.report.calibration import errors_table

    kinds = {path.suffix.lower() for path in sources}
    if kinds == {".csv"} and all(is_of_messages(path) for path in sources):
        _calibrate_messages(sources, name, out)
        return
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


def _calibrate_messages(sources: list[Path], name: str, out: Path | None) -> None:
    """Tables of measured messages, with the errors of every other size from the rest."""
    import datetime as dt
    import json

    from moeplan.calibration.collectives import left_out, network_dict, network_of
    from moeplan.calibration.errors import errors_of
    from moeplan.calibration.messages import message_tables, read_messages
    from moeplan.report.calibration import errors_table

    where = ", ".join(str(path) for path in sources)
    tables = [t for path in sources for t in message_tables(read_messages(path), "nvlink", where)]
    made = network_of(name or "messages", tables, where, dt.datetime.now(dt.UTC).date().isoformat())
    if out is not None:
        out.write_text(json.dumps(network_dict(made), indent=1) + "\n", encoding="utf-8")
    from rich.console import Console

    from moeplan.report.tables import print_tables

    rows = []
    for operation in dict.fromkeys(t.collective for t in tables):
        found, measured, _ = left_out([t for t in tables if t.collective == operation])
        rows.append(errors_of(operation, found, measured, measured * float("nan")))
    print_tables([errors_table(rows, f"{made.name}, every other size")], Console(highlight=False))


def profile(
    preset: PresetOption = None,
    config: ConfigOption = None,
    device: Annotated[
        str | None, typer.Option(help="cuda or cpu; the GPU where there is one.")
    ] = None,
    backend: Annotated[str, typer.Option(help="Backends, with commas.")] = "torch",
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Token counts, with commas.")] = None,
    routing: Annotated[
        str, typer.Option(help="uniform, balanced, zipf:EXPONENT or trace.")
    ] = "uniform",
    routing_trace: Annotated[
        Path | None, typer.Option(help="Expert ids per token, .npy or .jsonl.")
    ] = None,
    backward: Annotated[bool, typer.Option(help="Measure forward + backward too.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Less than a minute.")] = False,
    suite: Annotated[str | None, typer.Option(help="A set of models: all, gpu.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for records, or a .json file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a record.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, inputs and routing.")] = 0,
    samples: Annotated[
        int | None, typer.Option(min=2, help="Timed runs of a case: 20, and 5 with --quick.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Time to stop after, such as 12min.")] = None,
    note: Annotated[list[str] | None, typer.Option(help="A remark for the record.")] = None,
    detail: Annotated[bool, typer.Option("--detail", help="Every case's rows.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would run, and how long.")
    ] = False,
    gpu: Annotated[str | None, typer.Option(help="With --dry-run: a GPU not at hand.")] = None,
    as_json: Json = False,
) -> None:
    """Run a model's MoE layer on this machine: predicted beside measured, kept as a record."""
    from moeplan.profile.command import ProfileOptions, run_profile

    options = ProfileOptions(
        preset=preset, config=config, device=device, backend=backend, dtype=dtype, tokens=tokens,
        routing=routing, routing_trace=routing_trace, backward=backward, quick=quick, suite=suite,
        out=out, resume=resume, seed=seed, samples=samples, budget=budget, note=tuple(note or ()),
        detail=detail, dry_run=dry_run, gpu=gpu, command=" ".join(sys.argv[1:]),
    )  # fmt: skip
    from rich.console import Console

    _answer(run_profile(options, None if as_json else Console(stderr=True)), as_json)


def validate(
    places: Annotated[list[Path], typer.Argument(help="Records, or folders of records.")],
    band: Annotated[
        float | None, typer.Option(help="Largest mean error of layers, percent.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="A folder for plots.")] = None,
    as_json: Json = False,
) -> None:
    """Errors of the predictions in records, per operation and layer; exit code 1 past the band."""
    from moeplan.profile.command import ValidateOptions, run_validate

    _answer(run_validate(ValidateOptions(places, band, plots)), as_json)


def _answer(outcome: Outcome, as_json: bool) -> None:
    from rich.console import Console

    from moeplan.report.tables import print_tables

    if as_json:
        print(json.dumps(outcome.document, indent=2))
    else:
        print_tables(outcome.tables, Console(highlight=False))
    if outcome.sentence:
        print(outcome.sentence, file=sys.stderr)
    raise typer.Exit(outcome.code)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(predict)
    app.command()(calibrate)
    app.command()(profile)
    app.command()(validate)
