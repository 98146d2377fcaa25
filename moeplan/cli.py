"""The command line: parse, call, render; a few lines a command."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from copy import copy
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moeplan import cli_export, cli_layout, cli_measure, cli_plan, cli_sweep
from moeplan.cli_interrupt import CODE, Interrupted, interruptible
from moeplan.cli_job import (
    ClusterOption,
    PlanOption,
    SaveOption,
    ServeOption,
    TrainOption,
    estimate_on_layout,
    show_answer,
    takes_job,
)
from moeplan.cli_options import (
    Acceptance,
    Attention,
    Batch,
    Cache,
    Combine,
    ConfigOption,
    Context,
    Csv,
    Dispatch,
    Draft,
    Ep,
    GpuOption,
    Imbalance,
    Json,
    Markdown,
    Microbatch,
    Model,
    Node,
    Optimizer,
    Policy,
    PresetOption,
    Price,
    Tokens,
    Weights,
)
from moeplan.errors import UserError

app = typer.Typer(
    name="moeplan",
    help="What a Mixture-of-Experts model costs: exact, explained, measured.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _scenario(context: str | None, **given: Any) -> dict[str, Any]:
    if context is not None:
        from moeplan.units import parse

        given["context"] = parse(context, "count", where="--context")
    return {name: value for name, value in given.items() if value is not None}


def _one_model(model: str | None, preset: str | None, config: Path | None) -> Any:
    from moeplan.load import load_config, load_model, load_preset

    given = [x for x in (model, preset, config) if x is not None]
    if len(given) != 1:
        found = "nothing was" if not given else "several were"
        raise UserError(
            f"one model is needed and {found} given: "
            "use --preset NAME (see `moeplan presets`) or --config PATH"
        )
    if preset is not None:
        return load_preset(preset)
    return load_config(config) if config is not None else load_model(str(model))


def _output(as_json: bool, markdown: bool, as_csv: bool) -> Literal["rich", "json", "md", "csv"]:
    chosen = [n for n, on in (("json", as_json), ("markdown", markdown), ("csv", as_csv)) if on]
    if len(chosen) > 1:
        raise UserError(f"one output is needed: --{' and --'.join(chosen)} exclude each other")
    kinds: dict[str, Literal["json", "md", "csv"]] = {
        "json": "json",
        "markdown": "md",
        "csv": "csv",
    }
    return kinds[chosen[0]] if chosen else "rich"


def _width() -> int:
    from rich.console import Console

    return Console().width


def _show(tables: Any, output: str) -> None:
    from moeplan.report import tables as draw

    if output == "md":
        sys.stdout.write(draw.to_markdown(tables))
    elif output == "csv":
        sys.stdout.write(draw.to_csv(tables))
    else:
        from rich.console import Console

        draw.print_tables(tables, Console(highlight=False))


@app.command()
@takes_job
def estimate(
    model: Model = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    context: Context = None,
    batch: Batch = None,
    microbatch: Microbatch = None,
    tokens: Tokens = None,
    ep: Ep = None,
    node: Node = None,
    imbalance: Imbalance = None,
    attention: Attention = None,
    weights: Weights = None,
    cache: Cache = None,
    dispatch: Dispatch = None,
    combine: Combine = None,
    policy: Policy = None,
    optimizer: Optimizer = None,
    gpu: GpuOption = None,
    price: Price = None,
    draft: Draft = None,
    acceptance: Acceptance = None,
    detail: Annotated[bool, typer.Option(help="Layers, kept activations and op rows too.")] = False,
    layout: Annotated[
        str | None, typer.Option(help="On a cluster: tp=2,pp=16,ep=8; then as `layout`.")
    ] = None,
    cluster: ClusterOption = None,
    train: TrainOption = False,
    serve: ServeOption = False,
    plan: PlanOption = None,
    save: SaveOption = None,
    *,
    job: Mapping[str, Any],
    as_json: Json = False,
    markdown: Markdown = False,
    as_csv: Csv = False,
) -> None:
    """Parameters, FLOPs, memory, all-to-all traffic, expected time and cost of one model.

    With --layout, or a plan file: memory, traffic, time and money on a cluster.
    """
    from moeplan import api
    from moeplan.report.estimate_tables import estimate_tables

    given = {
        "batch": batch, "microbatch": microbatch, "tokens": tokens, "ep": ep, "node": node,
        "imbalance": imbalance, "attention": attention, "weights": weights, "cache": cache,
        "dispatch": dispatch, "combine": combine, "policy": policy, "optimizer": optimizer,
        "gpu": gpu, "price": price, "draft": draft, "acceptance": acceptance,
    }  # fmt: skip
    alone = {**given, "context": context, "detail": detail}
    choice = estimate_on_layout(
        model, preset, config, layout, cluster, job, alone, train=train, serve=serve, plan=plan
    )
    if choice is not None:
        return show_answer(choice, save, as_json, markdown, as_csv)
    if save is not None:
        raise UserError("--save needs --layout: a plan file holds a layout")
    output = _output(as_json, markdown, as_csv)
    scenario = _scenario(context, **given)
    result = api.estimate(_one_model(model, preset, config), **scenario)
    if output == "json":
        print(result.to_json())
    else:
        _show(estimate_tables(result, detail=detail), output)


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(help="Presets, or paths to config.json files.")],
    plot: Annotated[
        Path | None, typer.Option(help="A folder for the plots, as PNG and SVG.")
    ] = None,
    context: Context = None,
    batch: Batch = None,
    tokens: Tokens = None,
    ep: Ep = None,
    node: Node = None,
    attention: Attention = None,
    weights: Weights = None,
    cache: Cache = None,
    optimizer: Optimizer = None,
    gpu: GpuOption = None,
    price: Price = None,
    as_json: Json = False,
    markdown: Markdown = False,
    as_csv: Csv = False,
) -> None:
    """Models side by side with ratios to the first, and plots for a review."""
    from moeplan import api
    from moeplan.report.compare import compare_tables

    output = _output(as_json, markdown, as_csv)
    scenario = _scenario(
        context, batch=batch, tokens=tokens, ep=ep, node=node, attention=attention,
        weights=weights, cache=cache, optimizer=optimizer, gpu=gpu, price=price,
    )  # fmt: skip
    results = api.compare(*models, **scenario)
    if output == "json":
        _print_json([result.to_dict() for result in results])
    else:
        _show(compare_tables(results, _width() if output == "rich" else None), output)
    if plot is not None:
        from moeplan.report.plots import draw, skipped

        for path in draw(results, plot):
            print(path, file=sys.stderr)
        for name, reason in skipped(results).items():
            print(f"not drawn: {name}: {reason}", file=sys.stderr)


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="A preset, or a path to a config.json.")],
    path: Annotated[str, typer.Argument(help="A path of the JSON result: params.active.all")],
    depth: Annotated[int | None, typer.Option(min=0, help="Levels to show.")] = None,
    context: Context = None,
    batch: Batch = None,
    microbatch: Microbatch = None,
    tokens: Tokens = None,
    ep: Ep = None,
    node: Node = None,
    imbalance: Imbalance = None,
    attention: Attention = None,
    weights: Weights = None,
    cache: Cache = None,
    dispatch: Dispatch = None,
    combine: Combine = None,
    policy: Policy = None,
    optimizer: Optimizer = None,
    gpu: GpuOption = None,
    price: Price = None,
    draft: Draft = None,
    acceptance: Acceptance = None,
) -> None:
    """Show how a number came about: formula, inputs, and the source of each input."""
    from shutil import get_terminal_size

    from moeplan import api
    from moeplan.report.explanation import explain_lines

    scenario = _scenario(
        context, batch=batch, microbatch=microbatch, tokens=tokens, ep=ep, node=node,
        imbalance=imbalance, attention=attention, weights=weights, cache=cache, dispatch=dispatch,
        combine=combine, policy=policy, optimizer=optimizer, gpu=gpu, price=price,
        draft=draft, acceptance=acceptance,
    )  # fmt: skip
    found = api.explain(model, path, **scenario)
    for line in explain_lines(path, found, depth, get_terminal_size().columns):
        print(line)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A config.json, or a folder that holds one.")],
    as_json: Json = False,
    markdown: Markdown = False,
    as_csv: Csv = False,
) -> None:
    """Compare an estimate with the checkpoint beside its config, or with transformers' model."""
    from moeplan.check import check as compare_with
    from moeplan.report.check import check_tables

    output = _output(as_json, markdown, as_csv)
    found = compare_with(path)
    if output == "json":
        _print_json(found.to_dict())
    else:
        _show(check_tables(found), output)
    if not found.equal:
        raise typer.Exit(1)


