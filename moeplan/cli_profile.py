"""Commands that measure a real layer, and that hold estimates against what was measured."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeplan.cli_options import ConfigOption, Csv, Json, Markdown, PresetOption
from moeplan.errors import UserError

if TYPE_CHECKING:
    from moeplan.profile.command import Outcome

__all__ = ["register"]


def profile(
    preset: PresetOption = None,
    config: ConfigOption = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Many models: gpu (what a card can tell in 12 minutes) or all."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto (the GPU if there is one), cpu, cuda or cuda:N.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="Who runs the experts: torch, reference, several with commas, all.")
    ] = "torch",
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16 or fp32; bf16 on a GPU, fp32 on a CPU.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Sizes of a pass, with commas: 1,64,4096.")
    ] = None,
    routing: Annotated[
        str, typer.Option(help="uniform, balanced, zipf:EXPONENT or trace.")
    ] = "uniform",
    routing_trace: Annotated[
        Path | None, typer.Option(help="Expert ids of each token, .npy or .jsonl.")
    ] = None,
    backward: Annotated[
        bool, typer.Option("--backward/--no-backward", help="Forward + backward passes too.")
    ] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes, below a minute.")] = False,
    samples: Annotated[int, typer.Option(help="Timed passes of each case.")] = 20,
    budget: Annotated[str | None, typer.Option(help="Stop in time: '90 s', '12 min'.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of records (profiles), or a .json file.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest record of the model.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of weights, tokens and routing.")] = 0,
    note: Annotated[list[str] | None, typer.Option(help="A remark for the record.")] = None,
    detail: Annotated[bool, typer.Option("--detail", help="Ops of every case.")] = False,
    as_json: Json = False,
    markdown: Markdown = False,
    as_csv: Csv = False,
) -> None:
    """Measure a model's MoE layer on this machine, beside the prediction made before."""
    from rich.console import Console

    from moeplan.profile.command import ProfileOptions, run_profile

    output = _output(as_json, markdown, as_csv)
    options = ProfileOptions(
        preset=preset, config=config, suite=suite, device=device, backend=backend, dtype=dtype,
        tokens=tokens, routing=routing, routing_trace=routing_trace, backward=backward,
        quick=quick, samples=samples, budget=budget, out=out, resume=resume, seed=seed,
        note=tuple(note or ()), detail=detail, command=shlex.join(["moeplan", *sys.argv[1:]]),
    )  # fmt: skip
    _show(run_profile(options, Console(stderr=True)), output)


def validate(
    records: Annotated[list[Path], typer.Argument(help="Records of `profile`, or their folders.")],
    band: Annotated[
        float | None,
        typer.Option(help="Largest mean error of layers that passes, in percent."),
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="A folder to draw plots into.")] = None,
    as_json: Json = False,
    markdown: Markdown = False,
    as_csv: Csv = False,
) -> None:
    """Errors of predictions in records, per op and per layer; exit code 1 past the band."""
    from moeplan.profile.command import ValidateOptions, run_validate

    output = _output(as_json, markdown, as_csv)
    _show(run_validate(ValidateOptions(records, band=band, plots=plots)), output)


def _output(as_json: bool, markdown: bool, as_csv: bool) -> str:
    chosen = [n for n, on in (("json", as_json), ("markdown", markdown), ("csv", as_csv)) if on]
    if len(chosen) > 1:
        raise UserError(f"one output is needed: --{' and --'.join(chosen)} exclude each other")
    return chosen[0] if chosen else "terminal"


def _show(outcome: Outcome, output: str) -> None:
    """Print what a command has to show, and end with its exit code."""
    from moeplan.report import tables as draw

    if output == "json":
        plain = not (sys.stdout.encoding or "").lower().startswith("utf")
        print(json.dumps(outcome.document, indent=2, ensure_ascii=plain))
    elif output == "markdown":
        sys.stdout.write(draw.to_markdown(outcome.tables))
    elif output == "csv":
        sys.stdout.write(draw.to_csv(outcome.tables))
    else:
        from rich.console import Console

        draw.print_tables(outcome.tables, Console(highlight=False))
    if outcome.sentence:
        print(outcome.sentence, file=sys.stderr)
    if outcome.code:
        raise typer.Exit(outcome.code)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(profile)
    app.command()(validate)
