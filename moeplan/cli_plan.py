"""The commands `plan train` and `plan serve`: the best layout of all legal ones."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from moeplan.cli_options import (
    Acceptance,
    Cache,
    Combine,
    ConfigOption,
    Csv,
    Dispatch,
    Draft,
    Imbalance,
    Json,
    Markdown,
    Model,
    Optimizer,
    Policy,
    PresetOption,
    Price,
    Weights,
)
from moeplan.errors import UserError, near_miss
from moeplan.units import parse

__all__ = ["register"]

app = typer.Typer(no_args_is_help=True, help="The best of all legal layouts, for a job.")

_LIST = "Values to search, such as 1,2,4."

Values = Annotated[str | None, typer.Option(help=_LIST)]
Fix = Annotated[str | None, typer.Option(help="Degrees with one value: 'tp=1,zero=1'.")]
Top = Annotated[int, typer.Option(min=1, max=1000, help="Rows to show.")]
Plot = Annotated[
    Path | None, typer.Option(help="A folder for the front: PNG, SVG and CSV.")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=256, help="Processes; else one for each processor. Same result."),
]
Pick = Annotated[int, typer.Option(min=1, help="The row that is meant, 1 is the best.")]


@app.command()
def train(
    model: Model = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    cluster: Annotated[
        str | None, typer.Option(help="A GPU such as h100, or a machine such as h100x2048.")
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="How many GPUs.")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Tokens of the whole run, such as 14.8T.")
    ] = None,
    by: Annotated[str, typer.Option(help="Rank by time, cost or gpus.")] = "time",
    deadline: Annotated[
        str | None, typer.Option(help="Find the fewest GPUs that train in this time: 60d.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Find the fewest GPUs that train for this: '$5M'.")
    ] = None,
    gpu_step: Annotated[
        int | None, typer.Option(min=1, help="Distance of the sizes that are tried.")
    ] = None,
    gbs: Annotated[
        str | None, typer.Option(help="Sequences of a step; else about 16 Mi tokens.")
    ] = None,
    sequence: Annotated[str | None, typer.Option(help="Tokens of a sequence.")] = None,
    fix: Fix = None,
    tp: Values = None,
    cp: Values = None,
    pp: Values = None,
    vpp: Values = None,
    dp: Values = None,
    ep: Values = None,
    etp: Values = None,
    zero: Values = None,
    microbatch: Values = None,
    schedule: Annotated[
        str | None, typer.Option(help="Of 1f1b,interleaved,zero-bubble,dualpipe; else all.")
    ] = None,
    recompute: Annotated[
        str | None, typer.Option(help="Of none,selective,selective:norm+activation,full.")
    ] = None,
    overlap: Annotated[
        str | None, typer.Option(help="Of none,usual,all-to-all,dualpipe; else by schedule.")
    ] = None,
    sp: Annotated[str | None, typer.Option(help="Sequence parallelism: 1, 0 or 0,1.")] = None,
    order: Annotated[str | None, typer.Option(help="Orders of ranks.")] = None,
    split: Annotated[str | None, typer.Option(help="Of even,full,balanced.")] = None,
    optimizer: Optimizer = None,
    precision: Annotated[str | None, typer.Option(help="Training matmuls: bf16 or fp8.")] = None,
    kept: Annotated[str | None, typer.Option(help="Kept activations: bf16 or fp8.")] = None,
    account: Annotated[
        str | None, typer.Option(help="Conventions of counting memory, such as megatron-core.")
    ] = None,
    mtp: Annotated[
        bool | None, typer.Option("--mtp/--no-mtp", help="Train the MTP modules too.")
    ] = None,
    policy: Policy = None,
    imbalance: Imbalance = None,
    dispatch: Dispatch = None,
    combine: Combine = None,
    stack: Annotated[
        str | None, typer.Option(help="What kernels reach: datasheet, kernels, megatron-bridge.")
    ] = None,
    price: Price = None,
    power: Annotated[str | None, typer.Option(help="All-in watts of a GPU: '1.7 kW'.")] = None,
    framework: Annotated[
        str | None, typer.Option(help="Memory of context and libraries: '2 GB'.")
    ] = None,
    fragmentation: Annotated[
        float | None, typer.Option(help="Share of memory that the allocator loses.")
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity/--no-sensitivity", help="Search again for each change.")
    ] = True,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the picked layout in full, as `layout` does.")
    ] = False,
    pick: Pick = 1,
    top: Top = 10,
    workers: Workers = None,
    plot: Plot = None,
    as_json: Json = False,
    markdown: Markdown = False,
    as_csv: Csv = False,
) -> None:
    """The best training layout of all legal ones: time, memory, cost, and what would change it."""
    job = _given(
        sequence=sequence, tokens_total=tokens, optimizer=optimizer, precision=precision,
        kept=kept, account=account, mtp=mtp, policy=policy, imbalance=imbalance,
        dispatch=dispatch, combine=combine, stack=stack, price=price, power=power,
        framework=framework, fragmentation=fragmentation,
    )  # fmt: skip
    kinds = _given(schedule=schedule, recompute=recompute, overlap=overlap, sp=sp, order=order,
                   split=split)  # fmt: skip
    pinned = _given(tp=tp, cp=cp, pp=pp, vpp=vpp, dp=dp, ep=ep, etp=etp, zero=zero,
                    microbatch=microbatch)  # fmt: skip
    _one_of("--by", by, ("time", "cost", "gpus"))
    if cluster is None:
        raise UserError("--cluster is needed: a GPU such as h100, or a machine such as h100x2048")
    from moeplan.cli import _one_model, _output
    from moeplan.plan.ask import Limits, Question, ask
    from moeplan.plan.options import counted, machine_counts, pins, space

    output = _output(as_json, markdown, as_csv)
    limits = Limits(_positive(deadline, "time", "--deadline"),
                    _positive(budget, "money", "--budget"), gpu_step)  # fmt: skip
    if limits and tokens is None:
        raise UserError("--deadline and --budget need --tokens, the tokens of the whole run")
    question = Question(
        spec=_one_model(model, preset, config),
        machine=cluster,
        counts=machine_counts(cluster, gpus),
        job=training_job(job),
        space=space(kinds, pins(pinned, fix)),
        batch=counted(gbs, "--gbs"),
        by=by,
        limits=limits,
        top=max(top, pick),
        workers=workers,
        sensitivity=sensitivity,
        named=_named(model, preset, config),
        options=_repeated(job),
    )
    answer = ask(question)
    _show_plan(answer, output, plot, pick if explain else None, top)


def _show_plan(
    answer: Any, output: str, plot: Path | None, pick: int | None, top: int
) -> None:
    """Print an answer's tables, draw its front, and show the picked layout in full."""
    from moeplan.cli import _print_json, _show
    from moeplan.report.plan_tables import plan_tables

    tree = answer.tree
    if pick is not None and pick > len(tree["best"]):
        raise UserError(f"--pick is {pick}, and there are {len(tree['best'])} layouts")
    tree = {**tree, "best": tree["best"][:top]} if pick is None else tree
    if output == "json":
        _print_json(tree)
    else:
        _show(plan_tables(tree), output)
        if pick is not None:
            from moeplan.report.layout_tables import layout_tables

            if output == "rich":
                print()
            _show(layout_tables(answer.full(pick - 1)), output)
    if plot is not None:
        from moeplan.report.plots.front import draw_front

        for path in draw_front(tree, plot):
            print(path, file=sys.stderr)
    if not tree["best"]:
        raise typer.Exit(1)


