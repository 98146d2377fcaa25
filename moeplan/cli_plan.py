"""The commands `plan train` and `plan serve`: the best layout of all legal ones."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from moeplan.cli_options import (
    Acceptance,
    Combine,
    ConfigOption,
    Csv,
    Dispatch,
    Imbalance,
    Json,
    Markdown,
    Model,
    Optimizer,
    Policy,
    PresetOption,
    Price,
    share,
)
from moeplan.cli_plan_show import Shown, check_save, searching, show_plan
from moeplan.errors import UserError, near_miss
from moeplan.units import parse

__all__ = ["register"]

app = typer.Typer(no_args_is_help=True, help="The best of all legal layouts, for a job.")

_LIST = "Values to search: 1,2."

Values = Annotated[str | None, typer.Option(help=_LIST)]
Fix = Annotated[str | None, typer.Option(help="Degrees with one value: 'tp=1,zero=1'.")]
Top = Annotated[int, typer.Option(min=1, max=1000, help="Rows to show.")]
Plot = Annotated[Path | None, typer.Option(help="A folder for the front: PNG, SVG and CSV.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=256, help="Processes; else one for each processor. Same result."),
]
Save = Annotated[Path | None, typer.Option(help="Write the picked row as a plan file (TOML).")]
Export = Annotated[
    str | None,
    typer.Option(help="Print the picked row's launch arguments: megatron-lm, torchtitan, vllm ..."),
]
Pick = Annotated[int, typer.Option(min=1, max=1000, help="The row that is meant, 1 is the best.")]


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
    zero: Annotated[str | None, typer.Option(help="ZeRO stages to search, of 0,1,2,3.")] = None,
    microbatch: Values = None,
    schedule: Annotated[
        str | None, typer.Option(help="Of 1f1b, interleaved, zero-bubble, dualpipe; else all.")
    ] = None,
    recompute: Annotated[
        str | None, typer.Option(help="Of none, selective, full; else all. Groups: selective:norm.")
    ] = None,
    overlap: Annotated[
        str | None, typer.Option(help="Of none, usual, all-to-all, dualpipe; else by schedule.")
    ] = None,
    sp: Annotated[str | None, typer.Option(help="Sequence parallelism: 1, 0 or 0,1.")] = None,
    order: Annotated[str | None, typer.Option(help="Orders of ranks.")] = None,
    split: Annotated[str | None, typer.Option(help="Of even, full, balanced.")] = None,
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
        str | None,
        typer.Option(help="How ops are timed: calibrated, datasheet, kernels, ..."),
    ] = None,
    price: Price = None,
    power: Annotated[str | None, typer.Option(help="All-in watts of a GPU: '1.7 kW'.")] = None,
    framework: Annotated[
        str | None, typer.Option(help="Memory of context and libraries: '2 GB'.")
    ] = None,
    fragmentation: Annotated[
        float | None,
        typer.Option(help="Share of memory that the allocator loses.", **share("--fragmentation")),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity/--no-sensitivity", help="Search again for each change.")
    ] = True,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the picked layout in full, as `layout` does.")
    ] = False,
    pick: Pick = 1,
    save: Save = None,
    export: Export = None,
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
    check_save(save)
    sized = bool(limits) or (by == "gpus" and not question.counts)  # tells each size itself
    with searching("" if sized else "layouts"):
        answer = ask(question)
    show_plan(answer, Shown(output, top, pick, explain, plot, save, export))


@app.command()
def serve(
    model: Model = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    gpu: Annotated[str | None, typer.Option(help="GPU, or a TOML file with one.")] = None,
    rps: Annotated[str | None, typer.Option(help="Requests per second.")] = None,
    isl: Annotated[str, typer.Option(help="Input tokens of a request.")] = "4096",
    osl: Annotated[str, typer.Option(help="Output tokens of a request.")] = "1024",
    ttft: Annotated[str | None, typer.Option(help="Time to the first token to meet: 2s.")] = None,
    tpot: Annotated[
        str | None, typer.Option(help="Time per output token to meet: '50 ms'.")
    ] = None,
    cache_hits: Annotated[
        float | None,
        typer.Option(help="Share of the input that is cached, 0 to 1.", **share("--cache-hits")),
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="The most GPUs there are.")] = None,
    by: Annotated[str, typer.Option(help="Rank by gpus, cost or time (TPOT).")] = "gpus",
    mode: Annotated[
        str | None, typer.Option(help="aggregated or disaggregated; else both.")
    ] = None,
    instance: Annotated[
        str | None, typer.Option(help="GPUs of an instance, such as 4,8,16 or 8:64:8.")
    ] = None,
    largest: Annotated[
        int | None, typer.Option(min=1, max=4096, help="GPUs of the largest instance; else 64.")
    ] = None,
    utilization: Annotated[
        float,
        typer.Option(
            help="Share of an instance's rate to plan for, 0 to 1.", **share("--utilization")
        ),
    ] = 1.0,
    fix: Annotated[str | None, typer.Option(help="Degrees with one value: 'tp=1,ep=8'.")] = None,
    tp: Values = None,
    pp: Values = None,
    dp: Values = None,
    ep: Values = None,
    etp: Values = None,
    weights: Annotated[
        str | None, typer.Option(help="Weight formats to try, fp8,bf16; else as stored.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Cache formats to try, fp8,bf16; else as stored.")
    ] = None,
    draft: Annotated[
        str | None, typer.Option(help="Tokens drafted a step by MTP modules to try: 0,1.")
    ] = None,
    acceptance: Acceptance = None,
    prefill_batch: Annotated[str | None, typer.Option(help="Requests prefilled together.")] = None,
    queueing: Annotated[float | None, typer.Option(help="TTFT over the prefill's time.")] = None,
    hidden_exchange: Annotated[
        float | None,
        typer.Option(
            help="Share of the exchange under compute, 0 to 1.", **share("--hidden-exchange")
        ),
    ] = None,
    imbalance: Imbalance = None,
    dispatch: Dispatch = None,
    combine: Combine = None,
    stack: Annotated[
        str | None,
        typer.Option(help="How ops are timed: calibrated, datasheet, kernels, ..."),
    ] = None,
    price: Price = None,
    framework: Annotated[
        str | None, typer.Option(help="Memory of context and libraries: '2 GB'.")
    ] = None,
    fragmentation: Annotated[
        float | None,
        typer.Option(help="Share of memory that the allocator loses.", **share("--fragmentation")),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity/--no-sensitivity", help="Search again for each change.")
    ] = True,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the picked instances in full.")
    ] = False,
    pick: Pick = 1,
    save: Save = None,
    export: Export = None,
    top: Top = 10,
    plot: Plot = None,
    as_json: Json = False,
    markdown: Markdown = False,
    as_csv: Csv = False,
) -> None:
    """The fewest GPUs that carry requests within limits of latency, of all legal instances."""
    from moeplan.cli import _one_model, _output
    from moeplan.plan.ask_serving import ServingQuestion, ask_serving
    from moeplan.plan.options import counted, listed, numbers, pins
    from moeplan.plan.serving import MODES, Demand
    from moeplan.plan.space import SERVED

    _one_of("--by", by, ("gpus", "cost", "time"))
    if gpu is None or rps is None:
        missing = "--gpu" if gpu is None else "--rps"
        raise UserError(f"{missing} is needed, such as {'h200' if gpu is None else '20'}")
    common = _given(
        isl=isl, osl=osl, cached=cache_hits, acceptance=acceptance, prefill_batch=prefill_batch,
        queueing=queueing, hidden_exchange=hidden_exchange, imbalance=imbalance,
        dispatch=dispatch, combine=combine, stack=stack, price=price, framework=framework,
        fragmentation=fragmentation,
    )  # fmt: skip
    if not 0 < utilization <= 1:
        raise UserError(f"--utilization is {utilization}, and must be above 0 and at most 1")
    demand = Demand(
        _rate(rps), _positive(ttft, "time", "--ttft"), _positive(tpot, "time", "--tpot"),
        counted(gpus, "--gpus"), utilization,
    )  # fmt: skip
    modes = listed(mode, "--mode", MODES) if mode is not None else MODES
    question = ServingQuestion(
        spec=_one_model(model, preset, config),
        machine=gpu,
        jobs=_serving_jobs(common, weights, cache, draft),
        demand=demand,
        largest=largest,
        sizes=numbers(instance, "--instance") if instance is not None else None,
        pins=pins(_given(tp=tp, pp=pp, dp=dp, ep=ep, etp=etp), fix, SERVED),
        modes=modes,
        by=by,
        top=max(top, pick),
        named=_named(model, preset, config),
        options=_repeated(common),
        sensitivity=sensitivity,
    )
    output = _output(as_json, markdown, as_csv)
    check_save(save)
    with searching("instances"):
        answer = ask_serving(question)
    show_plan(answer, Shown(output, top, pick, explain, plot, save, export))


def _serving_jobs(
    common: Mapping[str, Any], weights: str | None, cache: str | None, draft: str | None
) -> list[Any]:
    """A job for each choice of formats and drafted tokens."""
    from itertools import product

    from moeplan.cli_job import job_of_options
    from moeplan.plan.options import numbers

    def words(text: str | None) -> list[str | None]:
        return [None] if text is None else list(dict.fromkeys(w.strip() for w in text.split(",")))

    drafts = (0,) if draft is None else numbers(draft, "--draft", 0)
    if "acceptance" in common and not any(drafts):
        raise UserError(
            f"--acceptance is {common['acceptance']:g}, and no token is drafted: give --draft, "
            "such as --draft 1"
        )
    return [
        job_of_options(
            {**common, **_given(weights=w, cache=c), "draft": d},
            training=False,
            called={"cached": "cache_hits"},
        )
        for w, c, d in product(words(weights), words(cache), drafts)
    ]


def _rate(text: str) -> float:
    """Requests per second: a number above 0."""
    try:
        rate = float(text)
    except ValueError:
        raise UserError(f"--rps {text!r} must be a number, such as 20 or 0.5") from None
    if not 0 < rate <= 1e9:
        raise UserError(f"--rps is {text}, and must be above 0 and at most 10^9")
    return rate


def training_job(found: Mapping[str, Any]) -> Any:
    """A training job of the options that `layout` has too."""
    from moeplan.cli_job import job_of_options

    return job_of_options(found, training=True, called={"tokens": "tokens"})


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
    return str(next(x for x in (model, preset, config) if x is not None))


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
