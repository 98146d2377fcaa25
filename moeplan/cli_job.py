"""The options of a job on a layout, declared once, and what they choose together.

`layout`, `estimate --layout` and `export` take the same options and come to the same `Chosen`,
which a plan file gives as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from moeplan.cli_options import (
    Acceptance,
    Cache,
    Combine,
    Dispatch,
    Draft,
    Imbalance,
    Optimizer,
    Policy,
    Price,
    Weights,
    share,
)
from moeplan.errors import UserError

if TYPE_CHECKING:
    from moeplan.plan.chosen import Chosen

__all__ = [
    "JOB_OPTIONS",
    "ClusterOption",
    "PlanOption",
    "SaveOption",
    "ServeOption",
    "TrainOption",
    "chosen",
    "estimate_on_layout",
    "job_of_options",
    "named_model",
    "option",
    "show_answer",
    "takes_job",
]

ClusterOption = Annotated[
    str | None, typer.Option(help="Such as h800x2048 or gb200-nvl72; the layout fills it.")
]
TrainOption = Annotated[bool, typer.Option("--train", help="A training step.")]
ServeOption = Annotated[bool, typer.Option("--serve", help="An instance that serves.")]
PlanOption = Annotated[
    Path | None, typer.Option("--plan", help="A plan file, in the place of all these options.")
]
SaveOption = Annotated[
    Path | None, typer.Option("--save", help="Write the choice as a plan file, too.")
]

JOB_OPTIONS: dict[str, Any] = {
    "schedule": Annotated[
        str | None, typer.Option(help="1f1b, interleaved, zero-bubble or dualpipe.")
    ],
    "recompute": Annotated[
        str | None, typer.Option(help="none, selective, selective:norm+activation, or full.")
    ],
    "overlap": Annotated[
        str | None, typer.Option(help="Messages under compute: none, usual, all-to-all, dualpipe.")
    ],
    "sequence": Annotated[str | None, typer.Option(help="Tokens of a training sequence.")],
    "tokens_total": Annotated[
        str | None, typer.Option(help="Tokens of the whole run, such as 14.8T, for its bill.")
    ],
    "optimizer": Optimizer,
    "precision": Annotated[str | None, typer.Option(help="Training matmuls: bf16 or fp8.")],
    "kept": Annotated[str | None, typer.Option(help="Kept activations: bf16 or fp8.")],
    "account": Annotated[
        str | None, typer.Option(help="Conventions of counting memory, such as megatron-core.")
    ],
    "mtp": Annotated[
        bool | None, typer.Option("--mtp/--no-mtp", help="Train the MTP modules too.")
    ],
    "policy": Policy,
    "power": Annotated[str | None, typer.Option(help="All-in watts of a GPU: '1.7 kW'.")],
    "isl": Annotated[str | None, typer.Option(help="Input tokens of a request.")],
    "osl": Annotated[str | None, typer.Option(help="Output tokens of a request.")],
    "batch": Annotated[
        str | None, typer.Option(help="Sequences decoded together; else the most that fit.")
    ],
    "tpot": Annotated[str | None, typer.Option(help="Time per output token to meet: '50 ms'.")],
    "cached": Annotated[
        float | None,
        typer.Option(help="Share of the input that is cached.", **share("--cached")),
    ],
    "prefill_batch": Annotated[str | None, typer.Option(help="Requests prefilled together.")],
    "disaggregated": Annotated[
        bool | None, typer.Option("--disaggregated", help="Prefill and decoding do not share GPUs.")
    ],
    "draft": Draft,
    "acceptance": Acceptance,
    "weights": Weights,
    "cache": Cache,
    "queueing": Annotated[float | None, typer.Option(help="TTFT over the prefill's time.")],
    "hidden_exchange": Annotated[
        float | None,
        typer.Option(
            help="Share of the exchange under compute, 0 to 1.", **share("--hidden-exchange")
        ),
    ],
    "imbalance": Imbalance,
    "dispatch": Dispatch,
    "combine": Combine,
    "stack": Annotated[
        str | None, typer.Option(help="What kernels reach: datasheet, kernels, megatron-bridge.")
    ],
    "price": Price,
    "framework": Annotated[
        str | None, typer.Option(help="Memory of context and libraries: '2 GB'.")
    ],
    "fragmentation": Annotated[
        float | None,
        typer.Option(help="Share of memory that the allocator loses.", **share("--fragmentation")),
    ],
}
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


def takes_job(command: Callable[..., None]) -> Callable[..., None]:
    """Put the options of a job in the place of the parameter `job` of a command.

    The command gets those that were given as a mapping, in their names; what it declares of the
    same name itself (a GPU's --batch) it gets twice.
    """
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters
    wanted: dict[str, inspect.Parameter] = {}
    for name, parameter in own.items():
        if name == "job":
            for extra, annotation in JOB_OPTIONS.items():
                if extra not in own:
                    wanted[extra] = inspect.Parameter(
                        extra,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=None,
                        annotation=_in_panel(annotation),
                    )
            continue
        wanted[name] = parameter.replace(
            kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]
        )

    @wraps(command)
    def run(**given: Any) -> None:
        job = {name: given[name] for name in JOB_OPTIONS if given.get(name) is not None}
        command(**{name: given[name] for name in own if name != "job"}, job=job)

    del run.__wrapped__
    run.__signature__ = inspect.Signature(list(wanted.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: p.annotation for name, p in wanted.items()}
    return run


def _in_panel(annotation: Any) -> Any:
    """The same option under a heading of its own in --help."""
    info = copy(annotation.__metadata__[0])
    info.rich_help_panel = "The job on a layout"
    return Annotated[annotation.__origin__, info]


def estimate_on_layout(
    model: str | None,
    preset: str | None,
    config: Path | None,
    layout: str | None,
    cluster: str | None,
    job: Mapping[str, Any],
    alone: Mapping[str, Any],
    *,
    train: bool,
    serve: bool,
    plan: Path | None,
) -> Chosen | None:
    """What `estimate` is to answer on a layout, or None where one GPU is meant.

    alone: options that describe one GPU without a layout.
    """
    if layout is None and plan is None:
        flags = {"--cluster": cluster is not None, "--train": train, "--serve": serve}
        wrong = [n for n, on in flags.items() if on]
        wrong += [option(name) for name in job if name not in alone]
        if wrong:
            verb = "needs" if len(wrong) == 1 else "need"
            raise UserError(f"{', '.join(wrong)} {verb} --layout, such as --layout tp=2,ep=8")
        return None
    named = named_model(model, preset, config)
    meant = {
        "tokens": "--tokens-total, or --isl",
        "ep": "ep in the layout",
        "gpu": "--cluster",
        "microbatch": "microbatch in the layout",
        "context": "--sequence, or --isl and --osl",
    }
    for name in alone:
        if name not in JOB_OPTIONS and alone[name] not in (None, False):
            instead = f"; with a layout it is {meant[name]}" if name in meant else ""
            raise UserError(f"{option(name)} describes one GPU without a layout{instead}")
    return chosen(named, layout, cluster, job, train=train, serve=serve, plan=plan)


def named_model(model: str | None, preset: str | None, config: Path | None) -> str | None:
    """The model as a plan names it, of the ways to name one. `UserError` where several were."""
    given = (model, preset, None if config is None else _as_path(config))
    named = [x for x in given if x is not None]
    if len(named) > 1:
        raise UserError(f"one model is needed and several were given: {', '.join(named)}")
    return named[0] if named else None


def _as_path(config: Path) -> str:
    """A path that cannot be taken for a preset's name."""
    text = str(config)
    return text if text.endswith(".json") or "/" in text or "\\" in text else f"./{text}"


def chosen(
    model: str | None,
    degrees: str | None,
    cluster: str | None,
    job: Mapping[str, Any],
    *,
    train: bool,
    serve: bool,
    plan: Path | None,
) -> Chosen:
    """What the options choose, or a plan file in their place. `UserError` for what is missing."""
    from moeplan.plan.chosen import Chosen

    said = {"a model": model, "a layout": degrees, "--cluster": cluster}
    flags = {"--train": train, "--serve": serve}
    if plan is not None:
        more = [*(n for n, x in said.items() if x is not None), *(n for n, x in flags.items() if x)]
        more += [option(name) for name in job]
        if more:
            raise UserError(
                f"--plan names all that is chosen, and {', '.join(more)} "
                f"{'was' if len(more) == 1 else 'were'} given too: "
                f"edit {plan} instead"
            )
        return Chosen.load(plan)
    missing = [name for name, x in said.items() if x is None]
    if model is None or degrees is None or cluster is None:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{' and '.join(missing)} {verb} needed (or --plan FILE, which names everything)"
        )
    if train == serve:
        given = "both were" if train else "neither was"
        raise UserError(f"one of --train and --serve is needed, and {given} given")
    return _of_options(model, degrees, cluster, job, train)