@app.command()
def presets(
    search: Annotated[str, typer.Option(help="Words: name, maker, family, size, mixer.")] = "",
    as_json: Json = False,
    markdown: Markdown = False,
    as_csv: Csv = False,
) -> None:
    """List the models that --preset knows, each with its size, source and date."""
    from moeplan.report.lists import preset_rows, preset_table

    output = _output(as_json, markdown, as_csv)
    rows = preset_rows(search)
    if output == "json":
        _print_json(rows)
    else:
        _show([preset_table(rows, search)], output)


@app.command()
def families(as_json: Json = False, markdown: Markdown = False, as_csv: Csv = False) -> None:
    """List the model types that are read, with their kinds of block and a preset of each."""
    from moeplan.report.families import family_rows, family_table

    output = _output(as_json, markdown, as_csv)
    rows = family_rows()
    if output == "json":
        _print_json(rows)
    else:
        _show([family_table(rows)], output)


@app.command()
def hardware(
    name: Annotated[str | None, typer.Argument(metavar="[GPU]", help="As --gpu.")] = None,
    gpu: GpuOption = None,
    as_json: Json = False,
    markdown: Markdown = False,
    as_csv: Csv = False,
) -> None:
    """List the GPUs with their datasheet figures, sources and prices, or show one."""
    from moeplan.report.lists import hardware_rows, hardware_tables

    if name is not None and gpu is not None:
        raise UserError(f"one GPU is needed and two were given: {name} and --gpu {gpu}")
    gpu = name if gpu is None else gpu
    output = _output(as_json, markdown, as_csv)
    rows = hardware_rows(gpu)
    if output == "json":
        _print_json(rows)
    else:
        _show(hardware_tables(rows, single=gpu is not None), output)


