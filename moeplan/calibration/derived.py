"""Calibrations for GPUs without measurements: another GPU's, carried over by datasheet rates.

Rates of the tensor cores and of the caches beside them go with the peak rate, memory rates and the
bytes in flight with the memory bandwidth; fixed costs stay. The result is labelled assumed, and
its band is that of the origin squared: kernels that are tuned for one chip reach less on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from moeplan.calibration.optime import Device, device_of
from moeplan.calibration.store import Calibration, OpFit, calibration, names
from moeplan.cluster.hardware import gpu
from moeplan.errors import UserError

__all__ = ["carried", "for_gpu"]

WIDER = 2.0
_PREFERRED: Mapping[str, tuple[str, ...]] = {"backend": ("vllm-triton", "cublas", "kernels")}


def carried(found: Calibration, device: Device) -> Calibration:
    """A calibration for another device, by the ratio of the datasheets' rates."""
    ratio = {
        "matrix": device.matrix / found.device.matrix,
        "memory": device.memory / found.device.memory,
        "none": 1.0,
    }
    why = f"{found.name}, times the ratio of datasheet rates of {device.id} and {found.device.id}"

    def scaled(fit: OpFit) -> OpFit:
        known = fit.model.constants
        constants = {n: v * ratio[known[n].scale] for n, v in fit.constants.items()}
        return replace(
            fit, constants=constants, origin="assumed", widen=fit.widen * WIDER, note=why
        )

    return replace(
        found,
        name=f"{device.id} from {found.name}",
        device=device,
        fits={kind: scaled(fit) for kind, fit in found.fits.items()},
        source=why,
    )


@cache
def for_gpu(name: str) -> Mapping[str, Calibration]:
    """For each kind of op the calibration of a GPU: its own, or one carried over from an H200.

    `name` is what `--gpu` takes. Raises UserError for an unknown GPU.
    """
    device = device_of(gpu(name))
    out: dict[str, Calibration] = {}
    for candidate in (calibration(name) for name in names()):
        own = candidate.device.id == device.id
        for kind, fit in candidate.fits.items():
            best = out.get(kind)
            taken = best is not None and best.device.id == device.id and "from" not in best.name
            if fit.origin == "measured" and own:
                out[kind] = candidate
            elif not taken and (best is None or own):
                out[kind] = candidate if own else carried(candidate, device)
    if not out:
        raise UserError("no calibration ships with this installation")
    return out
