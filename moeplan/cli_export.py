"""The command `export`: a chosen layout as the launch arguments of an engine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from moeplan.cli_job import (
    ClusterOption,
    PlanOption,
    ServeOption,
    TrainOption,
    chosen,
    named_model,
    takes_job,
)
from moeplan.cli_options import ConfigOption, Json, PresetOption

__all__ = ["register"]


@takes_job
def export(
    engine: Annotated[
        str, typer.Argument(help="megatron-lm or torchtitan (training), vllm or sglang (serving).")
    ],
    model: Annotated[
        str | None, typer.Argument(help="A preset, or a path to a config.json.")
    ] = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    layout: Annotated[
        str | None, typer.Option(help="Such as tp=2,pp=16,ep=8, if there is no plan file.")
    ] = None,
    cluster: ClusterOption = None,
    train: TrainOption = False,
    serve: ServeOption = False,
    plan: PlanOption = None,
    base: Annotated[
        str | None,
        typer.Option(help="torchtitan: MODULE:FUNCTION of the configuration to start from."),
    ] = None,
    *,
    job: Mapping[str, Any],
    as_json: Json = False,
) -> None:
    """A chosen layout as launch arguments for Megatron-LM, torchtitan, vLLM or SGLang."""
    from moeplan.cli import _print_json
    from moeplan.plan.export import ENGINES, engine_named
    from moeplan.plan.export import export as write

    kind = ENGINES[engine_named(engine)]
    if plan is None and not train and not serve:
        train, serve = kind == "training", kind == "serving"
    named = named_model(model, preset, config)
    found = chosen(named, layout, cluster, job, train=train, serve=serve, plan=plan)
    exported = write(engine, found, base=base)
    if as_json:
        _print_json(exported.document())
    else:
        sys.stdout.write(exported.text())


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(export)