@app.command()
def schema() -> None:
    """Print the JSON schema of the result of `estimate --json`."""
    from moeplan.report.schema import json_schema

    _print_json(json_schema())


cli_layout.register(app)
cli_plan.register(app)
cli_export.register(app)
cli_sweep.register(app)
cli_measure.register(app)


def _print_json(value: Any) -> None:
    import json

    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, indent=2, ensure_ascii=plain))


def _version(on: bool) -> None:
    if on:
        from moeplan._version import __version__

        print(f"moeplan {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What a Mixture-of-Experts model costs: exact, explained, measured."""


def _wanted(words: list[str]) -> typer.Typer:
    """The program with only the command that is named: to make all takes a sixth of a start."""
    found, named = copy(app), app.registered_commands
    one = [c for c in named if c.callback is not None and [c.callback.__name__] == words]
    if one:
        found.registered_commands, found.registered_groups = one, []
    return found


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without some sign shows another
            stream.reconfigure(errors="replace")
    try:
        with interruptible():
            _wanted(sys.argv[1:2])(prog_name="moeplan")
    except Interrupted:
        print("moeplan: interrupted", file=sys.stderr)
        sys.exit(CODE)
    except UserError as problem:
        print(f"moeplan: {problem}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader (head, less) has closed: nothing to say
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
