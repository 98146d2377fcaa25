"""The library in one call each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeplan.estimation.estimate import Estimate
from moeplan.estimation.scenario import Scenario
from moeplan.load import load_model
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["compare", "estimate", "explain"]


def estimate(model: str | Path | Mapping[str, Any] | ModelSpec, **scenario: Any) -> Estimate:
    """What a model costs.

    `model` is a preset's name, a path to a config.json or its folder, a parsed config, or a spec.
    `scenario` takes the settings of `moeplan.estimation.scenario.DEFAULTS` (context, batch,
    microbatch, tokens, ep, node, imbalance, attention, weights, cache, dispatch, combine, policy,
    optimizer, gpu, price, draft, acceptance); numbers may be numpy arrays that broadcast. Raises
    UserError.
    """
    return Estimate(load_model(model), Scenario.of(**scenario))


def explain(model: str | Path | Mapping[str, Any] | ModelSpec, path: str, **scenario: Any) -> Any:
    """The quantity (value, formula, inputs with their sources) at a path of the JSON document."""
    found: Quantity | Any = estimate(model, **scenario)[path]
    return found


def compare(*models: str | Path | Mapping[str, Any] | ModelSpec, **scenario: Any) -> list[Estimate]:
    """One estimate for each model, in the same scenario."""
    return [estimate(model, **scenario) for model in models]