def _of_options(
    model: str, degrees: str, cluster: str, job: Mapping[str, Any], train: bool
) -> Chosen:
    from moeplan.cluster.hardware import cluster as cluster_named
    from moeplan.plan.chosen import Chosen

    _belongs(job, training=train)
    gpus = int(cluster_named(cluster).gpus.value)
    kinds = [f"{n}={job[n]}" for n in _KINDS if n in job]
    layout = _parsed(",".join([degrees, *kinds]), gpus)
    return Chosen(model, cluster, layout, job_of_options(job, training=train))


def job_of_options(
    job: Mapping[str, Any], *, training: bool, called: Mapping[str, str] | None = None
) -> Any:
    """A training or serving job of options; `UserError` for a number or word out of range.

    called: fields whose option has another name in this command, with that name.
    """
    from moeplan.parallel.job_values import job_of

    fields = {_FIELDS.get(name, name): x for name, x in job.items() if name not in _KINDS}
    names = {**_NAMES, **(called or {})}
    return job_of(fields, training=training, where=lambda name: option(names.get(name, name)))


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
    wrong = [option(name) for name in found if name not in allowed]
    if wrong:
        this, other = ("--train", "--serve") if training else ("--serve", "--train")
        verb = "is" if len(wrong) == 1 else "are"
        raise UserError(f"{', '.join(wrong)} {verb} for {other}, and {this} was given")


def option(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def show_answer(
    choice: Chosen, save: Path | None, as_json: bool, markdown: bool, as_csv: bool
) -> None:
    """Print what a choice costs, and write it as a plan file where that is wanted."""
    from moeplan.cli import _output, _print_json, _show
    from moeplan.report.layout_tables import layout_tables

    output = _output(as_json, markdown, as_csv)
    answer = choice.answer()
    if save is not None:
        choice.save(save)
    if output == "json":
        _print_json(answer)
    else:
        _show(layout_tables(answer), output)
