"""What a GPU-hour costs, and what a training run comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeplan.calc import calc
from moeplan.cluster.hardware import all_in_power, price, prices
from moeplan.parallel.jobs import TrainingJob
from moeplan.units import parse

__all__ = ["hourly", "run_bill"]


def hourly(given: Any, device: str) -> Any:
    """Dollars per GPU-hour of a device; nan where none is known.

    given: a number, a text such as "$2", a provider's name, or None for the price on file.
    """
    if given is None:
        return price(device).per_hour if prices(device) else float("nan")
    if isinstance(given, str):
        if "$" in given:
            return parse(given, "money", where="price")
        return price(device, given).per_hour
    return given


def run_bill(
    job: TrainingJob, device: str, rate: Any, gpus: Any, own: Callable[[Any], Any]
) -> dict[str, Any]:
    """Seconds, GPU-hours, dollars and joules of a run; nan where something is not known.

    rate: tokens a second on `gpus` GPUs. own: what makes quantities bare, where numbers are asked.
    """
    unknown = float("nan")
    tokens = unknown if job.tokens is None else own(job.tokens)
    seconds = calc("tokens/rate", "s", tokens=tokens, rate=rate)
    hours = calc("seconds*gpus/3600", "h", seconds=seconds, gpus=gpus)
    power = job.power if job.power is not None else all_in_power(device)
    watts = unknown if power is None else own(power)
    return {
        "seconds": seconds,
        "gpu_hours": hours,
        "dollars": calc("hours*price", "$", hours=hours, price=own(hourly(job.price, device))),
        "energy": calc("seconds*gpus*watts", "J", seconds=seconds, gpus=gpus, watts=watts),
    }
