"""The command `layout`: one model on one layout of a cluster, for training or for serving.

It is a command of its own because `estimate` describes one GPU: its --batch, --tokens and --ep mean
a GPU's share of an exchange, where a layout has these words for the whole cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from moeplan.cli_options import (
    Acceptance,
    Cache,
    Combine,
    Csv,
    Dispatch,
    Draft,
    Imbalance,
    Json,
    Markdown,
    Optimizer,
    Policy,
    Price,
    Weights,
)
from moeplan.errors import UserError

__all__ = ["options_job", "register"]

_BOTH = {"imbalance", "dispatch", "combine", "stack", "price", "framework", "fragmentation"}
_TRAINING = {
    "schedule", "recompute", "overlap", "sequence", "tokens_total", "optimizer", "precision",
    "kept", "account", "mtp", "policy", "power",
}  # fmt: skip
_SERVING = {
    "isl", "osl", "batch", "tpot", "cached", "prefill_batch", "disaggregated", "draft",
    "acceptance", "weights", "cache", "queueing", "hidden_exchange",
}  # fmt: skip
_KINDS = ("schedule", "recompute", "overlap")
_FIELDS = {
    "tokens_total": "tokens", "isl": "input", "osl": "output", "hidden_exchange": "overlap",
}  # fmt: skip
"""Fields of jobs whose option has another name."""
_NAMES = {field: name for name, field in _FIELDS.items()}
_MOST = 10**18  # of a degree


def layout(
    model: Annotated[str, typer.Argument(help="A preset, or a path to a config.json.")],
    degrees: Annotated[
        str,
        typer.Argument(
            metavar="LAYOUT",
            help="Such as tp=2,pp=16,ep=8; dp is what these leave of the GPUs, if not given.",
        ),
    ],
    cluster: Annotated[
        str, typer.Option(help="Such as h800x2048 or gb200-nvl72; the layout fills it.")
    ],
    train: Annotated[bool, typer.Option("--train", help="A training step.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="An instance that serves.")] = False,
    schedule: Annotated[
        str | None, typer.Option(help="1f1b, interleaved, zero-bubble or dualpipe.")
    ] = None,
    recompute: Annotated[
        str | None, typer.Option(help="none, selective, selective:norm+activation, or full.")
    ] = None,
    overlap: Annotated[
        str | None, typer.Option(help="Messages under compute: none, usual, all-to-all, dualpipe.")
    ] = None,
    sequence: Annotated[str | None, typer.Option(help="Tokens of a training sequence.")] = None,
    tokens_total: Annotated[
        str | None, typer.Option(help="Tokens of the whole run, such as 14.8T, for its bill.")
    ] = None,
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
    power: Annotated[str | None, typer.Option(help="All-in watts of a GPU: '1.7 kW'.")] = None,
    isl: Annotated[str | None, typer.Option(help="Input tokens of a request.")] = None,
    osl: Annotated[str | None, typer.Option(help="Output tokens of a request.")] = None,
    batch: Annotated[
        str | None, typer.Option(help="Sequences decoded together; else the most that fit.")
    ] = None,
    tpot: Annotated[
        str | None, typer.Option(help="Time per output token to meet: '50 ms'.")
    ] = None,
    cached: Annotated[float | None, typer.Option(help="Share of the input that is cached.")] = None,
    prefill_batch: Annotated[str | None, typer.Option(help="Requests prefilled together.")] = None,
    disaggregated: Annotated[
        bool | None, typer.Option("--disaggregated", help="Prefill and decoding do not share GPUs.")
    ] = None,
    draft: Draft = None,
    acceptance: Acceptance = None,
    weights: Weights = None,
    cache: Cache = None,
    queueing: Annotated[float | None, typer.Option(help="TTFT over the prefill's time.")] = None,
    hidden_exchange: Annotated[
        float | None, typer.Option(help="Share of the exchange under compute, 0 to 1.")
    ] = None,
    imbalance: Imbalance = None,
    dispatch: Dispatch = None,
    combine: Combine = None,
    stack: Annotated[
        str | None, typer.Option(help="What kernels reach: datasheet, kernels, megatron-bridge.")
    ] = None,
    price: Price = None,
    framework: Annotated[
        str | None, typer.Option(help="Memory of context and libraries: '2 GB'.")
    ] = None,
    fragmentation: Annotated[
        float | None, typer.Option(help="Share of memory that the allocator loses.")
    ] = None,
    as_json: Json = False,
    markdown: Markdown = False,
    as_csv: Csv = False,
) -> None:
    """Memory, traffic, time and money of a model on one layout of a cluster."""
    options = {
        "schedule": schedule, "recompute": recompute, "overlap": overlap, "sequence": sequence,
        "tokens_total": tokens_total, "optimizer": optimizer, "precision": precision, "kept": kept,
        "account": account, "mtp": mtp, "policy": policy, "power": power, "isl": isl, "osl": osl,
        "batch": batch, "tpot": tpot, "cached": cached, "prefill_batch": prefill_batch,
        "disaggregated": disaggregated, "draft": draft, "acceptance": acceptance,
        "weights": weights, "cache": cache, "queueing": queueing,
        "hidden_exchange": hidden_exchange, "imbalance": imbalance, "dispatch": dispatch,
        "combine": combine, "stack": stack, "price": price, "framework": framework,
        "fragmentation": fragmentation,
    }  # fmt: skip
    if train == serve:
        given = "both were" if train else "neither was"
        raise UserError(f"one of --train and --serve is needed, and {given} given")
    found = {name: option for name, option in options.items() if option is not None}
    _belongs(found, training=train)
    _show_answer(model, degrees, cluster, found, train, as_json, markdown, as_csv)


def _show_answer(
    model: str,
    degrees: str,
    cluster: str,
    found: Mapping[str, Any],
    train: bool,
    as_json: bool,
    markdown: bool,
    as_csv: bool,
) -> None:
    from moeplan.cli import _output, _print_json, _show
    from moeplan.cluster.hardware import cluster as cluster_named
    from moeplan.load import load_model
    from moeplan.report.layout_answer import serving_answer, training_answer
    from moeplan.report.layout_tables import layout_tables

    output = _output(as_json, markdown, as_csv)
    spec, machine = load_model(model), cluster_named(cluster)
    kinds = [f"{n}={found[n]}" for n in _KINDS if n in found]
    parsed = _parsed(",".join([degrees, *kinds]), int(machine.gpus.value))
    job = options_job(found, training=train)
    answer = (training_answer if train else serving_answer)(spec, parsed, machine, job)
    if output == "json":
        _print_json(answer)
    else:
        _show(layout_tables(answer), output)


def _parsed(text: str, gpus: int) -> Any:
    """The layout on these GPUs; where dp cannot fill them it stays 1, for the rules to say so."""
    from moeplan.cluster.layout import NUMBERS, Layout

    found = Layout.parse(text)
    for name in NUMBERS:
        if getattr(found, name) > _MOST:
            raise UserError(f"LAYOUT: {name} is too large, the most is {_MOST:.0e}")
    fills = gpus % (found.tp * found.cp * found.pp) == 0
    return Layout.parse(text, gpus=gpus) if fills else found


def _belongs(found: Mapping[str, Any], *, training: bool) -> None:
    """Refuse what is of the other kind of job."""
    allowed = _BOTH | (_TRAINING if training else _SERVING)
    wrong = [_option(name) for name in found if name not in allowed]
    if wrong:
        this, other = ("--train", "--serve") if training else ("--serve", "--train")
        verb = "is" if len(wrong) == 1 else "are"
        raise UserError(f"{', '.join(wrong)} {verb} for {other}, and {this} was given")


def options_job(found: Mapping[str, Any], *, training: bool) -> Any:
    """A training or serving job of the options; `UserError` for a number or word out of range."""
    from moeplan.parallel.job_values import job_of

    fields = {_FIELDS.get(name, name): x for name, x in found.items() if name not in _KINDS}
    return job_of(fields, training=training, where=lambda name: _option(_NAMES.get(name, name)))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(layout)