def training_job(found: Mapping[str, Any]) -> Any:
    """A training job of the options that `layout` has too."""
    from moeplan.cli_layout import job_of

    return job_of(found, training=True)


def _given(**options: Any) -> dict[str, Any]:
    return {name: option for name, option in options.items() if option is not None}


def _one_of(where: str, word: str, allowed: tuple[str, ...]) -> None:
    if word not in allowed:
        raise UserError(
            f"{where} {word!r} is not known, it is one of {', '.join(allowed)}"
            f"{near_miss(word, allowed)}"
        )


def _positive(text: str | None, kind: Any, where: str) -> float | None:
    if text is None:
        return None
    number = parse(text, kind, where=where)
    if not number > 0:
        raise UserError(f"{where} is {text}, and must be more than 0")
    return float(number)


def _named(model: str | None, preset: str | None, config: Path | None) -> str:
    """The model as `layout` takes it."""
    return shlex.quote(str(next(x for x in (model, preset, config) if x is not None)))


def _repeated(job: Mapping[str, Any]) -> str:
    """The job's options, for a command that gives the same numbers."""
    words = []
    for name, given in job.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(given, bool):
            words.append(option if given else f"--no-{name}")
        else:
            words += [option, shlex.quote(str(given))]
    return " ".join(words)


def register(program: typer.Typer) -> None:
    """Add the commands to the program."""
    program.add_typer(app, name="plan")
