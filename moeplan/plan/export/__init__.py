"""A chosen layout as launch arguments of real engines, in their own option names.

`export(engine, chosen)` gives an `Exported`: a script to copy, its arguments, and notes on what the
engine does otherwise. What an engine cannot express at all is refused, with every reason. The names
that may be written, with the file and commit that each was read in, are `data/engines.toml`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeplan.errors import UserError, near_miss

if TYPE_CHECKING:
    from moeplan.plan.chosen import Chosen
    from moeplan.plan.export.engine import Exported, Subject

__all__ = ["ENGINES", "engine_named", "export"]

ENGINES = {
    "megatron-lm": "training",
    "torchtitan": "training",
    "vllm": "serving",
    "sglang": "serving",
}
"""What can be exported to, and what it does."""
_ALIASES = {"megatron": "megatron-lm"}


def engine_named(engine: str) -> str:
    """The key of `ENGINES` that is meant. `UserError` with a near miss for none."""
    name = _ALIASES.get(engine.lower(), engine.lower())
    if name not in ENGINES:
        raise UserError(
            f"engine {engine!r} is not known, it is one of {', '.join(ENGINES)}"
            f"{near_miss(name, ENGINES)}"
        )
    return name


def export(engine: str, chosen: Chosen, *, base: str | None = None) -> Exported:
    """The choice for an engine. base: see `moeplan.plan.export.torchtitan.torchtitan`.

    Raises `UserError` for an engine that is not known or does another job, a layout that is not
    legal, and what the engine cannot express.
    """
    name = engine_named(engine)
    kind = "training" if chosen.training else "serving"
    if ENGINES[name] != kind:
        fits = [n for n, does in ENGINES.items() if does == kind]
        raise UserError(f"{name} is for {ENGINES[name]}, and this is {kind}: use {fits[0]}, or "
                        f"{fits[1]}")  # fmt: skip
    if base is not None and name != "torchtitan":
        raise UserError(f"--base is for torchtitan, and {name} was given")
    return _export(name, chosen, base)


def _export(name: str, chosen: Chosen, base: str | None) -> Exported:
    from moeplan.load import load_model
    from moeplan.plan.export.engine import Subject

    subject = Subject(chosen, load_model(chosen.model), chosen.place())
    _check(subject)
    if name == "megatron-lm":
        from moeplan.plan.export.megatron import megatron

        return megatron(subject)
    if name == "torchtitan":
        from moeplan.plan.export.torchtitan import torchtitan

        return torchtitan(subject, base)
    if name == "vllm":
        from moeplan.plan.export.vllm import vllm

        return vllm(subject)
    from moeplan.plan.export.sglang import sglang

    return sglang(subject)


def _check(subject: Subject) -> None:
    """Refuse a layout that is not legal, with every rule that it breaks."""
    from moeplan.cluster.rules import check
    from moeplan.parallel import ServingPlan, TrainingJob, TrainingPlan

    chosen, spec, cluster = subject.chosen, subject.spec, subject.cluster
    job = chosen.job
    plan: TrainingPlan | ServingPlan
    if isinstance(job, TrainingJob):
        plan = TrainingPlan(spec, cluster, job)
    else:
        plan = ServingPlan(spec, cluster, job)
    for layout in chosen.layouts:
        world = layout.values["world"] if chosen.pooled else None
        check(layout, plan.rules(layout), **plan.facts(world))
