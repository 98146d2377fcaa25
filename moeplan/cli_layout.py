"""The command `layout`: one model on one layout of a cluster, for training or for serving.

`estimate --layout` gives the same answer; this takes the layout as an argument, and takes none of
the options that describe one GPU without a layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from moeplan.cli_job import (
    ClusterOption,
    PlanOption,
    SaveOption,
    ServeOption,
    TrainOption,
    chosen,
    named_model,
    show_answer,
    takes_job,
)
from moeplan.cli_options import ConfigOption, Csv, Json, Markdown, PresetOption

__all__ = ["register"]


@takes_job
def layout(
    model: Annotated[
        str | None, typer.Argument(help="A preset, or a path to a config.json.")
    ] = None,
    degrees: Annotated[
        str | None,
        typer.Argument(
            metavar="[LAYOUT]",
            help="Such as tp=2,pp=16,ep=8; dp is what these leave of the GPUs, if not given.",
        ),
    ] = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
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
    """Memory, traffic, time and money of a model on one layout of a cluster."""
    if degrees is None and (preset is not None or config is not None):
        model, degrees = None, model  # the layout is the only argument then
    named = named_model(model, preset, config)
    found = chosen(named, degrees, cluster, job, train=train, serve=serve, plan=plan)
    show_answer(found, save, as_json, markdown, as_csv)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(layout)
