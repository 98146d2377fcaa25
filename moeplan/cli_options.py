"""The options of the command line, each declared once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from moeplan.errors import UserError

__all__ = [
    "Acceptance",
    "Attention",
    "Batch",
    "Cache",
    "Combine",
    "ConfigOption",
    "Context",
    "Csv",
    "Dispatch",
    "Draft",
    "Ep",
    "GpuOption",
    "Imbalance",
    "Json",
    "Markdown",
    "Microbatch",
    "Model",
    "Node",
    "Optimizer",
    "Policy",
    "PresetOption",
    "Price",
    "Tokens",
    "Weights",
    "share",
]


def _presets(incomplete: str) -> list[str]:
    """Names for the shell's completion."""
    from moeplan.presets import names

    return [name for name in names() if name.startswith(incomplete)]


def _gpus(incomplete: str) -> list[str]:
    from moeplan.cluster.hardware import gpus

    return [gpu.id for gpu in gpus() if gpu.id.startswith(incomplete)]


def share(option: str) -> dict[str, Any]:
    """Parameters of an option that is a share: 0.56, or 56%. `UserError` for anything else."""

    def read(text: str | float) -> float:
        words = str(text).strip()
        percent = words.endswith("%")
        try:
            number = float(words.removesuffix("%"))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{option} is {words!r}, and must be a share, such as 0.56 or 56%")
        return number / 100 if percent else number

    return {"parser": read, "metavar": "<share>"}


Model = Annotated[
    str | None,
    typer.Argument(
        help="A preset, or a path to a config.json or its folder.", autocompletion=_presets
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", help="A preset's name or alias.", autocompletion=_presets),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="A config.json, or a folder that holds one.")
]
Context = Annotated[
    str | None, typer.Option(help="Tokens of a sequence: 4096, 128k (k is 1000), 128Ki.")
]
Batch = Annotated[int | None, typer.Option(help="Sequences prefilled or decoded together.")]
Microbatch = Annotated[int | None, typer.Option(help="Sequences of a training microbatch.")]
Tokens = Annotated[int | None, typer.Option(help="Tokens a GPU brings to an exchange.")]
Ep = Annotated[int | None, typer.Option(help="Expert parallelism: GPUs that share the experts.")]
Node = Annotated[int | None, typer.Option(help="GPUs of a node within that group.")]
Imbalance = Annotated[float | None, typer.Option(help="Load of the fullest GPU over the mean.")]
Attention = Annotated[str | None, typer.Option(help="Scores that count: causal or full.")]
Weights = Annotated[str | None, typer.Option(help="Weight format; else the checkpoint's own.")]
Cache = Annotated[str | None, typer.Option(help="Format of the key-value cache.")]
Dispatch = Annotated[str | None, typer.Option(help="Format of dispatched rows.")]
Combine = Annotated[str | None, typer.Option(help="Format of combined rows.")]
Policy = Annotated[str | None, typer.Option(help="Sent once: copies, per-gpu or per-node.")]
Optimizer = Annotated[str | None, typer.Option(help="Training state, such as adamw-fp32.")]
GpuOption = Annotated[
    str | None, typer.Option("--gpu", help="GPU, or a TOML file with one.", autocompletion=_gpus)
]
Price = Annotated[str | None, typer.Option(help="A kind of price, or an amount such as '$2/h'.")]
Draft = Annotated[int | None, typer.Option(help="Tokens drafted a step by the MTP modules.")]
Acceptance = Annotated[
    float | None, typer.Option(help="Share of them accepted, 0 to 1.", **share("--acceptance"))
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document, and nothing else.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Tables as Markdown.")]
Csv = Annotated[bool, typer.Option("--csv", help="Tables as CSV.")]
