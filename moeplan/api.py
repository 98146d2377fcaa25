"""The library in one call each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from moeplan.estimation.estimate import Estimate
from moeplan.estimation.scenario import Scenario
from moeplan.load import load_model
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["compare", "estimate", "explain", "sweep"]


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


def sweep(
    model: str | Path | Mapping[str, Any] | ModelSpec | None = None,
    *,
    vary: Mapping[str, Any],
    set: Mapping[str, Any] | None = None,
    show: Sequence[str] = (),
    cluster: str | None = None,
    job: Literal["train", "serve"] | None = None,
    workers: int = 1,
    max_points: int = 1_000_000,
) -> dict[str, Any]:
    """Every combination of the varied inputs, as columns: numpy arrays with an entry a point.

    `vary` names inputs and their values (a sequence, or a text such as "1k:64k:x2"); `set` fixes
    inputs or links them by formula ("8*g"). `show` are paths of the estimate's JSON document or,
    with a `cluster` and a `job`, keys of `moeplan.parallel`. The column `reason` is empty for
    legal points. `workers` are processes, with the same result. Raises UserError for wrong names
    and values, and where no point is legal.
    """
    from moeplan.sweeping import ask, run

    mode = job or ("train" if cluster is not None else "estimate")
    asked = ask(model, vary, set or {}, show, cluster, mode, max_points)
    return run(asked, workers=workers).columns
