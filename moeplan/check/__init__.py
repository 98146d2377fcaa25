"""Does the estimate count the real model? Tensor by tensor, against files or a built model."""

from __future__ import annotations

from pathlib import Path

from moeplan.check.compare import Check, Totals, check_tensors
from moeplan.check.differences import Difference
from moeplan.check.sources import from_files, from_model, packed_bits
from moeplan.errors import UserError
from moeplan.load import config_data, load_config

__all__ = ["Check", "Difference", "Totals", "check"]


def check(path: str | Path) -> Check:
    """Compare a config's estimate with the checkpoint beside it, else with transformers' model.

    `path` names a config.json or the folder that holds it. Where moeplan refuses the config, the
    outcome holds the reason and the totals of the source alone. Raises UserError where the file
    cannot be read, files are broken, or there is nothing to compare with.
    """
    file, data = config_data(path)
    spec, refusal = None, None
    try:
        spec = load_config(path)
    except UserError as problem:
        refusal = str(problem)
    source = from_files(file.parent)
    if source is None:
        source = from_model(data, str(path))
    return check_tensors(str(path), source, spec, refusal, packed_bits(data))
