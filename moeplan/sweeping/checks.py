"""Values that users write out, checked before anything runs: a wrong word is no illegal point."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from moeplan.cluster.hardware import PRICE_KINDS, cluster, gpu
from moeplan.cluster.layout import Layout
from moeplan.errors import UserError, near_miss
from moeplan.estimation.memory import optimizer_named
from moeplan.estimation.scenario import Scenario
from moeplan.model.formats import format_named
from moeplan.parallel.job_values import job_of
from moeplan.sweeping.inputs import Input, Mode

__all__ = ["check_value", "device_named"]

_MOST = 10**18  # of anything that is counted


def check_value(known: Input, value: Any, mode: Mode) -> None:
    """Raise `UserError` for a value that the input cannot have at any point."""
    room = _ROOMS.get(known.room)
    if known.kind == "amount" and isinstance(value, str):
        if value not in PRICE_KINDS:
            hint = near_miss(value, PRICE_KINDS)
            raise UserError(
                f"--vary {known.name}={value}: write '$2/h', or a kind of price: "
                f"{', '.join(PRICE_KINDS)}{hint}"
            )
    elif room is not None:
        room(known, value, mode)


def _setting(known: Input, value: Any, mode: Mode) -> None:
    name = known.key
    given = {"draft": 1, name: value} if name == "acceptance" else {name: value}
    Scenario.of(**given)
    if name == "gpu":
        gpu(value)
    elif name == "optimizer":
        optimizer_named(value)
    elif name == "cache":
        format_named(value, "cache format")
    elif name == "weights":
        format_named(value, "weight format")


def _gpu(known: Input, value: Any, mode: Mode) -> None:
    if not value > 0:
        raise UserError(f"{known.name} is {value}, and must be more than 0")


def _cluster(known: Input, value: Any, mode: Mode) -> None:
    if known.key == "gpus":
        if value < 1:
            raise UserError(f"gpus is {value}, and must be at least 1")
    else:
        device_named(value)


def _layout(known: Input, value: Any, mode: Mode) -> None:
    if isinstance(value, int) and value > _MOST:
        raise UserError(f"{known.name} is too large, the most is {_MOST:.0e}")
    Layout.parse(f"{known.key}={value}")


def _job(known: Input, value: Any, mode: Mode) -> None:
    job_of({known.key: value}, training=mode == "train", where=lambda name: known.name)


@cache
def device_named(name: str) -> str:
    """The GPU of a cluster's name; a GPU alone will do where the number of GPUs is an input."""
    try:
        return cluster(name).gpu.id
    except UserError:
        try:
            return gpu(name).id
        except UserError:
            pass
        raise


_ROOMS: dict[str, Callable[[Input, Any, Mode], None]] = {
    "setting": _setting,
    "gpu": _gpu,
    "cluster": _cluster,
    "layout": _layout,
    "job": _job,
}
